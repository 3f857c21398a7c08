/* The frame loops of a GRU layer, forward and back, in float32 on a CPU: `gru_cpu.py` calls them.

   The product of a frame is so small that a library call takes longer than its arithmetic, and what follows it goes to
   memory and back between operations. Here both are one pass. No row of a batch reads another, so rows share out over
   threads without waiting, and no number depends on the stack or on the threads.

   Shapes, with the slots of all frames one after another, `counts` to a frame: gates and d_gates (trials, slots, 4,
   units), the new gate's recurrent share, reset, update, new; states, befores and d_states (trials, slots, units); h0 and
   d_h0 (trials, counts[0], units). Units are a multiple of 2 * WIDTH. */

#include "vectors.h"

#if defined(__AVX__) && !defined(__AVX512F__)
enum { ROWS = 4 }; /* whose sums fit into the registers */
#else
enum { ROWS = 8 };
#endif

int width(void) { return WIDTH; }

INLINE vec sigmoid(vec x) {
    vec exp;
    expm1_and_exp(-x, &exp);
    return 1.0f / (1.0f + exp);
}

INLINE vec tanh_of(vec x) { /* by exp(2x) - 1, which is exact where x is small */
    vec exp;
    const vec expm1 = expm1_and_exp(2.0f * x, &exp);
    return expm1 / (expm1 + 2.0f);
}

/* sums[row][v] += sum over i < depth of left[row * stride + i] * right[i][v], v being one of `vectors` registers. */
INLINE void multiply(vec sums[ROWS][3], const float *left, int stride, const float *right, int depth, int rows,
                     int vectors) {
    for (int i = 0; i < depth; i++, right += vectors * WIDTH) {
        vec along[3];
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) along[v] = load(right + v * WIDTH);
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++)
#pragma GCC unroll 3
            for (int v = 0; v < vectors; v++) sums[row][v] += left[row * stride + i] * along[v];
    }
}

/* WIDTH units of some rows of one frame: the gates, which hold the input's share, and the states. */
INLINE void forward_block(int rows, int units, const float *before, float *gates, float *states, const float *weights,
                          const float *biases, int unit) {
    vec sums[ROWS][3];
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 3
        for (int gate = 0; gate < 3; gate++) sums[row][gate] = load(biases + gate * units + unit);
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (int gate = 0; gate < 4; gate++) /* they come from memory while the product is made */
            __builtin_prefetch(gates + (row * 4 + gate) * units + unit, 1);
    multiply(sums, before, units, weights, units, rows, 3);
    const vec bias = load(biases + 3 * units + unit);
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) {
        float *gate = gates + row * 4 * units + unit;
        const vec last = load(before + row * units + unit);
        const vec reset = sigmoid(sums[row][1] + load(gate + units));
        const vec update = sigmoid(sums[row][2] + load(gate + 2 * units));
        const vec new = tanh_of(load(gate + 3 * units) + bias + reset * sums[row][0]);
        store(gate, sums[row][0]);
        store(gate + units, reset);
        store(gate + 2 * units, update);
        store(gate + 3 * units, new);
        store(states + row * units + unit, new + update * (last - new));
    }
}

/* What one row's gates get from its state of one frame; `carried` is what comes from later frames. */
INLINE void backward_row(int units, const float *before, const float *gate, const float *d_state, float *copied,
                         float *d_gate, float *carried) {
    for (int unit = 0; unit < units; unit += WIDTH) {
        const vec recurrent = load(gate + unit), reset = load(gate + units + unit);
        const vec update = load(gate + 2 * units + unit), new = load(gate + 3 * units + unit);
        const vec last = load(before + unit), d = load(carried + unit) + load(d_state + unit);
        const vec d_new = d * (1.0f - update) * (1.0f - new * new);
        store(d_gate + unit, d_new * reset);
        store(d_gate + units + unit, d_new * recurrent * reset * (1.0f - reset));
        store(d_gate + 2 * units + unit, d * (last - new) * update * (1.0f - update));
        store(d_gate + 3 * units + unit, d_new);
        store(carried + unit, d * update);
        store(copied + unit, last);
    }
}

/* What the gates of some rows of one frame hand back to 2 * WIDTH units of the state before. */
INLINE void backward_block(int rows, int units, const float *d_gates, float *carried, const float *weights, int unit) {
    vec sums[ROWS][3];
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) sums[row][v] = load(carried + row * units + unit + v * WIDTH);
    multiply(sums, d_gates, 4 * units, weights, 3 * units, rows, 2);
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) store(carried + row * units + unit + v * WIDTH, sums[row][v]);
}

