// Tiles of attention, QB queries x KB keys: their products and the copies these read. A thread works in padded rooms of its own,
// so edges exist only where rows are copied in and out. What the mask hides is skipped in steps of a tile of registers; what
// is left of it is multiplied as 0. The order of every sum is that of gemm.c: chains over ascending indices.
enum { LD = STATS };  // floats between rows of a tile of probabilities; the most keys of a tile

// what all tiles have in common
typedef struct {
    int64_t B, T, NH, KVH, HS, bf16, QB, KB;
    int64_t width, pitch;              // floats of a row of inp and of out
    int64_t wide, deep, tall;          // HS padded to whole vectors; items that hold HS; QB padded to whole panels
    float scale, scale2;               // 1 / sqrt(HS), for e and for 2 as the base
    Drop drop;                         // of probabilities
} Heads;

// queries [i0, i0 + rows), keys [j0, j0 + keys)
typedef struct { int64_t i0, rows, j0, keys; } Block;
INLINE int64_t hidden_rows(Block t) { return t.j0 > t.i0 ? t.j0 - t.i0 : 0; }  // they see none of the keys
INLINE int64_t seen_keys(Block t, int64_t i) { return min64(t.i0 + i + 1 - t.j0, t.keys); }

// --- products

// column groups in strips of at most GROUPS, nearly equal
typedef struct { int64_t group, groups; } Strip;
INLINE int64_t strips_of(int64_t groups) { return (groups + GROUPS - 1) / GROUPS; }
INLINE Strip strip_at(int64_t groups, int64_t i) {
    Range r = part(groups, i, strips_of(groups));
    return (Strip){r.begin, r.end - r.begin};
}

// c (MR, 16 groups) = or += a b, K items deep, b with rows of ldb. a is read where it lies: by rows of lda (ACROSS 0) or by
// columns, an item of k being lda further (ACROSS 1). The last addition makes -0 a 0, so that no bit tells how many hidden
// zeros were added.
INLINE void piece(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t K, int from_c,
                  const int across, const int groups, const int dot) {
    enum { NV_MAX = NR / VW };
    const int NV = groups * 16 / VW;
    vf sum[MR][NV_MAX];
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) sum[i][v] = from_c ? vf_load(c + i * ldc + v * VW) : vf_set(0.0f);
    for (int64_t k = 0; k < K; k++, a += across ? lda : 1, b += ldb) {
        vf col[NV_MAX];
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) col[v] = vf_load(b + v * VW);
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) {
            vf x = vf_set(across ? a[i] : a[i * lda]);
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) sum[i][v] = dot ? vf_dot(x, col[v], sum[i][v]) : vf_fma(x, col[v], sum[i][v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) vf_store(c + i * ldc + v * VW, vf_add(sum[i][v], vf_set(0.0f)));
}

typedef void Piece(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t K, int from_c);
#define PIECE(NAME, ACROSS, G, DOT)                                                                                          \
    static __attribute__((noinline)) void NAME##G(float *c, int64_t ldc, const float *a, int64_t lda, const float *b,        \
                                                  int64_t ldb, int64_t K, int from_c) {                                      \
        piece(c, ldc, a, lda, b, ldb, K, from_c, ACROSS, G, DOT);                                                            \
    }
#if GROUPS == 3
#define PIECES(NAME, ACROSS, DOT) PIECE(NAME, ACROSS, 1, DOT) PIECE(NAME, ACROSS, 2, DOT) PIECE(NAME, ACROSS, 3, DOT)
#define ALL(NAME) {0, NAME##1, NAME##2, NAME##3}
#else
#define PIECES(NAME, ACROSS, DOT) PIECE(NAME, ACROSS, 1, DOT)
#define ALL(NAME) {0, NAME##1}
#endif
PIECES(row_fma, 0, 0)
PIECES(col_fma, 1, 0)
#if PAIR == 2
PIECES(row_dot, 0, 1)
PIECES(col_dot, 1, 1)
static Piece *const pieces[2][2][GROUPS + 1] = {{ALL(row_fma), ALL(col_fma)}, {ALL(row_dot), ALL(col_dot)}};
#else
static Piece *const pieces[2][2][GROUPS + 1] = {{ALL(row_fma), ALL(col_fma)}, {ALL(row_fma), ALL(col_fma)}};
#endif

// c (rows, keys) = a b^T; b is packed in strips. Pieces above the diagonal are left out.
static void scores_of(float *c, const float *a, const float *strips, const Heads *h, Block t) {
    int64_t groups = (t.keys + 15) / 16;
    for (int64_t s = 0; s < strips_of(groups); s++) {
        Strip strip = strip_at(groups, s);
        int64_t j = strip.group * 16, hidden = t.j0 + j - t.i0;  // rows that see nothing of the strip
        const float *b = strips + j * h->deep;
        for (int64_t i = hidden > 0 ? hidden / MR * MR : 0; i < t.rows; i += MR) {
            int64_t seen = min64((i + MR - 1 - hidden) / 16 + 1, strip.groups);
            pieces[h->bf16][0][seen](c + i * LD + j, LD, a + i * h->wide, h->wide, b, strip.groups * 16, h->deep, 0);
        }
    }
}

