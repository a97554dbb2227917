// Packed matrices, their products, and what is done to the sums while they are in registers.
//
// The left matrix lies in groups of ROWS positions, of each position 64 bytes at a time; the right one in panels of
// COLUMNS columns, bf16 in pairs along the sum. ROWS x COLUMNS sums stay in registers.

#include <stddef.h>

#if !defined(LANES) && defined(__AVX512F__)
#define LANES 16
#elif !defined(LANES)
#define LANES 8
#endif
#include "vectors.h"

#if LANES == 16
#define ROWS 14 // the maps of 224 px have 7, 14, 28 and 56 columns
#else
#define ROWS 6
#endif

#if defined(PORTABLE) || (AVX512 && defined(__AVX512BF16__))
#define HAS_BF16 1
#else
#define HAS_BF16 0
#endif

#define COLUMNS (2 * LANES)
#define LINE 64 // bytes of a position that lie together

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The values of a position that lie together: of fp32 or bf16.
INLINE int64_t per_line(int bf16) { return bf16 ? 32 : 16; }

INLINE lanes all(float value) { return value - (lanes){0}; }

// x * Phi(x), where Phi - 0.5 is x times a polynomial in x^2, fitted (in the variable t, from -1 to 1) for the least
// largest error of the product up to |x| = limit; beyond, Phi stays as it is there. Errors: 1e-6, or 4e-5 for bf16.
INLINE lanes gelu(lanes x, const int bf16) {
    static const float exact[] = {
        0.12855194509029388f, -0.06417197734117508f, 0.047735605388879776f, -0.03880469501018524f,
        0.03211359307169914f, -0.02594188041985035f, 0.02002955973148346f, -0.01537332683801651f,
        0.01142524741590023f, -0.0062925685197114944f, 0.002475376008078456f, -0.002518353285267949f,
        0.002592249307781458f, -0.0009116957662627101f};
    static const float coarse[] = {
        0.17594775557518005f, -0.08435747772455215f, 0.056050803512334824f, -0.036495309323072433f,
        0.021621735766530037f, -0.013260181993246078f, 0.00821125227957964f, -0.002728856634348631f};
    const float *terms = bf16 ? coarse : exact;
    const int degree = bf16 ? 7 : 13;
    const float limit = bf16 ? 4.0f : 5.5f;
    lanes inside = clamped(x, limit);
    lanes t = inside * inside * (2 / (limit * limit)) - 1;
    lanes sum = all(terms[degree]);
#pragma GCC unroll 16
    for (int i = degree - 1; i >= 0; i--) sum = sum * t + terms[i];
    return x * (inside * sum + 0.5f);
}

// sums + the products of the two bf16 that each lane of a and b holds.
INLINE lanes add_pairs(lanes sums, lanes_of_bits a, lanes_of_bits b) {
#if AVX512 && defined(__AVX512BF16__)
    return (lanes)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
    return sums + (lanes)(a << 16) * (lanes)(b << 16) + (lanes)(a & 0xffff0000) * (lanes)(b & 0xffff0000);
#endif
}

// sums[row][.] += a[row][k] * b[k][.] over `lines` lines of each of `rows` positions, a constant where inlined.
INLINE void multiply(const int rows, const int bf16, const char *a, const char *b, int64_t lines, lanes (*sums)[2]) {
    if (bf16) {
        for (int64_t line = 0; line < lines; line++, a += ROWS * LINE) {
#pragma GCC unroll 4
            for (int k = 0; k < 16; k++, b += COLUMNS * FLOAT) {
                lanes_of_bits b0 = *(const lanes_of_bits *)b, b1 = *(const lanes_of_bits *)(b + LANES * FLOAT);
#pragma GCC unroll 16
                for (int row = 0; row < rows; row++) {
                    lanes_of_bits pair = *(const uint32_t *)(a + row * LINE + 4 * k) - (lanes_of_bits){0};
                    sums[row][0] = add_pairs(sums[row][0], pair, b0);
                    sums[row][1] = add_pairs(sums[row][1], pair, b1);
                }
            }
        }
        return;
    }
    for (int64_t line = 0; line < lines; line++, a += ROWS * LINE) {
#pragma GCC unroll 4
        for (int k = 0; k < 16; k++, b += COLUMNS * FLOAT) {
            lanes b0 = *(const lanes *)b, b1 = *(const lanes *)(b + LANES * FLOAT);
#pragma GCC unroll 16
            for (int row = 0; row < rows; row++) {
                float value = *(const float *)(a + row * LINE + 4 * k);
                sums[row][0] += value * b0;
                sums[row][1] += value * b1;
            }
        }
    }
}

