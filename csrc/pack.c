// The shape of a tile, and the packing of both factors into what its micro-kernel reads (gemm.c): A as panels of MR rows, B as
// strips of 16 to 48 columns, both k-major and padded with zeros. In bf16 mode packing rounds; what holds one k is an item.
#if VW == 16
#define MR 8        // 8x48: 24 accumulators, 3 loads and 8 broadcasts for 24 FMAs; all dims of GPT-2 are multiples of 48
#define GROUPS 3
#elif VW == 8
#define MR 6        // 6x16: 12 accumulators, 2 columns and a broadcast in 16 registers
#define GROUPS 1
#else
#define MR 2
#define GROUPS 1
#endif
#define NR (16 * GROUPS)
#define KC 768               // items of k in a pass: C = 768 needs one, and 8 rows of 768 floats are half of a 48 KB L1
#define MC 1024              // rows of C in a job, and rows of A packed at once: MC x KC floats = 3 MB, read by all threads
#define B_FLOATS (96 * KC)   // floats of B packed at once by a thread: 295 KB of its L2; as much is on its way there
#define PAST_FLOATS (1 << 20)
#define TAIL_FLOATS (MR * KC)  // the last rows of an A that is read in place
enum { JOBS = 8 };           // a thread finds at least so many jobs, where the columns allow it
enum { FETCH = 4 };          // items between two lines fetched ahead

// items that hold K of k
INLINE int64_t items(int64_t K, int64_t bf16) { return bf16 && PAIR == 2 ? (K + 1) / 2 : K; }

// the first k of MR rows, k-major: whole blocks of them; returns how many
#if VW == 16
static int64_t pack_rows(float *panel, const float *a, int64_t ars, int64_t K) {
    int64_t k = 0;
    for (; k + 16 <= K; k += 16) {
        v16 r[MR];
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) r[i] = v16_load(a + i * ars + k);
        interleave8(panel + k * MR, r);
    }
    return k;
}
#elif VW == 8  // rows 6 and 7 fall on the next k, which overwrites them
static int64_t pack_rows(float *panel, const float *a, int64_t ars, int64_t K) {
    int64_t k = 0;
    for (; k + 8 < K; k += 8) transpose8(panel + k * MR, MR, a + k, ars);
    return k;
}
#else
static int64_t pack_rows(float *panel, const float *a, int64_t ars, int64_t K) { return (void)panel, (void)a, (void)ars, (void)K, 0; }
#endif

// panels[p][k][r] = a(p MR + r, k) for `rows` rows from src, zero beyond them
static void pack_a(float *panels, const float *src, int64_t ars, int64_t acs, int64_t rows, int64_t K) {
    enum { TOGETHER = 8 };  // panels side by side, so that whole lines of src are used
    int64_t whole = rows / MR, p = 0;
    for (int64_t n; ars == 1 && p < whole; p += n) {
        n = min64(whole - p, TOGETHER);
        for (int64_t k = 0; k < K; k++)
            for (int64_t q = p; q < p + n; q++) memcpy(panels + (q * K + k) * MR, src + k * acs + q * MR, sizeof(float) * MR);
    }
    for (; p * MR < rows; p++) {
        float *panel = panels + p * MR * K;
        const float *a = src + p * MR * ars;
        int64_t k = 0;
        if (acs == 1 && rows - p * MR >= 8) k = pack_rows(panel, a, ars, K);
        for (; k < K; k++)
            for (int r = 0; r < MR; r++) panel[k * MR + r] = p * MR + r < rows ? a[r * ars + k * acs] : 0.0f;
    }
}

// strip[k][j] = b(k,j) for `width` columns (a multiple of 16) from src, zero for j >= cols
static void pack_b(float *strip, int64_t width, const float *src, int64_t brs, int64_t bcs, int64_t cols, int64_t K) {
    if (bcs == 1) {
        for (int64_t k = 0; k < K; k++)
            for (int64_t j = 0; j < width; j += 16) v16_store(strip + k * width + j, load16(src + k * brs + j, min64(cols - j, 16)));
        return;
    }
    for (int64_t j = 0; j < width; j += 16) {
        int64_t have = min64(cols - j, 16), k = 0;
        float *dst = strip + j;
        if (have == 16)
            for (; k + 16 <= K; k += 16) transpose16(dst + k * width, width, src + j * bcs + k, bcs);
        for (; k < K; k++)
            for (int64_t r = 0; r < 16; r++) dst[k * width + r] = r < have ? src[k * brs + (j + r) * bcs] : 0.0f;
    }
}

