/* Functions that are also compiled for processors that compute four numbers at a time; which of
   the two runs is found when the library is loaded. The results are the same to a bit. */

#include <stdint.h>

/* Other libraries of C than glibc cannot choose while loading. */
#if defined(__x86_64__) && defined(__GLIBC__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif
