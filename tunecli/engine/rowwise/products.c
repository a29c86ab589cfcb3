/* See products.h. What a tile of C sums up stays in registers from the first to the last of its products.

   In this file alone a product and a sum are one operation, rounded once, where the machine has that: half of the work.
   There is one way to join them, so that their bits depend on no compiler. */

#ifdef __clang__
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

#include "products.h"
#include "parts.h"

#define INLINE static inline __attribute__((always_inline))

/* So high is a tile at most, by how many parts it is wide: as the registers of a machine allow. */
#ifdef __AVX512F__
enum { HIGH = 8, HIGH_OF_FOUR = 6, WIDE = 4 };
#else
enum { HIGH = 4, HIGH_OF_FOUR = 1, WIDE = 1 };
#endif

/* A part of memory that need not begin where a vector does. */
typedef REAL unaligned __attribute__((vector_size(64), aligned(sizeof(REAL)), may_alias));
#define AT(p) (*(unaligned *)(p))

/* So many rows and parts of C from `c` on; the compiler knows how many. */
INLINE void tile(const int rows, const int parts, const struct product *p, const REAL *a, const REAL *b,
                 const REAL *bias, REAL *c)
{
    part sums[HIGH][WIDE];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < parts; j++)
            sums[i][j] = (part){0} + (bias ? bias[i] : 0);
    for (ptrdiff_t k = 0; k < p->K; k++, a += p->right, b += p->of_b) {
        part line[WIDE];
        for (int j = 0; j < parts; j++)
            line[j] = AT(b + j * PART);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < parts; j++)
                sums[i][j] += a[i * p->down] * line[j];
    }
    for (int i = 0; i < rows; i++, c += p->of_c)
        for (int j = 0; j < parts; j++)
            AT(c + j * PART) = p->add ? (part)AT(c + j * PART) + sums[i][j] : sums[i][j];
}

/* All rows of so many columns of C, in tiles of about one height. */
INLINE void columns(const int high, const int parts, const struct product *p, const REAL *a, const REAL *b,
                    const REAL *bias, REAL *c)
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
            tile(n, parts, p, from, b, own, to);                                                                       \
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
        for (; n + 4 * PART <= p->N; n += 4 * PART)
            columns(HIGH_OF_FOUR, 4, p, a, b + n, bias, c + n);
    for (; n + PART <= p->N; n += PART)
        columns(HIGH, 1, p, a, b + n, bias, c + n);
}

/* Sixteen rows of sixteen numbers, by exchanging ever smaller blocks across the diagonal: a number after the other takes
   three times as long. */
#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define SQUARE 16
typedef float sixteen __attribute__((vector_size(64), aligned(4), may_alias));
#define EIGHT(of, s) of(s, 0), of(s, 1), of(s, 2), of(s, 3), of(s, 4), of(s, 5), of(s, 6), of(s, 7)
#define EACH(of, s) EIGHT(of, s), of(s, 8), of(s, 9), of(s, 10), of(s, 11), of(s, 12), of(s, 13), of(s, 14), of(s, 15)
#define UPPER(s, n) ((n) & (s) ? 16 + (n) - (s) : (n))
#define LOWER(s, n) ((n) & (s) ? 16 + (n) : (n) + (s))
#define EXCHANGE(s)                                                                                                    \
    for (int i = 0; i < 16; i++)                                                                                       \
        if (!(i & s)) {                                                                                                \
            const sixteen one = lines[i], other = lines[i + s];                                                        \
            lines[i] = __builtin_shufflevector(one, other, EACH(UPPER, s));                                            \
            lines[i + s] = __builtin_shufflevector(one, other, EACH(LOWER, s));                                        \
        }

/* The lines of a square, its columns before. */
INLINE void turn(sixteen *lines)
{
    EXCHANGE(8) EXCHANGE(4) EXCHANGE(2) EXCHANGE(1)
}

