/* Products of small matrices. A sum over k is taken from first to last, whatever the other dimensions: a number of a
   product has the same bits in every product that has its row and its column. REAL is float or double. */

#include <stddef.h>

/* C (M, N) = A (M, K) B (K, N) and `bias` (M,), if there is one; with `add`, what C has is added. N is whole parts.

   The number (m, k) of A lies at m * down + k * right; rows of B are `of_b` apart, rows of C `of_c`. */
struct product {
    ptrdiff_t M, N, K, down, right, of_b, of_c;
    int add;
};

void product(const struct product *p, const REAL *a, const REAL *b, const REAL *bias, REAL *c);

/* C (M, N) = A (M, K) B (N, K) transposed, or added to it; K is whole parts, each matrix lies row after row. Each sum is
   taken in as many parts as a vector has numbers. */
void dots(ptrdiff_t M, ptrdiff_t N, ptrdiff_t K, const REAL *a, const REAL *b, REAL *c, int add);

/* A (rows, columns), whose rows are `step` apart -> (columns, rows), whose rows are `out` apart. */
void transpose(ptrdiff_t rows, ptrdiff_t columns, const REAL *from, ptrdiff_t step, REAL *to, ptrdiff_t out);

/* The sums of the rows of A (rows, columns), or added to what is found; columns are whole parts. */
void sums(ptrdiff_t rows, ptrdiff_t columns, const REAL *a, REAL *found, int add);
