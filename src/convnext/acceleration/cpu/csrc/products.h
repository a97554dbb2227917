// Packed matrices, their products, and what is done to the sums while they are in registers.
//
// The left matrix lies in groups of ROWS positions, of each position a line at a time; the right one in panels of COLUMNS
// columns, bf16 in pairs along the sum, int8 in pairs or fours. ROWS x COLUMNS sums stay in registers.
//
// The left matrix of int8 products is of uint8, in fours along the sum where the processor adds up the products of four
// (VNNI), else widened to int16, in pairs. Sums are of 32 bits, and exact.

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

#if AVX512 && defined(__AVX512VNNI__)
#define VNNI(sums, a, b) (lanes_of_ints)_mm512_dpbusd_epi32((__m512i)(sums), (__m512i)(a), (__m512i)(b))
#elif AVX2 && defined(__AVXVNNI__)
#define VNNI(sums, a, b) (lanes_of_ints)_mm256_dpbusd_avx_epi32((__m256i)(sums), (__m256i)(a), (__m256i)(b))
#endif
#if defined(VNNI) || (defined(PORTABLE) && LANES == 16)
#define TOGETHER 4 // values of int8 along the sum
#else
#define TOGETHER 2
#endif

#define COLUMNS (2 * LANES)
#define LINE 64 // bytes of a position that lie together, or half of that in fours

enum { FP32, BF16, INT8 }; // the precision of a product

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The values of a position that lie together.
INLINE int64_t per_line(int precision) { return precision == FP32 ? 16 : 32; }

// Bytes of a value on the left and on the right.
INLINE int64_t left_bytes(int precision) { return precision == FP32 ? 4 : precision == BF16 ? 2 : 4 / TOGETHER; }
INLINE int64_t right_bytes(int precision) { return precision == FP32 ? 4 : precision == BF16 ? 2 : 1; }

// Bytes of a group's line.
INLINE int64_t group_line(int precision) { return ROWS * per_line(precision) * left_bytes(precision); }

INLINE lanes all(float value) { return value - (lanes){0}; }

// x * Phi(x), where Phi - 0.5 is x times a polynomial in x^2, fitted (in the variable t, from -1 to 1) for the least
// largest error of the product up to |x| = limit; beyond, Phi stays as it is there. Errors: 1e-6, or 4e-5 for bf16 and int8.
INLINE lanes gelu(lanes x, const int precision) {
    static const float exact[] = {
        0.12855194509029388f, -0.06417197734117508f, 0.047735605388879776f, -0.03880469501018524f,
        0.03211359307169914f, -0.02594188041985035f, 0.02002955973148346f, -0.01537332683801651f,
        0.01142524741590023f, -0.0062925685197114944f, 0.002475376008078456f, -0.002518353285267949f,
        0.002592249307781458f, -0.0009116957662627101f};
    static const float coarse[] = {
        0.17594775557518005f, -0.08435747772455215f, 0.056050803512334824f, -0.036495309323072433f,
        0.021621735766530037f, -0.013260181993246078f, 0.00821125227957964f, -0.002728856634348631f};
    const float *terms = precision == FP32 ? exact : coarse;
    const int degree = precision == FP32 ? 13 : 7;
    const float limit = precision == FP32 ? 5.5f : 4.0f;
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

// sums + the products of the values of int8 that each lane of b holds, with those of a, the same for all lanes.
INLINE lanes_of_ints add_int8(lanes_of_ints sums, int32_t a, lanes_of_ints b) {
#if defined(VNNI)
    return VNNI(sums, a - (lanes_of_ints){0}, b);
#elif TOGETHER == 4
    for (int i = 0; i < 32; i += 8) sums += (int32_t)((uint32_t)a >> i & 255) * (b << (24 - i) >> 24);
    return sums;
#elif AVX512 && defined(__AVX512BW__)
    return sums + (lanes_of_ints)_mm512_madd_epi16(_mm512_set1_epi32(a), (__m512i)b);
#elif AVX2
    return sums + (lanes_of_ints)_mm256_madd_epi16(_mm256_set1_epi32(a), (__m256i)b);
#else
    return sums + (a & 0xffff) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

// What `add_int8` takes of the right matrix, a vector of columns.
INLINE lanes_of_ints read_int8(const char *b) {
#if TOGETHER == 4
    return *(const lanes_of_ints *)b;
#elif AVX512 && defined(__AVX512BW__)
    return (lanes_of_ints)_mm512_cvtepi8_epi16(_mm256_load_si256((const __m256i *)b));
#elif AVX2
    return (lanes_of_ints)_mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)b));
