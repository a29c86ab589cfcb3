/* Products of small matrices. A sum over k is taken from first to last, whatever the other dimensions: a number of a
   product has the same bits in every product that has its row and its column. REAL is float or double. */

#include <stddef.h>

/* C (M, N) = A (M, K) B (K, N) and `bias` (M,), if there is one; with `add`, what C has is added. N is whole stripes.

   The number (m, k) of A lies at m * down + k * right; rows of B are `of_b` apart, rows of C `of_c`. */
struct product {
    ptrdiff_t M, N, K, down, right, of_b, of_c;
    int add;
};

void product(const struct product *p, const REAL *a, const REAL *b, const REAL *bias, REAL *c);

/* The same of a matrix B (K, N) whose rows overlap, as windows over images do: row k begins at `at` of its tap, and the
   n-th stripe of each row lies at starts[n] from there. Of A the number (m, k) lies at m * down + the `weight` of the tap. */
struct tap {
    ptrdiff_t weight, at;
};

struct taps {
    ptrdiff_t K, stripes; /* of which N is */
    const struct tap *of;
    const ptrdiff_t *starts;
};

void convolve(ptrdiff_t M, const struct taps *taps, ptrdiff_t down, const REAL *a, const REAL *b, const REAL *bias,
              REAL *c);

/* C (M, K) = A (M, N) B transposed, or added to it, where B is as above. The numbers at each place in a stripe are summed
   up first, from the first stripe to the last; then the upper half of a stripe is added to the lower one, until there is
   one number. */
void dots(ptrdiff_t M, const struct taps *taps, const REAL *a, const REAL *b, REAL *c, int add);

/* Of each sample, C (M, N) = A (M, K) B (K, N): the lines of (i, k) are i * a_down + k * a_right, of B alike. */
struct between {
    ptrdiff_t M, N, K, a_down, a_right, b_down, b_right;
};

void between(const struct between *p, ptrdiff_t m, const REAL *a, const REAL *b, REAL *c);

/* A (rows, columns), whose rows are `step` apart -> (columns, rows), whose rows are `out` apart. */
void transpose(ptrdiff_t rows, ptrdiff_t columns, const REAL *from, ptrdiff_t step, REAL *to, ptrdiff_t out);

/* The sums of the rows of A (rows, columns), or added to what is found, as `dots` takes them; columns are whole stripes. */
void sums(ptrdiff_t rows, ptrdiff_t columns, const REAL *a, REAL *found, int add);
