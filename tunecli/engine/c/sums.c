/* See products.h: sums of products along the rows of two matrices, and matrices turned. */

#include "contracted.h"

/* Of so many rows and taps `dots` is taken at once, at most: as the registers of a machine allow. */
#ifdef __AVX512F__
enum { HIGH = 8, WIDE = 3 };
#else
enum { HIGH = 2, WIDE = 3 };
#endif

/* As many rows of a part of floats as it has, by exchanging ever smaller blocks across the diagonal: a number after the
   other takes three times as long. */
#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define SQUARE (BYTES / 4)
typedef float numbers __attribute__((vector_size(BYTES), aligned(4), may_alias));
#define FOUR(of, s, n) of(s, n), of(s, n + 1), of(s, n + 2), of(s, n + 3)
#if SQUARE == 16
#define EACH(of, s) FOUR(of, s, 0), FOUR(of, s, 4), FOUR(of, s, 8), FOUR(of, s, 12)
#elif SQUARE == 8
#define EACH(of, s) FOUR(of, s, 0), FOUR(of, s, 4)
#else
#define EACH(of, s) FOUR(of, s, 0)
#endif
#define UPPER(s, n) ((n) & (s) ? SQUARE + (n) - (s) : (n))
#define LOWER(s, n) ((n) & (s) ? SQUARE + (n) : (n) + (s))
#define EXCHANGE(s)                                                                                                    \
    for (int i = 0; i < SQUARE; i++)                                                                                   \
        if (!(i & s)) {                                                                                                \
            const numbers one = lines[i], other = lines[i + s];                                                        \
            lines[i] = __builtin_shufflevector(one, other, EACH(UPPER, s));                                            \
            lines[i + s] = __builtin_shufflevector(one, other, EACH(LOWER, s));                                        \
        }
/* Of two lines that are a step apart one is made, which has the sums of the upper and the lower half of either. */
#define HALVE(s)                                                                                                       \
    for (int i = 0; i < s; i++) {                                                                                      \
        const numbers one = lines[i], other = lines[i + s];                                                            \
        lines[i] = __builtin_shufflevector(one, other, EACH(UPPER, s)) +                                               \
                   __builtin_shufflevector(one, other, EACH(LOWER, s));                                                \
    }
#if SQUARE == 16
#define BY_STEPS(what) what(8) what(4) what(2) what(1)
#elif SQUARE == 8
#define BY_STEPS(what) what(4) what(2) what(1)
#else
#define BY_STEPS(what) what(2) what(1)
#endif

static void square(const float *from, ptrdiff_t step, float *to, ptrdiff_t out)
{
    numbers lines[SQUARE];
    for (int i = 0; i < SQUARE; i++)
        lines[i] = *(const numbers *)(from + i * step);
    BY_STEPS(EXCHANGE)
    for (int i = 0; i < SQUARE; i++)
        *(numbers *)(to + i * out) = lines[i];
}

