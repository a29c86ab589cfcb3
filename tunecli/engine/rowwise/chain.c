/* The losses and the gradient of a model whose layers follow one another, a row after the other: what a row computes
   stays near the core from its first layer to its last, where torch computes each layer for all rows and is called some
   forty times.

   Between layers samples lie innermost, (numbers of a sample, m), and m is whole parts. REAL is float or double. */

#include "../update.h"
#include "functions.h"
#include "layers.h"
#include "products.h"

/* In the order of chain.py. */
enum kind { LINEAR, CONVOLUTION, POOLING, DROPOUT, RELU, LEAKY_RELU, TANH, SIGMOID, SILU, GELU };
enum loss { CROSS_ENTROPY, BINARY_CROSS_ENTROPY, SQUARED_ERROR };

struct layer {
    ptrdiff_t kind, in, out;       /* numbers of a sample before and after it */
    ptrdiff_t weight, bias;        /* their places among all weights; the bias below 0: there is none */
    ptrdiff_t at, windows;         /* where the workspace has its outputs, and the windows of its inputs */
    const struct windows *over;    /* of images */
    const uint32_t *elements;      /* dropout: what each number of a sample is drawn by, */
    ptrdiff_t dropped;             /* of 2 ** 32 draws so many are zeros, */
    double scale;                  /* and times what the others are; or the slope below zero */
};

/* `first` has the first weights: no gradient is needed below it. The workspace begins with the inputs, at 0; then what a
   layer wrote is at its `at`, and at each of `gradients` and at `scratch` there is room for the widest. */
struct chain {
    const struct layer *layers;
    ptrdiff_t count, first, samples, in, loss;
    ptrdiff_t gradients[2], scratch;
};

/* Of some weights of all rows: where the first row's are, and how far from row to row. */
struct place {
    REAL *at;
    ptrdiff_t row;
};

/* What all steps of some rows share. */
struct block {
    ptrdiff_t rows;
    const struct place *weights, *gradients;
    REAL *workspace;
};

/* What one row reads in a step: inputs (m, in); targets, what each sample's loss and what its gradient count, and what it
   draws by, (m,). Its gradients are added to what is there, or written `over` it. */
struct row {
    const struct chain *c;
    const struct block *block;
    ptrdiff_t row;
    const REAL *inputs;
    const void *targets;
    const REAL *present, *counts;
    const int64_t *keys;
    int over;
};

static REAL *weights_of(const struct row *r, ptrdiff_t which)
{
    return r->block->weights[which].at + r->row * r->block->weights[which].row;
}

static REAL *gradient_of(const struct row *r, ptrdiff_t which)
{
    return r->block->gradients[which].at + r->row * r->block->gradients[which].row;
}

/* Of a convolution: its filters, and how many numbers a window has. */
static ptrdiff_t channels_of(const struct layer *l)
{
    return l->out / (l->over->out_height * l->over->out_width);
}

static ptrdiff_t read_of(const struct layer *l)
{
    return l->over->channels * l->over->kernel[0] * l->over->kernel[1];
}

/* What dropout multiplies the numbers of one element of samples by. */
static inline part kept(const struct layer *l, uint32_t element, const int64_t *keys)
{
    part found = {0};
    for (int s = 0; s < PART; s++) {
        uint32_t drawn = ((uint32_t)keys[s] ^ element) * 0x45D9F3Bu;
        drawn = (drawn ^ drawn >> 16) * 0x45D9F3Bu;
        found[s] = drawn >= (uint32_t)l->dropped ? (REAL)l->scale : 0;
    }
    return found;
}

/* An elementwise layer's outputs. */
static void apply(const struct row *r, const struct layer *l, const REAL *x, REAL *y)
{
    const ptrdiff_t m = r->c->samples, n = l->in * m;
    const part zero = {0};
    const REAL slope = (REAL)l->scale;
#define EACH(value)                                                                                                    \
    for (ptrdiff_t i = 0; i < n; i += PART) {                                                                          \
        const part own = load(x + i, 1, PART);                                                                         \
        store(y + i, value, PART);                                                                                     \
    }                                                                                                                  \
    return;
    switch (l->kind) {
    case RELU: EACH(choose(own < zero, zero, own))
    case LEAKY_RELU: EACH(choose(own < zero, own * slope, own))
    case TANH: EACH(hyperbolic_tangent(own))
    case SIGMOID: EACH(logistic(own))
    case SILU: EACH(own * logistic(own))
    case GELU: EACH(own * normal_below(own))
    case DROPOUT: EACH(own * kept(l, l->elements[i / m], r->keys + i % m))
    }
#undef EACH
}

