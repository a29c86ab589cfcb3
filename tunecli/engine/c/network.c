/* The losses and the gradient of a model, a row after the other: what a row computes stays near the core from its first
   layer to its last, where torch computes each layer for all rows and is called some forty times.

   What layers.py calls lines are here (lines, m), the samples innermost, and m is whole stripes. REAL is float or double. */

#include "update.h"
#include "functions.h"
#include "layers.h"
#include "products.h"
#include "threads.h"

enum loss { CROSS_ENTROPY, BINARY_CROSS_ENTROPY, SQUARED_ERROR };

/* Lines that a layer reads, and where their gradient is written, or added to what is there; below 0, where it is not
   wanted. */
struct source {
    ptrdiff_t at, gradient, lines, add;
};

/* So many lines of the workspace. */
struct some {
    ptrdiff_t at, lines;
};

struct layer {
    ptrdiff_t kind, out;             /* so many lines */
    ptrdiff_t weight, bias;          /* their places among all weights; below 0: there is none */
    ptrdiff_t fresh[2];              /* no layer above has added to their gradients */
    ptrdiff_t at, more, gradient;    /* where the workspace has its outputs; its windows, or inverses; their gradient */
    ptrdiff_t wanted;                /* whether a gradient is */
    struct source from[2];
    const int64_t *gathered;         /* where a gather adds the gradient of each line, (out,); below 0: nowhere */
    const struct some *cleared;      /* gradients that nothing was written to yet and something is added to */
    ptrdiff_t clearings;
    ptrdiff_t sizes[4];              /* of layers.py, */
    const struct windows *over;      /* as the windows are */
    const struct taps *taps;         /* of a convolution over its padded images, */
    const struct windows *over_back; /* and of that over the gradient of its outputs, */
    const struct taps *taps_back;    /* where it gives that of its images */
    struct dropout dropout;
    const int32_t *elements;         /* what each line gathers, or which number of its weight it is told; */
    const REAL *values;              /* or these */
    double scale, shift;
};

/* A step reads a `batch`, which is computed `samples` by samples, a micro-batch after the other: all of them reach a layer
   that takes the statistics of the batch before one goes beyond it. A workspace of so many numbers begins with what each
   micro-batch has for itself, so many `each`, its inputs first; at each of `scratch` there is room for the widest layer,
   and at `read` and `counts` for the inputs of a step as they lie, and for what each sample counts in it. Each of
   the threads that share the rows of a block has a workspace of its own. */
struct network {
    const struct layer *layers;
    ptrdiff_t count, samples, batch, in, loss, each;
    ptrdiff_t scratch[2], read, counts;
    REAL *workspaces;
    ptrdiff_t size;
    const int64_t *unused; /* weights that are trained and that no layer has */
    ptrdiff_t unused_count;
};

/* Of some weights of all rows: where the first row's are, how far from row to row, and how many; of gradients nowhere, and
   no numbers, where the weights are not trained. What a layer derives from others is nowhere but so far from where a
   micro-batch has its own. */
struct place {
    REAL *at;
    ptrdiff_t row, count;
};

/* What all steps of some rows share. */
struct block {
    ptrdiff_t rows;
    const struct place *weights, *gradients;
    const REAL *smoothing; /* of cross-entropy's targets (rows,), or none */
};

/* What one row reads in a step, and the workspace that it has: inputs (m, in); targets, what each sample's loss and what
   its gradient count, and what it draws by, (m,). Behind the first `real` samples there are only such as fill. Its
   gradients are added to what is there, or written `over` it. `own` is what its micro-batch has of the workspace. */
struct row {
    const struct network *n;
    const struct block *block;
    ptrdiff_t row;
    REAL *workspace;
    const REAL *inputs;
    const void *targets;
    const REAL *present, *counts;
    const int64_t *keys;
    ptrdiff_t real;
    int over;
    REAL *own;
};

static REAL *place_of(const struct row *r, const struct place *p)
{
    return p->at ? p->at + r->row * p->row : p->count ? r->own + p->row : NULL;
}

static REAL *weights_of(const struct row *r, ptrdiff_t which)
{
    return place_of(r, r->block->weights + which);
}

/* NULL where none is wanted, be it that there is no such weight. */
static REAL *gradient_of(const struct row *r, ptrdiff_t which)
{
    return which < 0 ? NULL : place_of(r, r->block->gradients + which);
}

