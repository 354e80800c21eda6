// C (+)= A B + bias for strided A (M,K) and B (K,N): packing, one register-tiled micro-kernel per width, the loops around them.
// X W^T, dY W and dY^T X are this one product with other strides. Every element of C is one FMA chain over ascending k:
// a block of k starts from 0 or from C, so no bit depends on tiles, blocks or threads.
//
//   A panel: MR rows, k-major          a(0,k) a(1,k) .. a(MR-1,k) | next k ..   broadcast one by one, stays in L1
//   B strip: 16, 32 or 48 columns      b(k,0) b(k,1) ..           | next k ..   loaded as vectors, streams from L2
//   Both are padded with zeros, so the k loop has no masks; a tile cut by the edge of C is finished in a buffer.
//
// In bf16 mode the packing rounds A and B. Where the CPU multiplies bf16, an item of a panel is a pair of k (PAIR 2) in the place
// of a float and the chain runs over pairs; elsewhere an item is the rounded float. Everything counts in items.
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
#define KC 768      // an A panel of 8 x 768 floats is half of a 48 KB L1, and C = 768 needs a single pass
#define MC 1024     // rows of A packed at once: MC x KC floats = 3 MB, read by all threads
#define B_FLOATS (192 * KC)  // floats of B packed at once by a thread: 590 KB of its L2

typedef struct {
    float *c;
    int64_t ldc;
    const float *a;
    int64_t ars, acs;      // a(m,k) = a[m * ars + k * acs]; one of the two strides is 1
    const float *b;
    int64_t brs, bcs;      // b(k,n) = b[k * brs + n * bcs]; one of the two strides is 1
    const float *bias;     // (N) or NULL, added last
    int64_t M, N, K, acc;  // acc: C = old C + A B
    int64_t bf16;
} Gemm;

// items that hold K of k
INLINE int64_t items(int64_t K, int64_t bf16) { return bf16 && PAIR == 2 ? (K + 1) / 2 : K; }

INLINE void micro(float *c, int64_t ldc, const float *a, const float *b, int64_t K, int from_c, const float *bias,
                  const int groups, const int dot) {
    enum { NV_MAX = NR / VW };
    const int NV = groups * 16 / VW;
    vf sum[MR][NV_MAX];
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) sum[i][v] = from_c ? vf_load(c + i * ldc + v * VW) : vf_set(0.0f);
    for (int64_t k = 0; k < K; k++, a += MR, b += NV * VW) {
        vf col[NV_MAX];
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) col[v] = vf_load(b + v * VW);
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) {
            vf x = vf_set(a[i]);
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) sum[i][v] = dot ? vf_dot(x, col[v], sum[i][v]) : vf_fma(x, col[v], sum[i][v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++)
            vf_store(c + i * ldc + v * VW, bias ? vf_add(sum[i][v], vf_load(bias + v * VW)) : sum[i][v]);
}

// one function per strip width, out of line: the k loop keeps every accumulator in a register
typedef void Micro(float *c, int64_t ldc, const float *a, const float *b, int64_t K, int from_c, const float *bias);
#define MICRO(NAME, G, DOT)                                                                                                \
    static __attribute__((noinline)) void NAME##G(float *c, int64_t ldc, const float *a, const float *b, int64_t K, \
                                                  int from_c, const float *bias) {                                   \
        micro(c, ldc, a, b, K, from_c, bias, G, DOT);                                                                \
    }
MICRO(fma, 1, 0)
#if GROUPS == 3
MICRO(fma, 2, 0)
MICRO(fma, 3, 0)
#endif
#if PAIR == 2
MICRO(dot, 1, 1)
MICRO(dot, 2, 1)
MICRO(dot, 3, 1)
static Micro *const micros[2][GROUPS + 1] = {{0, fma1, fma2, fma3}, {0, dot1, dot2, dot3}};
#elif GROUPS == 3
static Micro *const micros[2][GROUPS + 1] = {{0, fma1, fma2, fma3}, {0, fma1, fma2, fma3}};
#else
static Micro *const micros[2][GROUPS + 1] = {{0, fma1}, {0, fma1}};
#endif

// a tile of which C holds only rows x cols
static void micro_edge(float *c, int64_t ldc, const float *a, const float *b, int64_t K, int from_c, const float *bias,
                       int64_t rows, int64_t cols, Micro *whole) {
    float tile[MR * NR], edge_bias[NR];
    for (int64_t i = 0; from_c && i < MR; i++)
        for (int64_t j = 0; j < NR; j++) tile[i * NR + j] = i < rows && j < cols ? c[i * ldc + j] : 0.0f;
    for (int64_t j = 0; bias && j < NR; j++) edge_bias[j] = j < cols ? bias[j] : 0.0f;
    whole(tile, NR, a, b, K, from_c, bias ? edge_bias : 0);
    for (int64_t i = 0; i < rows; i++) memcpy(c + i * ldc, tile + i * NR, sizeof(float) * (size_t)cols);
}

