/* Layers that make one number of one, and their gradients. REAL is float or double. */

#include "functions.h"
#include "layers.h"

static part clamp(part x, part low, part high)
{
    return choose(x < low, low, choose(x > high, high, x));
}

/* Above, torch takes softplus for its argument. */
static const REAL straight = 20;

void apply(enum kind kind, ptrdiff_t n, double scale, double shift, const REAL *x, REAL *y)
{
    const part zero = {0};
    const REAL by = (REAL)scale, more = (REAL)shift, one = 1;
#define EACH(value)                                                                                                    \
    for (ptrdiff_t i = 0; i < n; i += PART) {                                                                          \
        const part own = load(x + i, 1, PART);                                                                         \
        store(y + i, value, PART);                                                                                     \
    }                                                                                                                  \
    return;
    switch (kind) {
    case RELU: EACH(choose(own < zero, zero, own))
    case LEAKY_RELU: EACH(choose(own < zero, own * by, own))
    case ELU: EACH(choose(own < zero, exponential_less_one(choose(own < zero, own, zero)) * by, own))
    case TANH: EACH(hyperbolic_tangent(own))
    case SIGMOID: EACH(logistic(own))
    case SILU: EACH(own * logistic(own))
    case GELU: EACH(own * normal_below(own))
    case GELU_TANH: EACH(own * logistic(nearly_normal(own)))
    case MISH: EACH(own * hyperbolic_tangent(softplus(own)))
    case SOFTPLUS: EACH(choose(own > zero + straight, own, softplus(own)))
    case HARDSWISH: EACH(own * clamp(own + (REAL)3, zero, zero + (REAL)6) / (REAL)6)
    case CLAMP:
    case HARDTANH: EACH(clamp(own, zero + by, zero + more))
    case EXP: EACH(power(own))
    case LOG: EACH(logarithm(own))
    case SQRT: EACH(square_root(own))
    case RSQRT: EACH(one / square_root(own))
    case RECIPROCAL: EACH(one / own)
    case ABS: EACH(absolute(own))
    case SIN: EACH(wave(own, 0))
    case COS: EACH(wave(own, 1))
    case EQUAL: EACH(choose(own == zero + more, zero + one, zero))
    case ABOVE: EACH(choose(own > zero + more, zero + one, zero))
    default: EACH(own * by + more)
    }
#undef EACH
}

static part gelu_tanh_slope(part x)
{
    const part twice = nearly_normal(x), slope = (x * x * (REAL)(3 * 0.044715) + (REAL)1) * (REAL)(2 * 0.79788456080286536);
    return logistic(twice) + x * logistic(twice) * logistic(-twice) * slope;
}

static part mish_slope(part x)
{
    const part curve = hyperbolic_tangent(softplus(x));
    return curve + x * ((REAL)1 - curve * curve) * logistic(x);
}

/* 0 below -3, 1 above 3, straight between. */
static part hardswish_slope(part x)
{
    const part zero = {0};
    return choose(x <= (REAL)-3 + zero, zero, choose(x >= (REAL)3 + zero, zero + (REAL)1, x / (REAL)3 + (REAL)0.5));
}

void unapply(enum kind kind, ptrdiff_t n, double scale, double shift, const REAL *x, const REAL *y, const REAL *d,
             REAL *to)
{
    const part zero = {0};
    const REAL by = (REAL)scale, more = (REAL)shift, one = 1, half = (REAL)0.5, density = (REAL)0.39894228040143268; /* 1 / sqrt(2 pi) */
#define EACH(read, value)                                                                                              \
    for (ptrdiff_t i = 0; i < n; i += PART) {                                                                          \
        const part own = load(read + i, 1, PART), given = load(d + i, 1, PART);                                        \
        store(to + i, value, PART);                                                                                    \
    }                                                                                                                  \
    return;
    switch (kind) {
    case RELU: EACH(y, choose(own <= zero, zero, given))
    case LEAKY_RELU: EACH(x, choose(own > zero, given, given * by))
    case ELU: EACH(y, choose(own > zero, given, given * (own + by)))
    case TANH: EACH(y, given * (one - own * own))
    case SIGMOID: EACH(y, given * (own * (one - own)))
    case SILU: EACH(x, given * (logistic(own) * (one + own * (one - logistic(own)))))
    case GELU: EACH(x, given * (normal_below(own) + own * (exponential(own * own * (REAL)-0.5) * density)))
    case GELU_TANH: EACH(x, given * gelu_tanh_slope(own))
    case MISH: EACH(x, given * mish_slope(own))
    case SOFTPLUS: EACH(x, choose(own > zero + straight, given, given * logistic(own)))
    case HARDSWISH: EACH(x, given * hardswish_slope(own))
    case CLAMP: EACH(x, choose((own >= zero + by) & (own <= zero + more), given, zero))
    case HARDTANH: EACH(x, choose((own > zero + by) & (own < zero + more), given, zero))
    case EXP: EACH(y, given * own)
    case LOG: EACH(x, given / own)
    case SQRT: EACH(y, choose((own == zero) & (zero + more != zero), zero, given * half / own))
    case RSQRT: EACH(y, given * -half * (own * own * own))
    case RECIPROCAL: EACH(y, -given * (own * own))
    case ABS: EACH(x, choose(own > zero, given, choose(own < zero, -given, given * own)))
    case SIN: EACH(x, given * wave(own, 1))
    case COS: EACH(x, -given * wave(own, 0))
    case EQUAL:
    case ABOVE: EACH(x, ((void)own, (void)given, zero))
    default: EACH(x, ((void)own, given * by))
    }
#undef EACH
}

/* What dropout multiplies the numbers of one element of samples by. */
static inline part kept(uint32_t element, const struct dropout *how, const int64_t *keys)
{
    part found = {0};
    for (int s = 0; s < PART; s++) {
        uint32_t drawn = ((uint32_t)keys[s] ^ element) * 0x45D9F3Bu;
        drawn = (drawn ^ drawn >> 16) * 0x45D9F3Bu;
        found[s] = drawn >= how->dropped ? (REAL)how->scale : 0;
    }
    return found;
}

void drop(const struct dropout *how, ptrdiff_t lines, ptrdiff_t m, const int64_t *keys, const REAL *x, REAL *y)
{
    for (ptrdiff_t i = 0; i < lines * m; i += PART)
        store(y + i, load(x + i, 1, PART) * kept(how->elements[i / m], how, keys + i % m), PART);
}
