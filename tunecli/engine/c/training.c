/* Steps of the rows of a block, one or many of them, and their evaluation: shared among threads, a row at a time. */

#include "rows.h"
#include "threads.h"

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