static REAL *at(const struct row *r, ptrdiff_t place)
{
    return r->own + place;
}

/* What all micro-batches share. */
static REAL *common(const struct row *r, ptrdiff_t place)
{
    return r->workspace + place;
}

static size_t size_of_target(const struct network *n)
{
    return n->loss == SQUARED_ERROR ? sizeof(REAL) : sizeof(int64_t);
}

/* How many micro-batches a step has; one where there is nothing to read. */
static ptrdiff_t micros_of(const struct row *r)
{
    const ptrdiff_t m = r->n->samples;
    return r->real > m ? (r->real + m - 1) / m : 1;
}

/* Of these so many samples are real. */
static ptrdiff_t real_of(const struct row *r, ptrdiff_t which)
{
    const ptrdiff_t m = r->n->samples, left = r->real - which * m;
    return left < m ? left : m;
}

/* The row as one of its micro-batches has it. */
static struct row micro_of(const struct row *r, ptrdiff_t which)
{
    const struct network *n = r->n;
    const ptrdiff_t from = which * n->samples;
    struct row own = *r;
    own.inputs += from * n->in;
    if (r->targets) { /* in training */
        own.targets = (const char *)r->targets + from * (ptrdiff_t)size_of_target(n);
        own.present += from;
        own.counts += from;
    }
    own.keys = r->keys ? r->keys + from : NULL;
    own.real = real_of(r, which);
    own.over = r->over && !which;
    own.own = r->workspace + which * n->each;
    return own;
}

/* Whether the gradient of a layer's weight, or of its bias, is written over what is there: of what is derived it always
   is, for it is passed on at once. */
static int is_over(const struct row *r, const struct layer *l, int bias)
{
    return (r->over || !r->block->gradients[bias ? l->bias : l->weight].at) && l->fresh[bias];
}

/* What a group of a convolution's filters reads and gives: all of its images, or some channels of them. */
struct group {
    ptrdiff_t count, filters, read;      /* groups, filters of each, and numbers of a filter */
    ptrdiff_t images, padded, outputs;   /* numbers of a group */
};

static struct group group_of(const struct row *r, const struct layer *l)
{
    const struct windows *w = l->over;
    const ptrdiff_t m = r->n->samples, places = w->out_height * w->out_width, count = l->sizes[0];
    const ptrdiff_t height = w->height + 2 * w->padding[0], width = w->width + 2 * w->padding[1];
    const ptrdiff_t filters = l->sizes[1] / count;
    return (struct group){count, filters, l->taps->K, w->channels * w->height * w->width * m, w->channels * height * width * m,
                          filters * places * m};
}

static int is_padded(const struct windows *w)
{
    return w->padding[0] || w->padding[1];
}

/* The matrix of a linear layer: (out, in), or (in, out) where it is `turned`. */
static int is_turned(const struct layer *l)
{
    return l->sizes[3] != 0;
}

static void forward_linear(const struct row *r, const struct layer *l, const REAL *x, const REAL *bias, REAL *y)
{
    const ptrdiff_t m = r->n->samples, tokens = l->sizes[0], in = l->sizes[1], out = l->sizes[2];
    const struct product p = {out, m, in, is_turned(l) ? 1 : in, is_turned(l) ? out : 1, m, m, 0};
    for (ptrdiff_t t = 0; t < tokens; t++)
        product(&p, weights_of(r, l->weight), x + t * in * m, bias, y + t * out * m);
}

static void forward_convolution(const struct row *r, const struct layer *l, const REAL *x, const REAL *bias, REAL *y)
{
    const struct group own = group_of(r, l);
    const REAL *weights = weights_of(r, l->weight);
    for (ptrdiff_t g = 0; g < own.count; g++, x += own.images, weights += own.filters * own.read, y += own.outputs) {
        const REAL *images = pad(l->over, x, at(r, l->more) + g * own.padded);
        convolve(own.filters, l->taps, own.read, weights, images, bias ? bias + g * own.filters : NULL, y);
    }
}

