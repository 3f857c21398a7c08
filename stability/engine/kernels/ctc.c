/* CTC's losses and their derivatives, in float32 on a CPU: `ctc_cpu.py` calls it.

   An utterance of n labels has 2n + 1 states: its labels with a blank between, before and behind. They fill a few
   registers, whose lanes are all computed at once. Utterances share out over threads, and read nothing of each other. */

#include "vectors.h"

#include <math.h>
#include <string.h>

struct batch {
    int shares, trials, frames, rows, classes, blank, labels; /* frames and labels: to the longest of them */
    const float *log_probs;                                   /* (trials, frames, rows, classes) */
    const int64_t *own_labels, *own_frames, *own_counts;      /* (trials, rows, labels); (trials, rows) */
    float *scratch;                                           /* as `ctc_scratch` says */
    float *losses, *gradient; /* (trials, rows); like log_probs, or null if it is not wanted */
};

/* Room for the states of so many labels, in whole registers. */
INLINE int room(int labels) { return (2 * labels + WIDTH) / WIDTH * WIDTH; }

INLINE vec log_sum_exp(vec a, vec b, vec c) {
    vec top = choose(b > a, b, a), exp_a, exp_b, exp_c;
    top = choose(c > top, c, top);
    expm1_and_exp(a - top, &exp_a);
    expm1_and_exp(b - top, &exp_b);
    expm1_and_exp(c - top, &exp_c);
    return choose(top > -INFINITY, log_of(exp_a + exp_b + exp_c) + top, a + b + c); /* -inf, or NaN if one is */
}

static float log_add(float a, float b) {
    const float top = b > a ? b : a;
    return top > -INFINITY ? top + log1pf(expf(-fabsf(a - b))) : a + b;
}

/* The log-probabilities of what the states say, at one frame. */
INLINE void spell(float *said, const float *log_probs, const int64_t *labels, int count, int blank) {
    for (int i = 0; i < count; i++) said[2 * i] = log_probs[blank], said[2 * i + 1] = log_probs[labels[i]];
    said[2 * count] = log_probs[blank];
}

static void utterance(const struct batch *batch, int64_t place, float *scratch) {
    const int64_t stride = (int64_t)batch->rows * batch->classes;
    const int64_t start = place / batch->rows * batch->frames * stride + place % batch->rows * batch->classes;
    const float *log_probs = batch->log_probs + start;
    const int64_t *labels = batch->own_labels + place * batch->labels;
    const int frames = batch->own_frames[place], count = batch->own_counts[place], states = 2 * count + 1;
    const int size = room(batch->labels), used = room(count);
    /* States that are not there have -inf: those that fill up the last register, and two before the first or behind. */
    float *skip = scratch, *behind = skip + size + WIDTH, *ahead = behind + size + WIDTH;
    float *said = ahead + size + WIDTH, *beta = said + size, *share = beta + size, *alphas = share + size;
    for (int s = 0; s < used + WIDTH; s++) skip[s] = behind[s] = ahead[s] = -INFINITY;
    for (int s = 0; s < used; s++) said[s] = beta[s] = -INFINITY;
    for (int i = 1; i < count; i++)
        if (labels[i] != labels[i - 1]) skip[2 * i + 1] = 0.0f; /* it can follow the label before it at once */
    behind[2] = 0.0f;                                          /* before the first frame one is at the first blank */
    for (int frame = 0; frame < frames; frame++) {
        float *alpha = alphas + (int64_t)frame * size;
        spell(said, log_probs + frame * stride, labels, count, batch->blank);
        for (int s = 0; s < used; s += WIDTH)
            store(alpha + s, load(said + s) + log_sum_exp(load(behind + s + 2), load(behind + s + 1),
                                                          load(behind + s) + load(skip + s)));
        memcpy(behind + 2, alpha, states * sizeof *alpha);
    }
    const float loss = -log_add(behind[states + 1], behind[states]);
    batch->losses[place] = loss;
    if (!batch->gradient) return;

    float *gradient = batch->gradient + start;
    for (int frame = 0; frame < batch->frames; frame++)
        memset(gradient + frame * stride, 0, batch->classes * sizeof *gradient);
    beta[states - 1] = 0.0f;
    if (count) beta[states - 2] = 0.0f;
    for (int frame = frames - 1; frame >= 0; frame--) {
        const float *alpha = alphas + (int64_t)frame * size;
        float *row = gradient + frame * stride, total = 0.0f;
        spell(said, log_probs + frame * stride, labels, count, batch->blank);
        for (int s = 0; s < used; s += WIDTH) {
            vec probability;
            expm1_and_exp(load(alpha + s) + load(beta + s) + loss, &probability);
            store(share + s, probability);
            store(ahead + s, load(beta + s) + load(said + s));
        }
        for (int s = 0; s < states; s++) total += share[s];
        const float scale = -1.0f / total; /* it is 1, but for what long sums of large numbers lose */
        for (int s = 0; s < states; s++) row[s & 1 ? labels[s / 2] : batch->blank] += share[s] * scale;
        for (int s = 0; s < used; s += WIDTH)
            store(beta + s, log_sum_exp(load(ahead + s), load(ahead + s + 1), load(ahead + s + 2) + load(skip + s + 2)));
    }
}

/* Floats of scratch that so many shares need. */
int64_t ctc_scratch(int shares, int frames, int labels) {
    return shares * (room(labels) * (6 + (int64_t)frames) + 3 * WIDTH);
}

static void some_utterances(const void *what, int share) {
    const struct batch *batch = what;
    float *scratch = batch->scratch + ctc_scratch(share, batch->frames, batch->labels);
    for (int64_t place = share; place < (int64_t)batch->trials * batch->rows; place += batch->shares)
        utterance(batch, place, scratch);
}

void ctc(parallel run, int shares, int trials, int frames, int rows, int classes, int blank, int labels,
         const float *log_probs, const int64_t *own_labels, const int64_t *own_frames, const int64_t *own_counts,
         float *scratch, float *losses, float *gradient) {
    const struct batch batch = {.shares = shares, .trials = trials, .frames = frames, .rows = rows, .classes = classes,
                                .blank = blank, .labels = labels, .log_probs = log_probs, .own_labels = own_labels,
                                .own_frames = own_frames, .own_counts = own_counts, .scratch = scratch,
                                .losses = losses, .gradient = gradient};
    run_shares(run, shares, some_utterances, &batch);
}
