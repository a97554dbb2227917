// The gradients of a depthwise convolution with respect to its weight, bias and input, over maps in channels_last memory:
//
//     weight[c, i, j]    = sum over n, h, w of x[n, h + i - p, w + j - p, c] * grad[n, h, w, c],  p = k / 2
//     bias[c]            = sum over n, h, w of grad[n, h, w, c]
//     x_grad[n, h, w, c] = sum over i, j of grad[n, h + p - i, w + p - j, c] * the convolution's weight[c, i, j]
//
// A task is a block of channels over a few samples. It packs their rows as fp32, padded with zeros on every side, so
// that the sums below know neither edges nor dtypes nor a last block of fewer channels. For the weight, one row of the
// kernel at a time stays in registers; for the input, some positions of a row. Every task has sums of its own, added up
// in a fixed order: the result depends neither on the number of threads nor on which of them was first.

#include "vectors.h"

int omp_get_thread_num(void);

#define BLOCK 16          // channels of a task: a cache line of fp32
#define TAPS 8            // most taps of a kernel's row that are summed at once
#define PIXELS 8          // most positions of a row whose input gradients are
#if LANES == 16
#define TILE 4            // positions whose inputs are in registers together
#else
#define TILE 2
#endif
#define TASKS 128         // enough of them for many threads, as far as there are samples
#define PACKED_SIZE 16384 // floats of packed input, about

typedef struct {
    int64_t samples, height, width, channels;
    int is_bf16;
} Shape;

// The channels from `first` on of one position, as fp32; zeros where there are fewer than a block.
INLINE void read_position(float *out, const void *map, int64_t position, int64_t first, Shape shape) {
    int64_t at = position * shape.channels + first, left = shape.channels - first;
#pragma GCC unroll 4
    for (int lane = 0; lane < BLOCK; lane += LANES)
        *(lanes *)(out + lane) = lane < left ? load(map, at + lane, left - lane, shape.is_bf16) : (lanes){0};
}

// The rows from `first_row` on of a sample, a block of channels from `first` on, with `pad` zeros on each side.
static void pack_rows(
    float *out, const void *map, int64_t sample, int64_t first_row, int64_t rows, int64_t pad, int64_t first,
    Shape shape) {
    int64_t padded_width = shape.width + 2 * pad;
    for (int64_t row = 0; row < rows; row++, out += padded_width * BLOCK) {
        int64_t y = first_row + row;
        if (y < 0 || y >= shape.height) {
            memset(out, 0, padded_width * BLOCK * FLOAT);
            continue;
        }
        memset(out, 0, pad * BLOCK * FLOAT);
        for (int64_t w = 0; w < shape.width; w++)
            read_position(out + (pad + w) * BLOCK, map, (sample * shape.height + y) * shape.width + w, first, shape);
        memset(out + (pad + shape.width) * BLOCK, 0, pad * BLOCK * FLOAT);
    }
}

// sums[j] += x[row, w + j] * grad[row, w], over `rows` rows of `width` positions, for j < taps, a constant where inlined.
INLINE void add_taps(
    const int taps, float *sums, const float *x, const float *grad, int64_t padded_width, int64_t width, int64_t rows) {
    for (int lane = 0; lane < BLOCK; lane += LANES) {
        lanes sum[TAPS] = {0}; // not the sums so far: long sums lose digits
        for (int64_t row = 0; row < rows; row++) {
            const float *inputs = x + row * padded_width * BLOCK + lane;
            const float *grads = grad + row * padded_width * BLOCK + lane;
            int64_t w = 0;
            for (; w + TILE <= width; w += TILE) {
                lanes input[TILE + TAPS - 1];
#pragma GCC unroll 16
                for (int t = 0; t < TILE + taps - 1; t++) input[t] = *(const lanes *)(inputs + (w + t) * BLOCK);
#pragma GCC unroll 8
                for (int t = 0; t < TILE; t++) {
                    lanes g = *(const lanes *)(grads + (w + t) * BLOCK);
#pragma GCC unroll 8
                    for (int j = 0; j < taps; j++) sum[j] += input[t + j] * g;
                }
            }
            for (; w < width; w++) {
                lanes g = *(const lanes *)(grads + w * BLOCK);
#pragma GCC unroll 8
                for (int j = 0; j < taps; j++) sum[j] += *(const lanes *)(inputs + (w + j) * BLOCK) * g;
            }
        }
#pragma GCC unroll 8
        for (int j = 0; j < taps; j++) *(lanes *)(sums + j * BLOCK + lane) += sum[j];
    }
}