/* Each number of an image times a filter, laid where the filter lies over the outputs. */
static void forward_transposed(const struct row *r, const struct layer *l, const REAL *x, const REAL *bias, REAL *y)
{
    const struct group own = group_of(r, l);
    const ptrdiff_t places = own.outputs / own.filters, pixels = own.images / l->over->channels;
    const struct product p = {own.read, places, own.filters, 1, own.read, places, places, 0};
    const REAL *weights = weights_of(r, l->weight);
    REAL *scratch = common(r, r->n->scratch[0]);
    for (ptrdiff_t g = 0; g < own.count; g++, x += own.outputs, weights += own.filters * own.read, y += own.images) {
        product(&p, weights, x, NULL, scratch);
        fold(l->over, 1, scratch, y);
        for (ptrdiff_t i = 0; i < own.images && bias; i += PART)
            store(y + i, load(y + i, 1, PART) + bias[g * l->over->channels + i / pixels], PART);
    }
}

/* Rows of a table (rows, width): which one, the number of a sample says. A row that there is not gives NaN. */
static void forward_embedding(const struct row *r, const struct layer *l, const REAL *x, REAL *y)
{
    const ptrdiff_t m = r->n->samples, rows = l->sizes[0], width = l->sizes[1];
    const REAL *table = weights_of(r, l->weight);
    for (ptrdiff_t i = 0; i < l->out / width * m; i++) {
        const int known = x[i] >= 0 && x[i] < (REAL)rows;
        const REAL *row = table + (known ? (ptrdiff_t)x[i] : 0) * width;
        for (ptrdiff_t e = 0; e < width; e++)
            y[(i / m * width + e) * m + i % m] = known ? row[e] : (REAL)NAN;
    }
}

/* Of all rows but the one that is padding. */
static void backward_embedding(const struct row *r, const struct layer *l, const REAL *x, const REAL *d)
{
    const ptrdiff_t m = r->n->samples, rows = l->sizes[0], width = l->sizes[1];
    REAL *found = gradient_of(r, l->weight);
    if (!found)
        return;
    if (is_over(r, l, 0))
        memset(found, 0, sizeof(REAL) * (size_t)(rows * width));
    for (ptrdiff_t i = 0; i < l->out / width * m; i++)
        for (ptrdiff_t e = 0; e < width && x[i] >= 0 && x[i] < (REAL)rows && x[i] != (REAL)l->sizes[2]; e++)
            found[(ptrdiff_t)x[i] * width + e] += d[(i / m * width + e) * m + i % m];
}

/* What each line is weighed or shifted by. */
static REAL told(const struct layer *l, const REAL *weight, ptrdiff_t line)
{
    return weight ? weight[l->elements[line]] * (REAL)l->scale : l->values[line];
}

static void weigh_or_shift(const struct row *r, const struct layer *l, const REAL *x, REAL *y)
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

static void join(const struct layer *l, ptrdiff_t n, const REAL *one, const REAL *other, REAL *y)
{
    for (ptrdiff_t i = 0; i < n; i += PART) {
        const part own = load(one + i, 1, PART), by = load(other + i, 1, PART);
        store(y + i, l->kind == ADD ? own + by * (REAL)l->scale : own * by, PART);
    }
}

/* Of a layer that takes the statistics of a batch: whether it goes by those of the batches so far, and takes none. */
static int is_fixed(const struct layer *l)
{
    return l->sizes[3] != 0;
}

/* What is known of the channels of a batch: their means, the inverses of their standard deviations, and what is subtracted
   from the gradient of each number for the mean's sake, and for the variance's times how far the number is from the mean;
   of a micro-batch its mean and squares, or what its gradients come to. */
enum known { MEANS, INVERSES, OF_MEANS, OF_VARIANCES, FIRST, SECOND };

/* That of the whole batch is where the first micro-batch has its own. */
static REAL *known(const struct row *r, const struct layer *l, enum known which)
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
static void take_statistics(const struct row *r, const struct layer *l)
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

static void forward_batch_norm(const struct row *r, const struct layer *l, const REAL *x, const REAL *bias, REAL *y)
{
    const REAL *means = known(r, l, MEANS);
    const ptrdiff_t n = l->sizes[1] * r->n->samples;
    for (ptrdiff_t c = 0; c < l->sizes[0]; c++)
        shift_and_scale(n, means[c], factor(r, l, c), bias ? bias[c] : 0, x + c * n, y + c * n);
}

/* The next layer that takes the statistics of a batch, or the end. */
static const struct layer *norm_from(const struct layer *l, const struct layer *end)
{
    while (l < end && l->kind != BATCH_NORM)
        l++;
    return l;
}

