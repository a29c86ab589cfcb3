/* The losses that many models are trained by, and their gradients, for some rows at once: one pass where torch takes
   ten, each of which costs more to be called than to be computed where a row has few samples.

   REAL is float or double. */

#include <math.h>
#include <stdint.h>

#include "parts.h"

/* e ** x for x <= 0, to two units in the last place: by Cephes' polynomial, which is worked off for all lanes at once;
   the library's function is called for one number after the other. */
static inline part exponential(part x)
{
    if (sizeof(REAL) != sizeof(float)) {
        for (ptrdiff_t s = 0; s < PART; s++)
            x[s] = (REAL)exp((double)x[s]);
        return x;
    }
    const part least = (REAL)-87.0 + (part){0};
    const truths tiny = x < least;
    x = select(tiny, least, x);
    /* The nearest power of two: adding so large a number leaves no digits behind the point. */
    const part whole = (x * (REAL)1.44269504088896341 + (REAL)12582912.0) - (REAL)12582912.0;
    const part rest = (x - whole * (REAL)0.693359375) + whole * (REAL)2.12194440e-4;
    part found = (REAL)1.9875691500e-4 + (part){0};
    found = found * rest + (REAL)1.3981999507e-3;
    found = found * rest + (REAL)8.3334519073e-3;
    found = found * rest + (REAL)4.1665795894e-2;
    found = found * rest + (REAL)1.6666665459e-1;
    found = found * rest + (REAL)5.0000001201e-1;
    found = found * rest * rest + rest + (REAL)1;
    const part scale = (part)((__builtin_convertvector(whole, truths) + 127) << 23);
    return select(tiny, (part){0}, found * scale);
}

/* Outputs of a model: the class c of sample s of row r lies at r * row + c * class + s * sample. */
struct outputs {
    ptrdiff_t rows, classes, samples, row, class, sample;
};

/* Of n samples of a row: gradient and losses as below. A class that there is not gives a loss of NaN. */
static inline void of_part(const struct outputs *o, ptrdiff_t n, const REAL *outputs, const int64_t *targets,
                           const REAL *counts, REAL *found)
{
    const ptrdiff_t m = o->samples;
    part most = load(outputs, o->sample, n), sum = {0}, loss;
    for (ptrdiff_t c = 1; c < o->classes; c++)
        most = larger(most, load(outputs + c * o->class, o->sample, n));
    for (ptrdiff_t c = 0; c < o->classes; c++) {
        const part share = exponential(load(outputs + c * o->class, o->sample, n) - most);
        store(found + c * m, share, n);
        sum += share;
    }
    const part counted = load(counts, 1, n) / sum;
    for (ptrdiff_t c = 0; c < o->classes; c++)
        store(found + c * m, load(found + c * m, 1, n) * counted, n);
    for (ptrdiff_t s = 0; s < n; s++) {
        const int known = targets[s] >= 0 && targets[s] < o->classes;
        const REAL own = known ? outputs[targets[s] * o->class + s * o->sample] : (REAL)NAN;
        const REAL rest = sizeof(REAL) == sizeof(float) ? (REAL)logf((float)sum[s]) : (REAL)log((double)sum[s]);
        loss[s] = rest + (most[s] - own);
        if (known)
            found[targets[s] * m + s] -= counts[s];
    }
    store(found + o->classes * m, loss, n);
}

/* The cross-entropy of each sample's outputs with its target (B, m), and its gradient times what the sample counts
   (B, m): (B, C + 1, m), the losses last. */
void cross_entropy(const struct outputs *o, const REAL *outputs, const int64_t *targets, const REAL *counts, REAL *found)
{
    const ptrdiff_t m = o->samples;
    for (ptrdiff_t row = 0; row < o->rows; row++) {
        ptrdiff_t s = 0;
        for (; s + PART <= m; s += PART)
            of_part(o, PART, outputs + s * o->sample, targets + s, counts + s, found + s);
        if (s < m)
            of_part(o, m - s, outputs + s * o->sample, targets + s, counts + s, found + s);
        outputs += o->row, targets += m, counts += m, found += (o->classes + 1) * m;
    }
}
