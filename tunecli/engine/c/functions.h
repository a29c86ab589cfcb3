/* Functions of a part of the numbers, to a few units in the last place of a float: by Cephes' polynomials, which are
   worked off for all lanes at once; the library's functions are called for one number after the other, and for double. */

#include <math.h>

#include "parts.h"

#define ONE_BY_ONE(function, x)                                                                                        \
    if (sizeof(REAL) != sizeof(float)) {                                                                               \
        for (ptrdiff_t s = 0; s < PART; s++)                                                                           \
            x[s] = (REAL)function((double)x[s]);                                                                       \
        return x;                                                                                                      \
    }

/* A polynomial, its factors from that of the highest power on. */
#define POLYNOMIAL(x, ...) polynomial(x, (const double[]){__VA_ARGS__}, sizeof((double[]){__VA_ARGS__}) / sizeof(double))

static inline part polynomial(part x, const double *factors, size_t count)
{
    part found = (REAL)factors[0] + (part){0};
    for (size_t n = 1; n < count; n++)
        found = found * x + (REAL)factors[n];
    return found;
}

static inline part absolute(part x)
{
    return choose(x < (part){0}, -x, x);
}

/* e ** x for x <= 0. */
static inline part exponential(part x)
{
    ONE_BY_ONE(exp, x)
    const part least = (REAL)-87.0 + (part){0};
    const truths tiny = x < least;
    x = choose(tiny, least, x);
    /* The nearest power of two: adding so large a number leaves no digits behind the point. */
    const part whole = (x * (REAL)1.44269504088896341 + (REAL)12582912.0) - (REAL)12582912.0;
    const part rest = (x - whole * (REAL)0.693359375) + whole * (REAL)2.12194440e-4;
    const part curve = POLYNOMIAL(rest, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
                                  1.6666665459e-1, 5.0000001201e-1);
    const part found = curve * rest * rest + rest + (REAL)1;
    const part scale = (part)((__builtin_convertvector(whole, truths) + 127) << 23);
    return choose(tiny, (part){0}, found * scale);
}

/* e ** x - 1 for x <= 0, near 0 too. */
static inline part exponential_less_one(part x)
{
    ONE_BY_ONE(expm1, x)
    const part curve = POLYNOMIAL(x, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
                                  5.0000001201e-1);
    return choose(x > (REAL)-0.34 + (part){0}, curve * x * x + x, exponential(x) - (REAL)1);
}

/* e ** x of any x. */
static inline part power(part x)
{
    const part small = exponential(-absolute(x));
    return choose(x > (part){0}, (REAL)1 / small, small);
}

/* By the library, one after the other. */
#define BY_LIBRARY(name, of_float, of_double)                                                                          \
    static inline part name(part x)                                                                                    \
    {                                                                                                                  \
        for (ptrdiff_t s = 0; s < PART; s++)                                                                           \
            x[s] = sizeof(REAL) == sizeof(float) ? (REAL)of_float((float)x[s]) : (REAL)of_double((double)x[s]);        \
        return x;                                                                                                      \
    }

BY_LIBRARY(logarithm, logf, log)
BY_LIBRARY(logarithm_of_more, log1pf, log1p)
BY_LIBRARY(square_root, sqrtf, sqrt)

/* 1 / (1 + e ** -x), of large numbers too. */
static inline part logistic(part x)
{
    const part small = exponential(-absolute(x)), share = (REAL)1 / ((REAL)1 + small);
    return choose(x < (part){0}, small * share, share);
}

static inline part hyperbolic_tangent(part x)
{
    ONE_BY_ONE(tanh, x)
    const part size = absolute(x), small = exponential(size * (REAL)-2), far = ((REAL)1 - small) / ((REAL)1 + small);
    /* Where that cancels. */
    const part near = POLYNOMIAL(x * x, -5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1,
                                 -3.33332819422e-1) * (x * x) * x + x;
    return choose(size < (REAL)0.625 + (part){0}, near, choose(x < (part){0}, -far, far));
}

static inline double normal(double x)
{
    return erfc(-x * 0.70710678118654752) / 2;
}

/* How likely a standard normal number is below x: (1 + erf(x / sqrt(2))) / 2. */
static inline part normal_below(part x)
{
    ONE_BY_ONE(normal, x)
    const part far = (REAL)12.0 + (part){0}; /* all of it */
    x = choose(x > far, far, choose(x < -far, -far, x)) * (REAL)0.70710678118654752;
    const part size = absolute(x), over = (REAL)1 / size, square = over * over;
    const part near = x * POLYNOMIAL(x * x, 7.853861353153693e-5, -8.010193625184903e-4, 5.188327685732524e-3,
                                     -2.685381193529856e-2, 1.128358514861418e-1, -3.761262582423300e-1,
                                     1.128379165726710e+0);
    const part middle = POLYNOMIAL(square, 2.326819970068386e-2, -1.387039388740657e-1, 3.687424674597105e-1,
                                   -5.824733027278666e-1, 6.210004621745983e-1, -4.944515323274145e-1,
                                   3.404879937665872e-1, -2.741127028184656e-1, 5.638259427386472e-1);
    const part outer = POLYNOMIAL(square, -1.047766399936249e+1, 1.297719955372516e+1, -7.495518717768503e+0,
                                  2.921019019210786e+0, -1.015265279202700e+0, 4.218463358204948e-1,
                                  -2.820767439740514e-1, 5.641895067754075e-1);
    const part beyond = exponential(-size * size) * over * choose(size < (REAL)2 + (part){0}, middle, outer);
    const part tail = choose(x < (part){0}, beyond, (REAL)2 - beyond);
    return (REAL)0.5 * choose(size < (REAL)1 + (part){0}, (REAL)1 + near, tail);
}

/* log(1 + e ** x). */
static inline part softplus(part x)
{
    return choose(x > (part){0}, x, (part){0}) + logarithm_of_more(exponential(-absolute(x)));
}

/* Of what the logistic function is nearly how likely a standard normal number is below x: so GELU is approximated, as
   (1 + tanh(u)) / 2 is the logistic function of 2 u. */
static inline part nearly_normal(part x)
{
    return (x + x * x * x * (REAL)0.044715) * (REAL)(2 * 0.79788456080286536); /* sqrt(2 / pi) */
}

/* sin(x + quarters * pi / 2): what is left of x beyond the nearest quarter of a turn, of which two polynomials know sine
   and cosine. So far out that the quarters are no exact numbers it is the library's. */
static inline part wave(part x, int quarters)
{
    if (quarters)
        ONE_BY_ONE(cos, x)
    ONE_BY_ONE(sin, x)
    const part whole = (x * (REAL)0.63661977236758134 + (REAL)12582912.0) - (REAL)12582912.0;
    const part rest = ((x - whole * (REAL)1.5703125) - whole * (REAL)4.837512969970703e-4) - whole * (REAL)7.549789954891882e-8;
    const part square = rest * rest;
    const part sine = POLYNOMIAL(square, -1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1) * square * rest + rest;
    const part cosine = POLYNOMIAL(square, 2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2) * square * square +
                        ((REAL)1 - square * (REAL)0.5);
    const part far = (REAL)8192 + (part){0};
    const truths beyond = absolute(x) > far, turn = __builtin_convertvector(choose(beyond, (part){0}, whole), truths) + quarters;
    const part found = choose((turn & 1) != 0, cosine, sine);
    part turned = choose((turn & 2) != 0, -found, found);
    for (ptrdiff_t s = 0; s < PART; s++)
        if (beyond[s])
            turned[s] = quarters ? (REAL)cosf((float)x[s]) : (REAL)sinf((float)x[s]);
    return turned;
}
