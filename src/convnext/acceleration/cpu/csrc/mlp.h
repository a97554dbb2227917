// What the linear layers of a residual branch and their gradients (mlp.c, mlp_gradient.c) share: sizes, memory, how
// matrices are laid out in panels, and products of a task.

#include "products.h"
#include "gelu.h"

int omp_get_thread_num(void);
int omp_get_num_threads(void);

#define POSITIONS 168          // of a task, about,
#define POSITIONS_OF_LARGE 198 // or where the weights are large beside them:
#define LARGE 512              // channels
#define INNER 98304            // bytes of a task's hidden values, about
#define STEP (COLUMNS * FLOAT) // bytes of a panel for a position, or for two of bf16

typedef struct {
    int64_t rows, inputs, hidden, outputs;
    int64_t padded_inputs, padded_hidden, padded_outputs;
    int64_t positions, tasks; // of a task; of them
    int64_t chunk, inner_lines; // hidden values at hand together; as lines
} Sizes;

typedef struct {
    const void *data;
    int is_bf16;
} Values;

static int64_t padded(int64_t size, int bf16) {
    int64_t unit = per_line(bf16) > COLUMNS ? per_line(bf16) : COLUMNS;
    return divide_up(size, unit) * unit;
}

static Sizes sizes_of(int64_t rows, int64_t inputs, int64_t hidden, int64_t outputs, int bf16) {
    Sizes s = {
        .rows = rows, .inputs = inputs, .hidden = hidden, .outputs = outputs, .padded_inputs = padded(inputs, bf16),
        .padded_hidden = padded(hidden, bf16), .padded_outputs = padded(outputs, bf16)};
    int64_t most = inputs > LARGE || outputs > LARGE ? POSITIONS_OF_LARGE : POSITIONS;
    s.positions = divide_up(divide_up(rows, divide_up(rows, most)), ROWS) * ROWS;
    s.tasks = divide_up(rows, s.positions);
    int64_t unit = padded(1, bf16), value = bf16 ? 2 : 4;
    int64_t chunks = divide_up(s.padded_hidden * s.positions * value, INNER);
    s.chunk = divide_up(divide_up(s.padded_hidden, chunks), unit) * unit;
    s.inner_lines = s.chunk / per_line(bf16);
    return s;
}

char *convnext_workspace(int64_t size); // workspace.c

// Memory that is shared out; without data, that counts how much is needed.
typedef struct {
    char *data;
    int64_t used;
} Arena;

static void *take(Arena *arena, int64_t size) {
    char *taken = arena->data ? arena->data + arena->used : NULL;
    arena->used += divide_up(size, 4096) * 4096 + LINE; // neighbours do not fall on the same lines of a cache
    return taken;
}

INLINE lanes load_some(Values from, int64_t at, int64_t left) {
    return left > 0 ? load(from.data, at, left, from.is_bf16) : (lanes){0};
}

INLINE void store_some(void *data, int64_t at, int64_t left, const int is_bf16, lanes values) {
    if (left > 0) store(data, at, left, is_bf16, values);
}

// Of two positions: bf16 side by side.
INLINE lanes paired(lanes first, lanes second) {
    lanes_of_bits low = __builtin_convertvector(rounded(first), lanes_of_bits);
    return (lanes)(low | __builtin_convertvector(rounded(second), lanes_of_bits) << 16);
}

// Sixteen rows of a panel, where they go in it.
INLINE void store_panel_rows(char *to, float (*rows)[COLUMNS], const int bf16) {
    const int together = bf16 ? 2 : 1;
    for (int k = 0; k < 16; k += together, to += STEP)
        for (int j = 0; j < COLUMNS; j += LANES) {
            lanes values = *(lanes *)(rows[k] + j);
            *(lanes *)(to + j * FLOAT) = bf16 ? paired(values, *(lanes *)(rows[k + together - 1] + j)) : values;
        }
}

// LayerScale of an output; 1 where there is none.
INLINE float scale_of(const float *gamma, int64_t output, int64_t outputs) {
    return gamma && output < outputs ? gamma[output] : 1;
}