/* Its gradient: d becomes that with respect to its inputs x, from that with respect to its outputs y. */
static void unapply(const struct row *r, const struct layer *l, const REAL *x, const REAL *y, REAL *d)
{
    const ptrdiff_t m = r->c->samples, n = l->in * m;
    const part zero = {0};
    const REAL slope = (REAL)l->scale, one = 1, density = (REAL)0.39894228040143268; /* 1 / sqrt(2 pi) */
#define EACH(read, value)                                                                                              \
    for (ptrdiff_t i = 0; i < n; i += PART) {                                                                          \
        const part own = load(read + i, 1, PART), given = load(d + i, 1, PART);                                        \
        store(d + i, value, PART);                                                                                     \
    }                                                                                                                  \
    return;
    switch (l->kind) {
    case RELU: EACH(y, choose(own <= zero, zero, given))
    case LEAKY_RELU: EACH(x, choose(own > zero, given, given * slope))
    case TANH: EACH(y, given * (one - own * own))
    case SIGMOID: EACH(y, given * (own * (one - own)))
    case SILU: EACH(x, given * (logistic(own) * (one + own * (one - logistic(own)))))
    case GELU: EACH(x, given * (normal_below(own) + own * (exponential(own * own * (REAL)-0.5) * density)))
    case DROPOUT: EACH(x, ((void)own, given * kept(l, l->elements[i / m], r->keys + i % m)))
    }
#undef EACH
}

static void forward(const struct row *r)
{
    const ptrdiff_t m = r->c->samples;
    transpose(m, r->c->in, r->inputs, r->c->in, r->block->workspace, m);
    const REAL *x = r->block->workspace;
    for (const struct layer *l = r->c->layers; l < r->c->layers + r->c->count; x = r->block->workspace + l++->at) {
        REAL *y = r->block->workspace + l->at;
        const REAL *bias = l->bias < 0 ? NULL : weights_of(r, l->bias);
        if (l->kind == LINEAR) {
            const struct product p = {l->out, m, l->in, l->in, 1, m, m, 0};
            product(&p, weights_of(r, l->weight), x, bias, y);
        } else if (l->kind == CONVOLUTION) {
            const ptrdiff_t channels = channels_of(l), places = l->out / channels * m, read = read_of(l);
            REAL *windows = r->block->workspace + l->windows;
            unfold(l->over, 1, x, windows);
            const struct product p = {channels, places, read, read, 1, places, places, 0};
            product(&p, weights_of(r, l->weight), windows, bias, y);
        } else if (l->kind == POOLING)
            largest(l->over, 1, x, y);
        else
            apply(r, l, x, y);
    }
}

/* Of a layer's weight (out, in): what d (out, m) and its inputs x (in, m) give. The inputs are read sample by sample;
   where a sample does not fill whole parts, zeros are put behind it for a moment. */
static void of_linear(const struct row *r, const struct layer *l, const REAL *x, const REAL *d)
{
    const ptrdiff_t m = r->c->samples, in = l->in, wide = (in + PART - 1) / PART * PART;
    REAL *found = gradient_of(r, l->weight), *lines = r->block->workspace + r->c->scratch, *to = found;
    const REAL *read = lines;
    struct product p = {l->out, wide, m, m, 1, wide, wide, !r->over};
    if (l == r->c->layers && wide == in)
        read = r->inputs;
    else {
        for (ptrdiff_t s = 0; s < m && wide > in; s++)
            memset(lines + s * wide + in, 0, sizeof(REAL) * (size_t)(wide - in));
        transpose(in, m, x, m, lines, wide);
    }
    if (wide > in) {
        to = lines + m * wide;
        p.add = 0;
    }
    product(&p, d, read, NULL, to);
    for (ptrdiff_t o = 0; o < l->out && wide > in; o++)
        for (ptrdiff_t i = 0; i < in; i++)
            found[o * in + i] = r->over ? to[o * wide + i] : found[o * in + i] + to[o * wide + i];
}

/* From the gradient d with respect to the outputs, in the one of two places, to that of all weights. */
static void backward(const struct row *r)
{
    const struct chain *c = r->c;
    const ptrdiff_t m = c->samples;
    int own = 0;
    for (const struct layer *l = c->layers + c->count - 1; l >= c->layers + c->first; l--) {
        const REAL *x = l == c->layers ? r->block->workspace : r->block->workspace + l[-1].at, *y = r->block->workspace + l->at;
        REAL *d = r->block->workspace + c->gradients[own], *below = r->block->workspace + c->gradients[1 - own];
        const int last = l == c->layers + c->first;
        if (l->kind == LINEAR) {
            of_linear(r, l, x, d);
            if (l->bias >= 0)
                sums(l->out, m, d, gradient_of(r, l->bias), !r->over);
            const struct product p = {l->in, m, l->out, 1, l->in, m, m, 0};
            if (!last)
                product(&p, weights_of(r, l->weight), d, NULL, below);
        } else if (l->kind == CONVOLUTION) {
            const ptrdiff_t channels = channels_of(l), places = l->out / channels * m, read = read_of(l);
            dots(channels, read, places, d, r->block->workspace + l->windows, gradient_of(r, l->weight), !r->over);
            if (l->bias >= 0)
                sums(channels, places, d, gradient_of(r, l->bias), !r->over);
            const struct product p = {read, places, channels, 1, read, places, places, 0};
            if (!last) {
                product(&p, weights_of(r, l->weight), d, NULL, r->block->workspace + c->scratch);
                fold(l->over, 1, r->block->workspace + c->scratch, below);
            }
        } else if (l->kind == POOLING)
            to_largest(l->over, 1, d, x, y, below);
        else {
            unapply(r, l, x, y, d);
            continue;
        }
        own = 1 - own;
    }
}

