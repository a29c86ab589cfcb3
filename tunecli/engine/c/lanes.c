/* Layers between the numbers of each sample: all samples of a line are worked off at once, so that what a layer does to
   one sample is written down here as it is, with vectors for numbers. REAL is float or double. */

#include <math.h>

#include "functions.h"
#include "layers.h"

#define INLINE static inline __attribute__((always_inline))

/* For the samples of each group: `n` lines of m numbers, from `low` on. */
#define GROUPS(low)                                                                                                    \
    for (ptrdiff_t g = 0; g < groups; g++)                                                                             \
        for (ptrdiff_t s = 0, low = g * n * m; s < m; s += PART, low += PART)

void normalize(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, double epsilon, const REAL *x, REAL *y, REAL *inverse)
{
    const REAL share = (REAL)(1.0 / (double)n);
    GROUPS(low) {
        part mean = {0}, variance = {0};
        for (ptrdiff_t i = 0; i < n; i++)
            mean += load(x + low + i * m, 1, PART);
        mean *= share;
        for (ptrdiff_t i = 0; i < n; i++) {
            const part off = load(x + low + i * m, 1, PART) - mean;
            variance += off * off;
        }
        const part by = (REAL)1 / square_root(variance * share + (REAL)epsilon);
        store(inverse + g * m + s, by, PART);
        for (ptrdiff_t i = 0; i < n; i++)
            store(y + low + i * m, (load(x + low + i * m, 1, PART) - mean) * by, PART);
    }
}

void unnormalize(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, const REAL *y, const REAL *inverse, const REAL *d, REAL *to)
{
    const REAL share = (REAL)(1.0 / (double)n);
    GROUPS(low) {
        part sum = {0}, along = {0};
        for (ptrdiff_t i = 0; i < n; i++) {
            const part given = load(d + low + i * m, 1, PART);
            sum += given;
            along += given * load(y + low + i * m, 1, PART);
        }
        sum *= share;
        along *= share;
        const part by = load(inverse + g * m + s, 1, PART);
        for (ptrdiff_t i = 0; i < n; i++)
            store(to + low + i * m,
                  (load(d + low + i * m, 1, PART) - sum - load(y + low + i * m, 1, PART) * along) * by, PART);
    }
}

/* What is subtracted before e is raised to it: the largest, and nothing from what is -inf alone. */
INLINE part most_of(ptrdiff_t n, ptrdiff_t m, const REAL *x)
{
    part most = load(x, 1, PART);
    for (ptrdiff_t i = 1; i < n; i++)
        most = larger(most, load(x + i * m, 1, PART));
    return choose(most == (REAL)-INFINITY + (part){0}, (part){0}, most);
}

void softmax(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, int safe, const REAL *x, REAL *y)
{
    GROUPS(low) {
        const part most = most_of(n, m, x + low);
        part sum = {0};
        for (ptrdiff_t i = 0; i < n; i++) {
            const part share = exponential(load(x + low + i * m, 1, PART) - most);
            store(y + low + i * m, share, PART);
            sum += share;
        }
        const part by = safe ? choose(sum == (part){0}, (part){0}, (REAL)1 / sum) : (REAL)1 / sum;
        for (ptrdiff_t i = 0; i < n; i++)
            store(y + low + i * m, load(y + low + i * m, 1, PART) * by, PART);
    }
}

void log_softmax(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, const REAL *x, REAL *y)
{
    GROUPS(low) {
        const part most = most_of(n, m, x + low);
        part sum = {0};
        for (ptrdiff_t i = 0; i < n; i++)
            sum += exponential(load(x + low + i * m, 1, PART) - most);
        const part less = most + logarithm(sum);
        for (ptrdiff_t i = 0; i < n; i++)
            store(y + low + i * m, load(x + low + i * m, 1, PART) - less, PART);
    }
}

void unlog_softmax(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, const REAL *y, const REAL *d, REAL *to)
{
    GROUPS(low) {
        part sum = {0};
        for (ptrdiff_t i = 0; i < n; i++)
            sum += load(d + low + i * m, 1, PART);
        for (ptrdiff_t i = 0; i < n; i++)
            store(to + low + i * m,
                  load(d + low + i * m, 1, PART) - sum * exponential(load(y + low + i * m, 1, PART)), PART);
    }
}

void unsoftmax(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, const REAL *y, const REAL *d, REAL *to)
{
    GROUPS(low) {
        part along = {0};
        for (ptrdiff_t i = 0; i < n; i++)
            along += load(d + low + i * m, 1, PART) * load(y + low + i * m, 1, PART);
        for (ptrdiff_t i = 0; i < n; i++)
            store(to + low + i * m, (load(d + low + i * m, 1, PART) - along) * load(y + low + i * m, 1, PART), PART);
    }
}

void add_up(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, double scale, const REAL *x, REAL *y)
{
    GROUPS(low) {
        part sum = {0};
        for (ptrdiff_t i = 0; i < n; i++)
            sum += load(x + low + i * m, 1, PART);
        store(y + g * m + s, sum * (REAL)scale, PART);
    }
}

void hand_out(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, double scale, const REAL *d, REAL *to)
{
    GROUPS(low)
        for (ptrdiff_t i = 0; i < n; i++)
            store(to + low + i * m, load(d + g * m + s, 1, PART) * (REAL)scale, PART);
}

void maximum(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, const REAL *x, REAL *y)
{
    GROUPS(low) {
        part most = load(x + low, 1, PART);
        for (ptrdiff_t i = 1; i < n; i++)
            most = larger(most, load(x + low + i * m, 1, PART));
        store(y + g * m + s, most, PART);
    }
}

void to_maximum(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, int evenly, const REAL *x, const REAL *y, const REAL *d,
                   REAL *to)
{
    const part zero = {0}, one = (REAL)1 + zero;
    GROUPS(low) {
        const part most = load(y + g * m + s, 1, PART);
        part left = load(d + g * m + s, 1, PART), count = zero;
        for (ptrdiff_t i = 0; i < n && evenly; i++)
            count += choose(load(x + low + i * m, 1, PART) == most, one, zero);
        if (evenly)
            left /= count;
        for (ptrdiff_t i = 0; i < n; i++) {
            const truths equal = load(x + low + i * m, 1, PART) == most;
            store(to + low + i * m, choose(equal, left, zero), PART);
            left = evenly ? left : choose(equal, zero, left);
        }
    }
}

void mask(ptrdiff_t n, REAL value, const REAL *x, const REAL *masks, REAL *y)
{
    for (ptrdiff_t i = 0; i < n; i += PART)
        store(y + i, choose(load(masks + i, 1, PART) != (part){0}, value + (part){0}, load(x + i, 1, PART)), PART);
}