static void add_some_taps(
    int64_t taps, float *sums, const float *x, const float *grad, int64_t padded_width, int64_t width, int64_t rows) {
    switch (taps) {
#define CASE(n) case n: add_taps(n, sums, x, grad, padded_width, width, rows); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
    }
}

// Input gradients of `count` positions of a row, a constant where inlined. `grad`: packed, from the position and row on
// that meet the first tap; `taps`: of the kernel turned by 180 degrees, (k * k, BLOCK).
INLINE void turned_pixels(
    const int count, const float *grad, int64_t padded_width, const float *taps, int64_t k, void *out, int64_t at,
    int64_t left, Shape shape) {
    for (int lane = 0; lane < least(BLOCK, left); lane += LANES) {
        lanes sums[PIXELS] = {{0}};
        for (int64_t i = 0; i < k; i++)
            for (int64_t j = 0; j < k; j++) {
                lanes tap = *(const lanes *)(taps + (i * k + j) * BLOCK + lane);
                const float *grads = grad + (i * padded_width + j) * BLOCK + lane;
#pragma GCC unroll 8
                for (int t = 0; t < count; t++) sums[t] += *(const lanes *)(grads + t * BLOCK) * tap;
            }
#pragma GCC unroll 8
        for (int t = 0; t < count; t++)
            store(out, at + t * shape.channels + lane, left - lane, shape.is_bf16, sums[t]);
    }
}

static void turned_row(
    const float *grad, int64_t padded_width, const float *taps, int64_t k, void *out, int64_t at, int64_t left,
    Shape shape) {
    int64_t parts = (shape.width + PIXELS - 1) / PIXELS;
    for (int64_t part = 0; part < parts; part++) {
        int64_t w = shape.width * part / parts, to = at + w * shape.channels;
        const float *from = grad + w * BLOCK;
        switch (shape.width * (part + 1) / parts - w) {
#define CASE(n) case n: turned_pixels(n, from, padded_width, taps, k, out, to, left, shape); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
        }
    }
}

// The taps of a block of channels from `first` on, turned by 180 degrees: (k * k, BLOCK).
static void pack_turned_taps(float *out, const float *weight, int64_t first, int64_t taps, Shape shape) {
    memset(out, 0, taps * BLOCK * FLOAT);
    for (int64_t c = 0; c < least(BLOCK, shape.channels - first); c++)
        for (int64_t tap = 0; tap < taps; tap++) out[tap * BLOCK + c] = weight[(first + c) * taps + taps - 1 - tap];
}

// The weight's gradients of one sample's rows h to h + rows, a block of channels, added to sums[k * k + 1][BLOCK], the
// bias's last. Of both maps pad rows more on each side are packed.
static void add_rows(
    float *sums, int64_t rows, int64_t k, Shape shape, const float *packed_x, const float *packed_grad) {
    int64_t pad = k / 2, padded_width = shape.width + 2 * pad;
    const float *grad = packed_grad + (pad * padded_width + pad) * BLOCK;
    for (int lane = 0; lane < BLOCK; lane += LANES) {
        lanes bias = {0};
        for (int64_t row = 0; row < rows; row++)
            for (int64_t w = 0; w < shape.width; w++)
                bias += *(const lanes *)(grad + (row * padded_width + w) * BLOCK + lane);
        *(lanes *)(sums + k * k * BLOCK + lane) += bias;
    }
    int64_t parts = (k + TAPS - 1) / TAPS; // of each row of the kernel
    for (int64_t i = 0; i < k; i++)
        for (int64_t part = 0; part < parts; part++) {
            int64_t j = k * part / parts, taps = k * (part + 1) / parts - j;
            const float *inputs = packed_x + (i * padded_width + j) * BLOCK;
            add_some_taps(taps, sums + (i * k + j) * BLOCK, inputs, grad, padded_width, shape.width, rows);
        }
}

