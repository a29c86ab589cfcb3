/* What images.py computes of images and their windows, each in one pass over memory: torch's operations take one for
   every place of a kernel, and more than their time to be called where images are small.

   Images lie as (B, C, H, W, m) here: the samples, m, are innermost. Sums are taken in the order of images.py. REAL is
   float or double. */

#include "layers.h"
#include "parts.h"

#define INLINE static inline __attribute__((always_inline))

/* The first and the last but one of the outputs at which a place of the kernel lies on the image, along an axis. */
struct range {
    ptrdiff_t low, high, first;
};

static struct range covered(ptrdiff_t place, ptrdiff_t length, ptrdiff_t outputs, ptrdiff_t stride, ptrdiff_t padding,
                            ptrdiff_t dilation)
{
    struct range found;
    found.first = place * dilation - padding;
    found.low = found.first < 0 ? (-found.first + stride - 1) / stride : 0;
    found.high = length > found.first ? (length - 1 - found.first) / stride + 1 : 0;
    if (found.high > outputs)
        found.high = outputs;
    if (found.low > found.high)
        found.low = found.high;
    return found;
}

static struct range down(const struct windows *g, ptrdiff_t place)
{
    return covered(place, g->height, g->out_height, g->stride[0], g->padding[0], g->dilation[0]);
}

static struct range right(const struct windows *g, ptrdiff_t place)
{
    return covered(place, g->width, g->out_width, g->stride[1], g->padding[1], g->dilation[1]);
}

const REAL *pad(const struct windows *g, const REAL *images, REAL *padded)
{
    const ptrdiff_t m = g->samples, line = g->width * m, beside = g->padding[1] * m, whole = line + 2 * beside;
    const ptrdiff_t above = g->padding[0] * whole;
    if (!above && !beside)
        return images;
    REAL *to = padded;
    for (ptrdiff_t image = 0; image < g->channels; image++, to += above) {
        memset(to, 0, sizeof(REAL) * (size_t)above);
        to += above;
        for (ptrdiff_t y = 0; y < g->height; y++, images += line, to += whole) {
            memset(to, 0, sizeof(REAL) * (size_t)beside);
            memcpy(to + beside, images, sizeof(REAL) * (size_t)line);
            memset(to + beside + line, 0, sizeof(REAL) * (size_t)beside);
        }
        memset(to, 0, sizeof(REAL) * (size_t)above);
    }
    return padded;
}

/* Of every channel and place of the kernel what lies under it at each output: (B, C, kh, kw, Ho, Wo, m). */
void unfold(const struct windows *g, ptrdiff_t rows, const REAL *images, REAL *unfolded)
{
    const ptrdiff_t m = g->samples, line = g->out_width * m;
    for (ptrdiff_t image = 0; image < rows * g->channels; image++, images += g->height * g->width * m)
        for (ptrdiff_t i = 0; i < g->kernel[0]; i++)
            for (ptrdiff_t j = 0; j < g->kernel[1]; j++) {
                const struct range y = down(g, i), x = right(g, j);
                for (ptrdiff_t oy = 0; oy < g->out_height; oy++, unfolded += line) {
                    if (oy < y.low || oy >= y.high || x.low == x.high) {
                        memset(unfolded, 0, sizeof(REAL) * line);
                        continue;
                    }
                    const REAL *pixels = images + (oy * g->stride[0] + y.first) * g->width * m;
                    memset(unfolded, 0, sizeof(REAL) * x.low * m);
                    if (g->stride[1] == 1)
                        memcpy(unfolded + x.low * m, pixels + (x.low + x.first) * m,
                               sizeof(REAL) * (x.high - x.low) * m);
                    else
                        for (ptrdiff_t ox = x.low; ox < x.high; ox++)
                            memcpy(unfolded + ox * m, pixels + (ox * g->stride[1] + x.first) * m, sizeof(REAL) * m);
                    memset(unfolded + x.high * m, 0, sizeof(REAL) * (g->out_width - x.high) * m);
                }
            }
}

static void add(ptrdiff_t n, REAL *restrict to, const REAL *restrict addend)
{
    for (ptrdiff_t s = 0; s < n; s++)
        to[s] += addend[s];
}

/* The transpose of `unfold`: the sum of what lies at each pixel. */
void fold(const struct windows *g, ptrdiff_t rows, const REAL *unfolded, REAL *images)
{
    const ptrdiff_t m = g->samples, line = g->out_width * m, size = g->height * g->width * m;
    for (ptrdiff_t image = 0; image < rows * g->channels; image++, images += size) {
        memset(images, 0, sizeof(REAL) * size);
        for (ptrdiff_t i = 0; i < g->kernel[0]; i++)
            for (ptrdiff_t j = 0; j < g->kernel[1]; j++, unfolded += g->out_height * line) {
                const struct range y = down(g, i), x = right(g, j);
                for (ptrdiff_t oy = y.low; oy < y.high; oy++) {
                    REAL *pixels = images + (oy * g->stride[0] + y.first) * g->width * m;
                    const REAL *given = unfolded + oy * line;
                    if (g->stride[1] == 1)
                        add((x.high - x.low) * m, pixels + (x.low + x.first) * m, given + x.low * m);
                    else
                        for (ptrdiff_t ox = x.low; ox < x.high; ox++)
                            add(m, pixels + (ox * g->stride[1] + x.first) * m, given + ox * m);
                }
            }
    }
}