// panel[k][r] = a(r,k) for MR rows from src, zero for r >= rows
static void pack_a(float *panel, const float *src, int64_t ars, int64_t acs, int64_t rows, int64_t K) {
    int64_t k = 0;
    if (acs != 1) {
        if (rows >= MR)
            for (; k < K; k++)
                for (int r = 0; r < MR; r++) panel[k * MR + r] = src[k * acs + r];
    } else if (rows >= 8 && VW > 1)  // rows 6 and 7 of a six-row panel fall on the next k, which overwrites them
        for (; k + 8 < K + (MR == 8); k += 8) transpose8(panel + k * MR, MR, src + k, ars);
    for (; k < K; k++)
        for (int r = 0; r < MR; r++) panel[k * MR + r] = r < rows ? src[r * ars + k * acs] : 0.0f;
}

// strip[k][j] = b(k,j) for `width` columns (a multiple of 16) from src, zero for j >= cols
static void pack_b(float *strip, int64_t width, const float *src, int64_t brs, int64_t bcs, int64_t cols, int64_t K) {
    for (int64_t j = 0; j < width; j += 16) {
        int64_t have = min64(cols - j, 16), k = 0;
        float *dst = strip + j;
        if (bcs == 1)
            for (; k < K; k++) v16_store(dst + k * width, load16(src + k * brs + j, have));
        else if (have == 16)
            for (; k + 16 <= K; k += 16) transpose16(dst + k * width, width, src + j * bcs + k, bcs);
        for (; k < K; k++)
            for (int64_t r = 0; r < 16; r++) dst[k * width + r] = r < have ? src[k * brs + (j + r) * bcs] : 0.0f;
    }
}

#if PAIR == 2
// panel[k / 2][r] = the pair (a(r,k), a(r,k+1))
static void pack_a_pairs(float *panel, const float *src, int64_t ars, int64_t acs, int64_t rows, int64_t K) {
    int64_t k = 0;
    if (acs != 1) {
        for (; k + 2 <= K; k += 2, panel += MR) {
            const float *even = src + k * acs;
            v16_store_n(panel, pairs_of(v16_load_n(even, min64(rows, MR)), v16_load_n(even + acs, min64(rows, MR))), MR);
        }
    } else if (rows >= MR) {
        for (; k + 16 <= K; k += 16, panel += 8 * MR) {
            float block[8 * 8];
            for (int r = 0; r < 8; r++) pairs_of8(block + 8 * r, src + r * ars + k);
            transpose8(panel, MR, block, 8);
        }
    }
    for (; k < K; k += 2, panel += MR)
        for (int r = 0; r < MR; r++) {
            const float *even = src + r * ars + k * acs;
            panel[r] = r < rows ? pair_1(even[0], k + 1 < K ? even[acs] : 0.0f) : 0.0f;
        }
}

