/* So many samples at once: told to work on vectors, for of loops that are this short a compiler makes none. */

#include <stddef.h>
#include <string.h>

/* A part is what a register of the machine holds: longer vectors gcc works off number by number. */
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define PART ((ptrdiff_t)(BYTES / sizeof(REAL)))
typedef REAL part __attribute__((vector_size(BYTES)));
typedef __typeof__((part){0} > (part){0}) truths;

/* A stripe is 64 bytes on any machine: so many sums are taken side by side, and their order depends on no machine. */
#define STRIPE ((ptrdiff_t)(64 / sizeof(REAL)))
#define PARTS (64 / BYTES)
typedef struct {
    part of[PARTS];
} stripe;

/* n numbers, `step` apart. */
static inline part load(const REAL *from, ptrdiff_t step, ptrdiff_t n)
{
    part found = {0};
    if (step == 1)
        memcpy(&found, from, sizeof(REAL) * n);
    else
        for (ptrdiff_t s = 0; s < n; s++)
            found[s] = from[s * step];
    return found;
}

static inline void store(REAL *to, part value, ptrdiff_t n)
{
    memcpy(to, &value, sizeof(REAL) * n);
}

static inline part choose(truths which, part one, part other)
{
    return (part)((which & (truths)one) | (~which & (truths)other));
}

/* The larger ones, NaN where one of two is. */
static inline part larger(part one, part other)
{
    return choose((one > other) | (one != one), one, other);
}