/* Of as many stripes. */
static void sums_of_square(const float *from, float *to)
{
    numbers lines[SQUARE];
    for (int i = 0; i < SQUARE; i++) {
        numbers own[PARTS];
        memcpy(own, from + i * 16, sizeof(own));
        for (int half = PARTS / 2; half > 0; half /= 2)
            for (int n = 0; n < half; n++)
                own[n] += own[n + half];
        lines[i] = own[0];
    }
    BY_STEPS(HALVE)
    *(numbers *)to = lines[0];
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

/* The sums of sixteen stripes: the upper half of each is added to its lower one, until there is one number. */
static void sums_of(const stripe *stripes, REAL *found)
{
#ifdef SQUARE
    if (sizeof(REAL) == sizeof(float)) {
        for (int i = 0; i < 16; i += SQUARE)
            sums_of_square((const float *)(stripes + i), (float *)(found + i));
        return;
    }
#endif
    for (int i = 0; i < 16; i++) {
        REAL own[STRIPE];
        memcpy(own, stripes + i, sizeof(own));
        for (ptrdiff_t half = STRIPE / 2; half > 0; half /= 2)
            for (ptrdiff_t s = 0; s < half; s++)
                own[s] += own[s + half];
        found[i] = own[0];
    }
}

/* Of no more stripes and taps is worked off at once what `HIGH` rows of A have: a stripe of A is in the cache then
   for all of these taps, and so are the sums, which go on from what they were after the stripes before. */
enum { AT_ONCE = 48 };

/* Sums of so many rows of A and taps over the stripes from `low` to `high`; the compiler knows how many. The sums of a
   row of A are `AT_ONCE` apart from those of the next. */
INLINE void block(const int rows, const int wide, const struct taps *taps, const struct tap *of, ptrdiff_t low,
                  ptrdiff_t high, const REAL *a, const REAL *b, stripe *sums)
{
    part own[HIGH][WIDE * PARTS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide * PARTS; j++)
            own[i][j] = low ? sums[i * AT_ONCE + j / PARTS].of[j % PARTS] : (part){0};
    for (ptrdiff_t n = low; n < high; n++)
        for (int p = 0; p < PARTS; p++) {
            part line[WIDE];
            for (int j = 0; j < wide; j++)
                line[j] = AT(b + taps->starts[n] + of[j].at + p * PART);
            for (int i = 0; i < rows; i++) {
                /* Volatile: or it is read again for each product, and loads take longer than products. */
                const part one = *(const volatile unaligned *)(a + (i * taps->stripes + n) * STRIPE + p * PART);
                for (int j = 0; j < wide; j++)
                    own[i][j * PARTS + p] += one * line[j];
            }
        }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < wide * PARTS; j++)
            sums[i * AT_ONCE + j / PARTS].of[j % PARTS] = own[i][j];
}

/* The same of no more taps than `AT_ONCE`, over all stripes. */
INLINE void blocks(const int rows, ptrdiff_t count, const struct taps *taps, const struct tap *of, const REAL *a,
                   const REAL *b, stripe *sums)
{
    for (ptrdiff_t low = 0, high; low < taps->stripes; low = high) {
        high = low + AT_ONCE < taps->stripes ? low + AT_ONCE : taps->stripes;
        ptrdiff_t k = 0;
        for (; k + WIDE <= count; k += WIDE)
            block(rows, WIDE, taps, of + k, low, high, a, b, sums + k);
        for (; k < count; k++)
            block(rows, 1, taps, of + k, low, high, a, b, sums + k);
    }
}

void dots(ptrdiff_t M, const struct taps *taps, const REAL *a, const REAL *b, REAL *c, int add)
{
    stripe sums[HIGH * AT_ONCE];
    REAL found[16];
    for (ptrdiff_t m = 0, rows; m < M; m += rows, a += rows * taps->stripes * STRIPE) {
        rows = m + HIGH <= M ? HIGH : HIGH > 4 && m + 4 <= M ? 4 : 1;
        for (ptrdiff_t k = 0; k < taps->K; k += AT_ONCE) {
            const ptrdiff_t count = taps->K - k < AT_ONCE ? taps->K - k : AT_ONCE;
            if (rows == HIGH)
                blocks(HIGH, count, taps, taps->of + k, a, b, sums);
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
    for (ptrdiff_t row = 0; row < rows; row += 16) {
        const ptrdiff_t some = rows - row < 16 ? rows - row : 16;
        stripe own[16] = {0};
        REAL each[16];
        for (ptrdiff_t r = 0; r < some; r++, a += columns)
            for (ptrdiff_t i = 0; i < columns; i += PART)
                own[r].of[i / PART % PARTS] += AT(a + i);
        sums_of(own, each);
        for (ptrdiff_t r = 0; r < some; r++)
            found[row + r] = add ? found[row + r] + each[r] : each[r];
    }
}
