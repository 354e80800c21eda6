// decode: one new token for each of B rows. Its products read every weight once, so memory is their limit: a thread streams rows of
// weights, a few at a time, past all rows of the batch, and fetches ahead. A sum is tree16 whatever the batch and the packing.
//
// A row of packed weights is a run of blocks of 32, padded with zeros (kernels.h, PACK): 0 the floats as they are, not padded;
// 1 bf16: word i of 16 holds element i in its lower half and element 16 + i in the upper; 2 int8: a float, the scale, then 32 int8.
enum { PACK_FP32, PACK_BF16, PACK_INT8, PACKS };
enum { UNIT = 8 };  // rows of weights that stay near while the rows of the batch pass: a unit of work
INLINE int64_t padded(int64_t C) { return round_up(C, 32); }

typedef struct {
    float *out;
    const float *x, *added, *weight, *bias;  // x: rows of padded(C), zeros at their ends
    int64_t C, OC, W, gelu;
} Product;

// R rows of weights from row `n` on, of which `rows` are there, times NB rows of x: out[b][n + r]
INLINE void product(const Product *p, const float *x, int64_t b, int64_t n, int64_t rows, const int pack, const int R, const int NB) {
    enum { MOST = UNIT };
    const float *w[MOST], *xs[MOST];
    v16 sum[MOST][MOST];
    const int64_t step = pack == PACK_FP32 ? 32 : pack == PACK_BF16 ? 16 : 9, ahead = R * p->W, ldx = padded(p->C);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) w[r] = p->weight + (n + min64(r, rows - 1)) * p->W;
#pragma GCC unroll 8
    for (int i = 0; i < NB; i++) xs[i] = x + i * ldx;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int i = 0; i < NB; i++) sum[r][i] = v16_set(0.0f);
    for (int64_t k = 0, at = 0; k < p->C; k += 32, at += step) {
        int64_t left = p->C - k;
        v16 lo[MOST], hi[MOST];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const float *from = w[r] + at;
            __builtin_prefetch(from + ahead, 0, 2);
            if (pack == PACK_FP32) __builtin_prefetch(from + ahead + 16, 0, 2);
            if (pack == PACK_FP32 && left < 32) lo[r] = v16_load_n(from, left), hi[r] = v16_load_n(from + 16, left < 16 ? 0 : left - 16);
            else if (pack == PACK_FP32) lo[r] = v16_load(from), hi[r] = v16_load(from + 16);
            else if (pack == PACK_BF16) lo[r] = v16_lower(v16_load(from)), hi[r] = v16_upper(v16_load(from));
            else {
                v16 scale = v16_set(*from);
                lo[r] = v16_mul(v16_of_int8(from + 1), scale), hi[r] = v16_mul(v16_of_int8(from + 5), scale);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < NB; i++) {
            v16 x_lo = v16_load(xs[i] + k), x_hi = v16_load(xs[i] + k + 16);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) sum[r][i] = v16_fma(hi[r], x_hi, v16_fma(lo[r], x_lo, sum[r][i]));
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < NB; i++) {
        float y[16] = {0};
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) y[r] = v16_sum(sum[r][i]);
        v16 z = v16_load(y);
        if (p->bias) z = v16_add(z, v16_load_n(p->bias + n, rows));
        if (p->gelu) z = gelu_of(z);
        int64_t to = (b + i) * p->OC + n;
        if (p->added) z = v16_add(v16_load_n(p->added + to, rows), z);
        v16_store_n(p->out + to, z, rows);
    }
}

// rows of x at once, and rows of weights beside them: as many sums as stay in registers
#if VW == 16
#define SHAPES(F, NAME, PACK) F(NAME, PACK, 8, 1) F(NAME, PACK, 8, 2) F(NAME, PACK, 4, 4) F(NAME, PACK, 2, 8)
enum { MOST_X = 8 };
#else
#define SHAPES(F, NAME, PACK) F(NAME, PACK, 4, 1) F(NAME, PACK, 2, 2) F(NAME, PACK, 1, 4)
enum { MOST_X = 4 };
#endif
#define SHAPE(NAME, PACK, R, NB)                                                                                             \
    static __attribute__((noinline)) void NAME##NB(const Product *p, const float *x, int64_t b, int64_t n, int64_t rows) {   \
        for (int64_t r = 0; r < rows; r += R) product(p, x, b, n + r, min64(rows - r, R), PACK, R, NB);                      \
    }
SHAPES(SHAPE, dot_fp32_, PACK_FP32)
SHAPES(SHAPE, dot_bf16_, PACK_BF16)
SHAPES(SHAPE, dot_int8_, PACK_INT8)

