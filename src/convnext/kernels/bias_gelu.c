// GELU of a linear layer's output, its bias added on the way, and the gradients of both:
//
//     y = z * Phi(z),  z = x + bias,  Phi(z) = (1 + erf(z / sqrt(2))) / 2
//
// Phi(z) - 1/2 and the slope of GELU less 1/2 are odd. Each is z times a polynomial in 2 (z / end)^2 - 1, fitted for the
// least largest error: 1.3e-7 and 1e-6 for fp32, 2e-5 and 5e-5 for bf16. Behind the end both stay what they are there.

#include "vectors.h"

#define END 5.5f
#define TERMS 15
#define BF16_END 4.5f
#define BF16_PHI_TERMS 9
#define BF16_SLOPE_TERMS 10

static const float phi_terms[TERMS] = {
    1.285519366e-01f, -6.417247506e-02f, 4.773698974e-02f, -3.878726677e-02f, 3.208174111e-02f,
    -2.611246919e-02f, 2.028798234e-02f, -1.467136375e-02f, 1.046861779e-02f, -7.674673945e-03f,
    4.236386270e-03f, -1.229398022e-03f, 1.023837792e-03f, -1.368830339e-03f, 5.380801440e-04f};
static const float slope_terms[TERMS] = {
    1.287592834e-01f, -6.574300972e-02f, 5.365795009e-02f, -5.361003059e-02f, 6.042002723e-02f,
    -7.020130956e-02f, 7.378216577e-02f, -6.607295441e-02f, 6.553999885e-02f, -7.091206406e-02f,
    4.174915609e-02f, -3.060658006e-03f, 1.026218363e-02f, -2.388516712e-02f, 1.022377379e-02f};
static const float bf16_phi_terms[BF16_PHI_TERMS] = {
    1.569027650e-01f, -7.714133786e-02f, 5.476881277e-02f, -4.090842197e-02f, 2.806927011e-02f,
    -1.578709629e-02f, 1.112520803e-02f, -1.003964046e-02f, 4.121551792e-03f};
static const float bf16_slope_terms[BF16_SLOPE_TERMS] = {
    1.594457562e-01f, -8.992300134e-02f, 8.618592640e-02f, -9.536765139e-02f, 1.050389786e-01f,
    -8.775819276e-02f, 4.773264916e-02f, -4.548345917e-02f, 5.596707757e-02f, -2.472344536e-02f};

INLINE lanes half_and_odd(lanes z, const float end, const float *terms, const int count) {
    z = clamped(z, end);
    lanes s = z * z * (2 / (end * end)) - 1, value = s * terms[count - 1] + terms[count - 2];
#pragma GCC unroll 16
    for (int i = count - 3; i >= 0; i--) value = value * s + terms[i];
    return value * z + 0.5f;
}

INLINE lanes phi(lanes z, const int is_bf16) {
    return is_bf16 ? half_and_odd(z, BF16_END, bf16_phi_terms, BF16_PHI_TERMS)
                   : half_and_odd(z, END, phi_terms, TERMS);
}

INLINE lanes slope(lanes z, const int is_bf16) {
    return is_bf16 ? half_and_odd(z, BF16_END, bf16_slope_terms, BF16_SLOPE_TERMS)
                   : half_and_odd(z, END, slope_terms, TERMS);
}

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