// Write two vectors of a position, from `column` on, a multiple of COLUMNS, where `multiply` will read them: `group` is
// where the position's group begins, `row` its number there.
INLINE void pack(char *group, int row, int64_t column, lanes first, lanes second, const int bf16) {
    char *at = group + (column / per_line(bf16) * ROWS + row) * LINE + column % per_line(bf16) * (bf16 ? 2 : 4);
    if (bf16) {
#if AVX512 && defined(__AVX512BF16__)
        *(__m512bh *)at = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
#else
        *(lanes_of_bf16 *)at = rounded(first);
        *(lanes_of_bf16 *)(at + LANES * 2) = rounded(second);
#endif
        return;
    }
    *(lanes *)at = first;
    *(lanes *)(at + (LANES == 16 ? ROWS * LINE : LANES * FLOAT)) = second;
}

typedef struct {
    const char *a;             // packed, groups of ROWS positions, `a_lines` lines each
    const char *b;             // packed, panels of COLUMNS columns, `b_lines` lines each
    int64_t lines;             // to multiply
    int64_t a_lines, b_lines;
    int64_t first, last;       // columns
    const float *bias;         // (columns), or NULL to add to what is in `out`
    const float *residual;     // (positions, stride), or NULL
    float *out;                // (positions, stride), or NULL for `hidden`
    int64_t stride;
    char *hidden;              // GELU of the result, packed, groups of `hidden_lines` lines; its first column is `first`
    int64_t hidden_lines;
} Product;

INLINE void multiply_group(const int rows, const int bf16, Product p, int64_t group, int64_t column) {
    lanes sums[ROWS][2];
    int64_t position = group * ROWS;
    float *out = p.out ? p.out + position * p.stride + column : NULL;
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
        for (int half = 0; half < 2; half++) {
            if (p.bias) sums[row][half] = *(const lanes *)(p.bias + column + half * LANES);
            else sums[row][half] = *(const lanes *)(out + row * p.stride + half * LANES);
            if (p.residual)
                sums[row][half] += *(const lanes *)(p.residual + (position + row) * p.stride + column + half * LANES);
        }
    int64_t panel = column / COLUMNS;
    const char *b = p.b + panel * p.b_lines * per_line(bf16) * COLUMNS * (bf16 ? 2 : 4);
    multiply(rows, bf16, p.a + group * p.a_lines * ROWS * LINE, b, p.lines, sums);
    char *hidden = p.hidden + group * p.hidden_lines * ROWS * LINE;
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++) {
        if (out) {
            *(lanes *)(out + row * p.stride) = sums[row][0];
            *(lanes *)(out + row * p.stride + LANES) = sums[row][1];
        } else {
            pack(hidden, row, column - p.first, gelu(sums[row][0], bf16), gelu(sums[row][1], bf16), bf16);
        }
    }
}

static __attribute__((noinline)) void multiply_rows(int rows, int bf16, const Product *p, int64_t group, int64_t column) {
    switch (rows * 2 + bf16) {
#define CASE(n) \
    case 2 * n: multiply_group(n, 0, *p, group, column); break; \
    case 2 * n + 1: multiply_group(n, HAS_BF16, *p, group, column); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS == 14
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
#undef CASE
    }
}

// The whole product of `positions` positions.
static void product(const Product *p, int64_t positions, int bf16) {
    for (int64_t column = p->first; column < p->last; column += COLUMNS)
        for (int64_t group = 0; group * ROWS < positions; group++) {
            int64_t left = positions - group * ROWS;
            multiply_rows(left < ROWS ? (int)left : ROWS, bf16, p, group, column);
        }
}
