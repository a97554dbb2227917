// ConvNeXt's layers for inference: each reads a map once and writes the next one once.
//
//     block:       depthwise convolution, normalisation, linear, GELU, linear, plus the map it began with
//     patches:     [normalisation,] a convolution whose patches do not overlap, as a linear layer of each patch
//     stem:        the convolution of the images, [normalisation and its affine]
//
// Maps are (samples, height, width, channels) in fp32, their channels padded with zeros to a multiple of PAD; every
// layer keeps the padding zero, as the padding of its weights is. Matrix products are fp32, of bf16 summed in fp32, or of
// int8, where their inputs are rounded to 256 steps of a range that each layer has.
//
// A task is some rows of the maps, of one sample or of several where maps are small.

#include "products.h"

#include <math.h>

int omp_get_thread_num(void);

#define PAD 32        // channels
#define PIXELS 8      // of a row, that the depthwise convolution has in registers together
#define POSITIONS 112 // of a task, about
#define MORE 196      // where weights come from the third-level cache, anew for each task
#define LARGE 1048576 // bytes of weights that do
#define HIDDEN 163840 // bytes of a task's hidden values, about: they stay in the second-level cache

typedef struct {
    int64_t samples, height, width, channels, padded;
} Shape;

// (x - mean) / deviation of one position, whose channels from `channels` on are zeros; in place where out is x.
INLINE void mean_and_scale(const float *x, Shape s, float eps, float *mean_out, float *scale_out) {
    lanes sum = {0}, squares = {0};
    for (int64_t c = 0; c < s.padded; c += LANES) sum += *(const lanes *)(x + c);
    float total = 0;
    for (int i = 0; i < LANES; i++) total += sum[i];
    float mean = total / s.channels;
    for (int64_t c = 0; c < s.padded; c += LANES) {
        lanes d = *(const lanes *)(x + c) - mean;
        squares += d * d;
    }
    total = -(s.padded - s.channels) * mean * mean;
    for (int i = 0; i < LANES; i++) total += squares[i];
    *mean_out = mean;
    *scale_out = 1 / sqrtf(total / s.channels + eps);
}

// One position's channels, normalised and packed from `column` on, in int8 for a layer.
INLINE void pack_channels(
    char *group, int row, int64_t column, const float *x, Shape s, float eps, const int precision, const Int8 *layer) {
    float mean, scale, zero = 0;
    mean_and_scale(x, s, eps, &mean, &scale);
    if (precision == INT8) {
        scale *= layer->steps;
        zero = layer->zero;
    }
    for (int64_t c = 0; c < s.padded; c += COLUMNS) {
        lanes first = *(const lanes *)(x + c) - mean, second = *(const lanes *)(x + c + LANES) - mean;
        if (precision == INT8)
            pack(group, row, column + c, multiply_add(first, all(scale), all(zero)),
                 multiply_add(second, all(scale), all(zero)), INT8);
        else pack(group, row, column + c, first * scale, second * scale, precision);
    }
}

static void pack_normalised(
    char *group, int row, int64_t column, const float *x, Shape s, float eps, int precision, const Int8 *layer) {
    if (precision == INT8) pack_channels(group, row, column, x, s, eps, INT8, layer);
    else if (precision == BF16) pack_channels(group, row, column, x, s, eps, HAS_BF16 ? BF16 : FP32, NULL);
    else pack_channels(group, row, column, x, s, eps, FP32, NULL);
}

