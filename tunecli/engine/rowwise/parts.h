/* So many samples at once: told to work on vectors, for of loops that are this short a compiler makes none. */

#include <stddef.h>
#include <string.h>

#define PART ((ptrdiff_t)(64 / sizeof(REAL)))
typedef REAL part __attribute__((vector_size(64)));
typedef __typeof__((part){0} > (part){0}) truths;

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
