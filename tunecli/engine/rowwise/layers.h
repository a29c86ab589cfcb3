/* What `chain.c` is made of: layers and losses of other sources. REAL is float or double. */

#include <stddef.h>
#include <stdint.h>

/* An image (C, H, W) of m samples, and where a kernel lies over it at each place of its outputs. */
struct windows {
    ptrdiff_t channels, samples, height, width, out_height, out_width;
    ptrdiff_t kernel[2], stride[2], padding[2], dilation[2];
};

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
void cross_entropy(const struct outputs *o, const REAL *outputs, const int64_t *targets, const REAL *counts, REAL *found);
void binary_cross_entropy(const struct outputs *o, const REAL *outputs, const int64_t *targets, const REAL *counts,
                          REAL *found);
void squared_error(const struct outputs *o, const REAL *outputs, const REAL *targets, const REAL *counts, REAL *found);
