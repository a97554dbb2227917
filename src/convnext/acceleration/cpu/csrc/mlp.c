// The two linear layers at the end of ConvNeXt's residual branch, in training:
//
//     hidden = x weight1^T + bias1
//     out    = shortcut + keep * gamma * (gelu(hidden) weight2^T + bias2)
//
// where `keep` is a number for each sample (stochastic depth) and `gamma` one for each output (LayerScale), which is
// multiplied into weight2 as that is laid out, and into bias2. A task is some rows of the map: of the values of 4 times
// the width only as many are at hand as stay in the second-level cache, and GELU is taken while the sums are in
// registers. Products are fp32, or of bf16 summed in fp32.

#include "mlp.h"

#define LARGE_MAP 25165824 // bytes

// Whole vectors of fp32, past the caches where the processor can.
INLINE void store_past_caches(float *at, lanes values) {
#if AVX512
    _mm512_stream_ps(at, (__m512)values);
#elif AVX2
    _mm256_stream_ps(at, (__m256)values);
#else
    *(lanes *)at = values;
#endif
}

static void finish_stores_past_caches(void) {
#if AVX512 || AVX2
    _mm_sfence();
#endif
}

// Lay out a matrix (depth, columns) in panels, given its transpose, each column times `gamma` where that is not null.
// All threads share the work.
INLINE void pack_turned_panels(
    char *out, Values turned, const float *gamma, int64_t depth, int64_t columns, const int bf16) {
    int64_t padded_depth = padded(depth, bf16), padded_columns = padded(columns, bf16);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < padded_columns; n += COLUMNS)
        for (int64_t first = 0; first < padded_depth; first += 16) {
            // Lines that lie a large power of 2 apart do not stay in the cache: each is read once.
            float lines[COLUMNS][16] __attribute__((aligned(LINE))), rows[16][COLUMNS] __attribute__((aligned(LINE)));
            for (int j = 0; j < COLUMNS; j++) {
                int64_t at = (n + j) * depth + first;
                float scale = scale_of(gamma, n + j, columns);
                __builtin_prefetch((const char *)turned.data + (at + 64) * (turned.is_bf16 ? 2 : 4));
                for (int k = 0; k < 16; k += LANES)
                    *(lanes *)(lines[j] + k) =
                        scale * load_some(turned, at + k, n + j < columns ? depth - first - k : 0);
            }
            for (int k = 0; k < 16; k++)
#pragma GCC unroll 32
                for (int j = 0; j < COLUMNS; j++) rows[k][j] = lines[j][k];
            store_panel_rows(out + ((n / COLUMNS * padded_depth + first) / (bf16 ? 2 : 1)) * STEP, rows, bf16);
        }
}

// The hidden values of a group from `column` on: kept, and through GELU packed for the next product.
INLINE void widen(
    const char *a, const char *panel, const float *bias, void *hidden, int past_caches, int64_t position,
    int64_t column, Sizes s, char *inner, int64_t inner_column, const int bf16) {
    Tile tile;
    multiply_panel(a, panel, s.padded_inputs / per_line(bf16), bias + column, tile[0], COLUMNS, bf16);
    for (int row = 0; row < ROWS; row += 2) {
        lanes z[4], values[4]; // two halves of two positions
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            int64_t half = i % 2 * LANES, left = position + row + i / 2 < s.rows ? s.hidden - column - half : 0;
            int64_t at = (position + row + i / 2) * s.hidden + column + half;
            z[i] = *(lanes *)(tile[row + i / 2] + half);
            if (past_caches && left > 0) store_past_caches((float *)hidden + at, z[i]);
            else store_some(hidden, at, left, bf16, z[i]);
        }
        gelus(z, values, bf16);
        pack(inner, row, inner_column, values[0], values[1], bf16);
        pack(inner, row + 1, inner_column, values[2], values[3], bf16);
    }
}

static float *take_bias(Arena *arena, const float *bias, const float *gamma, int64_t size, int64_t padded_size) {
    float *out = take(arena, padded_size * FLOAT);
    for (int64_t i = 0; out && i < padded_size; i++) out[i] = i < size ? scale_of(gamma, i, size) * bias[i] : 0;
    return out;
}

typedef struct {
    Sizes s;
    Values x, shortcut, weight1, weight2;
    const float *bias1, *bias2, *gamma, *keep;
    void *hidden, *out;
    int64_t of_sample;
    int bf16, out_is_bf16, threads;
    int past_caches; // whether `hidden` is so large that the caches will not have it any more when it is read
    char *panels1, *panels2;
    float *padded_bias1, *padded_bias2;
    Scratch *scratch;
} Forward;

static void lay_out_forward(Forward *p, Arena *arena) {
    Sizes s = p->s;
    p->panels1 = take(arena, panels_size(s.inputs, s.hidden, p->bf16));
    p->panels2 = take(arena, panels_size(s.hidden, s.outputs, p->bf16));
    p->padded_bias1 = take_bias(arena, p->bias1, NULL, s.hidden, s.padded_hidden);
    p->padded_bias2 = take_bias(arena, p->bias2, p->gamma, s.outputs, s.padded_outputs);
    p->scratch = take(arena, p->threads * sizeof *p->scratch);
    for (int i = 0; i < p->threads; i++) {
        Scratch own = take_scratch(arena, s, s.padded_inputs, s.padded_outputs, p->bf16);
        if (p->scratch) p->scratch[i] = own;
    }
}

