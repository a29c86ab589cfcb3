/* See products.h. What a tile of C sums up stays in registers from the first to the last of its products. */

#include "contracted.h"

/* Of so many rows and stripes are tiles at most, those of `between` of so many rows and columns: as the registers of a
   machine allow. */
#ifdef __AVX512F__
enum { HIGH = 8, HIGH_OF_FOUR = 6, WIDE = 4, BETWEEN_HIGH = 4, BETWEEN_WIDE = 4 };
#else
enum { HIGH = 6, HIGH_OF_FOUR = 6, WIDE = 1, BETWEEN_HIGH = 4, BETWEEN_WIDE = 2 };
#endif

/* So many rows and stripes of C from `c` on; the compiler knows how many, and whether there are taps. */
INLINE void tile(const int rows, const int wide, const struct product *p, const struct tap *taps,
                 const ptrdiff_t *starts, const REAL *a, const REAL *b, const REAL *bias, REAL *c)
{
    part sums[HIGH][WIDE * PARTS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide * PARTS; j++)
            sums[i][j] = (part){0} + (bias ? bias[i] : 0);
    for (ptrdiff_t k = 0; k < p->K; k++, a += p->right, b += p->of_b) {
        const REAL *own = taps ? a + taps[k].weight : a, *from = taps ? b + taps[k].at : b;
        part line[WIDE * PARTS];
        for (int j = 0; j < wide * PARTS; j++)
            line[j] = AT(from + (taps ? starts[j / PARTS] + j % PARTS * PART : j * PART));
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < wide * PARTS; j++)
                sums[i][j] += own[i * p->down] * line[j];
    }
    for (int i = 0; i < rows; i++, c += p->of_c)
        for (int j = 0; j < wide * PARTS; j++)
            AT(c + j * PART) = p->add ? (part)AT(c + j * PART) + sums[i][j] : sums[i][j];
}

/* All rows of so many columns of C, in tiles of about one height. */
INLINE void columns(const int high, const int wide, const struct product *p, const struct tap *taps,
                    const ptrdiff_t *starts, const REAL *a, const REAL *b, const REAL *bias, REAL *c)
{
    const ptrdiff_t tiles = (p->M + high - 1) / high;
    for (ptrdiff_t t = 0, m = 0; t < tiles; t++) {
        const ptrdiff_t rows = (p->M - m + tiles - t - 1) / (tiles - t);
        const REAL *from = a + m * p->down, *own = bias ? bias + m : NULL;
        REAL *to = c + m * p->of_c;
        switch (rows) {
#define CASE(n)                                                                                                        \
    case n:                                                                                                            \
        if (n <= high)                                                                                                 \
            tile(n, wide, p, taps, starts, from, b, own, to);                                                          \
        break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
        }
        m += rows;
    }
}

void product(const struct product *p, const REAL *a, const REAL *b, const REAL *bias, REAL *c)
{
    ptrdiff_t n = 0;
    if (WIDE >= 4)
        for (; n + 4 * STRIPE <= p->N; n += 4 * STRIPE)
            columns(HIGH_OF_FOUR, 4, p, NULL, NULL, a, b + n, bias, c + n);
    for (; n < p->N; n += STRIPE)
        columns(HIGH, 1, p, NULL, NULL, a, b + n, bias, c + n);
}

void convolve(ptrdiff_t M, const struct taps *taps, ptrdiff_t down, const REAL *a, const REAL *b, const REAL *bias,
              REAL *c)
{
    const ptrdiff_t stripes = taps->stripes;
    const struct product p = {M, stripes * STRIPE, taps->K, down, 0, 0, stripes * STRIPE, 0};
    ptrdiff_t n = 0;
    if (WIDE >= 4 && stripes >= 4)
        for (; n < stripes; n += 4) {
            n = n < stripes - 4 ? n : stripes - 4; /* the last four once more, and to the same bits */
            columns(HIGH_OF_FOUR, 4, &p, taps->of, taps->starts + n, a, b, bias, c + n * STRIPE);
        }
    for (; n < stripes; n++)
        columns(HIGH_OF_FOUR, 1, &p, taps->of, taps->starts + n, a, b, bias, c + n * STRIPE);
}

/* So many rows and columns of the product of a sample; the compiler knows how many. */
INLINE void each(const int high, const int wide, const struct between *p, ptrdiff_t m, const REAL *a, const REAL *b,
                 REAL *c)
{
    for (ptrdiff_t s = 0; s < m; s += PART) {
        part sums[BETWEEN_HIGH][BETWEEN_WIDE] = {0};
        for (ptrdiff_t k = 0; k < p->K; k++) {
            part line[BETWEEN_WIDE];
            for (int j = 0; j < wide; j++)
                line[j] = AT(b + (k * p->b_down + j * p->b_right) * m + s);
            for (int i = 0; i < high; i++) {
                /* Volatile: as in sums.c. */
                const part own = *(const volatile unaligned *)(a + (i * p->a_down + k * p->a_right) * m + s);
                for (int j = 0; j < wide; j++)
                    sums[i][j] += own * line[j];
            }
        }
        for (int i = 0; i < high; i++)
            for (int j = 0; j < wide; j++)
                AT(c + (i * p->N + j) * m + s) = sums[i][j];
    }
}

void between(const struct between *p, ptrdiff_t m, const REAL *a, const REAL *b, REAL *c)
{
    for (ptrdiff_t i = 0, high; i < p->M; i += high) {
        high = i + BETWEEN_HIGH <= p->M ? BETWEEN_HIGH : 1;
        for (ptrdiff_t j = 0, wide; j < p->N; j += wide) {
            wide = j + BETWEEN_WIDE <= p->N ? BETWEEN_WIDE : 1;
            const REAL *from = a + i * p->a_down * m, *by = b + j * p->b_right * m;
            REAL *to = c + (i * p->N + j) * m;
            if (high > 1 && wide > 1)
                each(BETWEEN_HIGH, BETWEEN_WIDE, p, m, from, by, to);
            else if (high > 1)
                each(BETWEEN_HIGH, 1, p, m, from, by, to);
            else if (wide > 1)
                each(1, BETWEEN_WIDE, p, m, from, by, to);
            else
                each(1, 1, p, m, from, by, to);
        }
    }
}
