// What this CPU and operating system offer, and what this build measures and reports. The answer of cpu_isa is read from the
// baseline build, which holds no instruction that the question is about.
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
    if ((lo & 0xe6) != 0xe6 || !f || !dq || !bw || !vl) return 1;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1) ? 3 : 2;
}
#else
int64_t cpu_isa(void) { return 0; }
#endif

int64_t last_team(void) { return latest_team; }

int64_t has_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

int64_t sources_hash(void) { return SOURCES_HASH; }

// the tile of the GEMM without its memory: as many independent chains, each long enough to forget its start
enum { CHAINS = VW == 16 ? 24 : VW == 8 ? 12 : 32, STEPS = 64 };  // 32 floats of width 1 become vectors, as in the GEMM

int64_t peak_flops(void) { return 2 * (int64_t)CHAINS * STEPS * VW; }

static __attribute__((noinline)) void fma_chains(float *out, int64_t steps) {
    vf sum[CHAINS], x = vf_load(out), y = vf_load(out + VW);
#pragma GCC unroll 32
    for (int i = 0; i < CHAINS; i++) sum[i] = vf_set((float)i);
    for (int64_t s = 0; s < steps; s++) {
#pragma GCC unroll 32
        for (int i = 0; i < CHAINS; i++) sum[i] = vf_fma(sum[i], x, y);
    }
    enum { OUT = 32 / VW };
#pragma GCC unroll 32
    for (int i = OUT; i < CHAINS; i++) sum[i % OUT] = vf_add(sum[i % OUT], sum[i]);
    for (int i = 0; i < OUT; i++) vf_store(out + i * VW, sum[i]);
}

void peak_fma(float *out, int64_t rounds, int64_t NT) {
    PARALLEL(NT) {
        share(0);
        fma_chains(out + 32 * rank(), rounds * STEPS);
    }
}
