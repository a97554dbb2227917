// The gradients of the two linear layers at the end of a residual branch (mlp.c): of x, weights, biases and gamma.
//
// A task reads the hidden values before GELU, the map of 4 times the width, once: GELU and its slope come of them
// together. The gradients of the weights are sums over all rows. They are taken of some tasks together, whose values
// stay in the third-level cache, one task after the other: their bits depend neither on the number of threads nor on
// their order. With LayerScale they are at first those of gamma * weight2 and gamma * bias2; weight2's, bias2's and
// gamma's come of those when they are complete.

#include "mlp_weights.h"

#define IN_CACHE 8388608 // bytes of hidden values of the tasks whose gradients are taken together, about
#define BLOCK 64         // rows and columns of a matrix that are turned together

// Lay out a matrix (depth, columns) in panels, each row times `gamma` where that is not null. All threads share the
// work, and each row is read from end to end.
INLINE void pack_panels(
    char *out, Values matrix, const float *gamma, int64_t depth, int64_t columns, const int bf16) {
    int64_t padded_depth = padded(depth, bf16), padded_columns = padded(columns, bf16);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < padded_depth; first += 16)
        for (int64_t n = 0; n < padded_columns; n += COLUMNS) {
            float rows[16][COLUMNS] __attribute__((aligned(LINE)));
            for (int k = 0; k < 16; k++)
                for (int j = 0; j < COLUMNS; j += LANES)
                    *(lanes *)(rows[k] + j) =
                        scale_of(gamma, first + k, depth) *
                        load_some(matrix, (first + k) * columns + n + j, first + k < depth ? columns - n - j : 0);
            store_panel_rows(out + ((n / COLUMNS * padded_depth + first) / (bf16 ? 2 : 1)) * STEP, rows, bf16);
        }
}

typedef struct {
    Sizes s;
    Values grad, x, hidden, weight1, weight2;
    const float *bias2, *gamma, *keep;
    void *x_grad;
    float *weight1_grad, *bias1_grad, *weight2_grad, *bias2_grad, *gamma_grad;
    int64_t of_sample;
    int bf16, threads;
    int64_t together;          // tasks whose gradients of the weights are taken together
    char *panels1, *panels2;
    float *turned;             // weight1's gradient, (inputs, hidden)
    float *parts;              // sums for bias2's
    // Of each of the tasks together: groups of ROWS channels of x and of keep * grad, and panels of the gradient with
    // respect to the hidden values and of GELU of them, all of them step by step.
    char *left_x, *left_grad, *slopes, *gelus;
    int64_t left_x_size, left_grad_size, right_size;
    Scratch *scratch;
} Backward;

// Of `turned`, in floats: not a multiple of a page, whose rows would fall on the same lines of a cache.
static int64_t turned_stride(Sizes s) { return s.padded_hidden + 16; }

static void lay_out_backward(Backward *p, Arena *arena) {
    Sizes s = p->s;
    int64_t value = p->bf16 ? 2 : 4;
    p->panels1 = take(arena, panels_size(s.hidden, s.inputs, p->bf16));
    p->panels2 = take(arena, panels_size(s.outputs, s.hidden, p->bf16));
    p->turned = take(arena, s.inputs * turned_stride(s) * FLOAT);
    p->parts = take(arena, tasks_of(s.rows) * whole(s.outputs) * FLOAT);
    p->left_x_size = divide_up(s.inputs, ROWS) * ROWS * s.positions * value;
    p->left_grad_size = divide_up(s.outputs, ROWS) * ROWS * s.positions * value;
    p->right_size = s.padded_hidden * s.positions * value;
    p->left_x = take(arena, p->together * p->left_x_size);
    p->left_grad = take(arena, p->together * p->left_grad_size);
    p->slopes = take(arena, p->together * p->right_size);
    p->gelus = take(arena, p->together * p->right_size);
    p->scratch = take(arena, p->threads * sizeof *p->scratch);
    for (int i = 0; i < p->threads; i++) {
        Scratch own = take_scratch(arena, s, s.padded_outputs, s.padded_inputs, p->bf16);
        if (p->scratch) p->scratch[i] = own;
    }
}