#else
    lanes_of_ints pairs = __builtin_convertvector(*(const lanes_of_bf16 *)b, lanes_of_ints);
    return (pairs << 24 >> 24 & 0xffff) | (pairs >> 8 << 24 >> 8);
#endif
}

// The same as `multiply` in int8.
INLINE void multiply_int8(const int rows, const char *a, const char *b, int64_t lines, lanes_of_ints (*sums)[2]) {
    const int line = 32 * 4 / TOGETHER;
    for (int64_t i = 0; i < lines; i++, a += ROWS * line) {
#pragma GCC unroll 4
        for (int k = 0; k < line; k += 4, b += COLUMNS * TOGETHER) {
            lanes_of_ints b0 = read_int8(b), b1 = read_int8(b + LANES * TOGETHER);
#pragma GCC unroll 16
            for (int row = 0; row < rows; row++) {
                int32_t values = *(const int32_t *)(a + row * line + k);
                sums[row][0] = add_int8(sums[row][0], values, b0);
                sums[row][1] = add_int8(sums[row][1], values, b1);
            }
        }
    }
}

// Two vectors in steps of int8, rounded to 0 to 255 and stored as the left matrix has them.
INLINE void store_steps(char *at, lanes first, lanes second) {
    const float magic = 12582912.0f; // added to small numbers, their nearest integer is in the low bits
    lanes_of_bits a = (lanes_of_bits)(between(0, first, 255) + magic), b = (lanes_of_bits)(between(0, second, 255) + magic);
#if AVX512 && TOGETHER == 4
    _mm_store_si128((__m128i *)at, _mm512_cvtepi32_epi8((__m512i)a));
    _mm_store_si128((__m128i *)(at + LANES), _mm512_cvtepi32_epi8((__m512i)b));
#elif AVX2 && TOGETHER == 2
    __m256i both = _mm256_packus_epi32((__m256i)(a & 255), (__m256i)(b & 255));
    _mm256_store_si256((__m256i *)at, _mm256_permute4x64_epi64(both, 0xd8));
#else
    if (TOGETHER == 4) {
        *(lanes_of_bytes *)at = __builtin_convertvector(a, lanes_of_bytes);
        *(lanes_of_bytes *)(at + LANES) = __builtin_convertvector(b, lanes_of_bytes);
    } else {
        *(lanes_of_bf16 *)at = __builtin_convertvector(a & 255, lanes_of_bf16);
        *(lanes_of_bf16 *)(at + LANES * 2) = __builtin_convertvector(b & 255, lanes_of_bf16);
    }
#endif
}