// c (rows, HS) (+)= p b for p (rows, keys): a row of panels ends at the last key it sees
static void weigh(float *c, const float *p, const float *b, const Heads *h, Block t, int from_c) {
    int64_t groups = h->wide / 16, hidden = t.j0 - t.i0;
    for (int64_t s = 0; s < strips_of(groups); s++) {
        Strip strip = strip_at(groups, s);
        Piece *whole = pieces[h->bf16][0][strip.groups];
        for (int64_t i = hidden > 0 ? hidden / MR * MR : 0; i < t.rows; i += MR)
            whole(c + i * h->wide + strip.group * 16, h->wide, p + i * LD, LD, b + strip.group * 16, h->wide,
                  items(min64(t.keys, i + MR - hidden), h->bf16), from_c);
    }
}

// c (keys, HS) += p^T b for p (rows, keys): a panel of keys begins with the first query that sees it
static void gather(float *c, const float *p, const float *b, const Heads *h, Block t) {
    int64_t groups = h->wide / 16, pair = h->bf16 ? PAIR : 1;
    for (int64_t s = 0; s < strips_of(groups); s++) {
        Strip strip = strip_at(groups, s);
        Piece *whole = pieces[h->bf16][1][strip.groups];
        for (int64_t j = 0; j < t.keys; j += MR) {
            int64_t first = t.j0 + j - t.i0, k = first > 0 ? first / pair : 0, K = items(t.rows, h->bf16) - k;
            if (K > 0)
                whole(c + j * h->wide + strip.group * 16, h->wide, p + k * pair * LD + j, pair * LD,
                      b + k * h->wide + strip.group * 16, h->wide, K, 1);
        }
    }
}

// --- copies: rows as a left factor (items along the row), rows as a right factor (items down the columns), strips of b^T

// rows of HS padded with zeros, and back
static void take_rows(float *room, const float *src, int64_t stride, int64_t rows, const Heads *h) {
    for (int64_t i = 0; i < rows; i++) FOR16(j, m, h->HS) v16_store(room + i * h->wide + j, load16(src + i * stride + j, m));
}
static void give_rows(float *dst, int64_t stride, const float *room, int64_t rows, const Heads *h) {
    for (int64_t i = 0; i < rows; i++) FOR16(j, m, h->HS) store16(dst + i * stride + j, v16_load(room + i * h->wide + j), m);
}

static void copy_left(float *dst, const float *src, int64_t stride, int64_t rows, const Heads *h) {
#if PAIR == 2
    if (h->bf16) {
        for (int64_t i = 0; i < rows; i++)
            for (int64_t k = 0; k < h->HS; k += 32) {
                float tail[32] = {0};
                if (h->HS - k < 32) memcpy(tail, src + i * stride + k, sizeof(float) * (size_t)(h->HS - k));
                v16_store(dst + i * h->wide + k / 2, pairs_along(h->HS - k < 32 ? tail : src + i * stride + k));
            }
        return;
    }
#endif
    if (h->bf16) pack_b_bf16(dst, h->wide, src, stride, 1, h->HS, rows);
    else take_rows(dst, src, stride, rows, h);
}

static void copy_right(float *dst, const float *src, int64_t stride, int64_t rows, const Heads *h) {
    if (h->bf16) pack_b_bf16(dst, h->wide, src, stride, 1, h->HS, rows);
    else take_rows(dst, src, stride, rows, h);
}

static void copy_strips(float *dst, const float *src, int64_t stride, int64_t rows, const Heads *h) {
    int64_t groups = (rows + 15) / 16;
    for (int64_t s = 0; s < strips_of(groups); s++) {
        Strip strip = strip_at(groups, s);
        int64_t j = strip.group * 16;
        (h->bf16 ? pack_b_bf16 : pack_b)(dst + j * h->deep, strip.groups * 16, src + j * stride, 1, stride, rows - j, h->HS);
    }
}

// --- a tile of probabilities, of which the rows are done that see a key

// zeros behind what a row sees, as far as panels and pairs may read
static void hide(float *p, Block t) {
    for (int64_t i = hidden_rows(t) / MR * MR; i < t.rows; i++) {
        int64_t seen = i < hidden_rows(t) ? 0 : seen_keys(t, i), end = min64(round_up(seen + MR, 32), LD);
        for (int64_t j = round_up(seen, 16); j < end; j += 16) v16_store(p + i * LD + j, v16_set(0.0f));
    }
}

// as a left factor, in dst (may be p)
static void pair_rows(float *dst, const float *p, const Heads *h, Block t) {
    for (int64_t i = hidden_rows(t) / MR * MR; i < t.rows && h->bf16; i++)
#if PAIR == 2
        for (int64_t j = 0; j < min64(t.keys, t.i0 + i + MR - t.j0); j += 32)
            v16_store(dst + i * LD + j / 2, pairs_along(p + i * LD + j));
#else
        for (int64_t j = 0; j < t.keys; j++) dst[i * LD + j] = bf16_1(p[i * LD + j]);
#endif
}

// its transpose as a left factor, in place
static void pair_columns(float *p, const Heads *h, Block t) {
#if PAIR == 2
    for (int64_t i = hidden_rows(t); i < t.rows && h->bf16; i += 2)
        for (int64_t j = 0; j < min64(t.keys, t.i0 + i + MR - t.j0); j += 16) {
            v16 odd = i + 1 < t.rows ? v16_load(p + (i + 1) * LD + j) : v16_set(0.0f);
            v16_store(p + i * LD + j, pairs_of(v16_load(p + i * LD + j), odd));
        }
#else
    pair_rows(p, p, h, t);
#endif
}