/* The layers from one to another, of a micro-batch. */
static void forward_through(const struct row *r, const struct layer *l, const struct layer *end)
{
    const ptrdiff_t m = r->n->samples;
    for (; l < end; l++) {
        const REAL *x = at(r, l->from[0].at), *other = at(r, l->from[1].at);
        const REAL *bias = l->bias < 0 ? NULL : weights_of(r, l->bias);
        const ptrdiff_t groups = l->sizes[0], each = l->sizes[1], lines = l->out;
        REAL *y = at(r, l->at);
        switch (l->kind) {
        case LINEAR: forward_linear(r, l, x, bias, y); break;
        case CONVOLUTION: forward_convolution(r, l, x, bias, y); break;
        case TRANSPOSED: forward_transposed(r, l, x, bias, y); break;
        case EMBEDDING: forward_embedding(r, l, x, y); break;
        case PRODUCT: {
            const ptrdiff_t M = l->sizes[1], K = l->sizes[2], N = l->sizes[3];
            const struct between p = {M, N, K, K, 1, N, 1};
            for (ptrdiff_t g = 0; g < groups; g++)
                between(&p, m, x + g * M * K * m, other + g * K * N * m, y + g * M * N * m);
            break;
        }
        case POOLING: largest(l->over, 1, x, y); break;
        case GATHER:
            for (ptrdiff_t i = 0; i < lines; i++)
                memcpy(y + i * m, at(r, l->elements[i] * m), sizeof(REAL) * (size_t)m);
            break;
        case DERIVE: /* all samples have the same */
            for (ptrdiff_t i = 0; i < groups; i++)
                at(r, l->more)[i] = x[i * m];
            break;
        case CONSTANT:
            for (ptrdiff_t i = 0; i < lines * m; i++)
                y[i] = l->values[i / m];
            break;
        case ADD:
        case MULTIPLY: join(l, lines * m, x, other, y); break;
        case WEIGH:
        case SHIFT: weigh_or_shift(r, l, x, y); break;
        case NORMALIZE: normalize(groups, each, m, l->shift, x, y, at(r, l->more)); break;
        case BATCH_NORM: forward_batch_norm(r, l, x, bias, y); break;
        case SOFTMAX: softmax(groups, each, m, l->shift != 0, x, y); break;
        case LOG_SOFTMAX: log_softmax(groups, each, m, x, y); break;
        case SUM: add_up(groups, each, m, l->scale, x, y); break;
        case MAXIMUM: maximum(groups, each, m, x, y); break;
        case MASK: mask(lines * m, (REAL)l->scale, x, other, y); break;
        case DROPOUT: drop(&l->dropout, lines, m, r->keys, x, y); break;
        default: apply((enum kind)l->kind, lines * m, l->scale, l->shift, x, y);
        }
    }
}

/* The layers from one to another, of all micro-batches; and of what the other takes the statistics of, if it is one that
   does, those of each micro-batch, while it is near the core. */
static void forward_to(const struct row *r, const struct layer *l, const struct layer *norm)
{
    for (ptrdiff_t k = 0; k < micros_of(r); k++) {
        const struct row own = micro_of(r, k);
        if (l == r->n->layers)
            transpose(r->n->samples, r->n->in, own.inputs, r->n->in, own.own, r->n->samples);
        forward_through(&own, l, norm);
        if (norm < r->n->layers + r->n->count) {
            const struct channels how = {norm->sizes[0], norm->sizes[1], r->n->samples, own.real};
            moments(&how, at(&own, norm->from[0].at), known(&own, norm, FIRST), known(&own, norm, SECOND));
        }
    }
}

static void forward(const struct row *r)
{
    const struct layer *end = r->n->layers + r->n->count, *norm = norm_from(r->n->layers, end);
    forward_to(r, r->n->layers, norm);
    while (norm < end) {
        const struct layer *l = norm;
        take_statistics(r, l);
        norm = norm_from(l + 1, end);
        forward_to(r, l, norm);
    }
}

/* Where the gradient of what a layer reads is written; `add_to` adds it to what is there, if that is wanted. */
static REAL *target(const struct row *r, const struct source *from)
{
    return from->gradient < 0 ? NULL : from->add ? common(r, r->n->scratch[1]) : at(r, from->gradient);
}