/* Call a block with its number of rows as a constant, so that its sums stay in registers. */
#define WITH_ROWS(block, rows, ...)                                                                                    \
    switch (rows) {                                                                                                    \
    case 1: block(1, __VA_ARGS__); break;                                                                              \
    case 2: block(2, __VA_ARGS__); break;                                                                              \
    case 3: block(3, __VA_ARGS__); break;                                                                              \
    case 4: block(4, __VA_ARGS__); break;                                                                              \
    case 5: block(ROWS < 5 ? ROWS : 5, __VA_ARGS__); break;                                                            \
    case 6: block(ROWS < 6 ? ROWS : 6, __VA_ARGS__); break;                                                            \
    case 7: block(ROWS < 7 ? ROWS : 7, __VA_ARGS__); break;                                                            \
    default: block(ROWS, __VA_ARGS__); break;                                                                          \
    }

/* What the loops are called with. */
struct layer {
    int shares, trials, frames, units;
    const int64_t *counts;
    const float *h0, *weights, *biases, *d_states;
    float *gates, *states, *befores, *d_gates, *d_h0;
};

/* Of each ROWS * shares rows of a frame the ROWS of one share, from the first frame to the last. */
static void forward_share(const void *what, int share) {
    const struct layer *layer = what;
    const int units = layer->units, step = layer->shares * ROWS;
    const int64_t *counts = layer->counts;
    float *gates = layer->gates, *states = layer->states;
    for (int64_t trial = 0; trial < layer->trials; trial++) {
        const float *before = layer->h0 + trial * counts[0] * units, *biases = layer->biases + trial * 4 * units;
        for (int frame = 0; frame < layer->frames; frame++) {
            for (int unit = 0; unit < units; unit += WIDTH) {
                const float *weights = layer->weights + (trial * units + unit) * 3 * units;
                for (int64_t row = share * ROWS; row < counts[frame]; row += step)
                    WITH_ROWS(forward_block, counts[frame] - row, units, before + row * units, gates + 4 * row * units,
                              states + row * units, weights, biases, unit)
            }
            before = states;
            states += counts[frame] * units;
            gates += counts[frame] * 4 * units;
        }
    }
}

/* The same rows from the last frame to the first. */
static void backward_share(const void *what, int share) {
    const struct layer *layer = what;
    const int units = layer->units, step = layer->shares * ROWS;
    const int64_t *counts = layer->counts;
    int64_t slots = 0;
    for (int frame = 0; frame < layer->frames; frame++) slots += counts[frame];
    for (int64_t trial = 0; trial < layer->trials; trial++) {
        float *carried = layer->d_h0 + trial * counts[0] * units;
        int64_t slot = (trial + 1) * slots;
        for (int frame = layer->frames - 1; frame >= 0; frame--) {
            slot -= counts[frame];
            const float *before = frame ? layer->states + (slot - counts[frame - 1]) * units
                                        : layer->h0 + trial * counts[0] * units;
            for (int64_t first = share * ROWS; first < counts[frame]; first += step)
                for (int64_t row = first; row < counts[frame] && row < first + ROWS; row++) {
                    const int64_t here = (slot + row) * units;
                    backward_row(units, before + row * units, layer->gates + 4 * here, layer->d_states + here,
                                 layer->befores + here, layer->d_gates + 4 * here, carried + row * units);
                }
            for (int unit = 0; unit < units; unit += 2 * WIDTH) {
                const float *weights = layer->weights + (trial * units + unit) * 3 * units;
                for (int64_t row = share * ROWS; row < counts[frame]; row += step)
                    WITH_ROWS(backward_block, counts[frame] - row, units, layer->d_gates + 4 * (slot + row) * units,
                              carried + row * units, weights, unit)
            }
        }
    }
}

/* weights: (trials, units / WIDTH, units, 3, WIDTH), of the gates that the state reaches; biases: (trials, 4, units).
   The gates hold the input's share, without biases. */
void gru_forward(parallel run, int shares, int trials, int frames, const int64_t *counts, int units, const float *h0,
                 const float *weights, const float *biases, float *gates, float *states) {
    const struct layer layer = {.shares = shares, .trials = trials, .frames = frames, .units = units, .counts = counts,
                                .h0 = h0, .weights = weights, .biases = biases, .gates = gates, .states = states};
    run_shares(run, shares, forward_share, &layer);
}

/* weights: (trials, units / (2 * WIDTH), 3 * units, 2 * WIDTH). d_h0 is zero: it carries what goes back through time. */
void gru_backward(parallel run, int shares, int trials, int frames, const int64_t *counts, int units, const float *h0,
                  const float *weights, float *gates, float *states, const float *d_states, float *befores,
                  float *d_gates, float *d_h0) {
    const struct layer layer = {.shares = shares, .trials = trials, .frames = frames, .units = units, .counts = counts,
                                .h0 = h0, .weights = weights, .gates = gates, .states = states, .d_states = d_states,
                                .befores = befores, .d_gates = d_gates, .d_h0 = d_h0};
    run_shares(run, shares, backward_share, &layer);
}
