/* What `network.c` is made of: layers and losses of other sources. Samples lie innermost: a line has one number of each of
   the m samples, which are whole stripes. REAL is float or double. */

#include <stddef.h>
#include <stdint.h>

/* In the order of layers.py. */
enum kind {
    LINEAR, CONVOLUTION, TRANSPOSED, EMBEDDING, PRODUCT, POOLING, GATHER, DERIVE, CONSTANT, ADD, MULTIPLY, MASK, WEIGH, SHIFT, NORMALIZE,
    SOFTMAX, LOG_SOFTMAX, SUM, MAXIMUM, BATCH_NORM, DROPOUT, SCALE, RELU, LEAKY_RELU, ELU, TANH, SIGMOID, SILU, GELU, GELU_TANH,
    MISH, SOFTPLUS, HARDSWISH, CLAMP, HARDTANH, EXP, LOG, SQRT, RSQRT, RECIPROCAL, ABS, SIN, COS, EQUAL, ABOVE
};

/* Layers from SCALE on, of n numbers: y = x * scale + shift, or what they are called; LeakyReLU's slope and ELU's alpha are
   their scale, the bounds of clamp its scale and shift. The gradient with respect to x comes from d, that with respect to y, which it may overwrite. */
void apply(enum kind kind, ptrdiff_t n, double scale, double shift, const REAL *x, REAL *y);
void unapply(enum kind kind, ptrdiff_t n, double scale, double shift, const REAL *x, const REAL *y, const REAL *d,
             REAL *to);

/* Of 2 ** 32 draws so many are zeros, the others times a scale; what each line is drawn by. Its gradient is had alike. */
struct dropout {
    const uint32_t *elements;
    uint32_t dropped;
    double scale;
};

void drop(const struct dropout *how, ptrdiff_t lines, ptrdiff_t m, const int64_t *keys, const REAL *x, REAL *y);

/* Groups of n lines: to mean 0 and variance 1, by the inverse of each group's standard deviation; softmax, of -inf alone 0 if it
   is `safe`, and its logarithm; and sums, times a scale. Then gradients as above. */
void normalize(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, double epsilon, const REAL *x, REAL *y, REAL *inverse);
void unnormalize(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, const REAL *y, const REAL *inverse, const REAL *d, REAL *to);
void softmax(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, int safe, const REAL *x, REAL *y);
void log_softmax(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, const REAL *x, REAL *y);
void unlog_softmax(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, const REAL *y, const REAL *d, REAL *to);
void unsoftmax(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, const REAL *y, const REAL *d, REAL *to);
void add_up(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, double scale, const REAL *x, REAL *y);
void hand_out(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, double scale, const REAL *d, REAL *to);

/* The largest of each group; its gradient goes to the first of equals, or evenly to all of them. */
void maximum(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, const REAL *x, REAL *y);
void to_maximum(ptrdiff_t groups, ptrdiff_t n, ptrdiff_t m, int evenly, const REAL *x, const REAL *y, const REAL *d,
                   REAL *to);

/* So many lines, and `value` in the place of those numbers that have a mask's one; and their gradient. */
void mask(ptrdiff_t n, REAL value, const REAL *x, const REAL *masks, REAL *y);

/* Of a micro-batch so many channels, lines of m samples in so many places of each, of which the first `real` count. */
struct channels {
    ptrdiff_t count, places, m, real;
};

/* Of each channel the mean of its numbers, and the sum of the squares of how far they are from it. */
void moments(const struct channels *own, const REAL *x, REAL *means, REAL *squares);

/* The sum of its gradients, and of them times how far the numbers are from a mean of theirs. */
void total(const struct channels *own, const REAL *means, const REAL *x, const REAL *d, REAL *sums, REAL *along);

/* (x - mean) * scale + bias, and back: d * scale - of_mean - (x - mean) * of_variance, 0 where a sample is not real. */
void shift_and_scale(ptrdiff_t n, REAL mean, REAL scale, REAL bias, const REAL *x, REAL *y);

struct spread {
    REAL mean, scale, of_mean, of_variance;
};

void spread(const struct spread *how, ptrdiff_t lines, ptrdiff_t m, ptrdiff_t real, const REAL *x, const REAL *d, REAL *to);

/* An image (C, H, W) of m samples, and where a kernel lies over it at each place of its outputs. */
struct windows {
    ptrdiff_t channels, samples, height, width, out_height, out_width;
    ptrdiff_t kernel[2], stride[2], padding[2], dilation[2];
};

/* The images with zeros around them, as wide as the padding, (C, H + 2 p, W + 2 q, m): themselves where there is none. */
const REAL *pad(const struct windows *g, const REAL *images, REAL *padded);
void unfold(const struct windows *g, ptrdiff_t rows, const REAL *images, REAL *unfolded);
void fold(const struct windows *g, ptrdiff_t rows, const REAL *unfolded, REAL *images);
void largest(const struct windows *g, ptrdiff_t rows, const REAL *images, REAL *found);
void to_largest(const struct windows *g, ptrdiff_t rows, const REAL *gradient, const REAL *images, const REAL *maxima,
                REAL *found);

/* Outputs of a model: the class c of sample s of row r lies at r * row + c * class + s * sample. */
struct outputs {
    ptrdiff_t rows, classes, samples, row, class, sample;
};

/* Losses and their gradient of each row, (C + 1, m): the losses are last. */
void cross_entropy(const struct outputs *o, const REAL *smoothing, const REAL *outputs, const int64_t *targets,
                   const REAL *counts, REAL *found);
void binary_cross_entropy(const struct outputs *o, const REAL *outputs, const int64_t *targets, const REAL *counts,
                          REAL *found);
void squared_error(const struct outputs *o, const REAL *outputs, const REAL *targets, const REAL *counts, REAL *found);