// A row, times a number, where `multiply` reads it.
INLINE void pack_row(
    char *packed, int64_t position, int64_t lines, Values from, int64_t at, int64_t size, int64_t padded_size,
    float factor, const int bf16) {
    char *group = packed + position / ROWS * lines * ROWS * LINE;
    for (int64_t c = 0; c < padded_size; c += COLUMNS)
        pack(group, (int)(position % ROWS), c, factor * load_some(from, at + c, size - c),
             factor * load_some(from, at + c + LANES, size - c - LANES), bf16);
}

// Sums of ROWS positions and COLUMNS columns. The functions that fill one are not inlined: in anything larger compilers
// run out of registers for them.
typedef float Tile[ROWS][COLUMNS] __attribute__((aligned(LINE)));

// out[ROWS][.], with `stride` floats from row to row: the product, added to what is there, or to `bias`.
INLINE void multiply_into(
    const char *a, const char *b, int64_t lines, const float *bias, float *out, int64_t stride, const int bf16) {
    lanes sums[ROWS][2];
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; row++) {
        const float *from = bias ? bias : out + row * stride;
        sums[row][0] = *(const lanes *)from;
        sums[row][1] = *(const lanes *)(from + LANES);
    }
    multiply(ROWS, bf16, a, b, lines, sums);
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; row++) {
        *(lanes *)(out + row * stride) = sums[row][0];
        *(lanes *)(out + row * stride + LANES) = sums[row][1];
    }
}

static __attribute__((noinline)) void multiply_fp32(
    const char *a, const char *b, int64_t lines, const float *bias, float *out, int64_t stride) {
    multiply_into(a, b, lines, bias, out, stride, 0);
}

static __attribute__((noinline)) void multiply_bf16(
    const char *a, const char *b, int64_t lines, const float *bias, float *out, int64_t stride) {
    multiply_into(a, b, lines, bias, out, stride, HAS_BF16);
}

INLINE void multiply_panel(
    const char *a, const char *b, int64_t lines, const float *bias, float *out, int64_t stride, const int bf16) {
    if (bf16) multiply_bf16(a, b, lines, bias, out, stride);
    else multiply_fp32(a, b, lines, bias, out, stride);
}

// The panel of a matrix with `depth` rows that begins at a column.
INLINE const char *panel_of(const char *panels, int64_t column, int64_t depth, const int bf16) {
    return panels + column / COLUMNS * (depth / (bf16 ? 2 : 1)) * STEP;
}

// sums[positions][.] += a chunk of hidden values times the rows of the second matrix from `first` on.
INLINE void multiply_chunk(
    const char *inner, const char *panels, int64_t first, int64_t chunk, int64_t groups, Sizes s, int64_t width,
    const float *bias, float *sums, const int bf16) {
    for (int64_t column = 0; column < width; column += COLUMNS) {
        const char *panel = panel_of(panels, column, s.padded_hidden, bf16) + first / (bf16 ? 2 : 1) * STEP;
        const char *next = panel + s.padded_hidden / (bf16 ? 2 : 1) * STEP;
        for (int64_t group = 0; group < groups; group++) {
            fetch_ahead(next, chunk / (bf16 ? 2 : 1) * STEP, group, groups);
            multiply_panel(inner + group * s.inner_lines * ROWS * LINE, panel, chunk / per_line(bf16),
                           bias ? bias + column : NULL, sums + group * ROWS * width + column, width, bf16);
        }
    }
}

typedef struct {
    char *packed, *inner;
    float *sums;
    uint32_t *units;
} Scratch; // of a thread

static Scratch take_scratch(Arena *arena, Sizes s, int64_t from, int64_t to, int bf16) {
    int64_t value = bf16 ? 2 : 4;
    Scratch scratch;
    scratch.packed = take(arena, s.positions * from * value);
    scratch.inner = take(arena, s.positions * s.chunk * value);
    scratch.sums = take(arena, s.positions * to * FLOAT);
    scratch.units = take(arena, (from > to ? from : to) * FLOAT);
    return scratch;
}

static int64_t panels_size(int64_t depth, int64_t columns, int bf16) {
    return padded(depth, bf16) * padded(columns, bf16) * (bf16 ? 2 : 4);
}
