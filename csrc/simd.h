// The only file that names __m256 and __m512. Three vector types, and nothing else about the instruction set:
//   vf   one register of VW floats (16, 8 or 1), for the GEMM tiles
//   v16  sixteen floats whatever the registers: every row loop and every reduction uses it, so that the order of a
//        sum does not depend on the width (kernels.h, tree16). x86 widths fuse multiply and add, width 1 rounds twice.
//   n16  sixteen whole numbers, for products of int8
// Partial vectors (n < 16) load zeros and store nothing beyond n.
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
INLINE void store_fence(void) { _mm_sfence(); }  // vf_store_past (aligned, past the caches) is seen by others after it
// dst[c][r] = src[r][c] for an 8x8 block; stores in ascending order, so that rows of dst may overlap the next (gemm.c)
INLINE void transpose8(float *dst, int64_t dst_stride, const float *src, int64_t src_stride) {
    __m256 r[8], t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(src + i * src_stride);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) _mm256_storeu_ps(dst + i * dst_stride, _mm256_permute2f128_ps(r[i], r[4 + i], 0x20));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) _mm256_storeu_ps(dst + (4 + i) * dst_stride, _mm256_permute2f128_ps(r[i], r[4 + i], 0x31));
}
#endif

#if defined(__AVX512F__)

#define VW 16
typedef __m512 vf;
INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
INLINE void vf_store_past(float *p, vf a) { _mm512_stream_ps(p, a); }
INLINE vf vf_set(float x) { return _mm512_set1_ps(x); }
INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }

