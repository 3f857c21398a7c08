/* Arithmetic on registers full of floats, and threads, for the kernels on a CPU. */

#include <stdint.h>

#if defined(__AVX512F__)
enum { WIDTH = 16 }; /* floats in a register */
#elif defined(__AVX__)
enum { WIDTH = 8 };
#else
enum { WIDTH = 4 };
#endif

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH), aligned(4)));
#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec values) { *(vec *)to = values; }
INLINE vec choose(ivec where, vec a, vec b) { return (vec)((where & (ivec)a) | (~where & (ivec)b)); }

/* exp(x) - 1 and, into `exp`, exp(x): x = n log(2) + r with |r| <= log(2) / 2, and a Taylor series for r. */
INLINE vec expm1_and_exp(vec x, vec *exp) {
    const float limit = 87.0f, to_integer = 12582912.0f; /* 1.5 * 2^23: adding it rounds, and leaves n in the low bits */
    x = choose(x < -limit, (vec){} - limit, x);          /* NaN stays NaN */
    x = choose(x > limit, (vec){} + limit, x);
    const vec shifted = x * 1.44269504f + to_integer, n = shifted - to_integer;
    const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* log(2) in two parts, the product with the first exact */
    vec series = (vec){} + 1.0f / 5040;
    series = series * r + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 1.0f / 2;
    series = series * r * r + r;
    const vec power = (vec)(((ivec)shifted << 23) + (127 << 23)); /* 2^n */
    *exp = power * series + power;
    return power * series + (power - 1.0f);
}

/* log(x) of 1 <= x <= 3, which is what a sum of exponentials is whose largest is 1: x or x / 2 = (1 + z) / (1 - z). */
INLINE vec log_of(vec x) {
    const ivec large = x > 1.4142135f;
    const vec halved = choose(large, x * 0.5f, x);
    const vec z = (halved - 1.0f) / (halved + 1.0f), square = z * z;
    vec series = (vec){} + 2.0f / 9;
    series = series * square + 2.0f / 7;
    series = series * square + 2.0f / 5;
    series = series * square + 2.0f / 3;
    series = series * square + 2.0f;
    return z * series + choose(large, (vec){} + 0.69314718f, (vec){});
}

/* OpenMP's call of a function on several threads. */
typedef void (*parallel)(void (*function)(void *), void *data, unsigned threads, unsigned flags);

/* What is done in shares, each thread taking the next, and how many have been taken. */
struct work {
    void (*share)(const void *what, int share);
    const void *what;
    int shares, taken;
};

static void take_shares(void *data) {
    struct work *work = data;
    for (int share; (share = __atomic_fetch_add(&work->taken, 1, __ATOMIC_RELAXED)) < work->shares;)
        work->share(work->what, share);
}

/* All shares on as many threads; `run` is null where there is no OpenMP. */
static inline void run_shares(parallel run, int shares, void (*share)(const void *, int), const void *what) {
    struct work work = {.share = share, .what = what, .shares = shares};
    run ? run(take_shares, &work, shares, 0) : take_shares(&work);
}
