// The gradients of a linear layer's weight and bias, sums over rows, a panel of columns at a time (mlp_gradient.c).

#include "mlp.h"

// out[row][.] = [out[row][.] +] the sum over steps of left[step][row] * right[step][.], a step being a position, or two
// of bf16.
INLINE void multiply_steps(
    const char *left, const char *right, int64_t steps, float *out, int64_t stride, int add, const int bf16) {
    lanes sums[ROWS][2] = {{{0}}};
    for (int64_t step = 0; step < steps; step++, left += ROWS * FLOAT, right += STEP) {
        if (bf16) {
            lanes_of_bits b0 = *(const lanes_of_bits *)right, b1 = *(const lanes_of_bits *)(right + LANES * FLOAT);
#pragma GCC unroll 16
            for (int row = 0; row < ROWS; row++) {
                lanes_of_bits pair = *(const uint32_t *)(left + row * FLOAT) - (lanes_of_bits){0};
                sums[row][0] = add_pairs(sums[row][0], pair, b0);
                sums[row][1] = add_pairs(sums[row][1], pair, b1);
            }
            continue;
        }
        lanes b0 = *(const lanes *)right, b1 = *(const lanes *)(right + LANES * FLOAT);
#pragma GCC unroll 16
        for (int row = 0; row < ROWS; row++) {
            float value = *(const float *)(left + row * FLOAT);
            sums[row][0] += value * b0;
            sums[row][1] += value * b1;
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; row++, out += stride) {
        lanes_anywhere *first = (lanes_anywhere *)out, *second = (lanes_anywhere *)(out + LANES);
        *first = add ? *first + sums[row][0] : sums[row][0];
        *second = add ? *second + sums[row][1] : sums[row][1];
    }
}

static __attribute__((noinline)) void multiply_steps_fp32(
    const char *left, const char *right, int64_t steps, float *out, int64_t stride, int add) {
    multiply_steps(left, right, steps, out, stride, add, 0);
}

static __attribute__((noinline)) void multiply_steps_bf16(
    const char *left, const char *right, int64_t steps, float *out, int64_t stride, int add) {
    multiply_steps(left, right, steps, out, stride, add, HAS_BF16);
}

// grad[channels][hidden], the columns of a panel: a task's sum over its rows, added to those of the tasks before it.
INLINE void weight_panel(
    const char *left, const char *right, int64_t steps, int64_t capacity, int64_t channels, int64_t column,
    int64_t hidden, float *grad, int64_t stride, int is_first, const int bf16) {
    int64_t width = hidden - column;
    for (int64_t c = 0; c < channels; c += ROWS) {
        float *out = grad + c * stride + column;
        int64_t rows = least(ROWS, channels - c);
        fetch_ahead(right + capacity * STEP, steps * STEP, c / ROWS, divide_up(channels, ROWS));
        for (int64_t row = 0; !is_first && row < rows; row++) __builtin_prefetch(out + row * stride, 1);
        Tile tile;
        int is_whole = rows == ROWS && width >= COLUMNS, add = is_whole && !is_first;
        float *to = is_whole ? out : tile[0];
        int64_t to_stride = is_whole ? stride : COLUMNS;
        if (bf16) multiply_steps_bf16(left + c * capacity * FLOAT, right, steps, to, to_stride, add);
        else multiply_steps_fp32(left + c * capacity * FLOAT, right, steps, to, to_stride, add);
        for (int64_t row = 0; !is_whole && row < rows; row++)
            for (int64_t i = 0; i < least(COLUMNS, width); i++)
                out[row * stride + i] = tile[row][i] + (is_first ? 0 : out[row * stride + i]);
    }
}

// bias[.] of a panel's columns, in the same way.
INLINE void bias_panel(const char *right, int64_t steps, float *bias, int64_t left, int is_first, const int bf16) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        lanes sum = {0};
        for (int64_t step = 0; step < steps; step++) {
            lanes values = *(const lanes *)(right + step * STEP + half * LANES * FLOAT);
            if (bf16) sum += (lanes)((lanes_of_bits)values << 16) + (lanes)((lanes_of_bits)values & 0xffff0000);
            else sum += values;
        }
        int64_t some = left - half * LANES;
        if (some > 0) store(bias, half * LANES, some, 0, is_first ? sum : sum + load(bias, half * LANES, some, 0));
    }
}

// From the gradients with respect to gamma * weight and gamma * bias, of an output, to those with respect to weight and
// bias; and gamma's.
INLINE void scale_output(
    int64_t output, int64_t hidden, Values weight, const float *bias, const float *gamma, float *weight_grad,
    float *bias_grad, float *gamma_grad) {
    lanes sum = {0};
    for (int64_t i = 0; i < hidden; i += LANES) {
        int64_t at = output * hidden + i, left = hidden - i;
        lanes values = load(weight_grad, at, left, 0);
        sum += values * load_some(weight, at, left);
        store(weight_grad, at, left, 0, gamma[output] * values);
    }
    gamma_grad[output] = total(sum) + bias_grad[output] * bias[output];
    bias_grad[output] *= gamma[output];
}