INLINE void forward_task(const Forward *p, int64_t task, Scratch own, const int bf16) {
    Sizes s = p->s;
    int64_t start = task * s.positions, count = least(s.positions, s.rows - start), groups = divide_up(count, ROWS);
    int64_t lines = s.padded_inputs / per_line(bf16);
    for (int64_t i = 0; i < count; i++)
        pack_row(own.packed, i, lines, p->x, (start + i) * s.inputs, s.inputs, s.padded_inputs, 1, bf16);
    for (int64_t first = 0; first < s.padded_hidden; first += s.chunk) {
        int64_t chunk = least(s.chunk, s.padded_hidden - first);
        for (int64_t column = first; column < first + chunk; column += COLUMNS) {
            const char *panel = panel_of(p->panels1, column, s.padded_inputs, bf16);
            int64_t size = s.padded_inputs / (bf16 ? 2 : 1) * STEP;
            for (int64_t group = 0; group < groups; group++) {
                fetch_ahead(panel + size, size, group, groups);
                widen(own.packed + group * lines * ROWS * LINE, panel, p->padded_bias1, p->hidden, p->past_caches,
                      start + group * ROWS, column, s, own.inner + group * s.inner_lines * ROWS * LINE, column - first,
                      bf16);
            }
        }
        multiply_chunk(own.inner, p->panels2, first, chunk, groups, s, s.padded_outputs, first ? NULL : p->padded_bias2,
                       own.sums, bf16);
    }
    for (int64_t i = 0; i < count; i++) {
        float kept = factor_of(p->keep, start + i, p->of_sample);
        for (int64_t c = 0; c < s.outputs; c += LANES) {
            int64_t at = (start + i) * s.outputs + c, left = s.outputs - c;
            lanes branch = kept * *(const lanes *)(own.sums + i * s.padded_outputs + c);
            store(p->out, at, left, p->out_is_bf16, load_some(p->shortcut, at, left) + branch);
        }
    }
}

INLINE void forward_of(const Forward *p, const int bf16) {
    Sizes s = p->s;
#pragma omp parallel num_threads(p->threads)
    {
        pack_turned_panels(p->panels1, p->weight1, NULL, s.inputs, s.hidden, bf16);
        pack_turned_panels(p->panels2, p->weight2, p->gamma, s.hidden, s.outputs, bf16);
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < s.tasks; task++) forward_task(p, task, p->scratch[omp_get_thread_num()], bf16);
        finish_stores_past_caches();
    }
}

// Args:
//     x: (rows, inputs); shortcut: (rows, outputs).
//     weight1: (hidden, inputs); bias1: (hidden), fp32.
//     weight2: (outputs, hidden); bias2: (outputs), fp32.
//     gamma: (outputs), fp32, or null for ones.
//     keep: (rows / of_sample), fp32, or null for ones.
//     out: (rows, outputs), written.
//     kept: (rows, hidden), the hidden values before GELU, written.
//     bf16: of x, kept and the products; the others have flags of their own.
// Returns 0, or 1 where there is no memory.
int convnext_mlp(
    const void *x, const void *shortcut, const void *weight1, const float *bias1, const void *weight2,
    const float *bias2, const float *gamma, const float *keep, void *out, void *kept, int64_t rows, int64_t of_sample,
    int64_t inputs, int64_t hidden, int64_t outputs, int bf16, int weight1_is_bf16, int weight2_is_bf16,
    int shortcut_is_bf16, int out_is_bf16, int threads) {
    if (rows == 0) return 0;
    Forward p = {
        .s = sizes_of(rows, inputs, hidden, outputs, bf16), .x = {x, bf16}, .shortcut = {shortcut, shortcut_is_bf16},
        .weight1 = {weight1, weight1_is_bf16}, .weight2 = {weight2, weight2_is_bf16}, .bias1 = bias1, .bias2 = bias2,
        .gamma = gamma, .keep = keep, .hidden = kept, .out = out, .of_sample = of_sample, .bf16 = bf16,
        .out_is_bf16 = out_is_bf16, .threads = threads};
    p.past_caches = !bf16 && rows * hidden * FLOAT > LARGE_MAP && hidden % LANES == 0 && (uintptr_t)kept % LINE == 0;
    Arena arena = {0};
    lay_out_forward(&p, &arena);
    arena = (Arena){.data = convnext_workspace(arena.used)};
    if (!arena.data) return 1;
    lay_out_forward(&p, &arena);
    if (bf16) forward_of(&p, HAS_BF16);
    else forward_of(&p, 0);
    return 0;
}

// Whether this build multiplies in bf16.
int convnext_mlp_has_bf16(void) { return HAS_BF16; }
