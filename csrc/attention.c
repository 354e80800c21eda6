// Causal attention, flash and standard. Both walk the same tiles through the serial form of the GEMM (gemm.c), so only the
// masked half is skipped and no T x T matrix is needed; the standard form keeps its matrices for those who want to look.
enum { QUERIES = 64, KEYS = STATS };  // rows of a tile of queries; keys of a block of the softmax statistics

typedef struct {
    int64_t B, T, NH, KVH, HS, bf16, width;  // width: floats of a row of inp
    float scale, keep;                 // 1 / sqrt(HS); 1 / (1 - p_drop), or 0 without dropout
    uint32_t key, threshold;           // a probability is dropped when its random word is below the threshold
} Heads;

static Heads heads_of(int64_t B, int64_t T, int64_t NH, int64_t KVH, int64_t HS, int64_t BF16, const float *p_drop,
                      const int32_t *key_drop) {
    float p = *p_drop;
    return (Heads){B, T, NH, KVH, HS, BF16, (NH + 2 * KVH) * HS, 1.0f / sqrtf((float)HS), p > 0.0f ? 1.0f / (1.0f - p) : 0.0f,
                   (uint32_t)*key_drop, (uint32_t)((double)p * 4294967296.0)};
}

// rows of q, k, v of token 0 of batch b; k and v belong to query head h
INLINE int64_t query_at(const Heads *a, int64_t b, int64_t h) { return b * a->T * a->width + h * a->HS; }
INLINE int64_t key_at(const Heads *a, int64_t b, int64_t h) {
    return b * a->T * a->width + (a->NH + h / (a->NH / a->KVH)) * a->HS;
}
INLINE int64_t value_at(const Heads *a, int64_t b, int64_t h) { return key_at(a, b, h) + a->KVH * a->HS; }

// a counter-based random word: what is dropped depends on the key and the place alone (two rounds of a 32-bit mixer)
INLINE uint32_t mix32(uint32_t x) {
    x ^= x >> 16, x *= 0x7feb352du;
    x ^= x >> 15, x *= 0x846ca68bu;
    return x ^ x >> 16;
}

// p[j] *= 0 or keep, for keys j0 .. j0 + n of query i of head number bh
static void drop(float *p, const Heads *a, int64_t bh, int64_t i, int64_t j0, int64_t n) {
    uint32_t row = mix32(mix32(a->key ^ (uint32_t)bh * 0x9e3779b9u) + (uint32_t)i);
    for (int64_t j = 0; j < n; j++) p[j] *= mix32(row ^ mix32((uint32_t)(j0 + j))) < a->threshold ? 0.0f : a->keep;
}

// c (M,N) (+)= a b with the packing buffers of one thread
static void product(float *c, int64_t ldc, const float *a, int64_t ars, int64_t acs, const float *b, int64_t brs, int64_t bcs,
                    int64_t M, int64_t N, int64_t K, int64_t acc, int64_t bf16, float *buffer) {
    int64_t taken = 0;
    gemm_part(&(Gemm){.c = c, .ldc = ldc, .a = a, .ars = ars, .acs = acs, .b = b, .brs = brs, .bcs = bcs,
                      .M = M, .N = N, .K = K, .acc = acc, .bf16 = bf16}, &taken, buffer, 0, 1);
}

static void scale_row(float *row, float by, int64_t n) {
    FOR16(j, m, n) store16(row + j, v16_mul(load16(row + j, m), v16_set(by)), m);
}

// scratch of one thread: packing buffers of the largest product, then tiles p and dp (QUERIES, KEYS), o (QUERIES, HS), dot (QUERIES)
static int64_t product_floats(int64_t HS) {
    int64_t depth = HS > KEYS ? HS : KEYS;
    return round_up(gemm_scratch(KEYS, depth, 1), 16);
}
static int64_t thread_floats(int64_t HS) {
    return product_floats(HS) + 2 * QUERIES * KEYS + round_up(QUERIES * HS, 16) + 2 * QUERIES;
}

int64_t attention_scratch(int64_t B, int64_t T, int64_t NH, int64_t KVH, int64_t HS, int64_t BF16, int64_t NT) {
    (void)B, (void)T, (void)NH, (void)KVH, (void)BF16;
    return NT * thread_floats(HS);
}
int64_t attention_standard_scratch(int64_t B, int64_t T, int64_t NH, int64_t KVH, int64_t HS, int64_t BF16, int64_t NT) {
    return attention_scratch(B, T, NH, KVH, HS, BF16, NT);
}

