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

/* So high is a tile at most, by how many parts it is wide, and a block of dots: as the registers of a machine allow. */
#ifdef __AVX512F__
enum { HIGH = 8, HIGH_OF_FOUR = 6, WIDE = 4, DOTS_HIGH = 8, DOTS_WIDE = 3 };
#else
enum { HIGH = 4, HIGH_OF_FOUR = 1, WIDE = 1, DOTS_HIGH = 2, DOTS_WIDE = 3 };
#endif

/* A part of memory that need not begin where a vector does. */
typedef REAL unaligned __attribute__((vector_size(64), aligned(sizeof(REAL)), may_alias));
#define AT(p) (*(unaligned *)(p))

/* So many rows and parts of C from `c` on; the compiler knows how many, and whether there are taps. */
INLINE void tile(const int rows, const int parts, const struct product *p, const struct tap *taps,
                 const ptrdiff_t *starts, const REAL *a, const REAL *b, const REAL *bias, REAL *c)
{
    part sums[HIGH][WIDE];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < parts; j++)
            sums[i][j] = (part){0} + (bias ? bias[i] : 0);
    for (ptrdiff_t k = 0; k < p->K; k++, a += p->right, b += p->of_b) {
        const REAL *own = taps ? a + taps[k].weight : a, *from = taps ? b + taps[k].at : b;
        part line[WIDE];
        for (int j = 0; j < parts; j++)
            line[j] = AT(from + (taps ? starts[j] : j * PART));
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < parts; j++)
                sums[i][j] += own[i * p->down] * line[j];
    }
    for (int i = 0; i < rows; i++, c += p->of_c)
        for (int j = 0; j < parts; j++)
            AT(c + j * PART) = p->add ? (part)AT(c + j * PART) + sums[i][j] : sums[i][j];
}

/* All rows of so many columns of C, in tiles of about one height. */
INLINE void columns(const int high, const int parts, const struct product *p, const struct tap *taps,
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
            tile(n, parts, p, taps, starts, from, b, own, to);                                                                    \
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
            columns(HIGH_OF_FOUR, 4, p, NULL, NULL, a, b + n, bias, c + n);
    for (; n + PART <= p->N; n += PART)
        columns(HIGH, 1, p, NULL, NULL, a, b + n, bias, c + n);
}

