// The peak by hand, for test_peak.py: independent multiply-adds that touch nothing but registers, `steps` times. Built
// once for each instruction set with its flags, with -DBF16 of products in bf16; the baseline multiplies and adds in
// vectors of 16 bytes.
#include <stdint.h>

#if defined(__AVX512F__)
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) \
                 DO(15) DO(16) DO(17) DO(18) DO(19)
#define CLEAR(i) "vpxord %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n"
#define START EACH(CLEAR) CLEAR(30) CLEAR(31)
#define BODY EACH(WORK)
#define END "vzeroupper\n"
#ifdef BF16
#define WORK(i) "vdpbf16ps %%zmm30, %%zmm31, %%zmm" #i "\n"
enum { FLOPS = 20 * 32 * 2 };
#else
#define WORK(i) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" #i "\n"
enum { FLOPS = 20 * 16 * 2 };
#endif
#elif defined(__FMA__)
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define CLEAR(i) "vxorps %%ymm" #i ", %%ymm" #i ", %%ymm" #i "\n"
#define WORK(i) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #i "\n"
#define BODY EACH(WORK)
#define START EACH(CLEAR) CLEAR(14) CLEAR(15)
#define END "vzeroupper\n"
enum { FLOPS = 12 * 8 * 2 };
#else
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13)
#define CLEAR(i) "xorps %%xmm" #i ", %%xmm" #i "\n"
#define MULTIPLY(i) "mulps %%xmm14, %%xmm" #i "\n"
#define ADD(i) "addps %%xmm15, %%xmm" #i "\n"
#define BODY EACH(MULTIPLY) EACH(ADD)
#define START EACH(CLEAR) CLEAR(14) CLEAR(15)
#define END ""
enum { FLOPS = 14 * 4 * 2 };
#endif

int64_t flops_of_step(void) { return FLOPS; }

void peak(int64_t steps) {
    __asm__ volatile(START "0:\n" BODY "subq $1, %0\n jnz 0b\n" END
                     : "+r"(steps)
                     :
                     : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                       "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#if defined(__AVX512F__)
                       , "xmm16", "xmm17", "xmm18", "xmm19", "xmm30", "xmm31"
#endif
    );
}