typedef void Products(const Product *p, const float *x, int64_t b, int64_t n, int64_t rows);
#if VW == 16
#define BY_X(NAME) {NAME##1, NAME##2, NAME##4, NAME##8}
#else
#define BY_X(NAME) {NAME##1, NAME##2, NAME##4}
#endif
static Products *const products[PACKS][MOST_X == 8 ? 4 : 3] = {BY_X(dot_fp32_), BY_X(dot_bf16_), BY_X(dot_int8_)};

// x as the products read it: normalised where there is a gain, padded
static void take_x(float *x, const float *inp, const float *gain, const float *shift, int64_t B, int64_t C) {
    for (int64_t b = 0; b < B; b++, x += padded(C)) {
        float mean, rstd;
        if (gain) layernorm_row(x, &mean, &rstd, inp + b * C, gain, shift, C);
        else memcpy(x, inp + b * C, sizeof(float) * (size_t)C);
        memset(x + C, 0, sizeof(float) * (size_t)(padded(C) - C));
    }
}

// every thread normalises for itself: that costs less than to wait for another
static void decode_rows(Product p, const float *inp, const float *gain, const float *shift, float *scratch, int64_t B, int64_t PACK,
                        int64_t NT) {
    PARALLEL(NT) {
        Range r = share((p.OC + UNIT - 1) / UNIT);
        float *x = scratch + rank() * B * padded(p.C);
        take_x(x, inp, gain, shift, B, p.C);
        for (int64_t n = r.begin * UNIT; n < r.end * UNIT; n += UNIT)
            for (int64_t b = 0, i; b < B; b += 1 << i) {
                i = 0;
                while (2 << i <= min64(B - b, MOST_X)) i++;
                products[PACK][i](&p, x + b * padded(p.C), b, n, min64(p.OC - n, UNIT));
            }
    }
}

int64_t decode_linear_scratch(int64_t B, int64_t C, int64_t OC, int64_t W, int64_t PACK, int64_t NT) {
    (void)OC, (void)W, (void)PACK;
    return NT * B * padded(C);
}
int64_t decode_linear_gelu_scratch(int64_t B, int64_t C, int64_t OC, int64_t W, int64_t PACK, int64_t NT) {
    return decode_linear_scratch(B, C, OC, W, PACK, NT);
}

void decode_linear(float *out, const float *inp, const float *added, const float *gain, const float *shift, const float *weight,
                   const float *bias, float *scratch, int64_t B, int64_t C, int64_t OC, int64_t W, int64_t PACK, int64_t NT) {
    decode_rows((Product){.out = out, .added = added, .weight = weight, .bias = bias, .C = C, .OC = OC, .W = W}, inp, gain, shift,
                scratch, B, PACK, NT);
}

void decode_linear_gelu(float *out, const float *inp, const float *gain, const float *shift, const float *weight, const float *bias,
                        float *scratch, int64_t B, int64_t C, int64_t OC, int64_t W, int64_t PACK, int64_t NT) {
    decode_rows((Product){.out = out, .weight = weight, .bias = bias, .C = C, .OC = OC, .W = W, .gelu = 1}, inp, gain, shift,
                scratch, B, PACK, NT);
}

void decode_embedding(float *out, const int32_t *tokens, const int32_t *positions, const float *wte, const float *wpe, int64_t B,
                      int64_t C, int64_t Vp, int64_t maxT, int64_t NT) {
    (void)Vp, (void)maxT;
    PARALLEL(NT) {
        Range r = share(B);
        for (int64_t b = r.begin; b < r.end; b++) {
            const float *token = wte + tokens[b] * C, *position = wpe + positions[b] * C;
            FOR16(j, m, C) store16(out + b * C + j, v16_add(load16(token + j, m), load16(position + j, m)), m);
        }
    }
}

// --- the cache: of each row and head S values as rows of HS, and S keys in blocks of 16, in which element d of all 16 lies together

void decode_cache(float *keys, float *values, const float *inp, int64_t B, int64_t T, int64_t S, int64_t NH, int64_t KVH, int64_t HS,
                  int64_t NT) {
    int64_t width = (NH + 2 * KVH) * HS;
    PARALLEL(NT) {
        Range r = share(B * KVH);
        for (int64_t u = r.begin; u < r.end; u++) {
            const float *k = inp + u / KVH * T * width + (NH + u % KVH) * HS, *v = k + KVH * HS;
            float *key = keys + u * S * HS, *value = values + u * S * HS;
            for (int64_t t = 0; t < T; t += 16)
                for (int64_t d = 0; d < HS; d += 16) {
                    int64_t n = min64(T - t, 16), m = min64(HS - d, 16);
                    float *to = key + t * HS + d * 16;
                    const float *from = k + t * width + d;
                    if (n == 16 && m == 16) transpose16(to, 16, from, width);
                    else
                        for (int64_t i = 0; i < m; i++)
                            for (int64_t j = 0; j < n; j++) to[i * 16 + j] = from[j * width + i];
                }
            for (int64_t t = 0; t < T; t++) memcpy(value + t * HS, v + t * width, sizeof(float) * (size_t)HS);
        }
    }
}

