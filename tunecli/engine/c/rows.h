/* The layers of a model as they are told of, and what one row has of them: its weights, its gradients, its workspace.

   What layers.py calls lines are here (lines, m), the samples innermost, and m is whole stripes. REAL is float or double. */

#include "update.h"
#include "functions.h"
#include "layers.h"
#include "products.h"

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

static inline REAL *place_of(const struct row *r, const struct place *p)
{
    return p->at ? p->at + r->row * p->row : p->count ? r->own + p->row : NULL;
}

static inline REAL *weights_of(const struct row *r, ptrdiff_t which)
{
    return place_of(r, r->block->weights + which);
}

/* NULL where none is wanted, be it that there is no such weight. */
static inline REAL *gradient_of(const struct row *r, ptrdiff_t which)
{
    return which < 0 ? NULL : place_of(r, r->block->gradients + which);
}

static inline REAL *at(const struct row *r, ptrdiff_t place)
{
    return r->own + place;
}

/* What all micro-batches share. */
static inline REAL *common(const struct row *r, ptrdiff_t place)
{
    return r->workspace + place;
}

static inline size_t size_of_target(const struct network *n)
{
    return n->loss == SQUARED_ERROR ? sizeof(REAL) : sizeof(int64_t);
}

/* How many micro-batches a step has; one where there is nothing to read. */
static inline ptrdiff_t micros_of(const struct row *r)
{
    const ptrdiff_t m = r->n->samples;
    return r->real > m ? (r->real + m - 1) / m : 1;
}

/* Of these so many samples are real. */
static inline ptrdiff_t real_of(const struct row *r, ptrdiff_t which)
{
    const ptrdiff_t m = r->n->samples, left = r->real - which * m;
    return left < m ? left : m;
}

/* The row as one of its micro-batches has it. */
static inline struct row micro_of(const struct row *r, ptrdiff_t which)
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
static inline int is_over(const struct row *r, const struct layer *l, int bias)
{
    return (r->over || !r->block->gradients[bias ? l->bias : l->weight].at) && l->fresh[bias];
}

/* Where the gradient of what a layer reads is written; `add_to` adds it to what is there, if that is wanted. */
static inline REAL *target(const struct row *r, const struct source *from)
{
    return from->gradient < 0 ? NULL : from->add ? common(r, r->n->scratch[1]) : at(r, from->gradient);
}

static inline void add(ptrdiff_t n, REAL scale, const REAL *found, REAL *to)
{
    for (ptrdiff_t i = 0; i < n; i += PART)
        store(to + i, load(to + i, 1, PART) + load(found + i, 1, PART) * scale, PART);
}

static inline void add_to(const struct row *r, const struct source *from, const REAL *found, REAL scale)
{
    add(from->lines * r->n->samples, scale, found, at(r, from->gradient));
}

/* Layers of other sources, forward and back: of what a row reads, x, to its outputs, y; and from their gradient, d, to where
   that of x is wanted, `to` (NULL: nowhere), and to those of weights. */
void forward_linear(const struct row *r, const struct layer *l, const REAL *x, const REAL *bias, REAL *y);
void backward_linear(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to);
void backward_product(const struct row *r, const struct layer *l, const REAL *a, const REAL *b, const REAL *d, REAL *to,
                      REAL *to_other);
void forward_embedding(const struct row *r, const struct layer *l, const REAL *x, REAL *y);
void backward_embedding(const struct row *r, const struct layer *l, const REAL *x, const REAL *d);
void weigh_or_shift(const struct row *r, const struct layer *l, const REAL *x, REAL *y);
void backward_weigh(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to);
void join(const struct layer *l, ptrdiff_t n, const REAL *one, const REAL *other, REAL *y);
void backward_join(const struct row *r, const struct layer *l, const REAL *one, const REAL *other, const REAL *d);
void backward_derive(const struct row *r, const struct layer *l, REAL *to);
void forward_convolution(const struct row *r, const struct layer *l, const REAL *x, const REAL *bias, REAL *y);
void forward_transposed(const struct row *r, const struct layer *l, const REAL *x, const REAL *bias, REAL *y);
void backward_convolution(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to);
void backward_transposed(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to);

/* Of layers that take the statistics of a batch, for whose sake all of its micro-batches reach them before one goes on. What
   is known of the channels: their means, the inverses of their standard deviations, and what is subtracted from the
   gradient of each number for the mean's sake, and for the variance's times how far the number is from the mean; of a
   micro-batch its mean and squares, or what its gradients come to. */
enum known { MEANS, INVERSES, OF_MEANS, OF_VARIANCES, FIRST, SECOND };

int is_fixed(const struct layer *l);
REAL *known(const struct row *r, const struct layer *l, enum known which);
void take_statistics(const struct row *r, const struct layer *l);
void forward_batch_norm(const struct row *r, const struct layer *l, const REAL *x, const REAL *bias, REAL *y);
void total_gradients(const struct row *r, const struct layer *l);
void backward_batch_norm(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to);

/* A row through all layers: its outputs are where the last one has them. */
void forward(const struct row *r);

/* The sum of a row's losses; its gradients are where they belong then. */
REAL learn(const struct row *r);
