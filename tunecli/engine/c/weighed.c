/* Layers of weights that are no filters, and those that read two others. */

#include "rows.h"

/* The matrix of a linear layer: (out, in), or (in, out) where it is `turned`. */
static int is_turned(const struct layer *l)
{
    return l->sizes[3] != 0;
}

void forward_linear(const struct row *r, const struct layer *l, const REAL *x, const REAL *bias, REAL *y)
{
    const ptrdiff_t m = r->n->samples, tokens = l->sizes[0], in = l->sizes[1], out = l->sizes[2];
    const struct product p = {out, m, in, is_turned(l) ? 1 : in, is_turned(l) ? out : 1, m, m, 0};
    for (ptrdiff_t t = 0; t < tokens; t++)
        product(&p, weights_of(r, l->weight), x + t * in * m, bias, y + t * out * m);
}

/* What two matrices of each token give, (tokens, rows, m) and (tokens, columns, m) -> (rows, columns). The second is read
   sample by sample; where a sample does not fill whole stripes, zeros are put behind it for a moment. `inputs`: it is what
   the network read, which is sample by sample. */
static void of_matrices(const struct row *r, ptrdiff_t tokens, ptrdiff_t rows, ptrdiff_t columns, const REAL *one,
                        const REAL *other, int inputs, REAL *found, int over)
{
    const ptrdiff_t m = r->n->samples, wide = (columns + STRIPE - 1) / STRIPE * STRIPE;
    const int as_it_is = inputs && wide == columns;
    REAL *lines = common(r, r->n->scratch[0]), *to = found;
    struct product p = {rows, wide, m, m, 1, as_it_is ? r->n->in : wide, wide, !over};
    if (wide > columns) {
        to = lines + m * wide;
        p.add = 0;
        for (ptrdiff_t s = 0; s < m; s++)
            memset(lines + s * wide + columns, 0, sizeof(REAL) * (size_t)(wide - columns));
    }
    for (ptrdiff_t t = 0; t < tokens; t++, p.add = 1) {
        if (!as_it_is)
            transpose(columns, m, other + t * columns * m, m, lines, wide);
        product(&p, one + t * rows * m, as_it_is ? r->inputs + t * columns : lines, NULL, to);
    }
    for (ptrdiff_t o = 0; o < rows && wide > columns; o++)
        for (ptrdiff_t i = 0; i < columns; i++)
            found[o * columns + i] = over ? to[o * wide + i] : found[o * columns + i] + to[o * wide + i];
}

void backward_linear(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to)
{
    const ptrdiff_t m = r->n->samples, tokens = l->sizes[0], in = l->sizes[1], out = l->sizes[2];
    const struct product p = {in, m, out, is_turned(l) ? out : 1, is_turned(l) ? 1 : in, m, m, 0};
    REAL *of_weight = gradient_of(r, l->weight), *of_bias = gradient_of(r, l->bias);
    if (of_weight && is_turned(l))
        of_matrices(r, tokens, in, out, x, d, 0, of_weight, is_over(r, l, 0));
    else if (of_weight)
        of_matrices(r, tokens, out, in, d, x, l->from[0].at == 0, of_weight, is_over(r, l, 0));
    for (ptrdiff_t t = 0; t < tokens && of_bias; t++)
        sums(out, m, d + t * out * m, of_bias, t || !is_over(r, l, 1));
    for (ptrdiff_t t = 0; t < tokens && to; t++)
        product(&p, weights_of(r, l->weight), d + t * out * m, NULL, to + t * in * m);
}

void backward_product(const struct row *r, const struct layer *l, const REAL *a, const REAL *b, const REAL *d,
                             REAL *to, REAL *to_other)
{
    const ptrdiff_t m = r->n->samples, M = l->sizes[1], K = l->sizes[2], N = l->sizes[3];
    const struct between of_a = {M, K, N, N, 1, 1, N}, of_b = {K, N, M, 1, K, N, 1};
    for (ptrdiff_t g = 0; g < l->sizes[0]; g++, a += M * K * m, b += K * N * m, d += M * N * m) {
        if (to)
            between(&of_a, m, d, b, to + g * M * K * m);
        if (to_other)
            between(&of_b, m, a, d, to_other + g * K * N * m);
    }
}

/* Rows of a table (rows, width): which one, the number of a sample says. A row that there is not gives NaN. */
void forward_embedding(const struct row *r, const struct layer *l, const REAL *x, REAL *y)
{
    const ptrdiff_t m = r->n->samples, rows = l->sizes[0], width = l->sizes[1];
    const REAL *table = weights_of(r, l->weight);
    for (ptrdiff_t i = 0; i < l->out / width * m; i++) {
        const int known = x[i] > -1 && x[i] < (REAL)rows; /* what stands before the point is 0 there, too */
        const REAL *row = table + (known ? (ptrdiff_t)x[i] : 0) * width;
        for (ptrdiff_t e = 0; e < width; e++)
            y[(i / m * width + e) * m + i % m] = known ? row[e] : (REAL)NAN;
    }
}

