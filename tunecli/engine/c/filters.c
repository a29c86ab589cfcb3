/* Layers of filters over images, in groups: convolutions, and what they are backward, transposed ones. */

#include "rows.h"

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

void forward_convolution(const struct row *r, const struct layer *l, const REAL *x, const REAL *bias, REAL *y)
{
    const struct group own = group_of(r, l);
    const REAL *weights = weights_of(r, l->weight);
    for (ptrdiff_t g = 0; g < own.count; g++, x += own.images, weights += own.filters * own.read, y += own.outputs) {
        const REAL *images = pad(l->over, x, at(r, l->more) + g * own.padded);
        convolve(own.filters, l->taps, own.read, weights, images, bias ? bias + g * own.filters : NULL, y);
    }
}

/* Each number of an image times a filter, laid where the filter lies over the outputs. */
void forward_transposed(const struct row *r, const struct layer *l, const REAL *x, const REAL *bias, REAL *y)
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

void backward_convolution(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to)
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

void backward_transposed(const struct row *r, const struct layer *l, const REAL *x, const REAL *d, REAL *to)
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