static void add(ptrdiff_t n, REAL scale, const REAL *found, REAL *to)
{
    for (ptrdiff_t i = 0; i < n; i += PART)
        store(to + i, load(to + i, 1, PART) + load(found + i, 1, PART) * scale, PART);
}

static void add_to(const struct row *r, const struct source *from, const REAL *found, REAL scale)
{
    add(from->lines * r->n->samples, scale, found, at(r, from->gradient));
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

static void backward_linear(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to)
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

static void backward_convolution(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to)
{
    const struct group own = group_of(r, l);
    const ptrdiff_t places = own.outputs / own.filters;
    const REAL *weights = weights_of(r, l->weight);
    REAL *scratch = common(r, r->n->scratch[0]), *of_weight = gradient_of(r, l->weight), *of_bias = gradient_of(r, l->bias);
    if (of_bias)
        sums(own.count * own.filters, places, d, of_bias, !is_over(r, l, 1));
    for (ptrdiff_t g = 0; g < own.count; g++, d += own.outputs, weights += own.filters * own.read) {
        const REAL *images = is_padded(l->over) ? at(r, l->more) + g * own.padded : x + g * own.images;
        if (of_weight)
            dots(own.filters, l->taps, d, images, of_weight + g * own.filters * own.read, !is_over(r, l, 0));
        if (to && l->taps_back) {
            const REAL *given = pad(l->over_back, d, scratch);
            convolve(l->over->channels, l->taps_back, own.read / l->over->channels, weights, given, NULL, to + g * own.images);
        } else if (to) {
            const struct product p = {own.read, places, own.filters, 1, own.read, places, places, 0};
            product(&p, weights, d, NULL, scratch);
            fold(l->over, 1, scratch, to + g * own.images);
        }
    }
}

static void backward_transposed(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to)
{
    const struct group own = group_of(r, l);
    const ptrdiff_t channels = l->over->channels, pixels = own.images / channels;
    const REAL *weights = weights_of(r, l->weight);
    REAL *of_weight = gradient_of(r, l->weight), *of_bias = gradient_of(r, l->bias);
    if (of_bias)
        sums(own.count * channels, pixels, d, of_bias, !is_over(r, l, 1));
    for (ptrdiff_t g = 0; g < own.count; g++, d += own.images, weights += own.filters * own.read) {
        const REAL *images = pad(l->over, d, at(r, l->more));
        if (of_weight)
            dots(own.filters, l->taps, x + g * own.outputs, images, of_weight + g * own.filters * own.read, !is_over(r, l, 0));
        if (to)
            convolve(own.filters, l->taps, own.read, weights, images, NULL, to + g * own.outputs);
    }
}

static void backward_product(const struct row *r, const struct layer *l, const REAL *a, const REAL *b, const REAL *d,
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

/* Of the weight by which lines are weighed or shifted, and of the lines: `to` may be d. */
static void backward_weigh(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to)
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

static void backward_join(const struct row *r, const struct layer *l, const REAL *one, const REAL *other, const REAL *d)
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
static void backward_derive(const struct row *r, const struct layer *l, REAL *to)
{
    const ptrdiff_t m = r->n->samples, count = l->sizes[0];
    const REAL *found = at(r, l->more) + (count + 15) / 16 * 16;
    memset(to, 0, sizeof(REAL) * (size_t)(count * m));
    for (ptrdiff_t i = 0; i < count; i++)
        to[i * m] = found[i];
}

/* What the gradients of a batch come to, of each channel: its weight's and its bias's, and what is subtracted. */
static void total_gradients(const struct row *r, const struct layer *l)
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

static void backward_batch_norm(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to)
{
    const ptrdiff_t places = l->sizes[1], m = r->n->samples, n = places * m;
    for (ptrdiff_t c = 0; c < l->sizes[0] && to; c++) {
        const struct spread how = {known(r, l, MEANS)[c], factor(r, l, c), known(r, l, OF_MEANS)[c],
                                   known(r, l, OF_VARIANCES)[c]};
        spread(&how, places, m, r->real, x + c * n, d + c * n, to + c * n);
    }
}

static void clear(const struct row *r, const struct layer *l)
{
    for (ptrdiff_t i = 0; i < l->clearings; i++)
        memset(at(r, l->cleared[i].at), 0, sizeof(REAL) * (size_t)(l->cleared[i].lines * r->n->samples));
}

/* Back from one layer to another, of a micro-batch. */
static void backward_through(const struct row *r, const struct layer *l, const struct layer *end)
{
    const ptrdiff_t m = r->n->samples;
    for (; l >= end; l--) {
        if (!l->wanted)
            continue;
        if (l->kind != BATCH_NORM) /* whose were before */
            clear(r, l);
        const REAL *x = at(r, l->from[0].at), *other = at(r, l->from[1].at), *y = at(r, l->at), *d = at(r, l->gradient);
        const ptrdiff_t groups = l->sizes[0], each = l->sizes[1];
        REAL *to = target(r, &l->from[0]);
        switch (l->kind) {
        case LINEAR: backward_linear(r, l, x, d, to); break;
        case CONVOLUTION: backward_convolution(r, l, x, d, to); break;
        case TRANSPOSED: backward_transposed(r, l, x, d, to); break;
        case EMBEDDING: backward_embedding(r, l, x, d); continue;
        case PRODUCT: {
            backward_product(r, l, x, other, d, to, NULL);
            if (l->from[0].add && to)
                add_to(r, &l->from[0], to, 1);
            to = target(r, &l->from[1]);
            backward_product(r, l, x, other, d, NULL, to);
            if (l->from[1].add && to)
                add_to(r, &l->from[1], to, 1);
            continue;
        }
        case POOLING: to_largest(l->over, 1, d, x, y, to); break;
        case GATHER:
            for (ptrdiff_t i = 0; i < l->out; i++)
                if (l->gathered[i] >= 0)
                    add(m, 1, d + i * m, at(r, l->gathered[i]));
            continue;
        case DERIVE: backward_derive(r, l, to); break;
        case ADD:
        case MULTIPLY: backward_join(r, l, x, other, d); continue;
        case WEIGH:
        case SHIFT: backward_weigh(r, l, x, d, to); break;
        case NORMALIZE: unnormalize(groups, each, m, y, at(r, l->more), d, to); break;
        case BATCH_NORM: backward_batch_norm(r, l, x, d, to); break;
        case SOFTMAX: unsoftmax(groups, each, m, y, d, to); break;
        case LOG_SOFTMAX: unlog_softmax(groups, each, m, y, d, to); break;
        case SUM: hand_out(groups, each, m, l->scale, d, to); break;
        case MAXIMUM: to_maximum(groups, each, m, l->shift != 0, x, y, d, to); break;
        case MASK: /* of which only the masks may come from what learns */
            if (to)
                mask(l->out * m, 0, d, other, to);
            break;
        case DROPOUT: drop(&l->dropout, l->out, m, r->keys, d, to); break;
        default: unapply((enum kind)l->kind, l->out * m, l->scale, l->shift, x, y, d, to);
        }
        if (l->from[0].add && to)
            add_to(r, &l->from[0], to, 1);
    }
}

/* Back through the layers that lie between, of all micro-batches; and what the gradients of each come to for the layer
   before them, if there is one: it takes the statistics of a batch. */
static void backward_to(const struct row *r, const struct layer *first, const struct layer *end)
{
    const struct layer *norm = first - 1;
    for (ptrdiff_t k = 0; k < micros_of(r); k++) {
        const struct row own = micro_of(r, k);
        backward_through(&own, end - 1, first);
        if (first > r->n->layers && norm->wanted) {
            const struct channels how = {norm->sizes[0], norm->sizes[1], r->n->samples, own.real};
            clear(&own, norm);
            total(&how, known(r, norm, MEANS), at(&own, norm->from[0].at), at(&own, norm->gradient),
                  known(&own, norm, FIRST), known(&own, norm, SECOND));
        }
    }
}

/* Those layers that follow the last one before the end that takes the statistics of a batch. */
static const struct layer *behind_norm(const struct layer *first, const struct layer *end)
{
    while (end > first && end[-1].kind != BATCH_NORM)
        end--;
    return end;
}

/* From the gradient with respect to the outputs to that of all weights. */
static void backward(const struct row *r)
{
    const struct layer *first = r->n->layers, *end = first + r->n->count, *l = behind_norm(first, end);
    for (ptrdiff_t k = 0; k < r->n->unused_count && r->over; k++)
        memset(gradient_of(r, r->n->unused[k]), 0, sizeof(REAL) * (size_t)r->block->gradients[r->n->unused[k]].count);
    backward_to(r, l, end);
    while (l > first) {
        end = l;
        if (end[-1].wanted)
            total_gradients(r, end - 1);
        l = behind_norm(first, end - 1);
        backward_to(r, l, end);
    }
}

/* The losses of a row's samples, and their gradient with respect to the outputs where `backward` begins. */
static const REAL *losses_of(const struct row *r)
{
    const struct network *n = r->n;
    const struct block *b = r->block;
    const struct layer *last = n->layers + n->count - 1;
    const struct outputs how = {1, last->out, n->samples, 0, n->samples, 1};
    const REAL *outputs = at(r, last->at);
    REAL *found = at(r, last->gradient);
    if (n->loss == CROSS_ENTROPY)
        cross_entropy(&how, b->smoothing ? b->smoothing + r->row : NULL, outputs, r->targets, r->counts, found);
    else if (n->loss == BINARY_CROSS_ENTROPY)
        binary_cross_entropy(&how, outputs, r->targets, r->counts, found);
    else
        squared_error(&how, outputs, r->targets, r->counts, found);
    return found + last->out * n->samples;
}

/* The sum of a row's losses; its gradients are where they belong then. */
static REAL learn(const struct row *r)
{
    forward(r);
    REAL sum = 0;
    for (ptrdiff_t k = 0; k < micros_of(r); k++) {
        const struct row own = micro_of(r, k);
        const REAL *losses = losses_of(&own);
        for (ptrdiff_t i = 0; i < r->n->samples; i++)
            sum += losses[i] * own.present[i];
    }
    backward(r);
    return sum;
}

static REAL *workspace_of(const struct network *n, ptrdiff_t thread)
{
    return n->workspaces + thread * n->size;
}

/* What a step reads of all rows: as `struct row`, (B, ...); so many samples of each are `real`, (B,). */
struct step {
    const REAL *inputs;
    const void *targets;
    const REAL *present, *counts;
    const int64_t *keys, *real;
};

struct one_step {
    const struct network *n;
    const struct block *b;
    const struct step *s;
    REAL *losses;
    int over;
};

static void learn_row(const void *given, ptrdiff_t row, ptrdiff_t thread)
{
    const struct one_step *o = given;
    const struct step *s = o->s;
    const size_t target = size_of_target(o->n);
    const ptrdiff_t from = row * o->n->batch;
    const struct row r = {o->n, o->b, row, workspace_of(o->n, thread), s->inputs + from * o->n->in,
                          (const char *)s->targets + from * target, s->present + from, s->counts + from,
                          s->keys ? s->keys + from : NULL, s->real[row], o->over, NULL};
    o->losses[row] = learn(&r);
}

/* A step of all rows, without an update: their loss sums (B,). */
void learn_step(const struct network *n, const struct block *b, const struct step *s, REAL *losses, int over,
                ptrdiff_t threads)
{
    const struct one_step told = {n, b, s, losses, over};
    share(b->rows, threads, learn_row, &told);
}

/* One of the inputs of all samples, (N, width), of numbers of a kind, in the order of native.py; or bytes, each of which
   stands for one of `bytes` (256,). */
enum number { REALS, INT64, INT32, INT16, INT8, UINT8, BOOL };

struct given {
    const void *at;
    const REAL *bytes;
    ptrdiff_t width, number;
};

/* Steps of a block that are laid out: the samples that each reads, what they count and what they draw by, (S, B, m); how
   many of them are real, what a batch's gradient is divided by, inverted, and whether a row trains, (S, B). All samples:
   so many `parts` of their inputs and targets (N,), which are gathered for a step, the targets at `aims` (threads, m).
   Which are read is known from the `first` step on, all else of all steps.

   Those from `low` to `high` are trained, updates included. What a row has of a gradient at first is added to, or written
   `over`; a gradient that is used up is zero in the end. */
struct stretch {
    const struct network *network;
    const struct block *block;
    ptrdiff_t parts;
    const struct given *inputs;
    const char *targets;
    const int64_t *index;
    ptrdiff_t first;
    const REAL *present, *shares;
    const uint8_t *active;
    const int64_t *keys, *real;
    char *aims;
    const struct rows *updates;
    ptrdiff_t low, high, over, threads;
    double *losses, *norms; /* (B,) */
};

#define WHOLE_NUMBERS(type)                                                                                             \
    for (ptrdiff_t k = 0; k < g->width; k++)                                                                            \
        to[k] = (REAL)((const type *)g->at)[sample * g->width + k];                                                     \
    break

static void read_inputs(const struct given *g, ptrdiff_t sample, REAL *restrict to)
{
    if (g->bytes) {
        for (ptrdiff_t k = 0; k < g->width; k++)
            to[k] = g->bytes[((const uint8_t *)g->at)[sample * g->width + k]];
        return;
    }
    switch ((enum number)g->number) {
    case REALS: memcpy(to, (const REAL *)g->at + sample * g->width, sizeof(REAL) * (size_t)g->width); break;
    case INT64: WHOLE_NUMBERS(int64_t);
    case INT32: WHOLE_NUMBERS(int32_t);
    case INT16: WHOLE_NUMBERS(int16_t);
    case INT8: WHOLE_NUMBERS(int8_t);
    case UINT8:
    case BOOL: WHOLE_NUMBERS(uint8_t);
    }
}

static void gather(const struct stretch *s, ptrdiff_t from, REAL share, REAL *workspace, char *aims)
{
    const struct network *n = s->network;
    const size_t target = size_of_target(n);
    REAL *read = workspace + n->read, *counts = workspace + n->counts;
    const int64_t *index = s->index + from - s->first * s->block->rows * n->batch;
    for (ptrdiff_t i = 0; i < n->batch; i++) {
        const int64_t sample = index[i];
        REAL *to = read + i * n->in;
        for (ptrdiff_t k = 0; k < s->parts; to += s->inputs[k++].width)
            read_inputs(s->inputs + k, sample, to);
        memcpy(aims + i * target, s->targets + sample * target, target);
        counts[i] = s->present[from + i] * share;
    }
}

/* A row goes through all steps while its weights are near the core. */
static void train_row(const void *given, ptrdiff_t row, ptrdiff_t thread)
{
    const struct stretch *s = given;
    const struct network *n = s->network;
    REAL *workspace = workspace_of(n, thread);
    char *aims = s->aims + thread * n->batch * (ptrdiff_t)size_of_target(n);
    int fresh = (int)s->over;
    for (ptrdiff_t at = s->low; at < s->high; at++) {
        const ptrdiff_t place = at * s->block->rows + row, from = place * n->batch;
        if (!s->active[place])
            continue;
        gather(s, from, s->shares[place], workspace, aims);
        const struct row r = {n, s->block, row, workspace, workspace + n->read, aims, s->present + from,
                              workspace + n->counts, s->keys ? s->keys + from : NULL, s->real[place], fresh, NULL};
        s->losses[row] += learn(&r);
        fresh = s->updates->due[at * s->updates->rows + row];
        if (fresh)
            update_row(s->updates, at, row, s->norms, NULL);
    }
    if (fresh)
        clear_row(s->updates, row);
}

/* Begin to train on other threads than this one, which ends it: see threads.h. */
struct shared *begin_training(const struct stretch *s)
{
    return begin_sharing(s->updates->rows, s->threads, train_row, s);
}

struct some_samples {
    const struct network *n;
    const struct block *b;
    ptrdiff_t count;
    const REAL *inputs;
    REAL *outputs;
};

static void evaluate_row(const void *given, ptrdiff_t row, ptrdiff_t thread)
{
    const struct some_samples *e = given;
    const struct network *n = e->n;
    const struct layer *last = n->layers + n->count - 1;
    REAL *workspace = workspace_of(n, thread), *outputs = e->outputs + row * e->count * last->out;
    for (ptrdiff_t s = 0; s < e->count; s += n->samples, outputs += n->samples * last->out) {
        const struct row r = {
            .n = n, .block = e->b, .row = row, .workspace = workspace, .inputs = e->inputs + s * n->in, .real = n->samples};
        forward(&r);
        transpose(last->out, n->samples, workspace + last->at, n->samples, outputs, last->out);
    }
}

/* The outputs (B, count, out) of all rows for as many samples (count, in), a whole number of times what the network reads
   at once. */
void evaluate(const struct network *n, const struct block *b, ptrdiff_t count, const REAL *inputs, REAL *outputs,
              ptrdiff_t threads)
{
    const struct some_samples told = {n, b, count, inputs, outputs};
    share(b->rows, threads, evaluate_row, &told);
}