// one step of the online softmax: the scores of `n` keys, of which the query sees `seen`, become probabilities relative to the
// running maximum; returns what the old sums must be multiplied with
static float softmax_block(float *p, int64_t seen, int64_t n, float scale, float *most, float *total) {
    v16 top = v16_set(-3.0e38f), sum = v16_set(0.0f);
    FOR16(j, m, seen) {
        v16 s = v16_mul(load16(p + j, m), v16_set(scale));
        store16(p + j, s, m);
        top = v16_max(v16_first(s, top, m), top);
    }
    float block = v16_maximum(top), now = block > *most ? block : *most, old = exp1(*most - now);
    FOR16(j, m, seen) {
        v16 e = v16_exp(v16_sub(load16(p + j, m), v16_set(now)));
        store16(p + j, e, m);
        sum = v16_add(sum, m < 16 ? v16_first(e, v16_set(0.0f), m) : e);
    }
    if (seen < n) memset(p + seen, 0, sizeof(float) * (size_t)(n - seen));
    *total = *total * old + v16_sum(sum);
    *most = now;
    return old;
}

// a tile of queries [i0, i0 + rows) of head bh against all keys they see
static void forward_tile(float *out, float *lse, const float *inp, const Heads *a, int64_t bh, int64_t i0, float *buffer) {
    int64_t b = bh / a->NH, h = bh % a->NH, HS = a->HS, rows = min64(a->T - i0, QUERIES);
    const float *q = inp + query_at(a, b, h) + i0 * a->width, *k = inp + key_at(a, b, h), *v = inp + value_at(a, b, h);
    float *p = buffer + product_floats(HS), *o = p + 2 * QUERIES * KEYS, most[QUERIES], total[QUERIES];
    for (int64_t i = 0; i < rows; i++) most[i] = -INFINITY, total[i] = 0.0f;
    for (int64_t j0 = 0; j0 < i0 + rows; j0 += KEYS) {
        int64_t n = min64(i0 + rows - j0, KEYS);
        product(p, KEYS, q, a->width, 1, k + j0 * a->width, 1, a->width, rows, n, HS, 0, a->bf16, buffer);
        for (int64_t i = 0; i < rows; i++) {
            int64_t seen = min64(i0 + i + 1 - j0, n);
            float old = softmax_block(p + i * KEYS, seen, n, a->scale, most + i, total + i);
            if (j0 > 0) scale_row(o + i * HS, old, HS);
            if (a->keep > 0.0f) drop(p + i * KEYS, a, bh, i0 + i, j0, seen);
        }
        product(o, HS, p, KEYS, 1, v + j0 * a->width, a->width, 1, rows, HS, n, j0 > 0, a->bf16, buffer);
    }
    for (int64_t i = 0; i < rows; i++) {
        v16 by = v16_set(1.0f / total[i]);
        float *out_i = out + ((b * a->T + i0 + i) * a->NH + h) * HS;
        FOR16(j, m, HS) store16(out_i + j, v16_mul(load16(o + i * HS + j, m), by), m);
        lse[bh * a->T + i0 + i] = most[i] + (float)log((double)total[i]);
    }
}

void attention_forward(float *out, float *lse, const float *inp, const float *p_drop, const int32_t *key_drop,
                       float *scratch, int64_t B, int64_t T, int64_t NH, int64_t KVH, int64_t HS, int64_t BF16, int64_t NT) {
    Heads a = heads_of(B, T, NH, KVH, HS, BF16, p_drop, key_drop);
    int64_t tiles = (T + QUERIES - 1) / QUERIES;
    PARALLEL(NT) {
        share(0);
        // tiles grow with i0, so they are dealt out in turn; whoever computes a tile computes all of it
        for (int64_t t = rank(); t < B * NH * tiles; t += team())
            forward_tile(out, lse, inp, &a, t / tiles, t % tiles * QUERIES, scratch + rank() * thread_floats(HS));
    }
}

