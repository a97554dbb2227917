// Vectors of fp32 as wide as the processor's registers, read from and written to memory of fp32 or bf16, and how sums
// over the rows of a matrix are taken so that their bits depend neither on the number of threads nor on their order.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(LANES) // chosen by who includes this, or who compiles it
#elif defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

// Whether instructions are named; compiled with PORTABLE and LANES, the code for one processor runs on any other.
#if defined(__AVX512F__) && LANES == 16 && !defined(PORTABLE)
#define AVX512 1
#else
#define AVX512 0
#endif
#if defined(__AVX2__) && LANES == 8 && !defined(PORTABLE)
#define AVX2 1
#else
#define AVX2 0
#endif

#define FLOAT ((int64_t)sizeof(float))
#define INLINE static inline __attribute__((always_inline)) // with constants for dtypes, one loop for each of them

typedef float lanes __attribute__((vector_size(LANES * 4)));
typedef float lanes_anywhere __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint32_t lanes_of_bits __attribute__((vector_size(LANES * 4)));
typedef int32_t lanes_of_ints __attribute__((vector_size(LANES * 4)));
typedef uint16_t lanes_of_bf16 __attribute__((vector_size(LANES * 2), aligned(2)));
typedef uint8_t lanes_of_bytes __attribute__((vector_size(LANES), aligned(1)));

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Between two ends; NaN stays NaN.
INLINE lanes between(float least, lanes values, float most) {
    lanes low = least - (lanes){0}, high = most - (lanes){0};
#if AVX512
    return (lanes)_mm512_max_ps((__m512)low, _mm512_min_ps((__m512)high, (__m512)values));
#elif AVX2
    return (lanes)_mm256_max_ps((__m256)low, _mm256_min_ps((__m256)high, (__m256)values));
#else
    lanes_of_bits above = (lanes_of_bits)(values > high), below = (lanes_of_bits)(values < low);
    lanes_of_bits inside = (lanes_of_bits)values & ~(above | below);
    return (lanes)(inside | (above & (lanes_of_bits)high) | (below & (lanes_of_bits)low));
#endif
}

// a * b + c, rounded once wherever that can be, in every place alike, as compilers do not do it of themselves.
INLINE lanes multiply_add(lanes a, lanes b, lanes c) {
#if AVX512
    return (lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif AVX2 && defined(__FMA__)
    return (lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__)
    for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

INLINE lanes clamped(lanes values, float end) { return between(-end, values, end); }

// Nearest, ties to even; NaN stays NaN.
INLINE lanes_of_bf16 rounded(lanes values) {
#if AVX512 && defined(__AVX512BF16__)
    return (lanes_of_bf16)_mm512_cvtneps_pbh((__m512)values);
#else
    lanes_of_bits bits = (lanes_of_bits)values, is_nan = (lanes_of_bits)(values != values);
    bits += (bits >> 16 & 1) + 0x7fff;
    return __builtin_convertvector(((bits & ~is_nan) | (is_nan & 0x7fc00000)) >> 16, lanes_of_bf16);
#endif
}

INLINE lanes widened(lanes_of_bf16 halves) {
#if AVX512 // of which compilers make more instructions than one
    lanes_of_bits bits = (lanes_of_bits)_mm512_cvtepu16_epi32((__m256i)halves);
#else
    lanes_of_bits bits = __builtin_convertvector(halves, lanes_of_bits);
#endif
    return (lanes)(bits << 16);
}

// The values from `at` on, zeros behind the `left` that there are.
INLINE lanes load(const void *data, int64_t at, int64_t left, const int is_bf16) {
    const uint16_t *from_halves = (const uint16_t *)data + at;
    const float *from = (const float *)data + at;
    if (left >= LANES) return is_bf16 ? widened(*(const lanes_of_bf16 *)from_halves) : *(const lanes_anywhere *)from;
    lanes_of_bf16 halves = {0};
    lanes values = {0};
    if (is_bf16) memcpy(&halves, from_halves, left * 2);
    else memcpy(&values, from, left * 4);
    return is_bf16 ? widened(halves) : values;
}

INLINE void store(void *data, int64_t at, int64_t left, const int is_bf16, lanes values) {
    if (is_bf16) {
        lanes_of_bf16 halves = rounded(values);
        if (left >= LANES) *(lanes_of_bf16 *)((uint16_t *)data + at) = halves;
        else memcpy((uint16_t *)data + at, &halves, left * 2);
    } else if (left >= LANES) *(lanes_anywhere *)((float *)data + at) = values;
    else memcpy((float *)data + at, &values, left * 4);
}

INLINE float total(lanes values) {
    float parts[LANES];
    memcpy(parts, &values, sizeof values);
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++) parts[i] += parts[i + half];
    return parts[0];
}

// Sums over rows: every task has its own, over neighbouring rows, and they are added up in order.
#define MOST_TASKS 256
#define TASK_ROWS 64 // at least, but for the last

static inline int64_t tasks_of(int64_t rows) {
    int64_t tasks = (rows + TASK_ROWS - 1) / TASK_ROWS;
    return tasks < 1 ? 1 : least(tasks, MOST_TASKS);
}

// The columns from `column` on of [tasks][width], added up into sums[columns].
INLINE void add_up(float *sums, const float *parts, int64_t column, int64_t columns, int64_t width, int64_t tasks) {
    lanes sum = {0};
    for (int64_t task = 0; task < tasks; task++) sum += load(parts, task * width + column, LANES, 0);
    store(sums, column, columns - column, 0, sum);
}

// A row's factor of stochastic depth, of those of all samples; 1 where there are none.
INLINE float factor_of(const float *keep, int64_t row, int64_t of_sample) { return keep ? keep[row / of_sample] : 1; }

// Columns, rounded up to whole vectors.
static inline int64_t whole(int64_t columns) { return (columns + LANES - 1) / LANES * LANES; }
