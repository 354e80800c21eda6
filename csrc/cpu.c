// What this CPU and operating system offer, and what this build measures and reports. The answer of cpu_isa is read
// from the baseline build, which holds no instruction that the question is about. Twin of what measures: kernels/cpu.py.
#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

int64_t cpu_isa(void) {
    unsigned a, b, c, d, lo, hi;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    int fma = c >> 12 & 1, osxsave = c >> 27 & 1, avx = c >> 28 & 1;
    if (!fma || !osxsave || !avx) return 0;
    __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));  // the registers that the operating system saves
    (void)hi;
    if ((lo & 0x06) != 0x06 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b >> 5 & 1)) return 0;
    int f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1;
    int vnni = c >> 11 & 1;
    if ((lo & 0xe6) != 0xe6 || !f || !dq || !bw || !vl) return 1;
    return vnni && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1) ? 3 : 2;
}
#else
int64_t cpu_isa(void) { return 0; }
#endif

int64_t last_team(void) { return latest_team; }
void limit_team(int64_t threads) { most_threads = threads > 0 ? threads : INT64_MAX; }

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>

static int64_t this_thread(void) { return syscall(SYS_gettid); }
#else
static int64_t this_thread(void) { return -1; }
#endif

void team_threads(int64_t *threads, int64_t NT) {
    PARALLEL(NT) {
        share(0);
        threads[rank()] = this_thread();
    }
}

int64_t has_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

int64_t sources_hash(void) { return SOURCES_HASH; }

// the tile of the GEMM without its memory: as many independent chains, each long enough to forget its start
#if VW == 1  // compilers turn loops of width 1 into vectors of 16 bytes, so these are its limit
typedef float wide __attribute__((vector_size(16)));
#define wide_fma(a, b, c) ((a) * (b) + (c))
#define wide_dot wide_fma
#else
typedef vf wide;
#define wide_fma vf_fma
#define wide_dot vf_dot
#endif
enum { LANES = sizeof(wide) / sizeof(float), CHAINS = VW == 16 ? 24 : 12, STEPS = 64, OUT = 32 / LANES };

int64_t peak_flops(int64_t BF16) { return 2 * (int64_t)CHAINS * STEPS * LANES * (BF16 ? PAIR : 1); }

INLINE void chains(float *out, int64_t steps, const int dot) {
    wide sum[CHAINS], x, y;
    memcpy(&x, out, sizeof x);
    memcpy(&y, out + LANES, sizeof y);
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; i++) sum[i] = x + (float)i;
    for (int64_t s = 0; s < steps; s++) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++) sum[i] = dot ? wide_dot(x, y, sum[i]) : wide_fma(sum[i], x, y);
    }
#pragma GCC unroll 24
    for (int i = OUT; i < CHAINS; i++) sum[i % OUT] = sum[i % OUT] + sum[i];
    memcpy(out, sum, 32 * sizeof(float));
}

static __attribute__((noinline)) void fma_chains(float *out, int64_t steps) { chains(out, steps, 0); }
static __attribute__((noinline)) void dot_chains(float *out, int64_t steps) { chains(out, steps, 1); }

void peak_fma(float *out, int64_t rounds, int64_t BF16, int64_t NT) {
    PARALLEL(NT) {
        share(0);
        (BF16 && PAIR == 2 ? dot_chains : fma_chains)(out + 32 * rank(), rounds * STEPS);
    }
}

enum { READ, UPDATE, WRITE, SIDE_BY_SIDE = 16 };
typedef struct { v16 one, zero; } Factors;

// m <= 16 floats of each array from float `at` on; returns the sum of what is read. With constant counts the loops unroll.
INLINE v16 visit(float *const *p, int reads, int updates, int writes, int64_t at, int64_t m, Factors f) {
    v16 read = v16_set(0.0f);
    for (int k = 0; k < reads; k++) read = k ? v16_add(read, load16(p[k] + at, m)) : load16(p[k] + at, m);
    for (int k = reads; k < reads + updates + writes; k++) {
        v16 x = k < reads + updates ? v16_mul(load16(p[k] + at, m), f.one) : f.one;
        store16(p[k] + at, reads && k == reads ? v16_fma(read, f.zero, x) : x, m);
    }
    return read;
}

// neighbours of equal length from float begin to end, side by side, as kernels walk their arrays
INLINE v16 walk(float *const *p, int reads, int updates, int writes, int64_t begin, int64_t end, Factors f) {
    v16 none = v16_set(0.0f), sum[4] = {none, none, none, none};
    int64_t i = begin;
    for (; i + 64 <= end; i += 64)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) sum[j] = v16_add(sum[j], visit(p, reads, updates, writes, i + 16 * j, 16, f));
    for (; i < end; i += 16) sum[0] = v16_add(sum[0], visit(p, reads, updates, writes, i, min64(end - i, 16), f));
    return updates || writes ? none : v16_add(v16_add(sum[0], sum[1]), v16_add(sum[2], sum[3]));
}

// the mixes of kernels that memory can limit, each a loop of its own, and one loop for any other
static v16 walk_mix(float *const *p, const int *of, int64_t begin, int64_t end, Factors f) {
#define MIX(R, U, W) \
    if (of[READ] == R && of[UPDATE] == U && of[WRITE] == W) return walk(p, R, U, W, begin, end, f)
    MIX(1, 0, 0);
    MIX(1, 0, 1);
    MIX(1, 0, 2);
    MIX(2, 0, 1);
    MIX(1, 1, 0);
    MIX(1, 2, 0);
    MIX(1, 3, 0);
    MIX(2, 1, 0);
    return walk(p, of[READ], of[UPDATE], of[WRITE], begin, end, f);
}

void stream(float *out, float *data, const int64_t *ranges, const float *factors, int64_t count, int64_t rounds,
            int64_t NT) {
    const Factors f = {v16_set(factors[0]), v16_set(factors[1])};
    PARALLEL(NT) {
        v16 sum = v16_set(0.0f);
        for (int64_t round = 0; round < rounds; round++)
            for (int64_t k = 0; k < count;) {
                float *arrays[SIDE_BY_SIDE];
                int of[3] = {0, 0, 0}, found = 0;
                const int64_t n = ranges[3 * k + 2];
                for (; k < count && ranges[3 * k + 2] == n && found < SIDE_BY_SIDE; k++) {
                    of[ranges[3 * k]]++;
                    arrays[found++] = data + ranges[3 * k + 1];
                }
                Range r = share((n + 15) / 16);
                sum = v16_add(sum, walk_mix(arrays, of, 16 * r.begin, min64(n, 16 * r.end), f));
            }
        v16_store(out + 16 * rank(), sum);
    }
}