static void square(const float *from, ptrdiff_t step, float *to, ptrdiff_t out)
{
    sixteen lines[16];
    for (int i = 0; i < 16; i++)
        lines[i] = *(const sixteen *)(from + i * step);
    turn(lines);
    for (int i = 0; i < 16; i++)
        *(sixteen *)(to + i * out) = lines[i];
}

static void sums_of_square(const float *from, float *to)
{
    sixteen lines[16], sum;
    for (int i = 0; i < 16; i++)
        lines[i] = *(const sixteen *)(from + i * 16);
    turn(lines);
    sum = lines[0];
    for (int i = 1; i < 16; i++)
        sum += lines[i];
    *(sixteen *)to = sum;
}
#endif
#endif


void transpose(ptrdiff_t rows, ptrdiff_t columns, const REAL *from, ptrdiff_t step, REAL *to, ptrdiff_t out)
{
    ptrdiff_t done = 0; /* columns */
#ifdef SQUARE
    if (sizeof(REAL) == sizeof(float) && rows % SQUARE == 0)
        for (; done + SQUARE <= columns; done += SQUARE)
            for (ptrdiff_t r = 0; r < rows; r += SQUARE)
                square((const float *)(from + r * step + done), step, (float *)(to + done * out + r), out);
#endif
    for (ptrdiff_t c = done; c < columns; c++)
        for (ptrdiff_t r = 0; r < rows; r++)
            to[c * out + r] = from[r * step + c];
}

/* The sums of sixteen parts, each from its first number to its last. */
static void sums_of(const part *parts, REAL *found)
{
#ifdef SQUARE
    if (sizeof(REAL) == sizeof(float)) {
        sums_of_square((const float *)parts, (float *)found);
        return;
    }
#endif
    for (int i = 0; i < 16; i++) {
        found[i] = parts[i][0];
        for (int s = 1; s < PART; s++)
            found[i] += parts[i][s];
    }
}

INLINE void block(const int rows, const int lines, ptrdiff_t N, ptrdiff_t K, const REAL *a, const REAL *b, REAL *c,
                  int add)
{
    part sums[4][4] = {0};
    REAL found[16];
    for (ptrdiff_t k = 0; k < K; k += PART) {
        part line[4];
        for (int j = 0; j < lines; j++)
            line[j] = AT(b + j * K + k);
        for (int i = 0; i < rows; i++) {
            const part own = AT(a + i * K + k);
            for (int j = 0; j < lines; j++)
                sums[i][j] += own * line[j];
        }
    }
    sums_of(sums[0], found);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < lines; j++)
            c[i * N + j] = add ? c[i * N + j] + found[4 * i + j] : found[4 * i + j];
}

void dots(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const REAL *a, const REAL *b, REAL *c, int add)
{
    for (ptrdiff_t m = 0, rows; m < M; m += rows) {
        rows = m + 4 <= M ? 4 : 1;
        for (ptrdiff_t n = 0, lines; n < N; n += lines) {
            lines = n + 4 <= N ? 4 : 1;
            const REAL *from = a + m * K, *by = b + n * K;
            REAL *to = c + m * N + n;
            if (rows == 4 && lines == 4)
                block(4, 4, N, K, from, by, to, add);
            else if (rows == 4)
                block(4, 1, N, K, from, by, to, add);
            else if (lines == 4)
                block(1, 4, N, K, from, by, to, add);
            else
                block(1, 1, N, K, from, by, to, add);
        }
    }
}

void sums(ptrdiff_t rows, ptrdiff_t columns, const REAL *a, REAL *found, int add)
{
    for (ptrdiff_t row = 0; row < rows; row += 16, a += 16 * columns) {
        const ptrdiff_t some = rows - row < 16 ? rows - row : 16;
        part own[16] = {0};
        REAL each[16];
        for (ptrdiff_t r = 0; r < some; r++)
            for (ptrdiff_t i = 0; i < columns; i += PART)
                own[r] += AT(a + r * columns + i);
        sums_of(own, each);
        for (ptrdiff_t r = 0; r < some; r++)
            found[row + r] = add ? found[row + r] + each[r] : each[r];
    }
}