static void pack_b_pairs(float *strip, int64_t width, const float *src, int64_t brs, int64_t bcs, int64_t cols, int64_t K) {
    for (int64_t j = 0; j < width; j += 16) {
        int64_t have = min64(cols - j, 16), k = 0;
        float *dst = strip + j;
        if (bcs == 1)
            for (; k + 2 <= K; k += 2, dst += width) {
                const float *even = src + k * brs + j;
                v16_store(dst, pairs_of(load16(even, have), load16(even + brs, have)));
            }
        else if (have == 16)
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
static void pack_a_pairs(float *panel, const float *src, int64_t ars, int64_t acs, int64_t rows, int64_t K) {
    pack_a(panel, src, ars, acs, rows, K);
    for (int64_t i = 0; i < MR * K; i++) panel[i] = bf16_1(panel[i]);
}
static void pack_b_pairs(float *strip, int64_t width, const float *src, int64_t brs, int64_t bcs, int64_t cols, int64_t K) {
    pack_b(strip, width, src, brs, bcs, cols, K);
    for (int64_t i = 0; i < width * K; i++) strip[i] = bf16_1(strip[i]);
}
#endif

// the columns [begin, end) of B, in groups of 16, as strips of at most GROUPS that differ by at most one group
typedef struct { int64_t group, groups; } Strip;
INLINE int64_t strips_of(int64_t groups) { return (groups + GROUPS - 1) / GROUPS; }
INLINE Strip strip_at(int64_t groups, int64_t i) {
    Range r = part(groups, i, strips_of(groups));
    return (Strip){r.begin, r.end - r.begin};
}

// One block of C: `rows` rows from row m against the column groups [from, to), k in [k0, k0 + K); A is packed in `panels`
// (its first row is row m), B is packed here into `strips` unless it still holds this block.
static void gemm_block(const Gemm *g, const float *panels, float *strips, int packed, int64_t m, int64_t rows, int64_t from,
                       int64_t to, int64_t k0, int64_t K) {
    int64_t groups = to - from, count = strips_of(groups), deep = items(K, g->bf16);
    for (int64_t s = 0; s < count && !packed; s++) {
        Strip strip = strip_at(groups, s);
        int64_t n = (from + strip.group) * 16;
        const float *b = g->b + k0 * g->brs + n * g->bcs;
        (g->bf16 ? pack_b_pairs : pack_b)(strips + strip.group * 16 * deep, strip.groups * 16, b, g->brs, g->bcs, g->N - n, K);
    }
    int from_c = g->acc || k0 > 0;
    const float *bias = k0 + K == g->K ? g->bias : 0;
    for (int64_t i = 0; i < rows; i += MR)
        for (int64_t s = 0; s < count; s++) {
            Strip strip = strip_at(groups, s);
            int64_t n = (from + strip.group) * 16, cols = g->N - n;
            float *c = g->c + (m + i) * g->ldc + n;
            const float *a = panels + i * deep, *b = strips + strip.group * 16 * deep, *tile_bias = bias ? bias + n : 0;
            Micro *whole = micros[g->bf16 != 0][strip.groups];
            if (rows - i >= MR && cols >= strip.groups * 16) whole(c, g->ldc, a, b, deep, from_c, tile_bias);
            else
                micro_edge(c, g->ldc, a, b, deep, from_c, tile_bias, min64(rows - i, MR), min64(cols, strip.groups * 16), whole);
        }
}

// floats of packed A, and floats of packed A and B together, for `parts` threads
INLINE int64_t gemm_a_floats(int64_t M, int64_t K) { return round_up(min64(M, MC), MR) * min64(K, KC); }
INLINE int64_t gemm_scratch(int64_t M, int64_t K, int64_t parts) {
    return round_up(gemm_a_floats(M, K), 16) + parts * B_FLOATS;
}

// How `parts` threads divide a block: `down` parts of the rows times parts / down parts of the columns, so that the largest
// tile count of a thread is smallest. Which thread computes a tile changes no bit.
static int64_t grid_down(int64_t M, int64_t N, int64_t parts) {
    int64_t best = 1, least = INT64_MAX, tiles = (min64(M, MC) + MR - 1) / MR, groups = (N + 15) / 16;
    for (int64_t down = 1; down <= parts; down++) {
        int64_t across = parts / down;
        if (down * across != parts) continue;
        int64_t most = ((tiles + down - 1) / down) * ((groups + across - 1) / across);
        if (most < least) least = most, best = down;
    }
    return best;
}

// The loops, run by every thread of a team of `parts` (`me` is its rank); a team of one needs no parallel region.
static void gemm_part(const Gemm *g, float *scratch, int64_t me, int64_t parts) {
    int64_t down = grid_down(g->M, g->N, parts), across = parts / down, groups = (g->N + 15) / 16;
    int64_t pass = g->bf16 ? KC * PAIR : KC;  // of k
    Range mine = part(groups, me % across, across);
    float *panels = scratch, *strips = scratch + round_up(gemm_a_floats(g->M, g->K), 16) + me * B_FLOATS;
    int64_t held_k = -1, held_group = -1;  // the block of B that `strips` holds
    for (int64_t m = 0; m < g->M; m += MC) {
        int64_t rows = min64(g->M - m, MC), tiles = (rows + MR - 1) / MR;
        Range tall = part(tiles, me / across, down), packing = part(tiles, me, parts);
        for (int64_t k = 0; k < g->K; k += pass) {
            int64_t K = min64(g->K - k, pass), deep = items(K, g->bf16), step = B_FLOATS / deep / 16;
            for (int64_t t = packing.begin; t < packing.end; t++) {
                const float *a = g->a + (m + t * MR) * g->ars + k * g->acs;
                (g->bf16 ? pack_a_pairs : pack_a)(panels + t * MR * deep, a, g->ars, g->acs, rows - t * MR, K);
            }
            if (parts > 1) { BARRIER }
            int64_t from = tall.begin * MR, to = min64(tall.end * MR, rows);
            for (int64_t n = mine.begin; n < mine.end && from < to; n += step) {
                gemm_block(g, panels + from * deep, strips, held_k == k && held_group == n, m + from, to - from, n,
                           min64(n + step, mine.end), k, K);
                held_k = k, held_group = n;
            }
            if (parts > 1) { BARRIER }
        }
    }
}

static void gemm(Gemm g, float *scratch, int64_t NT) {
    PARALLEL(NT) {
        share(0);
        gemm_part(&g, scratch, rank(), team());
    }
}