typedef __m512 v16;
INLINE __mmask16 v16_mask(int64_t n) { return (__mmask16)(n >= 16 ? 0xFFFF : (1u << n) - 1); }
INLINE v16 v16_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE v16 v16_load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(v16_mask(n), p); }
INLINE void v16_store(float *p, v16 a) { _mm512_storeu_ps(p, a); }
INLINE void v16_store_n(float *p, v16 a, int64_t n) { _mm512_mask_storeu_ps(p, v16_mask(n), a); }
INLINE v16 v16_set(float x) { return _mm512_set1_ps(x); }
INLINE v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
INLINE v16 v16_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
INLINE v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
INLINE v16 v16_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
INLINE v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
INLINE v16 v16_sqrt(v16 a) { return _mm512_sqrt_ps(a); }
INLINE v16 v16_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }  // b where either is NaN
INLINE v16 v16_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }  // b where either is NaN
INLINE v16 v16_first(v16 a, v16 b, int64_t n) {                   // a in lanes below n, else b
    return _mm512_mask_blend_ps(v16_mask(n), b, a);
}
INLINE v16 v16_where_gt(v16 a, v16 b, v16 x, v16 y) {             // a > b ? x : y
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}
INLINE v16 v16_round(v16 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE v16 v16_pow2(v16 n) {                                      // 2^n for whole n in [-126, 127]
    __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}
INLINE float v8_sum(__m256 a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
INLINE float v16_sum(v16 a) {
    return v8_sum(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1)));
}
INLINE void v16_sum4(float *p, v16 a, v16 b, v16 c, v16 d) {        // v16_sum of each, to p
    v16 ab = v16_add(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    v16 cd = v16_add(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    v16 s = v16_add(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    s = v16_add(s, _mm512_permute_ps(s, 0x4e));
    s = v16_add(s, _mm512_permute_ps(s, 0xb1));
    _mm_storeu_ps(p, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, s)));
}
INLINE float v16_maximum(v16 a) { return _mm512_reduce_max_ps(a); }
INLINE v16 v16_lower(v16 words) {                                 // the bf16 in the lower half of each word; below, in the upper
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(words), 16));
}
INLINE v16 v16_upper(v16 words) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(words), _mm512_set1_epi32((int)0xffff0000)));
}
typedef __m512i n16;  // sixteen whole numbers of 32 bits, or 64 bytes
INLINE n16 n16_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE void n16_store(void *p, n16 a) { _mm512_storeu_si512(p, a); }
INLINE n16 n16_set(int32_t x) { return _mm512_set1_epi32(x); }
INLINE n16 n16_sub(n16 a, n16 b) { return _mm512_sub_epi32(a, b); }
INLINE v16 v16_of_n16(n16 a) { return _mm512_cvtepi32_ps(a); }
INLINE n16 n16_dot(n16 sum, n16 a, n16 b) {                       // lane i + bytes 4 i .. 4 i + 3 of a, unsigned, times those of b, signed
#ifdef __AVX512VNNI__
    return _mm512_dpbusd_epi32(sum, a, b);
#else
    __m512i even = _mm512_and_si512(a, _mm512_set1_epi16(255)), odd = _mm512_srli_epi16(a, 8);
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(even, _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8)));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(odd, _mm512_srai_epi16(b, 8)));
#endif
}
INLINE v16 v16_of_quarters(const void *p) {                       // lanes 4 i .. 4 i + 3: bf16 i of the four at p
    const __m512i at = _mm512_set_epi64(0x0706808007068080, 0x0706808007068080, 0x0504808005048080, 0x0504808005048080,
                                        0x0302808003028080, 0x0302808003028080, 0x0100808001008080, 0x0100808001008080);
    int64_t four;
    memcpy(&four, p, sizeof four);
    return _mm512_castsi512_ps(_mm512_shuffle_epi8(_mm512_set1_epi64(four), at));
}
INLINE v16 v16_swap1(v16 a) { return _mm512_permute_ps(a, 0xb1); }  // neighbours trade places; below, pairs
INLINE v16 v16_swap2(v16 a) { return _mm512_permute_ps(a, 0x4e); }
INLINE void v16_to_int8(void *p, v16 a) {                         // whole numbers, -127 to 127
    _mm_storeu_si128(p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}

// dst[c][r] = src[r][c] for a 16x16 block, in registers
INLINE void transpose16(float *dst, int64_t dst_stride, const float *src, int64_t src_stride) {
    __m512 r[16], t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(src + i * src_stride);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 2]);
        __m512d c = _mm512_castps_pd(t[4 * i + 1]), d = _mm512_castps_pd(t[4 * i + 3]);
        r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
        r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512 a = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88), b = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
        __m512 c = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88), d = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
        _mm512_storeu_ps(dst + i * dst_stride, _mm512_shuffle_f32x4(a, c, 0x88));
        _mm512_storeu_ps(dst + (4 + i) * dst_stride, _mm512_shuffle_f32x4(b, d, 0x88));
        _mm512_storeu_ps(dst + (8 + i) * dst_stride, _mm512_shuffle_f32x4(a, c, 0xdd));
        _mm512_storeu_ps(dst + (12 + i) * dst_stride, _mm512_shuffle_f32x4(b, d, 0xdd));
    }
}

// dst[k][r] = r[r] lane k: eight rows as sixteen columns
INLINE void interleave8(float *dst, const v16 *r) {
    __m512 t[8], u[8];  // u[2 q + i / 4]: lane group L holds column 4 L + q of rows i .. i + 3
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            __m512d a = _mm512_castps_pd(t[i + q / 2]), b = _mm512_castps_pd(t[i + 2 + q / 2]);
            u[2 * q + i / 4] = _mm512_castpd_ps(q % 2 ? _mm512_unpackhi_pd(a, b) : _mm512_unpacklo_pd(a, b));
        }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {  // columns 4 L + 2 i and 4 L + 2 i + 1
        const __m512 *w = u + 4 * i;
        __m512 a = _mm512_shuffle_f32x4(w[0], w[1], 0x44), b = _mm512_shuffle_f32x4(w[0], w[1], 0xee);
        __m512 c = _mm512_shuffle_f32x4(w[2], w[3], 0x44), d = _mm512_shuffle_f32x4(w[2], w[3], 0xee);
        v16_store(dst + 16 * i, _mm512_shuffle_f32x4(a, c, 0x88));
        v16_store(dst + 32 + 16 * i, _mm512_shuffle_f32x4(a, c, 0xdd));
        v16_store(dst + 64 + 16 * i, _mm512_shuffle_f32x4(b, d, 0x88));
        v16_store(dst + 96 + 16 * i, _mm512_shuffle_f32x4(b, d, 0xdd));
    }
}
INLINE void v16_store_halves(float *lo, float *hi, v16 a) {
    _mm256_storeu_ps(lo, _mm512_castps512_ps256(a)), _mm256_storeu_ps(hi, _mm512_extractf32x8_ps(a, 1));
}

