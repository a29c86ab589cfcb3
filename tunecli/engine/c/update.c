/* One update of some rows by their rules, a part of a row after the other while it is in the cache: about one pass over
   memory, where torch's operations take six to ten.

   The rules are those of rules.py, to rounding. Built without contraction, a * b + c rounds twice: what is
   computed is what IEEE 754 says, whatever the machine and the compiler. REAL is float or double. */

#include <math.h>
#include <string.h>

#include "update.h"

#define SQRT(x) (sizeof(REAL) == sizeof(float) ? (REAL)sqrtf((float)(x)) : (REAL)sqrt((double)(x)))
#define SIGN(x) ((REAL)(((x) > 0) - ((x) < 0)))
#define EACH for (ptrdiff_t i = 0; i < n; i++)

/* An update of a row: its hparams, its learning rate, and its number t from 1; `left1` and `left2` are 1 - beta ** t.
   `product` is NAdam's of all momenta up to the update numbered `known`. */
struct step {
    const struct hparams *told;
    double rate, left1, left2;
    int64_t number;
    double *product;
    int64_t *known;
};

/* What a rule changes: a row of n weights w and its two moments, by its gradient g. What depends on the step alone is
   computed in double. */
#define ROW                                                                                                            \
    ptrdiff_t n, REAL *restrict w, const REAL *restrict g, REAL *restrict first, REAL *restrict second,                \
        const struct step *s

/* By squaring: the library's pow need not round alike everywhere. */
static double power(double of, int64_t number)
{
    double found = 1;
    for (; number > 0; number >>= 1, of *= of)
        if (number & 1)
            found *= of;
    return found;
}

static void sgd(ROW)
{
    const struct hparams *h = s->told;
    /* The first update fills the buffer with the gradient itself: nothing is dampened yet. */
    const REAL lr = (REAL)s->rate, momentum = (REAL)h->momentum;
    const REAL fresh = (REAL)(s->number == 1 ? 1 : 1 - h->dampening);
    (void)second;
    if (momentum == 0)
        EACH w[i] -= g[i] * lr;
    else if (h->nesterov == 0)
        EACH {
            first[i] = first[i] * momentum + g[i] * fresh;
            w[i] -= first[i] * lr;
        }
    else
        EACH {
            first[i] = first[i] * momentum + g[i] * fresh;
            w[i] -= (g[i] + first[i] * momentum) * lr;
        }
}

static void adagrad(ROW)
{
    const REAL lr = (REAL)s->rate, eps = (REAL)1e-10;
    (void)first;
    EACH {
        second[i] += g[i] * g[i];
        w[i] -= (g[i] * lr) / (SQRT(second[i]) + eps);
    }
}

static void rmsprop(ROW)
{
    const REAL lr = (REAL)s->rate, momentum = (REAL)s->told->momentum;
    const REAL keep = (REAL)0.99, fresh = (REAL)(1 - 0.99), eps = (REAL)1e-8;
    EACH {
        second[i] = second[i] * keep + g[i] * g[i] * fresh;
        first[i] = first[i] * momentum + g[i] / (SQRT(second[i]) + eps);
        w[i] -= first[i] * lr;
    }
}

/* The two moments of the Adam family, and for the second, which began at zero, one over the root of what it lacks: a
   product takes a quarter of the time of a division. */
#define BETAS                                                                                                          \
    const double beta1 = s->told->beta1, beta2 = s->told->beta2;                                                       \
    const REAL b1 = (REAL)beta1, c1 = (REAL)(1 - beta1), b2 = (REAL)beta2, c2 = (REAL)(1 - beta2);                     \
    const REAL root = (REAL)(1 / sqrt(s->left2)), eps = (REAL)1e-8;
#define MOMENTS                                                                                                        \
    first[i] = first[i] * b1 + g[i] * c1;                                                                              \
    second[i] = second[i] * b2 + g[i] * (g[i] * c2);

static void adam(ROW)
{
    BETAS
    const REAL size = (REAL)(s->rate / s->left1);
    EACH {
        MOMENTS
        w[i] -= (first[i] * size) / (SQRT(second[i]) * root + eps);
    }
}

static double nadam_momentum(double beta1, int64_t number)
{
    return beta1 * (1 - 0.5 * power(0.9998367253526753, number)); /* 0.96 ** 0.004 */
}

static void nadam(ROW)
{
    BETAS
    const int64_t t = s->number;
    if (*s->known > t || *s->known < 1) {
        *s->product = 1;
        *s->known = 0;
    }
    while (*s->known < t)
        *s->product *= nadam_momentum(beta1, ++*s->known);
    const double now = nadam_momentum(beta1, t), next = nadam_momentum(beta1, t + 1), product = *s->product;
    const REAL from_gradient = (REAL)(s->rate * (1 - now) / (1 - product));
    const REAL from_moment = (REAL)(s->rate * next / (1 - product * next));
    EACH {
        MOMENTS
        w[i] -= (g[i] * from_gradient + first[i] * from_moment) / (SQRT(second[i]) * root + eps);
    }
}

static void radam(ROW)
{
    BETAS
    const double longest = 2 / (1 - beta2) - 1;
    const double length = longest - 2 * (double)s->number * (1 - s->left2) / s->left2;
    const double ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length);
    const double unbiased = s->rate / s->left1;
    (void)root;
    if (length > 5) {
        const REAL size = (REAL)(unbiased * sqrt(ratio) * sqrt(s->left2));
        EACH {
            MOMENTS
            w[i] -= (first[i] * size) / (SQRT(second[i]) + eps);
        }
    } else {
        const REAL size = (REAL)unbiased;
        EACH {
            MOMENTS
            w[i] -= first[i] * size;
        }
    }
}

static void adamax(ROW)
{
    BETAS
    const REAL size = (REAL)(s->rate / s->left1);
    (void)root, (void)c2;
    EACH {
        const REAL old = second[i] * b2, now = (g[i] < 0 ? -g[i] : g[i]) + eps;
        first[i] = first[i] * b1 + g[i] * c1;
        second[i] = old > now ? old : now;
        w[i] -= (first[i] * size) / second[i];
    }
}

static void adadelta(ROW)
{
    const REAL lr = (REAL)s->rate, keep = (REAL)0.9, fresh = (REAL)(1 - 0.9), eps = (REAL)1e-6;
    EACH {
        second[i] = second[i] * keep + g[i] * g[i] * fresh;
        const REAL step = SQRT(first[i] + eps) / SQRT(second[i] + eps) * g[i];
        first[i] = first[i] * keep + step * step * fresh;
        w[i] -= step * lr;
    }
}

static void lion(ROW)
{
    const double beta1 = s->told->beta1, beta2 = s->told->beta2;
    const REAL lr = (REAL)s->rate;
    const REAL b1 = (REAL)beta1, c1 = (REAL)(1 - beta1), b2 = (REAL)beta2, c2 = (REAL)(1 - beta2);
    (void)second;
    EACH {
        const REAL ahead = first[i] * b1 + g[i] * c1;
        w[i] -= SIGN(ahead) * lr;
        first[i] = first[i] * b2 + g[i] * c2;
    }
}

/* In the order of compiled.py. */
static void (*const RULES[])(ROW) = {sgd, adagrad, rmsprop, adam, nadam, radam, adamax, adadelta, lion};

/* In parts that are summed side by side: the same order of additions, however wide a vector is. */
static double squares(ptrdiff_t n, const REAL *g)
{
    enum { PARTS = 32 };
    double parts[PARTS] = {0}, sum = 0;
    ptrdiff_t i = 0;
    for (; i + PARTS <= n; i += PARTS)
        for (int part = 0; part < PARTS; part++)
            parts[part] += (double)g[i + part] * (double)g[i + part];
    for (; i < n; i++)
        sum += (double)g[i] * (double)g[i];
    for (int part = 0; part < PARTS; part++)
        sum += parts[part];
    return sum;
}

static double norm(const struct rows *all, ptrdiff_t row)
{
    double sum = 0;
    for (const struct piece *piece = all->pieces; piece < all->pieces + all->count; piece++)
        sum += squares(piece->length, piece->gradient + row * piece->length);
    return sqrt(sum);
}

/* So many weights are in the cache from the first of these passes to the last. */
enum { CHUNK = 2048 };

/* Update n weights of a row, from the `low`th of a piece on, by `factor` times its gradient. That is read and not written:
   where autograd made it, another weight's may be the same memory. */
static void part(const struct rows *all, const struct piece *piece, ptrdiff_t row, ptrdiff_t low, ptrdiff_t n,
                 const struct step *s, REAL factor)
{
    const struct hparams *h = s->told;
    const ptrdiff_t place = piece->offset + low, from = row * all->width + place;
    const REAL *decay = all->decay ? all->decay + place : NULL, *g = piece->gradient + row * piece->length + low;
    REAL *w = all->weights + from, mean[CHUNK];
    const REAL l1 = (REAL)h->l1, l2 = (REAL)(h->decoupled ? 0 : h->l2);
    if (factor != 1 || l1 != 0 || l2 != 0) {
        EACH {
            const REAL own = decay ? decay[i] : 1;
            mean[i] = g[i] * factor + SIGN(w[i]) * own * l1 + w[i] * own * l2;
        }
        g = mean;
    }
    if (h->decoupled && h->l2 != 0) {
        const REAL shrink = (REAL)(s->rate * h->l2);
        EACH w[i] -= w[i] * (decay ? decay[i] : 1) * shrink;
    }
    RULES[all->rules[row]](n, w, g, all->first + from, all->second + from, s);
    if (h->ema_decay > 0) {
        /* It begins with the weights after the first update, as torch's AveragedModel does. */
        REAL *average = all->average + from;
        const REAL keep = (REAL)(s->number == 1 ? 0 : h->ema_decay), fresh = 1 - keep;
        EACH average[i] = average[i] * keep + w[i] * fresh;
    }
}

void update_row(const struct rows *all, ptrdiff_t at, ptrdiff_t row, double *norms, double *counts)
{
    const ptrdiff_t place = at * all->rows + row;
    const struct hparams *h = all->hparams + row;
    const int64_t number = all->numbers[place];
    const double left1 = 1 - power(h->beta1, number), left2 = 1 - power(h->beta2, number);
    const struct step s = {h, all->rates[place], left1, left2, number, all->products + row, all->known + row};
    double factor = 1;
    if (counts) {
        factor = counts[row] > 0 ? 1 / counts[row] : 1;
        counts[row] = 0;
    }
    if (all->last[place] || h->clip_norm > 0) {
        const double size = norm(all, row) * factor, share = h->clip_norm / (size + 1e-6);
        if (all->last[place])
            norms[row] = size;
        if (h->clip_norm > 0 && !(share > 1))
            factor *= share;
    }
    for (const struct piece *piece = all->pieces; piece < all->pieces + all->count; piece++)
        for (ptrdiff_t low = 0; low < piece->length; low += CHUNK) {
            const ptrdiff_t left = piece->length - low;
            part(all, piece, row, low, left < CHUNK ? left : CHUNK, &s, (REAL)factor);
        }
}

void clear_row(const struct rows *all, ptrdiff_t row)
{
    for (const struct piece *piece = all->pieces; piece < all->pieces + all->count; piece++)
        memset(piece->gradient + row * piece->length, 0, (size_t)piece->length * sizeof(REAL));
}

/* Update the rows that are due after a step. See `Updates.apply`; `norms` (K,), and `counts` (K,) or none. */
void update(const struct rows *all, ptrdiff_t at, double *norms, double *counts, int whole)
{
    for (ptrdiff_t row = 0; row < all->rows; row++)
        if (all->due[at * all->rows + row] && all->rules[row] >= 0) {
            update_row(all, at, row, norms, counts);
            if (!whole)
                clear_row(all, row);
        }
}
