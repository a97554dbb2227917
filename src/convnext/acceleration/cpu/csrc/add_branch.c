// The end of a residual branch, behind the matrix product of its last linear layer:
//
//     out = shortcut + keep * (x + bias)
//
// where `keep` is a number for each sample (stochastic depth). LayerScale is in the layer's weight.

#include "vectors.h"

// Args:
//     shortcut, x: (rows, columns), each fp32 or bf16.
//     bias: (columns), fp32.
//     keep: (rows / positions), fp32, or null for ones.
//     out: (rows, columns), fp32 or bf16, written.
int convnext_add_branch(
    const void *shortcut, const void *x, const float *bias, const float *keep, void *out, int64_t rows,
    int64_t positions, int64_t columns, int shortcut_is_bf16, int x_is_bf16, int out_is_bf16, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        float kept = factor_of(keep, row, positions);
        for (int64_t c = 0; c < columns; c += LANES) {
            int64_t at = row * columns + c, left = columns - c;
            lanes branch = kept * (load(x, at, left, x_is_bf16) + load(bias, c, left, 0));
            store(out, at, left, out_is_bf16, load(shortcut, at, left, shortcut_is_bf16) + branch);
        }
    }
    return 0;
}

// Args:
//     grad: (rows, columns), fp32 or bf16, with respect to out.
//     keep: as above.
//     x_grad: (rows, columns), fp32 or bf16, written.
//     bias_grad: (columns), fp32, written.
// Returns 0, or 1 where there is no memory.
int convnext_add_branch_gradient(
    const void *grad, const float *keep, void *x_grad, float *bias_grad, int64_t rows, int64_t positions,
    int64_t columns, int grad_is_bf16, int x_is_bf16, int threads) {
    int64_t tasks = tasks_of(rows), width = whole(columns);
    float *sums = calloc(tasks * width + 1, FLOAT);
    if (!sums) return 1;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t task = 0; task < tasks; task++) {
            float *own = sums + task * width;
            for (int64_t row = rows * task / tasks; row < rows * (task + 1) / tasks; row++) {
                float kept = factor_of(keep, row, positions);
                for (int64_t c = 0; c < columns; c += LANES) {
                    lanes g = kept * load(grad, row * columns + c, columns - c, grad_is_bf16);
                    store(x_grad, row * columns + c, columns - c, x_is_bf16, g);
                    store(own, c, LANES, 0, load(own, c, LANES, 0) + g);
                }
            }
        }
#pragma omp for schedule(static)
        for (int64_t c = 0; c < columns; c += LANES) add_up(bias_grad, sums, c, columns, width, tasks);
    }
    free(sums);
    return 0;
}