#ifdef __AVX512BF16__
#define PAIR 2
// a pair is two bf16 in the place of a float, the lower index in the lower half; denormals count as 0, as in the CPU
INLINE vf vf_dot(vf a, vf b, vf c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
// pair i = (even[i], odd[i])
INLINE v16 pairs_of(v16 even, v16 odd) {
    const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                         23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (v16)_mm512_permutexvar_epi16(zip, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}
// pair i = (p[2 i], p[2 i + 1]) of 32 floats
INLINE v16 pairs_along(const float *p) { return (v16)_mm512_cvtne2ps_pbh(v16_load(p + 16), v16_load(p)); }
INLINE float pair_1(float even, float odd) {
    float pair[16];
    v16_store(pair, pairs_of(v16_set(even), v16_set(odd)));
    return pair[0];
}
#endif

#elif defined(__AVX2__) && defined(__FMA__)

#define VW 8
typedef __m256 vf;
INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vf_store(float *p, vf a) { _mm256_storeu_ps(p, a); }
INLINE void vf_store_past(float *p, vf a) { _mm256_stream_ps(p, a); }
INLINE vf vf_set(float x) { return _mm256_set1_ps(x); }
INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }

typedef struct { __m256 lo, hi; } v16;
#define V16(L, H) ((v16){L, H})
INLINE __m256i v8_mask(int64_t n) {
    static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(ones + 8 - (n < 0 ? 0 : n > 8 ? 8 : n)));
}
INLINE v16 v16_load(const float *p) { return V16(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
INLINE v16 v16_load_n(const float *p, int64_t n) {
    return V16(_mm256_maskload_ps(p, v8_mask(n)), _mm256_maskload_ps(p + 8, v8_mask(n - 8)));
}
INLINE void v16_store(float *p, v16 a) { _mm256_storeu_ps(p, a.lo), _mm256_storeu_ps(p + 8, a.hi); }
INLINE void v16_store_n(float *p, v16 a, int64_t n) {
    _mm256_maskstore_ps(p, v8_mask(n), a.lo), _mm256_maskstore_ps(p + 8, v8_mask(n - 8), a.hi);
}
INLINE v16 v16_set(float x) { return V16(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
INLINE v16 v16_add(v16 a, v16 b) { return V16(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)); }
INLINE v16 v16_sub(v16 a, v16 b) { return V16(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)); }
INLINE v16 v16_mul(v16 a, v16 b) { return V16(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)); }
INLINE v16 v16_div(v16 a, v16 b) { return V16(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)); }
INLINE v16 v16_fma(v16 a, v16 b, v16 c) {
    return V16(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}
INLINE v16 v16_sqrt(v16 a) { return V16(_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)); }
INLINE v16 v16_max(v16 a, v16 b) { return V16(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)); }
INLINE v16 v16_min(v16 a, v16 b) { return V16(_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)); }
INLINE v16 v16_first(v16 a, v16 b, int64_t n) {
    return V16(_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(v8_mask(n))),
               _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(v8_mask(n - 8))));
}
INLINE v16 v16_where_gt(v16 a, v16 b, v16 x, v16 y) {
    return V16(_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ)),
               _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ)));
}
#define V8_ROUND(x) _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
INLINE v16 v16_round(v16 a) { return V16(V8_ROUND(a.lo), V8_ROUND(a.hi)); }
INLINE __m256 v8_pow2(__m256 n) {
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
INLINE v16 v16_pow2(v16 n) { return V16(v8_pow2(n.lo), v8_pow2(n.hi)); }
INLINE float v16_sum(v16 a) {
    __m256 e = _mm256_add_ps(a.lo, a.hi);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
INLINE float v16_maximum(v16 a) {
    __m256 e = _mm256_max_ps(a.lo, a.hi);
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
INLINE __m256 v8_shl16(__m256 a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 16)); }
INLINE v16 v16_lower(v16 words) { return V16(v8_shl16(words.lo), v8_shl16(words.hi)); }
INLINE v16 v16_upper(v16 words) {
    __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32((int)0xffff0000));
    return V16(_mm256_and_ps(words.lo, mask), _mm256_and_ps(words.hi, mask));
}
typedef struct { __m256i lo, hi; } n16;
#define N16(L, H) ((n16){L, H})
INLINE n16 n16_load(const void *p) { return N16(_mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)p + 1)); }
INLINE void n16_store(void *p, n16 a) { _mm256_storeu_si256(p, a.lo), _mm256_storeu_si256((__m256i *)p + 1, a.hi); }
INLINE n16 n16_set(int32_t x) { return N16(_mm256_set1_epi32(x), _mm256_set1_epi32(x)); }
INLINE n16 n16_sub(n16 a, n16 b) { return N16(_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)); }
INLINE v16 v16_of_n16(n16 a) { return V16(_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)); }
INLINE __m256i n8_dot(__m256i sum, __m256i a, __m256i b) {        // in 16 bits each: pairs of products of bytes would not fit
    __m256i even = _mm256_and_si256(a, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(a, 8);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8)));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(odd, _mm256_srai_epi16(b, 8)));
}
INLINE n16 n16_dot(n16 sum, n16 a, n16 b) { return N16(n8_dot(sum.lo, a.lo, b.lo), n8_dot(sum.hi, a.hi, b.hi)); }
INLINE v16 v16_of_quarters(const void *p) {
    const __m256i at = _mm256_set_epi64x(0x0302808003028080, 0x0302808003028080, 0x0100808001008080, 0x0100808001008080);
    int64_t four;
    memcpy(&four, p, sizeof four);
    __m256i all = _mm256_set1_epi64x(four);
    return V16(_mm256_castsi256_ps(_mm256_shuffle_epi8(all, at)),
               _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_srli_epi64(all, 32), at)));
}
INLINE v16 v16_swap1(v16 a) { return V16(_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)); }
INLINE v16 v16_swap2(v16 a) { return V16(_mm256_permute_ps(a.lo, 0x4e), _mm256_permute_ps(a.hi, 0x4e)); }
INLINE void v16_to_int8(void *p, v16 a) {
    __m256i pairs = _mm256_packs_epi32(_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi));
    pairs = _mm256_permute4x64_epi64(pairs, 0xd8);
    _mm_storeu_si128(p, _mm_packs_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
}

