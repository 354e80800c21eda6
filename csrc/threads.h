// How a kernel uses threads. PARALLEL runs its block on NT threads or fewer; inside, share() gives a thread its contiguous part
// of n units of work, next_of() the next whole unit of a queue. Who works is what team() says, never NT. Nothing here knows what
// is computed, and no float is shared: no reduction clause, no atomic sum (kernels.h).
static __thread int64_t most_threads = INT64_MAX;  // limit_team of the calling thread: each has a team of its own

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t granted(int64_t NT) { return min64(NT, most_threads); }

#ifdef _OPENMP
#include <omp.h>
#define PRAGMA(x) _Pragma(#x)
#define PARALLEL(NT) PRAGMA(omp parallel num_threads((int)granted(NT)))
#define BARRIER _Pragma("omp barrier")
INLINE int64_t team(void) { return omp_get_num_threads(); }
INLINE int64_t rank(void) { return omp_get_thread_num(); }
#else
#define PARALLEL(NT)
#define BARRIER
INLINE int64_t team(void) { return 1; }
INLINE int64_t rank(void) { return 0; }
#endif

// takes the next number of a queue that a team shares
INLINE int64_t next_of(int64_t *taken) { return __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED); }

static int64_t latest_team = 0;

typedef struct { int64_t begin, end; } Range;

INLINE Range part(int64_t n, int64_t i, int64_t parts) { return (Range){n * i / parts, n * (i + 1) / parts}; }

// the calling thread's units of n; its rank 0 notes the size of the team
INLINE Range share(int64_t n) {
    int64_t me = rank(), all = team();
    if (me == 0) latest_team = all;
    return part(n, me, all);
}

INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
