// decode: one new token for each of B rows. Its products read every weight once, so memory is their limit (decode_float.c, decode_int8.c):
// here is which rows a thread multiplies, and what becomes of the sums; then the cache of keys and values.
typedef struct {
    float *out;
    const float *added, *weight, *bias;
    int64_t B, C, OC, W, pack, gelu;
} Product;

// what becomes of the sums of rows n .. n + rows of weights with all rows of x
static void put_out(const Product *p, const float *sums, int64_t n, int64_t rows) {
    for (int64_t b = 0; b < p->B; b++)
        FOR16(j, m, rows) {
            int64_t to = b * p->OC + n + j;
            v16 z = v16_load(sums + b * OF_UNIT + j);
            if (p->bias) z = v16_add(z, load16(p->bias + n + j, m));
            if (p->gelu) z = gelu_of(z);
            if (p->added) z = v16_add(load16(p->added + to, m), z);
            store16(p->out + to, z, m);
        }
}

// how rows of weights and of x lie, by PACK: elements of a block, its floats of weights and of x, rows that are read together
typedef struct { int64_t elements, w, x, rows, most_x; } Form;
static const Form forms[] = {{32, 32, 32, ROWS, MOST_X}, {32, 16, 32, ROWS, MOST_X}, {SUPER, SUPER_W, SUPER_X, INT8_ROWS, INT8_X}};
INLINE int64_t blocks_of(const Form *f, int64_t C) { return (C + f->elements - 1) / f->elements; }

// parts of a thread's scratch: floats from its begin on, and of all
typedef struct { int64_t x, row, room, partial, sums, all; } Parts;
static Parts parts_of(int64_t B, int64_t C, int64_t pack) {
    const Form *f = forms + pack;
    int64_t several = B > 1, row = B * blocks_of(f, C) * f->x;
    int64_t apart = several || pack == PACK_INT8, room = row + apart * round_up(C, 16);
    int64_t partial = room + (several && pack == PACK_FP32) * ROWS * DEEP, sums = partial + (several && pack != PACK_INT8) * UNIT * B * 16;
    return (Parts){0, apart * row, room, partial, sums, sums + B * OF_UNIT};
}

static void products_beside(const Product *p, float *room, const Parts *at, int64_t n, int64_t rows) {
    const Form *f = forms + p->pack;
    int64_t B = p->B, R = f->rows, groups = (rows + R - 1) / R, passes = (B + f->most_x - 1) / f->most_x;
    int64_t all = blocks_of(f, p->C), most = p->pack == PACK_INT8 ? all : DEEP / f->elements;
    int64_t direct = p->pack == PACK_FP32 && p->C % 32 == 0, whole = p->pack || direct;
    int64_t lines = direct ? 1 + (passes == 1) : (R * f->w + 16 * passes - 1) / (16 * passes);
    const float *first = p->weight + n * p->W, *x = room + at->x;
    Beside *const *sums_of = p->pack == PACK_INT8 ? int8_sums : p->pack == PACK_BF16 ? bf16_sums : direct ? fp32_sums : room_sums;
    for (int64_t done = 0; done < all; done += most) {
        int64_t blocks = min64(all - done, most), complete = done + blocks == all;
        for (int64_t i = 0; i < groups; i++) {
            int64_t here = min64(rows - i * R, R), last = i + 1 == groups;
            const float *w = first + i * R * p->W + done * f->w;
            // the next group, or the first of the next chunk, or the first of the next unit
            const float *next = !last ? w + R * p->W : complete ? first + rows * p->W : first + (done + blocks) * f->w;
            Group g = {.w = w, .W = p->W, .next_W = p->W, .run = blocks * f->w, .lines = lines, .B = B, .rows = here, .blocks = blocks,
                       .first = done == 0, .last = complete};
            if (!whole) fill_room(room + at->room, w, p->W, here, blocks, p->C - done * 32), g.w = room + at->room, g.W = DEEP;
            for (int64_t b = 0, NB; b < B; b += NB) {
                NB = min64(B - b, f->most_x);
                g.partial = room + at->partial + (i * B + b) * R * 16, g.sums = room + at->sums + b * OF_UNIT + i * R;
                g.x = x + done * f->x * B + b * (p->pack == PACK_INT8 ? SUPER_X : 16);
                int64_t pass = b / f->most_x, fetched = pass * lines * blocks * 16;  // a pass over x fetches its share
                g.next = direct ? next + 16 * (pass % 2) : next + fetched / g.run * p->W + fetched % g.run;
                g.first_run = direct ? 0 : g.run - fetched % g.run;
                sums_of[NB](&g);
            }
        }
    }
}

// x as the products read it: normalised where there is a gain, padded with zeros; of floats element k of row b is at (k / 16, b, k % 16)
static void take_x(const Product *p, float *room, const Parts *at, const float *inp, const float *gain, const float *shift) {
    int64_t B = p->B, C = p->C;
    float *x = room + at->x, *row = room + at->row;
    for (int64_t b = 0; b < B; b++) {
        float mean, rstd;
        const float *from = inp + b * C;
        if (gain) layernorm_row(row, &mean, &rstd, from, gain, shift, C), from = row;
        if (p->pack == PACK_INT8)
            for (int64_t k = 0; k < C; k += SUPER) round_x(x + (k / SUPER * B + b) * SUPER_X, from + k, min64(C - k, SUPER));
        else
            for (int64_t k = 0; k < round_up(C, 32); k += 16)
                v16_store(x + k * B + 16 * b, v16_load_n(from + k, C - k < 0 ? 0 : min64(C - k, 16)));
    }
}

// every thread takes x for itself: that costs less than to wait for another
static void decode_rows(Product p, const float *inp, const float *gain, const float *shift, float *scratch, int64_t NT) {
    const Parts at = parts_of(p.B, p.C, p.pack);
    PARALLEL(NT) {
        Range r = share((p.OC + UNIT - 1) / UNIT);
        float *room = scratch + rank() * at.all, *sums = room + at.sums;
        take_x(&p, room, &at, inp, gain, shift);
        for (int64_t n = r.begin * UNIT; n < r.end * UNIT; n += UNIT) {
            int64_t rows = min64(p.OC - n, UNIT);
            const float *w = p.weight + n * p.W;
            if (p.B > 1) products_beside(&p, room, &at, n, rows);
            else if (p.pack == PACK_FP32) alone_PACK_FP32(sums, w, room, rows, p.W, p.C);
            else if (p.pack == PACK_BF16) alone_PACK_BF16(sums, w, room, rows, p.W, p.C);
            else alone_PACK_INT8(sums, w, room, rows, p.W, p.C);
            put_out(&p, sums, n, rows);
        }
    }
}

int64_t decode_linear_scratch(int64_t B, int64_t C, int64_t OC, int64_t W, int64_t PACK, int64_t NT) {
    (void)OC, (void)W;
    return NT * parts_of(B, C, PACK).all;
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