// dst[c][r] = src[r][c] for a 16x16 block
INLINE void transpose16(float *dst, int64_t dst_stride, const float *src, int64_t src_stride) {
    for (int c = 0; c < 16; c += 8)
        for (int r = 0; r < 16; r += 8)
            transpose8(dst + c * dst_stride + r, dst_stride, src + r * src_stride + c, src_stride);
}

#else  // width 1: plain C that any compiler turns into what it has

#define VW 1
typedef float vf;
INLINE vf vf_load(const float *p) { return *p; }
INLINE void vf_store(float *p, vf a) { *p = a; }
INLINE void vf_store_past(float *p, vf a) { *p = a; }
INLINE void store_fence(void) {}
INLINE vf vf_set(float x) { return x; }
INLINE vf vf_add(vf a, vf b) { return a + b; }
INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }

typedef struct { float x[16]; } v16;
#define EACH16(EXPR)                            \
    v16 r;                                      \
    for (int i = 0; i < 16; i++) r.x[i] = EXPR; \
    return r
INLINE v16 v16_load(const float *p) { EACH16(p[i]); }
INLINE v16 v16_load_n(const float *p, int64_t n) { EACH16(i < n ? p[i] : 0.0f); }
INLINE void v16_store(float *p, v16 a) { memcpy(p, a.x, sizeof a.x); }
INLINE void v16_store_n(float *p, v16 a, int64_t n) { memcpy(p, a.x, sizeof(float) * (size_t)(n < 16 ? n : 16)); }
INLINE v16 v16_set(float x) { EACH16(x); }
INLINE v16 v16_add(v16 a, v16 b) { EACH16(a.x[i] + b.x[i]); }
INLINE v16 v16_sub(v16 a, v16 b) { EACH16(a.x[i] - b.x[i]); }
INLINE v16 v16_mul(v16 a, v16 b) { EACH16(a.x[i] * b.x[i]); }
INLINE v16 v16_div(v16 a, v16 b) { EACH16(a.x[i] / b.x[i]); }
INLINE v16 v16_fma(v16 a, v16 b, v16 c) { EACH16(a.x[i] * b.x[i] + c.x[i]); }
INLINE v16 v16_sqrt(v16 a) { EACH16(sqrtf(a.x[i])); }
INLINE v16 v16_max(v16 a, v16 b) { EACH16(a.x[i] > b.x[i] ? a.x[i] : b.x[i]); }
INLINE v16 v16_min(v16 a, v16 b) { EACH16(a.x[i] < b.x[i] ? a.x[i] : b.x[i]); }
INLINE v16 v16_first(v16 a, v16 b, int64_t n) { EACH16(i < n ? a.x[i] : b.x[i]); }
INLINE v16 v16_where_gt(v16 a, v16 b, v16 x, v16 y) { EACH16(a.x[i] > b.x[i] ? x.x[i] : y.x[i]); }
INLINE v16 v16_round(v16 a) { EACH16(rintf(a.x[i])); }
INLINE v16 v16_pow2(v16 n) {
    v16 r;
    for (int i = 0; i < 16; i++) {
        int32_t e = fabsf(n.x[i]) <= 127.0f ? ((int32_t)n.x[i] + 127) * (1 << 23) : 0;  // no integer of a NaN or a hidden score
        memcpy(&r.x[i], &e, sizeof e);
    }
    return r;
}
INLINE float v16_sum(v16 a) {
    for (int w = 8; w; w /= 2)
        for (int i = 0; i < w; i++) a.x[i] += a.x[i + w];
    return a.x[0];
}
INLINE float v16_maximum(v16 a) {
    for (int w = 8; w; w /= 2)
        for (int i = 0; i < w; i++) a.x[i] = a.x[i] > a.x[i + w] ? a.x[i] : a.x[i + w];
    return a.x[0];
}
INLINE v16 v16_bits(v16 words, int shift, uint32_t mask) {
    v16 r;
    for (int i = 0; i < 16; i++) {
        uint32_t u;
        memcpy(&u, &words.x[i], sizeof u);
        u = u << shift & mask;
        memcpy(&r.x[i], &u, sizeof u);
    }
    return r;
}
INLINE v16 v16_lower(v16 words) { return v16_bits(words, 16, 0xffff0000u); }
INLINE v16 v16_upper(v16 words) { return v16_bits(words, 0, 0xffff0000u); }
typedef struct { int32_t x[16]; } n16;
INLINE n16 n16_load(const void *p) {
    n16 r;
    memcpy(&r, p, sizeof r);
    return r;
}
INLINE void n16_store(void *p, n16 a) { memcpy(p, &a, sizeof a); }
#define EACH_N16(EXPR)                          \
    n16 r;                                      \
    for (int i = 0; i < 16; i++) r.x[i] = EXPR; \
    return r
