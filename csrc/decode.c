// decode: one new token for each of B rows. Its products read every weight once, so memory is their limit: a thread streams rows of
// weights, a few at a time, past all rows of the batch, and fetches what comes next in runs of lines. A sum is tree16 whatever the
// batch and the packing.
//
// A row of packed weights is a run of blocks of 32, padded with zeros (kernels.h, PACK): 0 the floats as they are, not padded;
// 1 bf16: word i of 16 holds element i in its lower half and element 16 + i in the upper; 2 int8: a float, the scale, then 32 int8.
enum { PACK_FP32, PACK_BF16, PACK_INT8 };
enum { UNIT = 24 };   // rows of weights: a unit of work, and a multiple of those that are read together
enum { DEEP = 768 }; // elements of rows that stay in L1 while all of x passes: a miss there waits behind the lines that come from memory
enum { FETCHED = 4096 };  // floats from what is multiplied to what is fetched, at least
#if VW == 16
enum { ROWS = 6, MOST_X = 4 };  // rows of weights times rows of x: as many sums as stay in registers
#else
enum { ROWS = 2, MOST_X = 2 };
#endif
INLINE int64_t padded(int64_t C) { return round_up(C, 32); }

typedef struct {
    float *out;
    const float *added, *weight, *bias;
    int64_t B, C, OC, W, pack, gelu;
} Product;

// sixteen of the 32 elements of a block as float32
INLINE v16 take_half(const float *block, const int half, const int pack) {
    if (pack == PACK_FP32) return v16_load(block + 16 * half);
    if (pack == PACK_BF16) return half ? v16_upper(v16_load(block)) : v16_lower(v16_load(block));
    return v16_mul(v16_of_int8(block + 1 + 4 * half), v16_set(*block));
}
INLINE int64_t block_floats(int64_t pack) { return pack == PACK_FP32 ? 32 : pack == PACK_BF16 ? 16 : 9; }

// rows n .. n + rows of out for row b of the batch, from their sums before the bias
static void put_out(const Product *p, const float *sums, int64_t b, int64_t n, int64_t rows) {
    int64_t to = b * p->OC + n;
    v16 z = v16_load(sums);
    if (p->bias) z = v16_add(z, v16_load_n(p->bias + n, rows));
    if (p->gelu) z = gelu_of(z);
    if (p->added) z = v16_add(v16_load_n(p->added + to, rows), z);
    v16_store_n(p->out + to, z, rows);
}

// --- one row of x: R rows of weights side by side, straight from what is packed; x lies as it is

INLINE void alone(const Product *p, const float *x, int64_t n, int64_t rows, const int pack, const int R) {
    const int64_t step = block_floats(pack), W = p->W, whole = pack ? padded(p->C) : p->C / 32 * 32;
    const float *w[4], *next = p->weight + n * W + (R * W > FETCHED ? R * W : FETCHED);
    v16 sum[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) w[r] = p->weight + (n + min64(r < R ? r : 0, rows - 1)) * W, sum[r] = v16_set(0.0f);
    for (int64_t k = 0, at = 0; k < whole; k += 32, at += step, next += R * step) {
#pragma GCC unroll 4
        for (int i = 0; i < (R * (int)step + 15) / 16; i++) __builtin_prefetch(next + 16 * i, 0, 3);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++)
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) sum[r] = v16_fma(take_half(w[r] + at, half, pack), v16_load(x + k + 16 * half), sum[r]);
    }
    for (int64_t k = whole; k < p->C; k += 16)
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) sum[r] = v16_fma(v16_load_n(w[r] + k, min64(p->C - k, 16)), v16_load(x + k), sum[r]);
    float sums[16] = {0};
    v16_sum4(sums, sum[0], sum[1], sum[2], sum[3]);
    put_out(p, sums, 0, n, rows);
}

#define ALONE(PACK, R)                                                                                                   \
    static __attribute__((noinline)) void alone_##PACK(const Product *p, const float *x, int64_t n, int64_t rows) {      \
        for (int64_t r = 0; r < rows; r += R) alone(p, x, n + r, min64(rows - r, R), PACK, R);                           \
    }
ALONE(PACK_FP32, 2)
ALONE(PACK_BF16, 2)
ALONE(PACK_INT8, 4)

// --- several rows of x: ROWS rows of weights and up to MOST_X of x at a time, a chunk of them after the other. Sixteen elements of
// each row of x lie side by side; what is packed, or not in whole blocks, is unpacked into `room`, once for all of x.

// one group of rows of weights and of x, a chunk of them; what is fetched meanwhile: lines from `next` on, the same of each row
typedef struct {
    const Product *p;
    float *sums;          // ROWS x NB vectors, between chunks
    const float *w, *x, *next;
    int64_t W, next_W, run, first_run, lines;  // run: floats of a row of `next`; lines: for each block
    int64_t n, b, rows, blocks, first, last;
} Group;