// one row of a tile: dp, the gradient of the probabilities, becomes that of the unscaled scores; p becomes what multiplied v
static void backward_row(float *p, float *dp, const float *up, const float *out, const float *att, float lse, const Heads *a,
                         int64_t bh, int64_t i, int64_t j0, int64_t seen, int64_t n) {
    v16 sum = v16_set(0.0f);
    FOR16(j, m, a->HS) sum = v16_fma(load16(up + j, m), load16(out + j, m), sum);
    v16 dot = v16_set(v16_sum(sum)), scale = v16_set(a->scale), shift = v16_set(lse);
    if (a->keep > 0.0f) drop(dp, a, bh, i, j0, seen);
    FOR16(j, m, seen) {
        v16 p_j = att ? load16(att + j, m) : v16_exp(v16_sub(v16_mul(load16(p + j, m), scale), shift));
        store16(p + j, p_j, m);
        store16(dp + j, v16_mul(v16_mul(p_j, v16_sub(load16(dp + j, m), dot)), scale), m);
    }
    if (seen < n) {
        memset(p + seen, 0, sizeof(float) * (size_t)(n - seen));
        memset(dp + seen, 0, sizeof(float) * (size_t)(n - seen));
    }
    if (a->keep > 0.0f) drop(p, a, bh, i, j0, seen);
}

// The tiles of one head, keys outside and queries inside: dk and dv of a block finish together, dq of a query is added to in
// ascending blocks of keys. p is made again from lse (flash) or read from att (standard); dinp holds 0 or what is added to.
static void backward_head(float *dinp, const float *dout, const float *out, const float *lse, const float *att,
                          const float *inp, const Heads *a, int64_t bh, float *buffer) {
    int64_t b = bh / a->NH, h = bh % a->NH, HS = a->HS, T = a->T, W = a->width, pitch = a->NH * HS;
    int64_t q = query_at(a, b, h), k = key_at(a, b, h), v = value_at(a, b, h), head = b * T * pitch + h * HS;
    float *p = buffer + product_floats(HS), *dp = p + QUERIES * KEYS;
    for (int64_t j0 = 0; j0 < T; j0 += KEYS)
        for (int64_t i0 = j0; i0 < T; i0 += QUERIES) {
            int64_t rows = min64(T - i0, QUERIES), n = min64(i0 + rows - j0, KEYS);
            const float *q_i = inp + q + i0 * W, *k_j = inp + k + j0 * W, *up = dout + head + i0 * pitch;
            if (!att) product(p, KEYS, q_i, W, 1, k_j, 1, W, rows, n, HS, 0, a->bf16, buffer);
            product(dp, KEYS, up, pitch, 1, inp + v + j0 * W, 1, W, rows, n, HS, 0, a->bf16, buffer);
            for (int64_t i = 0; i < rows; i++) {
                int64_t row = bh * T + i0 + i, seen = min64(i0 + i + 1 - j0, n);
                backward_row(p + i * KEYS, dp + i * KEYS, up + i * pitch, out + head + (i0 + i) * pitch, att ? att + row * T + j0 : 0,
                             lse ? lse[row] : 0.0f, a, bh, i0 + i, j0, seen, n);
            }
            product(dinp + v + j0 * W, W, p, 1, KEYS, up, pitch, 1, n, HS, rows, 1, a->bf16, buffer);
            product(dinp + q + i0 * W, W, dp, KEYS, 1, k_j, W, 1, rows, HS, n, 1, a->bf16, buffer);
            product(dinp + k + j0 * W, W, dp, 1, KEYS, q_i, W, 1, n, HS, rows, 1, a->bf16, buffer);
        }
}

// the heads of a group share k and v, so one thread takes the group, heads in ascending order
static void backward(float *dinp, const float *dout, const float *out, const float *lse, const float *att, const float *inp,
                     const Heads *a, float *scratch, int64_t NT, int64_t acc) {
    int64_t group = a->NH / a->KVH;
    PARALLEL(NT) {
        Range r = share(a->B * a->KVH);
        for (int64_t g = r.begin; g < r.end; g++) {
            int64_t b = g / a->KVH, first = g % a->KVH * group;
            for (int64_t t = 0; t < a->T && !acc; t++) {
                float *row = dinp + t * a->width;
                memset(row + query_at(a, b, first), 0, sizeof(float) * (size_t)(group * a->HS));
                memset(row + key_at(a, b, first), 0, sizeof(float) * (size_t)a->HS);
                memset(row + value_at(a, b, first), 0, sizeof(float) * (size_t)a->HS);
            }
            for (int64_t h = first; h < first + group; h++)
                backward_head(dinp, dout, out, lse, att, inp, a, b * a->NH + h, scratch + rank() * thread_floats(a->HS));
        }
    }
}