INLINE n16 n16_set(int32_t x) { EACH_N16(x); }
INLINE n16 n16_sub(n16 a, n16 b) { EACH_N16(a.x[i] - b.x[i]); }
INLINE v16 v16_of_n16(n16 a) { EACH16((float)a.x[i]); }
INLINE n16 n16_dot(n16 sum, n16 a, n16 b) {
    uint8_t u[64];
    int8_t s[64];
    memcpy(u, &a, sizeof u), memcpy(s, &b, sizeof s);
    EACH_N16(sum.x[i] + (u[4 * i] * s[4 * i] + u[4 * i + 1] * s[4 * i + 1] + u[4 * i + 2] * s[4 * i + 2] + u[4 * i + 3] * s[4 * i + 3]));
}
INLINE v16 v16_of_quarters(const void *p) {
    uint32_t words[2], all[16];
    memcpy(words, p, sizeof words);
    for (int i = 0; i < 16; i++) all[i] = i / 4 % 2 ? words[i / 8] & 0xffff0000u : words[i / 8] << 16;
    v16 r;
    memcpy(&r, all, sizeof r);
    return r;
}
INLINE v16 v16_swap1(v16 a) { EACH16(a.x[i ^ 1]); }
INLINE v16 v16_swap2(v16 a) { EACH16(a.x[i ^ 2]); }
INLINE void v16_to_int8(void *p, v16 a) {
    for (int i = 0; i < 16; i++) ((int8_t *)p)[i] = (int8_t)a.x[i];
}
INLINE void transpose8(float *dst, int64_t dst_stride, const float *src, int64_t src_stride) {
    for (int c = 0; c < 8; c++)
        for (int r = 0; r < 8; r++) dst[c * dst_stride + r] = src[r * src_stride + c];
}
INLINE void transpose16(float *dst, int64_t dst_stride, const float *src, int64_t src_stride) {
    for (int c = 0; c < 16; c++)
        for (int r = 0; r < 16; r++) dst[c * dst_stride + r] = src[r * src_stride + c];
}
#endif

#if VW != 16
INLINE void v16_sum4(float *p, v16 a, v16 b, v16 c, v16 d) { p[0] = v16_sum(a), p[1] = v16_sum(b), p[2] = v16_sum(c), p[3] = v16_sum(d); }
#endif

#ifndef PAIR  // no bf16 products: what is rounded is multiplied as float32
#define PAIR 1
#define vf_dot vf_fma
#endif

// exp: 2^n e^r, |r| <= ln2/2, degree 6, within 3 ulp; 0 below -87.3, inf above 88.376
// (where 2^n would leave the exponent), NaN stays. ln2 in two parts (Cody-Waite).
INLINE v16 v16_exp(v16 x) {
    v16 lo = v16_set(-87.3f), hi = v16_set(88.3762589f), y = v16_min(hi, v16_max(lo, x));
    v16 n = v16_round(v16_mul(y, v16_set(1.44269504f)));
    v16 r = v16_fma(n, v16_set(-0.693145752f), y);
    r = v16_fma(n, v16_set(-1.42860677e-6f), r);
    v16 p = v16_set(1.38888889e-3f);
    p = v16_fma(p, r, v16_set(8.33333333e-3f));
    p = v16_fma(p, r, v16_set(4.16666667e-2f));
    p = v16_fma(p, r, v16_set(1.66666667e-1f));
    p = v16_fma(p, r, v16_set(0.5f));
    p = v16_fma(v16_mul(p, r), r, r);
    p = v16_mul(v16_add(p, v16_set(1.0f)), v16_pow2(n));
    p = v16_where_gt(x, hi, v16_set(INFINITY), p);
    return v16_where_gt(lo, x, v16_set(0.0f), p);
}

// to the nearest bf16, ties to even; NaN stays one
INLINE float bf16_1(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    u = x == x ? (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u : (u | 0x00400000u) & 0xffff0000u;
    memcpy(&x, &u, sizeof u);
    return x;
}

INLINE float exp1(float x) { return v16_maximum(v16_exp(v16_set(x))); }

// FOR16 runs its body for j = 0, 16, ... < n with m = lanes in use; load16 and store16 mask only the last
#define FOR16(j, m, n) for (int64_t j = 0, m; j < (n) && (m = (n) - j < 16 ? (n) - j : 16, 1); j += 16)
INLINE v16 load16(const float *p, int64_t m) { return m == 16 ? v16_load(p) : v16_load_n(p, m); }
INLINE void store16(float *p, v16 a, int64_t m) {
    if (m == 16) v16_store(p, a);
    else v16_store_n(p, a, m);
}