/* Of all rows but the one that is padding. */
void backward_embedding(const struct row *r, const struct layer *l, const REAL *x, const REAL *d)
{
    const ptrdiff_t m = r->n->samples, rows = l->sizes[0], width = l->sizes[1];
    REAL *found = gradient_of(r, l->weight);
    if (!found)
        return;
    if (is_over(r, l, 0))
        memset(found, 0, sizeof(REAL) * (size_t)(rows * width));
    for (ptrdiff_t i = 0; i < l->out / width * m; i++)
        for (ptrdiff_t e = 0; e < width && x[i] > -1 && x[i] < (REAL)rows && (ptrdiff_t)x[i] != l->sizes[2]; e++)
            found[(ptrdiff_t)x[i] * width + e] += d[(i / m * width + e) * m + i % m];
}

/* What each line is weighed or shifted by. */
static REAL told(const struct layer *l, const REAL *weight, ptrdiff_t line)
{
    return weight ? weight[l->elements[line]] * (REAL)l->scale : l->values[line];
}

void weigh_or_shift(const struct row *r, const struct layer *l, const REAL *x, REAL *y)
{
    const ptrdiff_t m = r->n->samples;
    const REAL *weight = l->weight < 0 ? NULL : weights_of(r, l->weight);
    for (ptrdiff_t i = 0; i < l->out; i++) {
        const REAL by = told(l, weight, i);
        for (ptrdiff_t s = i * m; s < (i + 1) * m; s += PART) {
            const part own = load(x + s, 1, PART);
            store(y + s, l->kind == WEIGH ? own * by : own + by, PART);
        }
    }
}

/* Of the weight by which lines are weighed or shifted, and of the lines: `to` may be d. */
void backward_weigh(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to)
{
    const ptrdiff_t m = r->n->samples;
    const REAL *weight = l->weight < 0 ? NULL : weights_of(r, l->weight);
    REAL *found = gradient_of(r, l->weight);
    if (found && is_over(r, l, 0))
        memset(found, 0, sizeof(REAL) * (size_t)l->sizes[0]);
    for (ptrdiff_t low = 0, lines; low < l->out; low += lines) {
        stripe own[16] = {0};
        REAL along[16];
        lines = l->out - low < 16 ? l->out - low : 16;
        for (ptrdiff_t i = 0; i < lines; i++) {
            const REAL by = l->kind == WEIGH ? told(l, weight, low + i) : 1;
            for (ptrdiff_t s = 0, at = (low + i) * m; s < m; s += PART) {
                const part given = load(d + at + s, 1, PART);
                own[i].of[s / PART % PARTS] += l->kind == WEIGH ? given * load(x + at + s, 1, PART) : given;
                if (to)
                    store(to + at + s, given * by, PART);
            }
        }
        if (found)
            sums(lines, STRIPE, (const REAL *)own, along, 0);
        for (ptrdiff_t i = 0; i < lines && found; i++)
            found[l->elements[low + i]] += along[i] * (REAL)l->scale;
    }
}

void join(const struct layer *l, ptrdiff_t n, const REAL *one, const REAL *other, REAL *y)
{
    for (ptrdiff_t i = 0; i < n; i += PART) {
        const part own = load(one + i, 1, PART), by = load(other + i, 1, PART);
        store(y + i, l->kind == ADD ? own + by * (REAL)l->scale : own * by, PART);
    }
}

void backward_join(const struct row *r, const struct layer *l, const REAL *one, const REAL *other, const REAL *d)
{
    const REAL *of[2] = {other, one};
    for (int k = 0; k < 2; k++) {
        const struct source *from = &l->from[k];
        REAL *to = target(r, from);
        if (!to || to == d) /* an addend's gradient is that of the sum, where it is */
            continue;
        if (l->kind == MULTIPLY)
            join(l, l->out * r->n->samples, d, of[k], to);
        else if (!from->add)
            apply(SCALE, l->out * r->n->samples, k ? l->scale : 1, 0, d, to);
        if (from->add)
            add_to(r, from, l->kind == ADD ? d : to, l->kind == ADD && k ? (REAL)l->scale : 1);
    }
}

/* One sample has all of the gradient. */
void backward_derive(const struct row *r, const struct layer *l, REAL *to)
{
    const ptrdiff_t m = r->n->samples, count = l->sizes[0];
    const REAL *found = at(r, l->more) + (count + 15) / 16 * 16;
    memset(to, 0, sizeof(REAL) * (size_t)(count * m));
    for (ptrdiff_t i = 0; i < count; i++)
        to[i * m] = found[i];
}