// `pixels` outputs of a row from w on, a vector of channels; pixels is a constant where inlined, and k where it is 7.
INLINE void convolve_pixels(
    const int pixels, const int k, const float *x, float *out, const float *weight, const float *bias, Shape s, int64_t h,
    int64_t w) {
    lanes sums[PIXELS];
    int pad = k / 2;
#pragma GCC unroll 8
    for (int p = 0; p < pixels; p++) sums[p] = *(const lanes *)bias;
    for (int i = 0; i < k; i++) {
        int64_t y = h + i - pad;
        if (y < 0 || y >= s.height) continue;
        const float *row = x + (y * s.width + w - pad) * s.padded;
        const float *taps = weight + i * k * s.padded;
        if (k == 7) {
            lanes inputs[PIXELS + 6];
#pragma GCC unroll 14
            for (int p = 0; p < pixels + 6; p++) {
                int64_t at = w + p - pad;
                inputs[p] = at >= 0 && at < s.width ? *(const lanes *)(row + p * s.padded) : (lanes){0};
            }
#pragma GCC unroll 7
            for (int j = 0; j < 7; j++) {
                lanes tap = *(const lanes *)(taps + j * s.padded);
#pragma GCC unroll 8
                for (int p = 0; p < pixels; p++) sums[p] += inputs[p + j] * tap;
            }
        } else {
            for (int j = 0; j < k; j++) {
                lanes tap = *(const lanes *)(taps + j * s.padded);
#pragma GCC unroll 8
                for (int p = 0; p < pixels; p++) {
                    int64_t at = w + p + j - pad;
                    if (at >= 0 && at < s.width) sums[p] += *(const lanes *)(row + (p + j) * s.padded) * tap;
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < pixels; p++) *(lanes *)(out + p * s.padded) = sums[p];
}

static void convolve_some(
    int pixels, int k, const float *x, float *out, const float *weight, const float *bias, Shape s, int64_t h, int64_t w) {
    switch (k == 7 ? pixels : pixels + PIXELS) {
#define CASE(n) \
    case n: convolve_pixels(n, 7, x, out, weight, bias, s, h, w); break; \
    case n + PIXELS: convolve_pixels(n, k, x, out, weight, bias, s, h, w); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
    }
}

// The depthwise convolution of the rows `first` to `last` of all samples' rows, to out (rows, width, padded).
static void convolve_rows(
    const float *x, float *out, const float *weight, const float *bias, Shape s, int64_t first, int64_t last, int k) {
    int64_t parts = divide_up(s.width, PIXELS);
    for (int64_t c = 0; c < s.padded; c += LANES)
        for (int64_t row = first; row < last; row++) {
            const float *from = x + row / s.height * s.height * s.width * s.padded + c;
            for (int64_t part = 0; part < parts; part++) {
                int64_t w = s.width * part / parts, pixels = s.width * (part + 1) / parts - w;
                float *to = out + ((row - first) * s.width + w) * s.padded + c;
                convolve_some((int)pixels, k, from, to, weight + c, bias + c, s, row % s.height, w);
            }
        }
}

// Positions of a task, about; `weights` is the size of the matrices that it reads.
static int64_t positions_for(int64_t width, int64_t weights) {
    int64_t rows = (weights > LARGE ? MORE : POSITIONS) / width;
    return rows > 1 ? rows * width : width;
}

// Into how many tasks all samples' rows are shared out, so that all threads have as much to do.
static int64_t tasks_for(int64_t rows, int64_t width, int64_t positions, int threads) {
    int64_t tasks = divide_up(rows, positions / width);
    if (tasks < 8 * threads)
        while (tasks < rows && tasks % threads) tasks++;
    return tasks;
}

static void *scratch_for(int threads, int64_t size) { return aligned_alloc(LINE, threads * size); }

static int64_t round_up(int64_t size) { return divide_up(size, 4096) * 4096 + LINE; }

// Args:
//     x, out: maps of the same shape; they do not overlap.
//     dw_weight: (k * k, padded); dw_bias: (padded).
//     weight1: packed, (padded, hidden); bias1: (hidden); hidden: a multiple of PAD.
//     weight2: packed, (hidden, padded); bias2: (padded).
//     int8: of the two linear layers, where that is the precision.
// Returns 0, or 1 where there is no memory.
int convnext_block(
    const float *x, float *out, const float *dw_weight, const float *dw_bias, const char *weight1, const float *bias1,
    const char *weight2, const float *bias2, int64_t samples, int64_t height, int64_t width, int64_t channels, int k,
    int64_t hidden, float eps, int precision, const Int8 *int8, int threads) {
    Shape s = {samples, height, width, channels, divide_up(channels, PAD) * PAD};
    int64_t rows = samples * height, value = left_bytes(precision), in_lines = s.padded / per_line(precision);
    if (!rows) return 0;
    int64_t about = positions_for(width, s.padded * hidden * right_bytes(precision));
    int64_t tasks = tasks_for(rows, width, about, threads);
    int64_t most = divide_up(rows, tasks) * width, groups = divide_up(most, ROWS);
    int64_t chunk = HIDDEN / (about * value) / PAD * PAD; // for any number of threads, since int8 rounds after each
    if (chunk < PAD) chunk = PAD;
    int64_t chunks = divide_up(hidden, chunk);
    chunk = divide_up(divide_up(hidden, chunks), PAD) * PAD;
    int64_t map_size = round_up(most * s.padded * FLOAT), packed_size = round_up(groups * ROWS * s.padded * value);
    int64_t hidden_size = round_up(groups * ROWS * chunk * value), size = map_size + packed_size + hidden_size;
    char *scratch = scratch_for(threads, size);
    if (!scratch) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < tasks; task++) {
        float *map = (float *)(scratch + omp_get_thread_num() * size);
        char *packed = (char *)map + map_size, *inner = packed + packed_size;
        int64_t row = rows * task / tasks, end = rows * (task + 1) / tasks, positions = (end - row) * width;
        convolve_rows(x, map, dw_weight, dw_bias, s, row, end, k);
        for (int64_t i = 0; i < positions; i++) {
            char *group = packed + i / ROWS * in_lines * group_line(precision);
            pack_normalised(group, (int)(i % ROWS), 0, map + i * s.padded, s, eps, precision, int8);
        }
        const float *residual = x + row * width * s.padded;
        float *to = out + row * width * s.padded;
        for (int64_t first = 0; first < hidden; first += chunk) {
            int64_t last = first + chunk < hidden ? first + chunk : hidden;
            int64_t lines = (last - first) / per_line(precision), all_lines = hidden / per_line(precision);
            Product widen = {
                .a = packed, .b = weight1, .lines = in_lines, .a_lines = in_lines, .b_lines = in_lines, .first = first,
                .last = last, .bias = bias1, .hidden = inner, .hidden_lines = lines, .int8 = int8, .next = int8 + 1};
            product(&widen, positions, precision);
            Product narrow = {
                .a = inner, .b = weight2 + first * COLUMNS * right_bytes(precision), .lines = lines, .a_lines = lines,
                .b_lines = all_lines, .last = s.padded, .bias = first ? NULL : bias2, .residual = first ? NULL : residual,
                .out = to, .stride = s.padded, .int8 = int8 + 1};
            product(&narrow, positions, precision);
        }
    }
    free(scratch);
    return 0;
}

// Args:
//     x: maps; every position is normalised first. out: maps of the patches, (samples, height / k, width / k).
//     weight: packed, (k * k * padded, out_padded), a patch's positions in rows; bias: (out_padded).
//     int8: of this layer, where that is the precision.
// Returns 0, or 1 where there is no memory.
int convnext_patches(
    const float *x, float *out, const char *weight, const float *bias, int64_t samples, int64_t height, int64_t width,
    int64_t channels, int k, int64_t out_channels, float eps, int precision, const Int8 *int8, int threads) {
    Shape s = {samples, height, width, channels, divide_up(channels, PAD) * PAD};
    int64_t out_height = height / k, out_width = width / k, out_padded = divide_up(out_channels, PAD) * PAD;
    int64_t rows = samples * out_height, inputs = k * k * s.padded, lines = inputs / per_line(precision);
    if (!rows) return 0;
    int64_t about = positions_for(out_width, inputs * out_padded * right_bytes(precision));
    int64_t tasks = tasks_for(rows, out_width, about, threads);
    int64_t size = round_up(divide_up(divide_up(rows, tasks) * out_width, ROWS) * lines * group_line(precision));
    char *scratch = scratch_for(threads, size);
    if (!scratch) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < tasks; task++) {
        char *packed = scratch + omp_get_thread_num() * size;
        int64_t first = rows * task / tasks * out_width, positions = rows * (task + 1) / tasks * out_width - first;
        for (int64_t i = 0; i < positions; i++) {
            char *group = packed + i / ROWS * lines * group_line(precision);
            int64_t row = (first + i) / out_width, column = (first + i) % out_width * k;
            int64_t top = row / out_height * height + row % out_height * k; // of all samples' rows
            for (int64_t tap = 0; tap < k * k; tap++) {
                const float *from = x + ((top + tap / k) * width + column + tap % k) * s.padded;
                pack_normalised(group, (int)(i % ROWS), tap * s.padded, from, s, eps, precision, int8);
            }
        }
        Product p = {
            .a = packed, .b = weight, .lines = lines, .a_lines = lines, .b_lines = lines, .last = out_padded,
            .bias = bias, .out = out + first * out_padded, .stride = out_padded, .int8 = int8};
        product(&p, positions, precision);
    }
    free(scratch);
    return 0;
}

// Args:
//     images: fp32; strides: between samples, channels, rows and columns. out: maps.
//     weight: packed fp32, (in_channels * k * k, padded to PAD; out_padded); bias: (out_padded).
//     norm_weight, norm_bias: (out_padded) of the normalisation that follows, or NULL for none.
// Returns 0, or 1 where there is no memory.
int convnext_stem(
    const float *images, const int64_t *strides, float *out, const char *weight, const float *bias,
    const float *norm_weight, const float *norm_bias, int64_t samples, int64_t height, int64_t width,
    int64_t in_channels, int k, int stride, int pad, int64_t out_channels, float eps, int threads) {
    int64_t out_height = (height + 2 * pad - k) / stride + 1, out_width = (width + 2 * pad - k) / stride + 1;
    Shape s = {samples, out_height, out_width, out_channels, divide_up(out_channels, PAD) * PAD};
    int64_t rows = samples * out_height, inputs = divide_up(in_channels * k * k, PAD) * PAD, lines = inputs / per_line(FP32);
    if (!rows) return 0;
    int64_t tasks = tasks_for(rows, out_width, positions_for(out_width, inputs * s.padded * FLOAT), threads);
    int64_t packed_size = round_up(divide_up(divide_up(rows, tasks) * out_width, ROWS) * ROWS * inputs * FLOAT);
    int64_t size = packed_size + round_up(inputs * FLOAT);
    char *scratch = scratch_for(threads, size);
    if (!scratch) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < tasks; task++) {
        char *packed = scratch + omp_get_thread_num() * size;
        float *patch = (float *)(packed + packed_size);
        memset(patch, 0, inputs * FLOAT); // what lies outside of the images, and the padding
        int64_t start = rows * task / tasks * out_width, positions = rows * (task + 1) / tasks * out_width - start;
        for (int64_t i = 0; i < positions; i++) {
            char *group = packed + i / ROWS * lines * ROWS * LINE;
            int64_t row = (start + i) / out_width, sample = row / out_height;
            int64_t top = row % out_height * stride - pad, left = (start + i) % out_width * stride - pad;
            int64_t first = left < 0 ? -left : 0, last = left + k > width ? width - left : k;
            for (int64_t c = 0; c < in_channels; c++)
                for (int64_t j = top < 0 ? -top : 0; j < k && top + j < height; j++) {
                    const float *from =
                        images + sample * strides[0] + c * strides[1] + (top + j) * strides[2] + left * strides[3];
                    for (int64_t tap = first; tap < last; tap++) patch[(c * k + j) * k + tap] = from[tap * strides[3]];
                }
            for (int64_t line = 0; line < lines; line++)
                memcpy(group + (line * ROWS + i % ROWS) * LINE, patch + line * 16, LINE);
            if (pad) memset(patch, 0, inputs * FLOAT);
        }
        float *to = out + start * s.padded;
        Product p = {
            .a = packed, .b = weight, .lines = lines, .a_lines = lines, .b_lines = lines, .last = s.padded,
            .bias = bias, .out = to, .stride = s.padded};
        product(&p, positions, FP32);
        if (!norm_weight) continue;
        for (int64_t i = 0; i < positions; i++) {
            float mean, scale, *x = to + i * s.padded;
            mean_and_scale(x, s, eps, &mean, &scale);
            for (int64_t c = 0; c < s.padded; c += LANES)
                *(lanes *)(x + c) = (*(lanes *)(x + c) - mean) * scale * *(const lanes *)(norm_weight + c) +
                                    *(const lanes *)(norm_bias + c);
        }
    }
    free(scratch);
    return 0;
}

// Whether this build multiplies in bf16.
int convnext_has_bf16(void) { return HAS_BF16; }

// Columns of a panel of packed weights.
int convnext_columns(void) { return COLUMNS; }

// Values of packed int8 weights that lie together along the sum.
int convnext_int8_together(void) { return TOGETHER; }