/* The losses of a row's samples, and their gradient with respect to the outputs where `backward` begins. */
static const REAL *losses_of(const struct row *r)
{
    const struct chain *c = r->c;
    const struct layer *last = c->layers + c->count - 1;
    const struct outputs how = {1, last->out, c->samples, 0, c->samples, 1};
    const REAL *outputs = r->block->workspace + last->at;
    REAL *found = r->block->workspace + c->gradients[0];
    if (c->loss == CROSS_ENTROPY)
        cross_entropy(&how, outputs, r->targets, r->counts, found);
    else if (c->loss == BINARY_CROSS_ENTROPY)
        binary_cross_entropy(&how, outputs, r->targets, r->counts, found);
    else
        squared_error(&how, outputs, r->targets, r->counts, found);
    return found + last->out * c->samples;
}

/* The sum of a row's losses; its gradients are where they belong then. */
static REAL learn(const struct row *r)
{
    forward(r);
    const REAL *losses = losses_of(r);
    REAL sum = 0;
    for (ptrdiff_t i = 0; i < r->c->samples; i++)
        sum += losses[i] * r->present[i];
    backward(r);
    return sum;
}

/* What a step reads of all rows: as `struct row`, (B, ...). */
struct step {
    const REAL *inputs;
    const void *targets;
    const REAL *present, *counts;
    const int64_t *keys;
};

/* A step of all rows, without an update: their loss sums (B,). */
void chain(const struct chain *c, const struct block *b, const struct step *s, REAL *losses, int over)
{
    const size_t target = c->loss == SQUARED_ERROR ? sizeof(REAL) : sizeof(int64_t);
    for (ptrdiff_t row = 0; row < b->rows; row++) {
        const ptrdiff_t from = row * c->samples;
        const struct row r = {c, b, row, s->inputs + from * c->in, (const char *)s->targets + from * target,
                              s->present + from, s->counts + from, s->keys ? s->keys + from : NULL, over};
        losses[row] = learn(&r);
    }
}

/* Steps that are laid out: the samples that each reads, what they count and what they draw by, (S, B, m); what a batch's
   gradient is divided by, inverted, and whether a row trains, (S, B). All samples: inputs (N, in) and targets (N,). What
   a row reads is gathered at `read`, and of its targets and counts at `aims` and `counts`. */
struct stretch {
    const REAL *inputs;
    const char *targets;
    const int64_t *index;
    const REAL *present, *shares;
    const uint8_t *active;
    const int64_t *keys;
    double *losses, *norms; /* (B,) */
    REAL *read, *counts;
    char *aims;
};

static void gather(const struct chain *c, const struct stretch *s, ptrdiff_t from, REAL share)
{
    const size_t target = c->loss == SQUARED_ERROR ? sizeof(REAL) : sizeof(int64_t);
    for (ptrdiff_t i = 0; i < c->samples; i++) {
        const int64_t sample = s->index[from + i];
        memcpy(s->read + i * c->in, s->inputs + sample * c->in, sizeof(REAL) * (size_t)c->in);
        memcpy(s->aims + i * target, s->targets + sample * target, target);
        s->counts[i] = s->present[from + i] * share;
    }
}

/* The steps from `low` to `high`, updates included: each row goes through all of them while its weights are near the core.
   What it has of a gradient at first is added to, or written `over`; a gradient that is used up is zero in the end. */
void train(const struct chain *c, const struct block *b, const struct stretch *s, const struct rows *updates,
           ptrdiff_t low, ptrdiff_t high, int over)
{
    for (ptrdiff_t row = 0; row < updates->rows; row++) {
        int fresh = over;
        for (ptrdiff_t at = low; at < high; at++) {
            const ptrdiff_t place = at * b->rows + row, from = place * c->samples;
            if (!s->active[place])
                continue;
            gather(c, s, from, s->shares[place]);
            const struct row r = {c, b, row, s->read, s->aims, s->present + from, s->counts,
                                  s->keys ? s->keys + from : NULL, fresh};
            s->losses[row] += learn(&r);
            fresh = updates->due[at * updates->rows + row];
            if (fresh)
                update_row(updates, at, row, s->norms, NULL);
        }
        if (fresh)
            clear_row(updates, row);
    }
}

/* The outputs (B, count, out) of all rows for as many samples (count, in), a whole number of times what the chain reads
   at once. */
void evaluate(const struct chain *c, const struct block *b, ptrdiff_t count, const REAL *inputs, REAL *outputs)
{
    const struct layer *last = c->layers + c->count - 1;
    for (ptrdiff_t row = 0; row < b->rows; row++)
        for (ptrdiff_t n = 0; n < count; n += c->samples, outputs += c->samples * last->out) {
            const struct row r = {.c = c, .block = b, .row = row, .inputs = inputs + n * c->in};
            forward(&r);
            transpose(last->out, c->samples, b->workspace + last->at, c->samples, outputs, last->out);
        }
}
