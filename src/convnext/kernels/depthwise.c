// The gradient of a depthwise convolution with respect to its weight and bias, over maps in channels_last memory:
//
//     weight[c, i, j] = sum over n, h, w of x[n, h + i - p, w + j - p, c] * grad[n, h, w, c],  p = k / 2
//     bias[c]         = sum over n, h, w of grad[n, h, w, c]
//
// A task is a block of channels over a few samples. It packs their rows as fp32, padded with zeros on every side, so
// that the sums below know neither edges nor dtypes nor a last block of fewer channels. One row of the kernel at a time
// stays in registers. Every task has sums of its own, added up in a fixed order: the result depends neither on the
// number of threads nor on which of them was first.

#include "vectors.h"

int omp_get_thread_num(void);

#define BLOCK 16          // channels of a task: a cache line of fp32
#define TAPS 8            // most taps of a kernel's row that are summed at once
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

// sums[j] += x[row, w + j] * grad[row, w], over `rows` rows of `width` positions, for j < taps, a constant where inlined.
static inline __attribute__((always_inline)) void add_taps(
    const int taps, float *sums, const float *x, int64_t x_width, const float *grad, int64_t width, int64_t rows) {
    for (int lane = 0; lane < BLOCK; lane += LANES) {
        lanes sum[TAPS] = {0}; // not the sums so far: long sums lose digits
        for (int64_t row = 0; row < rows; row++) {
            const float *inputs = x + row * x_width * BLOCK + lane;
            const float *grads = grad + row * width * BLOCK + lane;
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
    int64_t taps, float *sums, const float *x, int64_t x_width, const float *grad, int64_t width, int64_t rows) {
    switch (taps) {
#define CASE(n) case n: add_taps(n, sums, x, x_width, grad, width, rows); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
    }
}

// One sample's rows h to h + rows, a block of channels from `first` on, added to sums[k * k + 1][BLOCK], the bias last.
static void add_rows(
    float *sums, const void *x, const void *grad, int64_t sample, int64_t h, int64_t rows, int64_t first, int64_t k,
    Shape shape, float *packed_x, float *packed_grad) {
    int64_t pad = k / 2, width = shape.width, x_width = width + 2 * pad;
    int64_t sample_start = sample * shape.height * width;
    for (int64_t row = 0; row < rows + 2 * pad; row++) {
        float *out = packed_x + row * x_width * BLOCK;
        int64_t y = h + row - pad;
        if (y < 0 || y >= shape.height) {
            memset(out, 0, x_width * BLOCK * FLOAT);
            continue;
        }
        memset(out, 0, pad * BLOCK * FLOAT);
        for (int64_t w = 0; w < width; w++)
            read_position(out + (pad + w) * BLOCK, x, sample_start + y * width + w, first, shape);
        memset(out + (pad + width) * BLOCK, 0, pad * BLOCK * FLOAT);
    }
    lanes bias[BLOCK / LANES] = {{0}};
    for (int64_t i = 0; i < rows * width; i++) {
        read_position(packed_grad + i * BLOCK, grad, sample_start + h * width + i, first, shape);
        for (int part = 0; part < BLOCK / LANES; part++) bias[part] += *(lanes *)(packed_grad + i * BLOCK + part * LANES);
    }
    for (int part = 0; part < BLOCK / LANES; part++) *(lanes *)(sums + k * k * BLOCK + part * LANES) += bias[part];

    int64_t parts = (k + TAPS - 1) / TAPS; // of each row of the kernel
    for (int64_t i = 0; i < k; i++)
        for (int64_t part = 0; part < parts; part++) {
            int64_t j = k * part / parts, taps = k * (part + 1) / parts - j;
            const float *inputs = packed_x + (i * x_width + j) * BLOCK;
            add_some_taps(taps, sums + (i * k + j) * BLOCK, inputs, x_width, packed_grad, width, rows);
        }
}

// Args:
//     x, grad: (samples, height, width, channels), dense, fp32 or bf16.
//     weight: (channels, k, k), fp32, written.
//     bias: (channels), fp32, written.
// Returns 0, or 1 where there is no memory.
int convnext_depthwise_weight_gradient(
    const void *x, const void *grad, float *weight, float *bias, int64_t samples, int64_t height, int64_t width,
    int64_t channels, int64_t k, int is_bf16, int threads) {
    Shape shape = {samples, height, width, channels, is_bf16};
    int64_t pad = k / 2, x_width = width + 2 * pad, taps = k * k + 1;
    int64_t blocks = (channels + BLOCK - 1) / BLOCK;
    if (blocks == 0) return 0;
    int64_t chunks = (TASKS + blocks - 1) / blocks; // of the samples
    if (chunks > samples) chunks = samples > 0 ? samples : 1;
    int64_t rows = PACKED_SIZE / (x_width * BLOCK);
    if (rows > height) rows = height;
    if (rows < 1) rows = 1;

    int64_t sums_size = taps * BLOCK, x_size = (rows + 2 * pad) * x_width * BLOCK, grad_size = rows * width * BLOCK;
    float *sums = aligned_alloc(64, chunks * blocks * sums_size * FLOAT);
    float *packed = aligned_alloc(64, threads * (x_size + grad_size) * FLOAT);
    if (!sums || !packed) {
        free(sums);
        free(packed);
        return 1;
    }
#pragma omp parallel num_threads(threads)
    {
        float *packed_x = packed + omp_get_thread_num() * (x_size + grad_size);
        float *packed_grad = packed_x + x_size;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < chunks * blocks; task++) {
            int64_t first = task % blocks * BLOCK, chunk = task / blocks;
            float *own = sums + task * sums_size;
            memset(own, 0, sums_size * FLOAT);
            for (int64_t n = samples * chunk / chunks; n < samples * (chunk + 1) / chunks; n++)
                for (int64_t h = 0; h < height; h += rows) {
                    int64_t some = height - h < rows ? height - h : rows;
                    add_rows(own, x, grad, n, h, some, first, k, shape, packed_x, packed_grad);
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
                    if (tap < k * k) weight[channel * k * k + tap] = sum[c];
                    else bias[channel] = sum[c];
                }
            }
        }
    }
    free(sums);
    free(packed);
    return 0;
}