INLINE void beside(const Group *g, const int NB, const int direct) {
    const float *ws[ROWS], *x = g->x, *at = g->next, *end = at + g->first_run;
    const int64_t B = g->p->B, ahead = g->next - g->w, lines = g->lines;
    v16 sum[ROWS][MOST_X];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        ws[r] = g->w + min64(r, g->rows - 1) * g->W;
#pragma GCC unroll 4
        for (int i = 0; i < NB; i++) sum[r][i] = g->first ? v16_set(0.0f) : v16_load(g->sums + (i * ROWS + r) * 16);
    }
    for (int64_t k = 0; k < 32 * g->blocks; k += 32) {
        if (!direct)
#pragma GCC unroll 1
            for (int64_t i = 0; i < lines; i++) {
                __builtin_prefetch(at, 0, 3);
                if ((at += 16) >= end) end += g->next_W, at = end - g->run;
            }
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++, x += 16 * B) {
            v16 v[ROWS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) v[r] = v16_load(ws[r] + k + 16 * half);
            if (direct && half < lines)
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++) __builtin_prefetch(ws[r] + k + 16 * half + ahead, 0, 3);
#pragma GCC unroll 4
            for (int i = 0; i < NB; i++) {
                v16 y = v16_load(x + 16 * i);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++) sum[r][i] = v16_fma(v[r], y, sum[r][i]);
            }
        }
    }
    if (!g->last) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int i = 0; i < NB; i++) v16_store(g->sums + (i * ROWS + r) * 16, sum[r][i]);
        return;
    }
#pragma GCC unroll 4
    for (int i = 0; i < NB; i++) {
        float of[16] = {0};
#pragma GCC unroll 2
        for (int r = 0; r < ROWS; r += 4)
            v16_sum4(of + r, sum[r][i], sum[r + 1][i], sum[r + 2 < ROWS ? r + 2 : r][i], sum[r + 3 < ROWS ? r + 3 : r][i]);
        put_out(g->p, of, g->b + i, g->n, g->rows);
    }
}

typedef void Beside(const Group *g);
#define BESIDE(NB)                                                                      \
    static __attribute__((noinline)) void direct_##NB(const Group *g) { beside(g, NB, 1); } \
    static __attribute__((noinline)) void room_##NB(const Group *g) { beside(g, NB, 0); }
BESIDE(1)
BESIDE(2)
#if VW == 16
BESIDE(3)
BESIDE(4)
static Beside *const besides[2][MOST_X + 1] = {{0, room_1, room_2, room_3, room_4}, {0, direct_1, direct_2, direct_3, direct_4}};
#else
static Beside *const besides[2][MOST_X + 1] = {{0, room_1, room_2}, {0, direct_1, direct_2}};
#endif

// `blocks` blocks of some rows as float32, zeros behind the last of C elements
INLINE void unpack(float *room, const float *w, int64_t W, int64_t rows, int64_t blocks, int64_t C, const int pack) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < blocks; i++) {
            const float *from = w + r * W + i * block_floats(pack);
            float *to = room + r * DEEP + 32 * i;
            int64_t left = C - 32 * i;
            if (pack == PACK_FP32 && left < 32)
                v16_store(to, v16_load_n(from, min64(left, 16))), v16_store(to + 16, v16_load_n(from + 16, left < 16 ? 0 : left - 16));
            else v16_store(to, take_half(from, 0, pack)), v16_store(to + 16, take_half(from, 1, pack));
        }
}

static void products_beside(const Product *p, const float *x, float *room, float *sums, int64_t n, int64_t rows) {
    int64_t B = p->B, groups = (rows + ROWS - 1) / ROWS, chunks = (padded(p->C) + DEEP - 1) / DEEP, step = block_floats(p->pack);
    int64_t direct = p->pack == PACK_FP32 && p->C % 32 == 0, passes = (B + MOST_X - 1) / MOST_X;
    const float *first = p->weight + n * p->W;
    for (int64_t c = 0; c < chunks; c++) {
        int64_t done = c * DEEP / 32, blocks = min64(padded(p->C) - c * DEEP, DEEP) / 32;
        for (int64_t i = 0; i < groups; i++) {
            int64_t here = min64(rows - i * ROWS, ROWS), last = i + 1 == groups, end = last && c + 1 == chunks;
            const float *w = first + i * ROWS * p->W + done * step;
            // the next group, or the first of the next chunk, or the first of the next unit
            const float *next = end ? first + rows * p->W : last ? first + (done + blocks) * step : w + ROWS * p->W;
            Group g = {.p = p, .w = w, .W = p->W, .next_W = p->W, .run = blocks * step, .rows = here, .blocks = blocks,
                       .lines = direct ? 1 + (passes == 1) : (ROWS * step + 16 * passes - 1) / (16 * passes), .n = n + i * ROWS,
                       .first = c == 0, .last = c + 1 == chunks};
            if (!direct) {
                if (p->pack == PACK_FP32) unpack(room, w, p->W, here, blocks, p->C - c * DEEP, PACK_FP32);
                else if (p->pack == PACK_BF16) unpack(room, w, p->W, here, blocks, 0, PACK_BF16);
                else unpack(room, w, p->W, here, blocks, 0, PACK_INT8);
                g.w = room, g.W = DEEP;
            }
            for (int64_t NB; g.b < B; g.b += NB) {
                NB = min64(B - g.b, MOST_X);
                g.sums = sums + (i * B + g.b) * ROWS * 16, g.x = x + (c * DEEP * B + 16 * g.b);
                int64_t pass = g.b / MOST_X, fetched = pass * g.lines * blocks * 16;  // a pass over x fetches its share
                g.next = direct ? next + 16 * (pass % 2) : next + fetched / g.run * p->W + fetched % g.run;
                g.first_run = direct ? 0 : g.run - fetched % g.run;
                besides[direct][NB](&g);
            }
        }
    }
}

