/* For products.c and sums.c, in which alone a product and a sum are one operation, rounded once, where the machine has
   that: half of the work. There is one way to join them there, so that their bits depend on no compiler. */

#ifdef __clang__
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif

#include "products.h"
#include "parts.h"

#define INLINE static inline __attribute__((always_inline))

/* A part of memory that need not begin where a vector does. */
typedef REAL unaligned __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
#define AT(p) (*(unaligned *)(p))
