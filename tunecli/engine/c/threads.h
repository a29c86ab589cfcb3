/* Rows that know nothing of each other, shared among threads. */

#include <stddef.h>

/* What is done for each row. `thread` is below the number of threads, and no two of them work under one number. */
typedef void one_row(const void *told, ptrdiff_t row, ptrdiff_t thread);

/* Call `one` for so many rows: other threads begin with them, `threads` in all with the one that ends it. Each takes the
   next row that is left, so that none waits for another whose row, or whose core, is slow. NULL where memory is full. */
struct shared *begin_sharing(ptrdiff_t rows, ptrdiff_t threads, one_row *one, const void *told);

/* Whether there is no row left to take. */
int is_taken(const struct shared *s);

/* Take the rows that are left, and wait for those that others have taken. */
void end_sharing(struct shared *s);

/* From the beginning to the end. */
void share(ptrdiff_t rows, ptrdiff_t threads, one_row *one, const void *told);
