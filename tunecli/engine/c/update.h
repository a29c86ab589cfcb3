/* The updates of a block's rows, for `update.c` and who computes their gradients. REAL is float or double. */

#include <stddef.h>
#include <stdint.h>

/* What a row is told, in the order of compiled.py. */
struct hparams {
    double momentum, dampening, nesterov, beta1, beta2, l1, l2, decoupled, clip_norm, ema_decay;
};

/* A weight: where it lies in a row, and its gradient (K, length), which lies apart. */
struct piece {
    ptrdiff_t offset, length;
    REAL *gradient;
};

/* K rows of a block through S steps. */
struct rows {
    ptrdiff_t rows, width, count;
    const struct piece *pieces; /* (count,) */
    const int32_t *rules;      /* (K,), below 0 where a row is updated elsewhere */
    const uint8_t *due, *last; /* (S, K) */
    const struct hparams *hparams; /* (K,) */
    const double *rates;           /* (S, K) learning rates */
    const int64_t *numbers;        /* (S, K) of the updates */
    double *products;              /* (K,) and */
    int64_t *known;                /* (K,): see above */
    REAL *weights, *first, *second, *average; /* (K, width); no average where there is none */
    const REAL *decay;                        /* (width,), or none where no weight is spared */
};

/* Update a row that is due after the step `at`. See `Updates.apply`; `norms` (K,), and `counts` (K,) or none. */
void update_row(const struct rows *all, ptrdiff_t at, ptrdiff_t row, double *norms, double *counts);

/* Have zeros where the gradients of a row are. */
void clear_row(const struct rows *all, ptrdiff_t row);