// scores of n keys, in whole blocks, each a chain over HS
static void decode_scores(float *p, const float *q, const float *key, int64_t n, int64_t HS) {
    for (int64_t j = 0; j < n; j += 16, key += 16 * HS) {
        v16 sum = v16_set(0.0f);
        for (int64_t d = 0; d < HS; d++) sum = v16_fma(v16_set(q[d]), v16_load(key + d * 16), sum);
        v16_store(p + j, v16_add(sum, v16_set(0.0f)));
    }
}

// o (+)= p values for n keys, a chain over them that goes on from `old` times what is there
static void decode_weigh(float *o, const float *p, const float *value, int64_t n, int64_t HS, float old, int from_o) {
    for (int64_t d = 0; d < HS; d += 64) {
        int64_t m[4];
        v16 sum[4];
        for (int i = 0; i < 4; i++) {
            m[i] = HS - d - 16 * i < 0 ? 0 : min64(HS - d - 16 * i, 16);
            sum[i] = from_o ? v16_mul(v16_load_n(o + d + 16 * i, m[i]), v16_set(old)) : v16_set(0.0f);
        }
        if (HS - d >= 64)
            for (int64_t j = 0; j < n; j++)
                for (int i = 0; i < 4; i++) sum[i] = v16_fma(v16_set(p[j]), v16_load(value + j * HS + d + 16 * i), sum[i]);
        else
            for (int64_t j = 0; j < n; j++)
                for (int i = 0; i < 4; i++) sum[i] = v16_fma(v16_set(p[j]), v16_load_n(value + j * HS + d + 16 * i, m[i]), sum[i]);
        for (int i = 0; i < 4; i++) v16_store_n(o + d + 16 * i, v16_add(sum[i], v16_set(0.0f)), m[i]);
    }
}

// one query against `seen` keys: the sums of attention.c for a tile of one row
static void decode_head(float *o, const float *q, const float *key, const float *value, int64_t seen, int64_t HS) {
    float p[STATS], most = -INFINITY, total = 0.0f, scale = 1.0f / sqrtf((float)HS);
    v16 by = v16_set(scale * LOG2E), zero = v16_set(0.0f);
    for (int64_t j0 = 0; j0 < seen; j0 += STATS) {
        int64_t n = min64(seen - j0, STATS);
        decode_scores(p, q, key + j0 * HS, n, HS);
        v16 top = v16_set(-3.0e38f), all = zero;  // finite, so that a row of -inf has no inf - inf
        FOR16(j, m, n) top = v16_max(m < 16 ? v16_first(v16_load(p + j), top, m) : v16_load(p + j), top);
        v16 before = v16_set(most), now = v16_max(v16_mul(v16_set(v16_maximum(top)), by), before);
        float first[16], old[16];
        v16_store(first, now), v16_store(old, exp2_16(v16_sub(before, now)));
        most = first[0];
        FOR16(j, m, n) {
            v16 e = exp2_16(v16_fma(v16_load(p + j), by, v16_set(-most)));
            if (m < 16) e = v16_first(e, zero, m);
            v16_store(p + j, e);
            all = v16_add(all, e);
        }
        total = total * old[0] + v16_sum(all);
        decode_weigh(o, p, value + j0 * HS, n, HS, old[0], j0 > 0);
    }
    v16 share_of = v16_set(1.0f / total);
    FOR16(j, m, HS) store16(o + j, v16_mul(load16(o + j, m), share_of), m);
}

void decode_attention(float *out, float *keys, float *values, const float *inp, const int32_t *positions, int64_t B, int64_t S,
                      int64_t NH, int64_t KVH, int64_t HS, int64_t NT) {
    int64_t width = (NH + 2 * KVH) * HS, group = NH / KVH;
    PARALLEL(NT) {
        Range r = share(B * KVH);
        for (int64_t u = r.begin; u < r.end; u++) {
            int64_t b = u / KVH, head = u % KVH, at = positions[b];
            const float *q = inp + b * width + head * group * HS, *k = inp + b * width + (NH + head) * HS;
            float *key = keys + u * S * HS, *value = values + u * S * HS;
            for (int64_t d = 0; d < HS; d++) key[at / 16 * 16 * HS + d * 16 + at % 16] = k[d];
            memcpy(value + at * HS, k + KVH * HS, sizeof(float) * (size_t)HS);
            for (int64_t i = 0; i < group; i++)
                decode_head(out + (b * NH + head * group + i) * HS, q + i * HS, key, value, at + 1, HS);
        }
    }
}