// Lay out some rows, times a factor each, from `position` of their task on: in groups of ROWS channels, step by step.
// Behind the last row are zeros. `units` is for a step of all channels.
INLINE void lay_left(
    char *left, int64_t position, Values from, int64_t at, int64_t count, int64_t channels, const float *factors,
    int64_t capacity, uint32_t *units, const int bf16) {
    const int together = bf16 ? 2 : 1;
    for (int64_t i = 0; i < count; i += together) {
        for (int64_t c = 0; c < channels; c += LANES) {
            int64_t there = channels - c, second = i + 1 < count ? there : 0;
            lanes values = load_some(from, at + i * channels + c, there) * (factors ? factors[i] : 1);
            if (bf16) {
                lanes others = load_some(from, at + (i + 1) * channels + c, second);
                values = paired(values, others * (factors && second ? factors[i + 1] : 1));
            }
            *(lanes *)(units + c) = values;
        }
        uint32_t *to = (uint32_t *)left + (position + i) / together * ROWS;
        int64_t c = 0;
        for (; c + ROWS <= channels; c += ROWS, to += capacity * ROWS) memcpy(to, units + c, ROWS * FLOAT);
        memcpy(to, units + c, (channels - c) * FLOAT);
    }
}

// The gradient with respect to a group's hidden values from `column` on, for the sums over rows and packed for the next
// product; and GELU of them.
INLINE void slope_group(
    const char *a, const char *panel, const Backward *p, int64_t position, int64_t column, char *slopes, char *gelus,
    char *inner, int64_t inner_column, const int bf16) {
    Sizes s = p->s;
    static const float zeros[COLUMNS] __attribute__((aligned(LINE)));
    const int together = bf16 ? 2 : 1;
    Tile tile;
    for (int row = 0; row < ROWS; row++) { // which come from memory while the product is computed
        const char *from = (const char *)p->hidden.data + ((position + row) * s.hidden + column) * (bf16 ? 2 : 4);
        __builtin_prefetch(from);
        __builtin_prefetch(from + COLUMNS * (bf16 ? 2 : 4) - 1);
    }
    multiply_panel(a, panel, s.padded_outputs / per_line(bf16), zeros, tile[0], COLUMNS, bf16);
    for (int row = 0; row < ROWS; row += 2) {
        lanes z[4], values[4], gradients[4]; // two halves of two positions
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            int64_t at = position + row + i / 2, half = i % 2 * LANES;
            z[i] = load_some(p->hidden, at * s.hidden + column + half, at < s.rows ? s.hidden - column - half : 0);
        }
        gelus_and_slopes(z, values, gradients, bf16);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) gradients[i] *= *(lanes *)(tile[row + i / 2] + i % 2 * LANES);
        pack(inner, row, inner_column, gradients[0], gradients[1], bf16);
        pack(inner, row + 1, inner_column, gradients[2], gradients[3], bf16);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            int64_t to = row / together * STEP + half * LANES * FLOAT;
            *(lanes *)(slopes + to) = bf16 ? paired(gradients[half], gradients[half + 2]) : gradients[half];
            *(lanes *)(gelus + to) = bf16 ? paired(values[half], values[half + 2]) : values[half];
            if (bf16) continue;
            *(lanes *)(slopes + to + STEP) = gradients[half + 2];
            *(lanes *)(gelus + to + STEP) = values[half + 2];
        }
    }
}

