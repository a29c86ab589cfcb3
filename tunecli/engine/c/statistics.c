/* Layers that take the statistics of a batch, BatchNorm: what is known of its channels, from all of its micro-batches. */

#include "rows.h"

/* Of a layer that takes the statistics of a batch: whether it goes by those of the batches so far, and takes none. */
int is_fixed(const struct layer *l)
{
    return l->sizes[3] != 0;
}

/* That of the whole batch is where the first micro-batch has its own. */
REAL *known(const struct row *r, const struct layer *l, enum known which)
{
    return (which < FIRST ? common(r, l->more) : at(r, l->more)) + which * l->sizes[0];
}

/* What a micro-batch has. */
static double of_micro(const struct row *r, const struct layer *l, enum known which, ptrdiff_t c, ptrdiff_t k)
{
    return (double)common(r, l->more + which * l->sizes[0] + c)[k * r->n->each];
}

static REAL factor(const struct row *r, const struct layer *l, ptrdiff_t c)
{
    return known(r, l, INVERSES)[c] * (l->weight < 0 ? 1 : weights_of(r, l->weight)[c]);
}

/* The mean of each channel, and the inverse of its standard deviation: those of a batch, which become a part of those of
   all batches so far, or these. A step that reads nothing has none. */
void take_statistics(const struct row *r, const struct layer *l)
{
    const ptrdiff_t channels = l->sizes[0], places = l->sizes[1], kept = l->sizes[2], count = r->real * places;
    const ptrdiff_t micros = micros_of(r);
    REAL *means = known(r, l, MEANS), *inverses = known(r, l, INVERSES);
    REAL *running = weights_of(r, kept), *variances = weights_of(r, kept + 1), *batches = weights_of(r, kept + 2);
    const int fixed = is_fixed(l) || !count;
    *batches += !fixed;
    const double share = l->scale < 0 ? 1 / (double)*batches : l->scale;
    for (ptrdiff_t c = 0; c < channels; c++) {
        double mean = fixed ? (double)running[c] : 0, squares = 0;
        for (ptrdiff_t k = 0; k < micros && !fixed; k++)
            mean += of_micro(r, l, FIRST, c, k) * (double)(real_of(r, k) * places) / (double)count;
        for (ptrdiff_t k = 0; k < micros && !fixed; k++) {
            const double off = of_micro(r, l, FIRST, c, k) - mean;
            squares += of_micro(r, l, SECOND, c, k) + off * off * (double)(real_of(r, k) * places);
        }
        const double variance = fixed ? (double)variances[c] : squares / (double)count;
        means[c] = (REAL)mean;
        inverses[c] = (REAL)(1 / sqrt(variance + l->shift));
        if (fixed)
            continue;
        running[c] += (REAL)((mean - (double)running[c]) * share);
        variances[c] += (REAL)((squares / (double)(count - 1) - (double)variances[c]) * share);
    }
}

void forward_batch_norm(const struct row *r, const struct layer *l, const REAL *x, const REAL *bias, REAL *y)
{
    const REAL *means = known(r, l, MEANS);
    const ptrdiff_t n = l->sizes[1] * r->n->samples;
    for (ptrdiff_t c = 0; c < l->sizes[0]; c++)
        shift_and_scale(n, means[c], factor(r, l, c), bias ? bias[c] : 0, x + c * n, y + c * n);
}

/* What the gradients of a batch come to, of each channel: its weight's and its bias's, and what is subtracted. */
void total_gradients(const struct row *r, const struct layer *l)
{
    const ptrdiff_t count = r->real * l->sizes[1];
    const double share = count && !is_fixed(l) ? 1 / (double)count : 0;
    REAL *of_weight = gradient_of(r, l->weight), *of_bias = gradient_of(r, l->bias);
    for (ptrdiff_t c = 0; c < l->sizes[0]; c++) {
        double sum = 0, along = 0;
        for (ptrdiff_t k = 0; k < micros_of(r); k++) {
            sum += of_micro(r, l, FIRST, c, k);
            along += of_micro(r, l, SECOND, c, k);
        }
        const double inverse = (double)known(r, l, INVERSES)[c], by = (double)factor(r, l, c) * share;
        known(r, l, OF_MEANS)[c] = (REAL)(sum * by);
        known(r, l, OF_VARIANCES)[c] = (REAL)(along * by * inverse * inverse);
        if (of_weight)
            of_weight[c] = (REAL)(along * inverse) + (is_over(r, l, 0) ? 0 : of_weight[c]);
        if (of_bias)
            of_bias[c] = (REAL)sum + (is_over(r, l, 1) ? 0 : of_bias[c]);
    }
}

void backward_batch_norm(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to)
{
    const ptrdiff_t places = l->sizes[1], m = r->n->samples, n = places * m;
    for (ptrdiff_t c = 0; c < l->sizes[0] && to; c++) {
        const struct spread how = {known(r, l, MEANS)[c], factor(r, l, c), known(r, l, OF_MEANS)[c],
                                   known(r, l, OF_VARIANCES)[c]};
        spread(&how, places, m, r->real, x + c * n, d + c * n, to + c * n);
    }
}