// --- all rows

// floats of a thread: x, and where there are several rows of it a row as it was, unpacked weights and sums
INLINE int64_t decode_floats(int64_t B, int64_t C) {
    return B * padded(C) + (B > 1 ? round_up(C, 16) + ROWS * DEEP + UNIT * B * 16 : 0);
}

// x as the products read it: normalised where there is a gain, padded with zeros; element k of row b at (k / 16, b, k % 16)
static void take_x(float *x, const float *inp, const float *gain, const float *shift, float *row, int64_t B, int64_t C) {
    for (int64_t b = 0; b < B; b++) {
        float mean, rstd;
        const float *from = inp + b * C;
        if (gain) layernorm_row(row, &mean, &rstd, from, gain, shift, C), from = row;
        for (int64_t k = 0; k < padded(C); k += 16) v16_store(x + k * B + 16 * b, v16_load_n(from + k, C - k < 0 ? 0 : min64(C - k, 16)));
    }
}

// every thread normalises for itself: that costs less than to wait for another
static void decode_rows(Product p, const float *inp, const float *gain, const float *shift, float *scratch, int64_t NT) {
    PARALLEL(NT) {
        Range r = share((p.OC + UNIT - 1) / UNIT);
        float *x = scratch + rank() * decode_floats(p.B, p.C), *row = x + (p.B > 1) * p.B * padded(p.C);
        float *room = row + round_up(p.C, 16), *sums = room + ROWS * DEEP;
        take_x(x, inp, gain, shift, row, p.B, p.C);
        for (int64_t n = r.begin * UNIT; n < r.end * UNIT; n += UNIT) {
            int64_t rows = min64(p.OC - n, UNIT);
            if (p.B > 1) products_beside(&p, x, room, sums, n, rows);
            else if (p.pack == PACK_FP32) alone_PACK_FP32(&p, x, n, rows);
            else if (p.pack == PACK_BF16) alone_PACK_BF16(&p, x, n, rows);
            else alone_PACK_INT8(&p, x, n, rows);
        }
    }
}

int64_t decode_linear_scratch(int64_t B, int64_t C, int64_t OC, int64_t W, int64_t PACK, int64_t NT) {
    (void)OC, (void)W, (void)PACK;
    return NT * decode_floats(B, C);
}
int64_t decode_linear_gelu_scratch(int64_t B, int64_t C, int64_t OC, int64_t W, int64_t PACK, int64_t NT) {
    return decode_linear_scratch(B, C, OC, W, PACK, NT);
}

void decode_linear(float *out, const float *inp, const float *added, const float *gain, const float *shift, const float *weight,
                   const float *bias, float *scratch, int64_t B, int64_t C, int64_t OC, int64_t W, int64_t PACK, int64_t NT) {
    decode_rows((Product){out, added, weight, bias, B, C, OC, W, PACK, 0}, inp, gain, shift, scratch, NT);
}

void decode_linear_gelu(float *out, const float *inp, const float *gain, const float *shift, const float *weight, const float *bias,
                        float *scratch, int64_t B, int64_t C, int64_t OC, int64_t W, int64_t PACK, int64_t NT) {
    decode_rows((Product){out, 0, weight, bias, B, C, OC, W, PACK, 1}, inp, gain, shift, scratch, NT);
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

// scores of n keys, in whole blocks: each a chain over HS, and four blocks side by side so that chains do not wait
static void decode_scores(float *p, const float *q, const float *key, int64_t n, int64_t HS) {
    int64_t j = 0, block = 16 * HS;
    for (; j + 48 < n; j += 64, key += 4 * block) {
        v16 sum[4] = {v16_set(0.0f), v16_set(0.0f), v16_set(0.0f), v16_set(0.0f)};
        for (int64_t d = 0; d < HS; d++) {
            v16 x = v16_set(q[d]);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) sum[i] = v16_fma(x, v16_load(key + i * block + d * 16), sum[i]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) v16_store(p + j + 16 * i, v16_add(sum[i], v16_set(0.0f)));
    }
    for (; j < n; j += 16, key += block) {
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