// A part of a task, positions from `from` to `to`: x's gradient, and what the sums over rows take. `slot`: its place.
INLINE void backward_task(
    const Backward *p, int64_t task, int64_t slot, int64_t from, int64_t to, Scratch own, const int bf16) {
    Sizes s = p->s;
    int64_t start = task * s.positions + from, count = least(to - from, s.rows - start);
    if (count <= 0) return;
    int64_t groups = divide_up(count, ROWS), lines = s.padded_outputs / per_line(bf16);
    const int together = bf16 ? 2 : 1;
    int64_t steps = s.positions / together;
    float factors[POSITIONS_OF_LARGE + ROWS];
    for (int64_t i = 0; i < count; i++) factors[i] = factor_of(p->keep, start + i, p->of_sample);
    char *left_x = p->left_x + slot * p->left_x_size, *left_grad = p->left_grad + slot * p->left_grad_size;
    lay_left(left_x, from, p->x, start * s.inputs, count, s.inputs, NULL, steps, own.units, bf16);
    lay_left(left_grad, from, p->grad, start * s.outputs, count, s.outputs, factors, steps, own.units, bf16);
    for (int64_t i = 0; i < groups * ROWS; i++)
        pack_row(own.packed, i, lines, p->grad, (start + i) * s.outputs, i < count ? s.outputs : 0, s.padded_outputs,
                 i < count ? factors[i] : 0, bf16);
    memset(own.sums, 0, groups * ROWS * s.padded_inputs * FLOAT);
    for (int64_t first = 0; first < s.padded_hidden; first += s.chunk) {
        int64_t chunk = least(s.chunk, s.padded_hidden - first);
        for (int64_t column = first; column < first + chunk; column += COLUMNS) {
            const char *panel = panel_of(p->panels2, column, s.padded_outputs, bf16);
            int64_t right = slot * p->right_size + (column / COLUMNS * steps + from / together) * STEP;
            int64_t size = s.padded_outputs / together * STEP;
            for (int64_t group = 0; group < groups; group++, right += ROWS / together * STEP) {
                fetch_ahead(panel + size, size, group, groups);
                slope_group(own.packed + group * lines * ROWS * LINE, panel, p, start + group * ROWS, column,
                            p->slopes + right, p->gelus + right, own.inner + group * s.inner_lines * ROWS * LINE,
                            column - first, bf16);
            }
        }
        multiply_chunk(own.inner, p->panels1, first, chunk, groups, s, s.padded_inputs, NULL, own.sums, bf16);
    }
    for (int64_t i = 0; i < count; i++)
        for (int64_t c = 0; c < s.inputs; c += LANES)
            store(p->x_grad, (start + i) * s.inputs + c, s.inputs - c, bf16,
                  *(const lanes *)(own.sums + i * s.padded_inputs + c));
}

// This thread's share of the weights' gradients, of `count` tasks from `task` on.
INLINE void weight_gradients(const Backward *p, int64_t task, int64_t count, const int bf16) {
    Sizes s = p->s;
    const int together = bf16 ? 2 : 1;
    int64_t panels = divide_up(s.hidden, COLUMNS), capacity = s.positions / together;
    int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    for (int64_t slot = 0; slot < count; slot++) {
        int64_t positions = least(s.positions, s.rows - (task + slot) * s.positions);
        int64_t steps = divide_up(positions, together);
        int is_first = task + slot == 0;
        for (int64_t item = 2 * panels * thread / threads; item < 2 * panels * (thread + 1) / threads; item++) {
            int64_t panel = item % panels, column = panel * COLUMNS;
            int64_t at = slot * p->right_size + panel * capacity * STEP;
            if (item < panels) {
                weight_panel(p->left_x + slot * p->left_x_size, p->slopes + at, steps, capacity, s.inputs, column,
                             s.hidden, p->turned, turned_stride(s), is_first, bf16);
                bias_panel(p->slopes + at, steps, p->bias1_grad + column, s.hidden - column, is_first, bf16);
            } else {
                weight_panel(p->left_grad + slot * p->left_grad_size, p->gelus + at, steps, capacity, s.outputs, column,
                             s.hidden, p->weight2_grad, s.hidden, is_first, bf16);
            }
        }
    }
}