void convolve(ptrdiff_t M, const struct taps *taps, ptrdiff_t down, const REAL *a, const REAL *b, const REAL *bias,
              REAL *c)
{
    const ptrdiff_t parts = taps->parts;
    const struct product p = {M, parts * PART, taps->K, down, 0, 0, parts * PART, 0};
    ptrdiff_t n = 0;
    if (WIDE >= 4 && parts >= 4)
        for (; n < parts; n += 4) {
            n = n < parts - 4 ? n : parts - 4; /* the last four once more, and to the same bits */
            columns(HIGH_OF_FOUR, 4, &p, taps->of, taps->starts + n, a, b, bias, c + n * PART);
        }
    for (; n < parts; n++)
        columns(HIGH_OF_FOUR > 1 ? HIGH_OF_FOUR : HIGH, 1, &p, taps->of, taps->starts + n, a, b, bias, c + n * PART);
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

/* Of two lines that are a step apart one is made, which has the sums of the upper and the lower half of either. */
#define HALVE(s)                                                                                                       \
    for (int i = 0; i < s; i++) {                                                                                      \
        const sixteen one = lines[i], other = lines[i + s];                                                            \
        lines[i] = __builtin_shufflevector(one, other, EACH(UPPER, s)) +                                               \
                   __builtin_shufflevector(one, other, EACH(LOWER, s));                                                \
    }

static void sums_of_square(const float *from, float *to)
{
    sixteen lines[16];
    for (int i = 0; i < 16; i++)
        lines[i] = *(const sixteen *)(from + i * 16);
    HALVE(8) HALVE(4) HALVE(2) HALVE(1)
    *(sixteen *)to = lines[0];
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

/* The sums of sixteen parts: their upper half is added to the lower one, until it is one number. */
static void sums_of(const part *parts, REAL *found)
{
#ifdef SQUARE
    if (sizeof(REAL) == sizeof(float)) {
        sums_of_square((const float *)parts, (float *)found);
        return;
    }
#endif
    for (int i = 0; i < 16; i++) {
        part own = parts[i];
        for (ptrdiff_t half = PART / 2; half > 0; half /= 2)
            for (ptrdiff_t s = 0; s < half; s++)
                own[s] += own[s + half];
        found[i] = own[0];
    }
}

/* Of no more parts and taps is worked off at once what `DOTS_HIGH` rows of A have: a part of A is in the cache then for
   all of these taps, and so are the sums, which go on from what they were after the parts before. */
enum { AT_ONCE = 48 };

/* Sums of so many rows of A and taps over the parts from `low` to `high`; the compiler knows how many. The sums of a row
   of A are `AT_ONCE` apart from those of the next. */
INLINE void block(const int rows, const int wide, const struct taps *taps, const struct tap *of, ptrdiff_t low,
                  ptrdiff_t high, const REAL *a, const REAL *b, part *sums)
{
    part own[DOTS_HIGH][DOTS_WIDE];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++)
            own[i][j] = low ? sums[i * AT_ONCE + j] : (part){0};
    for (ptrdiff_t n = low; n < high; n++) {
        part line[DOTS_WIDE];
        for (int j = 0; j < wide; j++)
            line[j] = AT(b + taps->starts[n] + of[j].at);
        for (int i = 0; i < rows; i++) {
            /* Volatile: or it is read again for each product, and loads take longer than products. */
            const part one = *(const volatile unaligned *)(a + (i * taps->parts + n) * PART);
            for (int j = 0; j < wide; j++)
                own[i][j] += one * line[j];
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide; j++)
            sums[i * AT_ONCE + j] = own[i][j];
}

/* The same of no more taps than `AT_ONCE`, over all parts. */
INLINE void blocks(const int rows, ptrdiff_t count, const struct taps *taps, const struct tap *of, const REAL *a,
                   const REAL *b, part *sums)
{
    for (ptrdiff_t low = 0, high; low < taps->parts; low = high) {
        high = low + AT_ONCE < taps->parts ? low + AT_ONCE : taps->parts;
        ptrdiff_t k = 0;
        for (; k + DOTS_WIDE <= count; k += DOTS_WIDE)
            block(rows, DOTS_WIDE, taps, of + k, low, high, a, b, sums + k);
        for (; k < count; k++)
            block(rows, 1, taps, of + k, low, high, a, b, sums + k);
    }
}

void dots(ptrdiff_t M, const struct taps *taps, const REAL *a, const REAL *b, REAL *c, int add)
{
    part sums[DOTS_HIGH * AT_ONCE];
    REAL found[16];
    for (ptrdiff_t m = 0, rows; m < M; m += rows, a += rows * taps->parts * PART) {
        rows = m + DOTS_HIGH <= M ? DOTS_HIGH : DOTS_HIGH > 4 && m + 4 <= M ? 4 : 1;
        for (ptrdiff_t k = 0; k < taps->K; k += AT_ONCE) {
            const ptrdiff_t count = taps->K - k < AT_ONCE ? taps->K - k : AT_ONCE;
            if (rows == DOTS_HIGH)
                blocks(DOTS_HIGH, count, taps, taps->of + k, a, b, sums);
            else if (rows == 4)
                blocks(4, count, taps, taps->of + k, a, b, sums);
            else
                blocks(1, count, taps, taps->of + k, a, b, sums);
            for (ptrdiff_t i = 0; i < rows; i++)
                for (ptrdiff_t s = 0; s < count; s += 16) {
                    const ptrdiff_t some = count - s < 16 ? count - s : 16;
                    REAL *to = c + (m + i) * taps->K + k + s;
                    sums_of(sums + i * AT_ONCE + s, found);
                    for (ptrdiff_t n = 0; n < some && add; n++)
                        found[n] += to[n];
                    memcpy(to, found, sizeof(REAL) * (size_t)some);
                }
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
