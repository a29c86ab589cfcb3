/* What joins the samples of a batch, of which only the first may be real. REAL is float or double. */

#include "parts.h"

#include "layers.h"

#define INLINE static inline __attribute__((always_inline))

/* The first numbers of a part, zeros for the others. */
INLINE part first_of(part x, ptrdiff_t count)
{
    part place;
    for (ptrdiff_t s = 0; s < PART; s++)
        place[s] = (REAL)s;
    return choose(place < (REAL)count + (part){0}, x, (part){0});
}

INLINE REAL all_of(part x)
{
    REAL sums[PART];
    store(sums, x, PART);
    for (ptrdiff_t half = PART / 2; half; half /= 2) /* for sixteen, one after the other, each would wait for the last */
        for (ptrdiff_t s = 0; s < half; s++)
            sums[s] += sums[s + half];
    return sums[0];
}

enum summed { NUMBERS, SQUARES, GRADIENTS };

/* Of a part: what is summed up, two sums of gradients; `real` numbers of it count. */
INLINE void add_part(const enum summed which, ptrdiff_t real, REAL mean, const REAL *x, const REAL *d, part sums[2])
{
    part own = load(x, 1, PART) - mean;
    if (real < PART)
        own = first_of(own, real);
    if (which == NUMBERS)
        sums[0] += own;
    if (which == SQUARES)
        sums[0] += own * own;
    if (which == GRADIENTS) {
        const part given = load(d, 1, PART);
        sums[0] += given;
        sums[1] += given * own;
    }
}

/* The same of n numbers, of each m of which the first `real` count. */
INLINE void add_up_all(const enum summed which, ptrdiff_t n, ptrdiff_t m, ptrdiff_t real, REAL mean, const REAL *x,
                       const REAL *d, REAL found[2])
{
    part sums[2] = {0}, others[2] = {0}; /* of every other part, so that no sum waits for the one before */
    ptrdiff_t i = 0;
    if (real == m) {
        for (; i + 2 * PART <= n; i += 2 * PART) {
            add_part(which, PART, mean, x + i, d + i, sums);
            add_part(which, PART, mean, x + i + PART, d + i + PART, others);
        }
        if (i < n)
            add_part(which, PART, mean, x + i, d + i, sums);
    } else
        for (; i < n; i += PART)
            add_part(which, real - i % m, mean, x + i, d + i, sums);
    found[0] = all_of(sums[0] + others[0]);
    if (which == GRADIENTS)
        found[1] = all_of(sums[1] + others[1]);
}

void moments(const struct channels *own, const REAL *x, REAL *means, REAL *squares)
{
    const ptrdiff_t n = own->places * own->m, count = own->places * own->real;
    for (ptrdiff_t c = 0; c < own->count; c++, x += n) {
        REAL found[2];
        add_up_all(NUMBERS, n, own->m, own->real, 0, x, x, found);
        means[c] = found[0] / (REAL)(count ? count : 1);
        add_up_all(SQUARES, n, own->m, own->real, means[c], x, x, found);
        squares[c] = found[0];
    }
}

void total(const struct channels *own, const REAL *means, const REAL *x, const REAL *d, REAL *sums, REAL *along)
{
    const ptrdiff_t n = own->places * own->m;
    for (ptrdiff_t c = 0; c < own->count; c++, x += n, d += n) {
        REAL found[2];
        add_up_all(GRADIENTS, n, own->m, own->real, means[c], x, d, found);
        sums[c] = found[0];
        along[c] = found[1];
    }
}

void shift_and_scale(ptrdiff_t n, REAL mean, REAL scale, REAL bias, const REAL *x, REAL *y)
{
    for (ptrdiff_t i = 0; i < n; i += PART)
        store(y + i, (load(x + i, 1, PART) - mean) * scale + bias, PART);
}

void spread(const struct spread *how, ptrdiff_t lines, ptrdiff_t m, ptrdiff_t real, const REAL *x, const REAL *d, REAL *to)
{
    for (ptrdiff_t i = 0; i < lines * m; i += PART) {
        part found = load(d + i, 1, PART) * how->scale - how->of_mean;
        found -= (load(x + i, 1, PART) - how->mean) * how->of_variance;
        store(to + i, real < m ? first_of(found, real - i % m) : found, PART);
    }
}