#if PAIR == 2
// the same with pairs: panels[p][k / 2][r] = (a(p MR + r, k), a(p MR + r, k + 1))
static void pack_a_bf16(float *panels, const float *src, int64_t ars, int64_t acs, int64_t rows, int64_t K) {
    enum { TOGETHER = 8 };
    int64_t whole = rows / (2 * MR) * 2, p = 0, deep = (K + 1) / 2;
    for (int64_t n; ars == 1 && p < whole; p += n) {
        n = min64(whole - p, TOGETHER);
        for (int64_t k = 0; k < K; k += 2)
            for (int64_t q = p; q < p + n; q += 2) {
                const float *even = src + k * acs + q * MR;
                v16 pairs = pairs_of(v16_load(even), k + 1 < K ? v16_load(even + acs) : v16_set(0.0f));
                float *panel = panels + (q * deep + k / 2) * MR;
                v16_store_halves(panel, panel + deep * MR, pairs);
            }
    }
    for (; p * MR < rows; p++) {
        float *panel = panels + p * MR * deep;
        const float *a = src + p * MR * ars;
        int64_t k = 0;
        if (acs == 1 && rows - p * MR >= MR)
            for (; k + 32 <= K; k += 32) {
                v16 r[MR];
#pragma GCC unroll 8
                for (int i = 0; i < MR; i++) r[i] = pairs_along(a + i * ars + k);
                interleave8(panel + k / 2 * MR, r);
            }
        for (; k < K; k += 2)
            for (int r = 0; r < MR; r++) {
                const float *even = a + r * ars + k * acs;
                panel[k / 2 * MR + r] = p * MR + r < rows ? pair_1(even[0], k + 1 < K ? even[acs] : 0.0f) : 0.0f;
            }
    }
}

static void pack_b_bf16(float *strip, int64_t width, const float *src, int64_t brs, int64_t bcs, int64_t cols, int64_t K) {
    if (bcs == 1) {
        for (int64_t k = 0; k < K; k += 2, strip += width)
            for (int64_t j = 0; j < width; j += 16) {
                const float *even = src + k * brs + j;
                int64_t have = min64(cols - j, 16);
                v16_store(strip + j, pairs_of(load16(even, have), k + 1 < K ? load16(even + brs, have) : v16_set(0.0f)));
            }
        return;
    }
    for (int64_t j = 0; j < width; j += 16) {
        int64_t have = min64(cols - j, 16), k = 0;
        float *dst = strip + j;
        if (have == 16)
            for (; k + 32 <= K; k += 32, dst += 16 * width) {
                float block[16 * 16];
                for (int r = 0; r < 16; r++) v16_store(block + 16 * r, pairs_along(src + (j + r) * bcs + k));
                transpose16(dst, width, block, 16);
            }
        for (; k < K; k += 2, dst += width)
            for (int64_t r = 0; r < 16; r++) {
                const float *even = src + k * brs + (j + r) * bcs;
                dst[r] = r < have ? pair_1(even[0], k + 1 < K ? even[brs] : 0.0f) : 0.0f;
            }
    }
}
#else
static void pack_a_bf16(float *panels, const float *src, int64_t ars, int64_t acs, int64_t rows, int64_t K) {
    pack_a(panels, src, ars, acs, rows, K);
    for (int64_t i = 0; i < round_up(rows, MR) * K; i++) panels[i] = bf16_1(panels[i]);
}
static void pack_b_bf16(float *strip, int64_t width, const float *src, int64_t brs, int64_t bcs, int64_t cols, int64_t K) {
    pack_b(strip, width, src, brs, bcs, cols, K);
    for (int64_t i = 0; i < width * K; i++) strip[i] = bf16_1(strip[i]);
}
#endif