// Args:
//     x, grad: (samples, height, width, channels), dense, fp32 or bf16.
//     weight: the convolution's, (channels, k, k), fp32; null where x_grad is.
//     x_grad: as x, written; null where it is not wanted.
//     weight_grad: (channels, k, k), fp32, written.
//     bias_grad: (channels), fp32, written.
// Returns 0, or 1 where there is no memory.
int convnext_depthwise_gradient(
    const void *x, const void *grad, const float *weight, void *x_grad, float *weight_grad, float *bias_grad,
    int64_t samples, int64_t height, int64_t width, int64_t channels, int64_t k, int is_bf16, int threads) {
    Shape shape = {samples, height, width, channels, is_bf16};
    int64_t pad = k / 2, padded_width = width + 2 * pad, taps = k * k + 1;
    int64_t blocks = (channels + BLOCK - 1) / BLOCK;
    if (blocks == 0) return 0;
    int64_t chunks = (TASKS + blocks - 1) / blocks; // of the samples
    if (chunks > samples) chunks = samples > 0 ? samples : 1;
    int64_t rows = PACKED_SIZE / (padded_width * BLOCK);
    if (rows > height) rows = height;
    if (rows < 1) rows = 1;

    int64_t sums_size = taps * BLOCK, packed_size = (rows + 2 * pad) * padded_width * BLOCK;
    int64_t own_size = 2 * packed_size + k * k * BLOCK;
    float *sums = aligned_alloc(64, chunks * blocks * sums_size * FLOAT);
    float *packed = aligned_alloc(64, threads * own_size * FLOAT);
    if (!sums || !packed) {
        free(sums);
        free(packed);
        return 1;
    }
#pragma omp parallel num_threads(threads)
    {
        float *packed_x = packed + omp_get_thread_num() * own_size;
        float *packed_grad = packed_x + packed_size, *turned = packed_grad + packed_size;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < chunks * blocks; task++) {
            int64_t first = task % blocks * BLOCK, chunk = task / blocks;
            float *own = sums + task * sums_size;
            memset(own, 0, sums_size * FLOAT);
            if (x_grad) pack_turned_taps(turned, weight, first, k * k, shape);
            for (int64_t n = samples * chunk / chunks; n < samples * (chunk + 1) / chunks; n++)
                for (int64_t h = 0; h < height; h += rows) {
                    int64_t some = least(rows, height - h);
                    pack_rows(packed_x, x, n, h - pad, some + 2 * pad, pad, first, shape);
                    pack_rows(packed_grad, grad, n, h - pad, some + 2 * pad, pad, first, shape);
                    add_rows(own, some, k, shape, packed_x, packed_grad);
                    for (int64_t row = 0; row < (x_grad ? some : 0); row++)
                        turned_row(packed_grad + row * padded_width * BLOCK, padded_width, turned, k, x_grad,
                                   ((n * height + h + row) * width) * channels + first, channels - first, shape);
                }
        }
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t left = channels - b * BLOCK < BLOCK ? channels - b * BLOCK : BLOCK;
            for (int64_t tap = 0; tap < taps; tap++) {
                float sum[BLOCK] = {0};
                for (int64_t chunk = 0; chunk < chunks; chunk++)
                    for (int64_t c = 0; c < BLOCK; c++) sum[c] += sums[(chunk * blocks + b) * sums_size + tap * BLOCK + c];
                for (int64_t c = 0; c < left; c++) {
                    int64_t channel = b * BLOCK + c;
                    if (tap < k * k) weight_grad[channel * k * k + tap] = sum[c];
                    else bias_grad[channel] = sum[c];
                }
            }
        }
    }
    free(sums);
    free(packed);
    return 0;
}