INLINE void backward_of(const Backward *p, const int bf16) {
    Sizes s = p->s;
    int64_t bias_tasks = tasks_of(s.rows), width = whole(s.outputs);
    int64_t parts = p->together < p->threads ? divide_up(p->threads, p->together) : 1, groups = s.positions / ROWS;
#pragma omp parallel num_threads(p->threads)
    {
#pragma omp for schedule(static)
        for (int64_t task = 0; task < bias_tasks; task++) {
            float *own = p->parts + task * width;
            memset(own, 0, width * FLOAT);
            for (int64_t row = s.rows * task / bias_tasks; row < s.rows * (task + 1) / bias_tasks; row++) {
                float kept = factor_of(p->keep, row, p->of_sample);
                for (int64_t c = 0; c < s.outputs; c += LANES)
                    *(lanes *)(own + c) += kept * load_some(p->grad, row * s.outputs + c, s.outputs - c);
            }
        }
#pragma omp for schedule(static)
        for (int64_t c = 0; c < s.outputs; c += LANES) add_up(p->bias2_grad, p->parts, c, s.outputs, width, bias_tasks);
        pack_panels(p->panels1, p->weight1, NULL, s.hidden, s.inputs, bf16);
        pack_panels(p->panels2, p->weight2, p->gamma, s.outputs, s.hidden, bf16);
        for (int64_t task = 0; task < s.tasks; task += p->together) {
            int64_t count = least(p->together, s.tasks - task);
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < count * parts; i++) {
                int64_t slot = i / parts, part = i % parts;
                backward_task(p, task + slot, slot, groups * part / parts * ROWS, groups * (part + 1) / parts * ROWS,
                              p->scratch[omp_get_thread_num()], bf16);
            }
            weight_gradients(p, task, count, bf16);
#pragma omp barrier
        }
#pragma omp for schedule(static)
        for (int64_t output = 0; output < (p->gamma ? s.outputs : 0); output++)
            scale_output(output, s.hidden, p->weight2, p->bias2, p->gamma, p->weight2_grad, p->bias2_grad,
                         p->gamma_grad);
#pragma omp for schedule(static)
        for (int64_t d = 0; d < s.hidden; d += BLOCK)
            for (int64_t c = 0; c < s.inputs; c += BLOCK)
                for (int64_t i = d; i < least(d + BLOCK, s.hidden); i++)
                    for (int64_t j = c; j < least(c + BLOCK, s.inputs); j++)
                        p->weight1_grad[i * s.inputs + j] = p->turned[j * turned_stride(s) + i];
    }
}

// Args:
//     grad: (rows, outputs), with respect to out.
//     x, weight1, weight2, bias2, gamma, keep: as in mlp.c; kept: what was written there.
//     x_grad: as x, written.
//     weight1_grad, bias1_grad, weight2_grad, bias2_grad, gamma_grad: fp32, written; the last is null where gamma is.
// Returns 0, or 1 where there is no memory.
int convnext_mlp_gradient(
    const void *grad, const void *x, const void *weight1, const void *weight2, const float *bias2, const float *gamma,
    const float *keep, const void *kept, void *x_grad, float *weight1_grad, float *bias1_grad, float *weight2_grad,
    float *bias2_grad, float *gamma_grad, int64_t rows, int64_t of_sample, int64_t inputs, int64_t hidden,
    int64_t outputs, int bf16, int weight1_is_bf16, int weight2_is_bf16, int grad_is_bf16, int threads) {
    if (rows == 0) {
        memset(weight1_grad, 0, hidden * inputs * FLOAT);
        memset(bias1_grad, 0, hidden * FLOAT);
        memset(weight2_grad, 0, outputs * hidden * FLOAT);
        memset(bias2_grad, 0, outputs * FLOAT);
        if (gamma) memset(gamma_grad, 0, outputs * FLOAT);
        return 0;
    }
    Backward p = {
        .s = sizes_of(rows, inputs, hidden, outputs, bf16), .grad = {grad, grad_is_bf16}, .x = {x, bf16},
        .hidden = {kept, bf16}, .weight1 = {weight1, weight1_is_bf16}, .weight2 = {weight2, weight2_is_bf16},
        .bias2 = bias2, .gamma = gamma, .keep = keep, .x_grad = x_grad, .weight1_grad = weight1_grad,
        .bias1_grad = bias1_grad, .weight2_grad = weight2_grad, .bias2_grad = bias2_grad, .gamma_grad = gamma_grad,
        .of_sample = of_sample, .bf16 = bf16, .threads = threads};
    int64_t size = 2 * p.s.padded_hidden * p.s.positions * (bf16 ? 2 : 4);
    int64_t rounds = IN_CACHE / size / threads; // so that no thread waits for the others
    p.together = least(p.s.tasks, threads * (rounds > 1 ? rounds : 1));
    Arena arena = {0};
    lay_out_backward(&p, &arena);
    arena = (Arena){.data = convnext_workspace(arena.used)};
    if (!arena.data) return 1;
    lay_out_backward(&p, &arena);
    if (bf16) backward_of(&p, HAS_BF16);
    else backward_of(&p, 0);
    return 0;
}
