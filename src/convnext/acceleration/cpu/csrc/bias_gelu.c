// GELU of a linear layer's output, its bias added on the way, and the gradients of both.

#include "vectors.h"
#include "gelu.h"

INLINE void forward_row(
    const void *x, const float *bias, void *y, int64_t start, int64_t columns, const int is_bf16) {
    for (int64_t c = 0; c < columns; c += LANES) {
        int64_t left = columns - c;
        lanes z = load(x, start + c, left, is_bf16) + load(bias, c, left, 0);
        store(y, start + c, left, is_bf16, z * phi(z, is_bf16));
    }
}

INLINE void backward_row(
    const void *x, const float *bias, const void *grad, void *x_grad, float *sums, int64_t start, int64_t columns,
    const int is_bf16) {
    for (int64_t c = 0; c < columns; c += LANES) {
        int64_t left = columns - c;
        lanes z = load(x, start + c, left, is_bf16) + load(bias, c, left, 0);
        lanes g = load(grad, start + c, left, is_bf16) * slope(z, is_bf16);
        store(x_grad, start + c, left, is_bf16, g);
        store(sums, c, LANES, 0, load(sums, c, LANES, 0) + g);
    }
}

// Args:
//     x: (rows, columns), fp32 or bf16, without the bias.
//     bias: (columns), fp32.
//     y: as x, written.
int convnext_bias_gelu(
    const void *x, const float *bias, void *y, int64_t rows, int64_t columns, int is_bf16, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        if (is_bf16) forward_row(x, bias, y, row * columns, columns, 1);
        else forward_row(x, bias, y, row * columns, columns, 0);
    }
    return 0;
}

// Args:
//     x, bias: as above.
//     grad: as x, with respect to y.
//     x_grad: as x, written.
//     bias_grad: (columns), fp32, written.
// Returns 0, or 1 where there is no memory.
int convnext_bias_gelu_gradient(
    const void *x, const float *bias, const void *grad, void *x_grad, float *bias_grad, int64_t rows, int64_t columns,
    int is_bf16, int threads) {
    int64_t tasks = tasks_of(rows), width = whole(columns);
    float *sums = calloc(tasks * width + 1, FLOAT);
    if (!sums) return 1;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t task = 0; task < tasks; task++)
            for (int64_t row = rows * task / tasks; row < rows * (task + 1) / tasks; row++) {
                float *own = sums + task * width;
                if (is_bf16) backward_row(x, bias, grad, x_grad, own, row * columns, columns, 1);
                else backward_row(x, bias, grad, x_grad, own, row * columns, columns, 0);
            }
#pragma omp for schedule(static)
        for (int64_t c = 0; c < columns; c += LANES) add_up(bias_grad, sums, c, columns, width, tasks);
    }
    free(sums);
    return 0;
}
