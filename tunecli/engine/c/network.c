/* The losses and the gradient of a model, a row after the other: what a row computes stays near the core from its first
   layer to its last, where torch computes each layer for all rows and is called some forty times. */

#include "rows.h"

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

void forward(const struct row *r)
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
REAL learn(const struct row *r)
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
