/* The losses that many models are trained by, and their gradients, for some rows at once: one pass where torch takes
   ten, each of which costs more to be called than to be computed where a row has few samples.

   REAL is float or double. */

#include <math.h>

#include "functions.h"
#include "layers.h"

/* Of n samples of a row: gradient and losses as below. A class that there is not gives a loss of NaN. */
static inline void of_part(const struct outputs *o, ptrdiff_t n, REAL smoothing, const REAL *outputs,
                           const int64_t *targets, const REAL *counts, REAL *found)
{
    const ptrdiff_t m = o->samples;
    const REAL each = smoothing / (REAL)o->classes; /* what every class has of a target */
    part most = load(outputs, o->sample, n), sum = {0}, mean = {0}, loss;
    for (ptrdiff_t c = 1; c < o->classes; c++)
        most = larger(most, load(outputs + c * o->class, o->sample, n));
    for (ptrdiff_t c = 0; c < o->classes; c++) {
        const part share = exponential(load(outputs + c * o->class, o->sample, n) - most);
        store(found + c * m, share, n);
        sum += share;
    }
    const part rest = logarithm(sum), counted = load(counts, 1, n) / sum, spread = load(counts, 1, n) * each;
    for (ptrdiff_t c = 0; c < o->classes; c++)
        store(found + c * m, load(found + c * m, 1, n) * counted - spread, n);
    for (ptrdiff_t c = 0; c < o->classes && smoothing != 0; c++)
        mean += load(outputs + c * o->class, o->sample, n) * each;
    for (ptrdiff_t s = 0; s < n; s++) {
        const int known = targets[s] >= 0 && targets[s] < o->classes;
        const REAL own = known ? outputs[targets[s] * o->class + s * o->sample] : (REAL)NAN;
        loss[s] = rest[s] + (most[s] - (1 - smoothing) * own - mean[s]);
        if (known)
            found[targets[s] * m + s] -= (1 - smoothing) * counts[s];
    }
    store(found + o->classes * m, loss, n);
}

/* The cross-entropy of each sample's outputs with its target (B, m), and its gradient times what the sample counts
   (B, m): (B, C + 1, m), the losses last. Targets are smoothed by as much as a row says (B,), or not at all. */
void cross_entropy(const struct outputs *o, const REAL *smoothing, const REAL *outputs, const int64_t *targets,
                   const REAL *counts, REAL *found)
{
    const ptrdiff_t m = o->samples;
    for (ptrdiff_t row = 0; row < o->rows; row++) {
        const REAL smoothed = smoothing ? smoothing[row] : 0;
        ptrdiff_t s = 0;
        for (; s + PART <= m; s += PART)
            of_part(o, PART, smoothed, outputs + s * o->sample, targets + s, counts + s, found + s);
        if (s < m)
            of_part(o, m - s, smoothed, outputs + s * o->sample, targets + s, counts + s, found + s);
        outputs += o->row, targets += m, counts += m, found += (o->classes + 1) * m;
    }
}

#define EACH                                                                                                           \
    for (ptrdiff_t row = 0; row < o->rows; row++, outputs += o->row, targets += o->samples, counts += o->samples,      \
                   found += 2 * o->samples)                                                                            \
        for (ptrdiff_t s = 0; s < o->samples; s++)

/* The same of one output, a logit, and targets of 0 and 1. */
void binary_cross_entropy(const struct outputs *o, const REAL *outputs, const int64_t *targets, const REAL *counts,
                          REAL *found)
{
    EACH {
        const double x = outputs[s * o->sample], truth = (double)targets[s], small = exp(x < 0 ? x : -x);
        const double share = (x < 0 ? small : 1) / (1 + small);
        found[s] = (REAL)(share - truth) * counts[s];
        found[o->samples + s] = (REAL)((x > 0 ? x : 0) - x * truth + log1p(small));
    }
}

/* And of one output and a number as the target. */
void squared_error(const struct outputs *o, const REAL *outputs, const REAL *targets, const REAL *counts, REAL *found)
{
    EACH {
        const REAL error = outputs[s * o->sample] - targets[s];
        found[s] = 2 * error * counts[s];
        found[o->samples + s] = error * error;
    }
}