void attention_backward(float *dinp, const float *dout, const float *out, const float *lse, const float *inp,
                        const float *p_drop, const int32_t *key_drop, float *scratch,
                        int64_t B, int64_t T, int64_t NH, int64_t KVH, int64_t HS, int64_t BF16, int64_t NT, int64_t acc_inp) {
    Heads a = heads_of(B, T, NH, KVH, HS, BF16, p_drop, key_drop);
    backward(dinp, dout, out, lse, 0, inp, &a, scratch, NT, acc_inp);
}

// a tile of queries with whole rows of scores and att; the softmax as in classifier.c
static void standard_tile(float *out, float *scores, float *att, const float *inp, const Heads *a, int64_t bh, int64_t i0,
                          float *buffer) {
    int64_t b = bh / a->NH, h = bh % a->NH, HS = a->HS, T = a->T, rows = min64(T - i0, QUERIES), keys = i0 + rows;
    const float *q = inp + query_at(a, b, h) + i0 * a->width, *k = inp + key_at(a, b, h), *v = inp + value_at(a, b, h);
    float *s = scores + (bh * T + i0) * T, *p = att + (bh * T + i0) * T, *tile = buffer + product_floats(HS);
    product(s, T, q, a->width, 1, k, 1, a->width, rows, keys, HS, 0, a->bf16, buffer);
    for (int64_t i = 0; i < rows; i++) {
        int64_t seen = i0 + i + 1;
        scale_row(s + i * T, a->scale, seen);
        v16 shift = v16_set(row_lse(s + i * T, seen));
        FOR16(j, m, seen) store16(p + i * T + j, v16_exp(v16_sub(load16(s + i * T + j, m), shift)), m);
        memset(s + i * T + seen, 0, sizeof(float) * (size_t)(T - seen));
        memset(p + i * T + seen, 0, sizeof(float) * (size_t)(T - seen));
    }
    float *o = out + ((b * T + i0) * a->NH + h) * HS;
    for (int64_t j0 = 0; j0 < keys; j0 += KEYS) {
        int64_t n = min64(keys - j0, KEYS);
        for (int64_t i = 0; i < rows; i++) {
            memcpy(tile + i * KEYS, p + i * T + j0, sizeof(float) * (size_t)n);
            if (a->keep > 0.0f) drop(tile + i * KEYS, a, bh, i0 + i, j0, n);
        }
        product(o, a->NH * HS, tile, KEYS, 1, v + j0 * a->width, a->width, 1, rows, HS, n, j0 > 0, a->bf16, buffer);
    }
}

void attention_standard_forward(float *out, float *scores, float *att, const float *inp,
                                const float *p_drop, const int32_t *key_drop, float *scratch,
                                int64_t B, int64_t T, int64_t NH, int64_t KVH, int64_t HS, int64_t BF16, int64_t NT) {
    Heads a = heads_of(B, T, NH, KVH, HS, BF16, p_drop, key_drop);
    int64_t tiles = (T + QUERIES - 1) / QUERIES;
    PARALLEL(NT) {
        share(0);
        for (int64_t t = rank(); t < B * NH * tiles; t += team())
            standard_tile(out, scores, att, inp, &a, t / tiles, t % tiles * QUERIES, scratch + rank() * thread_floats(HS));
    }
}

void attention_standard_backward(float *dinp, const float *dout, const float *out, const float *att, const float *inp,
                                 const float *p_drop, const int32_t *key_drop, float *scratch,
                                 int64_t B, int64_t T, int64_t NH, int64_t KVH, int64_t HS, int64_t BF16, int64_t NT, int64_t acc_inp) {
    Heads a = heads_of(B, T, NH, KVH, HS, BF16, p_drop, key_drop);
    backward(dinp, dout, out, 0, att, inp, &a, scratch, NT, acc_inp);
}