// Write two vectors of a position, from `column` on, a multiple of COLUMNS, where `multiply` will read them: `group` is
// where the position's group begins, `row` its number there. Those of int8 come in its steps.
INLINE void pack(char *group, int row, int64_t column, lanes first, lanes second, const int precision) {
    int64_t values = per_line(precision), bytes = left_bytes(precision);
    char *at = group + ((column / values * ROWS + row) * values + column % values) * bytes;
    if (precision == INT8) {
        store_steps(at, first, second);
        return;
    }
    if (precision == BF16) {
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

// How a linear layer multiplies in int8, or NULL.
typedef struct {
    const int32_t *offset; // (columns), added to the sums: the zero point's part of them, negative
    const float *scale;    // (columns), of the sums
    float steps, zero;     // of the layer's input: input * steps + zero is what is rounded to 0 to 255
} Int8;

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
    const Int8 *int8, *next;   // of this product, and of that which reads `hidden`
} Product;

// `rows` positions of a group from its row `start` on, COLUMNS columns.
INLINE void multiply_group(
    const int rows, const int precision, Product p, int64_t group, int start, int64_t column) {
    lanes sums[ROWS][2];
    lanes_of_ints counts[ROWS][2];
    int64_t position = group * ROWS + start;
    float *out = p.out ? p.out + position * p.stride + column : NULL;
    const char *a = p.a + group * p.a_lines * group_line(precision) + start * (group_line(precision) / ROWS);
    const char *b = p.b + column * p.b_lines * per_line(precision) * right_bytes(precision);
    if (precision == INT8) {
#pragma GCC unroll 16
        for (int row = 0; row < rows; row++)
            for (int half = 0; half < 2; half++)
                counts[row][half] = p.bias ? *(const lanes_of_ints *)(p.int8->offset + column + half * LANES)
                                           : (lanes_of_ints){0};
        multiply_int8(rows, a, b, p.lines, counts);
    }
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++)
        for (int half = 0; half < 2; half++) {
            if (p.bias) sums[row][half] = *(const lanes *)(p.bias + column + half * LANES);
            else sums[row][half] = *(const lanes *)(out + row * p.stride + half * LANES);
            if (p.residual)
                sums[row][half] += *(const lanes *)(p.residual + (position + row) * p.stride + column + half * LANES);
            if (precision == INT8)
                sums[row][half] = multiply_add(
                    __builtin_convertvector(counts[row][half], lanes),
                    *(const lanes *)(p.int8->scale + column + half * LANES), sums[row][half]);
        }
    if (precision != INT8) multiply(rows, precision, a, b, p.lines, sums);
    char *hidden = p.hidden + group * p.hidden_lines * group_line(precision);
#pragma GCC unroll 16
    for (int row = 0; row < rows; row++) {
        if (out) {
            *(lanes *)(out + row * p.stride) = sums[row][0];
            *(lanes *)(out + row * p.stride + LANES) = sums[row][1];
        } else {
            lanes first = gelu(sums[row][0], precision), second = gelu(sums[row][1], precision);
            if (precision == INT8) {
                first = multiply_add(first, all(p.next->steps), all(p.next->zero));
                second = multiply_add(second, all(p.next->steps), all(p.next->zero));
            }
            pack(hidden, start + row, column - p.first, first, second, precision);
        }
    }
}

static __attribute__((noinline)) void multiply_rows(
    int rows, int precision, const Product *p, int64_t group, int start, int64_t column) {
    switch (rows * 3 + precision) {
#define CASE(n) \
    case 3 * n: multiply_group(n, FP32, *p, group, start, column); break; \
    case 3 * n + 1: if (HAS_BF16) multiply_group(n, BF16, *p, group, start, column); break; \
    case 3 * n + 2: multiply_group(n, INT8, *p, group, start, column); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS == 14
        CASE(7) CASE(14) // not all, which take a compiler twice as long: the last positions come in two parts
#endif
#undef CASE
    }
}

// Fetch a share of what is multiplied with next into the second-level cache: `part` of `parts` of so many bytes.
INLINE void fetch_ahead(const char *next, int64_t size, int64_t part, int64_t parts) {
    for (int64_t at = size * part / parts / LINE * LINE; at < size * (part + 1) / parts; at += LINE)
        __builtin_prefetch(next + at, 0, 2);
}

// The whole product of `positions` positions.
static void product(const Product *p, int64_t positions, int precision) {
    int64_t panel = COLUMNS * p->b_lines * per_line(precision) * right_bytes(precision);
    int64_t size = COLUMNS * p->lines * per_line(precision) * right_bytes(precision), groups = divide_up(positions, ROWS);
    for (int64_t column = p->first; column < p->last; column += COLUMNS)
        for (int64_t group = 0; group < groups; group++) {
            fetch_ahead(p->b + (column / COLUMNS + 1) * panel, size, group, groups);
            int left = (int)least(ROWS, positions - group * ROWS), part = left < ROWS ? (int)least(7, left) : ROWS;
            multiply_rows(part, precision, p, group, 0, column);
            if (left > part) multiply_rows(left - part, precision, p, group, part, column);
        }
}