/* Each place (i, j) of a kernel, of so many lines and columns, that lies on the image at the output (oy, ox), in their
   order, and the pixel under it: `at`, in numbers from the image's first. If windows are known to be `whole` all of them
   do. What is below zero is no index: unsigned, it is beyond every end. */
#define PLACES(g, whole, high, wide, oy, ox, i, j, at)                                                                 \
    for (ptrdiff_t i = 0, y = (oy) * (g)->stride[0] - (g)->padding[0]; i < (high); i++, y += (g)->dilation[0])         \
        if ((whole) || (size_t)y < (size_t)(g)->height)                                                                \
            for (ptrdiff_t j = 0, x = (ox) * (g)->stride[1] - (g)->padding[1],                                         \
                           at = (y * (g)->width + x) * (g)->samples;                                                   \
                 j < (wide); j++, x += (g)->dilation[1], at += (g)->dilation[1] * (g)->samples)                        \
                if ((whole) || (size_t)x < (size_t)(g)->width)

/* Whether pools are of two by two pixels, all on the image, as most are: the compiler is told, and takes a third of the
   time. */
static int is_of_two(const struct windows *g)
{
    return g->kernel[0] == 2 && g->kernel[1] == 2 && !g->padding[0] && !g->padding[1];
}

/* The largest pixel of one window, NaN where one is, of n samples. */
INLINE void largest_of(const struct windows *g, const int whole, ptrdiff_t high, ptrdiff_t wide, ptrdiff_t oy,
                       ptrdiff_t ox, ptrdiff_t n, const REAL *images, REAL *found)
{
    part most = {0};
    int begun = 0;
    PLACES(g, whole, high, wide, oy, ox, i, j, at)
    {
        const part other = load(images + at, 1, n);
        most = begun ? larger(most, other) : other;
        begun = 1;
    }
    store(found, most, n);
}

/* The largest pixel of each window: (B, C, Ho, Wo, m). */
void largest(const struct windows *g, ptrdiff_t rows, const REAL *images, REAL *found)
{
    const ptrdiff_t m = g->samples, size = g->height * g->width * m;
    const int of_two = is_of_two(g);
    for (ptrdiff_t image = 0; image < rows * g->channels; image++, images += size)
        for (ptrdiff_t oy = 0; oy < g->out_height; oy++) {
            for (ptrdiff_t ox = 0; ox < g->out_width; ox++, found += m) {
                ptrdiff_t s = 0;
                for (; s + PART <= m; s += PART)
                    if (of_two)
                        largest_of(g, 1, 2, 2, oy, ox, PART, images + s, found + s);
                    else
                        largest_of(g, 0, g->kernel[0], g->kernel[1], oy, ox, PART, images + s, found + s);
                if (s < m)
                    largest_of(g, 0, g->kernel[0], g->kernel[1], oy, ox, m - s, images + s, found + s);
            }
        }
}

/* The gradient of one window's largest pixel, of n samples: the first of equal ones has it, or the last if all are NaN. */
INLINE void to_largest_of(const struct windows *g, const int whole, ptrdiff_t high, ptrdiff_t wide, ptrdiff_t oy,
                          ptrdiff_t ox, ptrdiff_t n, const REAL *gradient, const REAL *images, const REAL *maxima,
                          REAL *found)
{
    const part none = {0}, most = load(maxima, 1, n);
    part left = load(gradient, 1, n);
    PLACES(g, whole, high, wide, oy, ox, i, j, at)
    {
        const int last = i == high - 1 && j == wide - 1;
        const truths takes = last ? none == none : load(images + at, 1, n) == most;
        store(found + at, load(found + at, 1, n) + choose(takes, left, none), n);
        left = choose(takes, none, left);
    }
}

/* The gradient (B, C, H, W, m) of `largest`. From the last output to the first, as places of the kernel come in their
   order to a pixel then. */
void to_largest(const struct windows *g, ptrdiff_t rows, const REAL *gradient, const REAL *images, const REAL *maxima,
                REAL *found)
{
    const ptrdiff_t m = g->samples, size = g->height * g->width * m, outputs = g->out_height * g->out_width * m;
    const ptrdiff_t high = g->kernel[0], wide = g->kernel[1];
    const int of_two = is_of_two(g);
    for (ptrdiff_t image = 0; image < rows * g->channels; image++) {
        memset(found, 0, sizeof(REAL) * size);
        for (ptrdiff_t oy = g->out_height - 1; oy >= 0; oy--) {
            for (ptrdiff_t ox = g->out_width - 1; ox >= 0; ox--) {
                const REAL *own = gradient + (oy * g->out_width + ox) * m, *most = maxima + (own - gradient);
                ptrdiff_t s = 0;
                for (; s + PART <= m; s += PART)
                    if (of_two)
                        to_largest_of(g, 1, 2, 2, oy, ox, PART, own + s, images + s, most + s, found + s);
                    else
                        to_largest_of(g, 0, high, wide, oy, ox, PART, own + s, images + s, most + s, found + s);
                if (s < m)
                    to_largest_of(g, 0, high, wide, oy, ox, m - s, own + s, images + s, most + s, found + s);
            }
        }
        gradient += outputs, maxima += outputs, images += size, found += size;
    }
}
