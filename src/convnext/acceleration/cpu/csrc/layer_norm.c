// LayerNorm over the columns of a matrix, and its gradients; x and y are each in fp32 or bf16, all sums in fp32.
//
//     y = n * weight + bias,  n = (x - mean) / sqrt(variance + eps)
//     x_grad = (g - mean(g) - n * mean(g * n)) / sqrt(variance + eps),  g = y_grad * weight

#include <math.h>

#include "vectors.h"

// One row, that starts at `start`.
INLINE void forward_row(
    const void *x, const float *weight, const float *bias, void *y, float *statistics, int64_t start, int64_t columns,
    float eps, const int x_is_bf16, const int y_is_bf16) {
    int64_t inside = columns / LANES * LANES;
    lanes sum = {0}, squares = {0};
    for (int64_t c = 0; c < columns; c += LANES) sum += load(x, start + c, columns - c, x_is_bf16);
    float mean = total(sum) / columns;
    for (int64_t c = 0; c < inside; c += LANES) {
        lanes centred = load(x, start + c, LANES, x_is_bf16) - mean;
        squares += centred * centred;
    }
    float variance = total(squares);
    for (int64_t c = inside; c < columns; c++) { // the zeros behind the end would count
        float centred = load(x, start + c, 1, x_is_bf16)[0] - mean;
        variance += centred * centred;
    }
    float inverse = 1 / sqrtf(variance / columns + eps);
    statistics[0] = mean;
    statistics[1] = inverse;
    for (int64_t c = 0; c < columns; c += LANES) {
        int64_t left = columns - c;
        lanes n = (load(x, start + c, left, x_is_bf16) - mean) * inverse;
        store(y, start + c, left, y_is_bf16, n * load(weight, c, left, 0) + load(bias, c, left, 0));
    }
}

// One row, its part of the two sums added to them.
INLINE void backward_row(
    const void *x, const float *weight, const float *statistics, const void *grad, void *x_grad, float *weight_sums,
    float *bias_sums, int64_t start, int64_t columns, const int x_is_bf16, const int grad_is_bf16) {
    float mean = statistics[0], inverse = statistics[1];
    lanes sum = {0}, product = {0};
    for (int64_t c = 0; c < columns; c += LANES) { // behind the end the gradient is zero
        int64_t left = columns - c;
        lanes g = load(grad, start + c, left, grad_is_bf16);
        lanes n = (load(x, start + c, left, x_is_bf16) - mean) * inverse;
        store(weight_sums, c, LANES, 0, load(weight_sums, c, LANES, 0) + g * n);
        store(bias_sums, c, LANES, 0, load(bias_sums, c, LANES, 0) + g);
        g *= load(weight, c, left, 0);
        sum += g;
        product += g * n;
    }
    float mean_g = total(sum) / columns, mean_product = total(product) / columns;
    for (int64_t c = 0; c < columns; c += LANES) {
        int64_t left = columns - c;
        lanes g = load(grad, start + c, left, grad_is_bf16) * load(weight, c, left, 0);
        lanes n = (load(x, start + c, left, x_is_bf16) - mean) * inverse;
        store(x_grad, start + c, left, x_is_bf16, (g - mean_g - n * mean_product) * inverse);
    }
}

// One loop for each pair of dtypes.
#define BY_DTYPES(function, first, second, ...) \
    do { \
        if (first && second) function(__VA_ARGS__, 1, 1); \
        else if (first) function(__VA_ARGS__, 1, 0); \
        else if (second) function(__VA_ARGS__, 0, 1); \
        else function(__VA_ARGS__, 0, 0); \
    } while (0)

// Args:
//     x: (rows, columns), fp32 or bf16.
//     weight, bias: (columns), fp32.
//     y: (rows, columns), fp32 or bf16, written.
//     statistics: (rows, 2), mean and 1 / sqrt(variance + eps), written.
int convnext_layer_norm(
    const void *x, const float *weight, const float *bias, void *y, float *statistics, int64_t rows, int64_t columns,
    float eps, int x_is_bf16, int y_is_bf16, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++)
        BY_DTYPES(
            forward_row, x_is_bf16, y_is_bf16, x, weight, bias, y, statistics + 2 * row, row * columns, columns, eps);
    return 0;
}

// Args:
//     x, weight, statistics: as above.
//     grad: as y, with respect to it.
//     x_grad: as x, written.
//     weight_grad, bias_grad: (columns), fp32, written.
// Returns 0, or 1 where there is no memory.
int convnext_layer_norm_gradient(
    const void *x, const float *weight, const float *statistics, const void *grad, void *x_grad, float *weight_grad,
    float *bias_grad, int64_t rows, int64_t columns, int x_is_bf16, int grad_is_bf16, int threads) {
    int64_t tasks = tasks_of(rows), width = whole(columns);
    float *sums = calloc(2 * tasks * width + 1, FLOAT);
    if (!sums) return 1;
    float *bias_sums = sums + tasks * width;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t task = 0; task < tasks; task++)
            for (int64_t row = rows * task / tasks; row < rows * (task + 1) / tasks; row++)
                BY_DTYPES(
                    backward_row, x_is_bf16, grad_is_bf16, x, weight, statistics + 2 * row, grad, x_grad,
                    sums + task * width, bias_sums + task * width, row * columns, columns);
#pragma omp for schedule(static)
        for (int64_t c = 0; c < columns; c += LANES) {
            add_up(weight_grad, sums, c, columns, width, tasks);
            add_up(bias_grad, bias_sums, c, columns, width, tasks);
        }
    }
    free(sums);
    return 0;
}
