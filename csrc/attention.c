// Causal attention, flash and standard, in tiles (tiles.c): K^T and V^T of a block of keys are packed once and serve many tiles
// of queries, so no T x T matrix is needed; the standard form keeps its matrices for those who want to look.
enum { QUERIES = VW == 8 ? 96 : 64, MOST_QUERIES = 512 };  // of a tile: by default, and at most
enum { CHUNK = 1024 };   // queries for which a block of keys is packed once, at most
#define LOG2E 1.44269504f
#define LN2 0.693147182f

static Heads heads_of(int64_t B, int64_t T, int64_t NH, int64_t KVH, int64_t HS, int64_t BF16, int64_t QB, int64_t KB, float p,
                      int32_t key) {
    int64_t queries = min64(QB ? QB : QUERIES, round_up(T, 16)), keys = min64(KB ? KB : LD, round_up(T, 16));
    float scale = 1.0f / sqrtf((float)HS);
    return (Heads){.B = B, .T = T, .NH = NH, .KVH = KVH, .HS = HS, .bf16 = BF16 != 0, .QB = queries, .KB = keys,
                   .width = (NH + 2 * KVH) * HS, .pitch = NH * HS, .wide = round_up(HS, 16), .deep = items(HS, BF16),
                   .tall = round_up(queries, MR), .scale = scale, .scale2 = scale * LOG2E,
                   .drop = drop_of(p, key)};
}

// where q, k, v and out of query head bh lie, from token 0 of its batch
typedef struct { int64_t q, k, v, out; } Place;
static Place place_of(const Heads *h, int64_t bh) {
    int64_t b = bh / h->NH, head = bh % h->NH, row = b * h->T * h->width, kv = h->NH + head / (h->NH / h->KVH);
    return (Place){row + head * h->HS, row + kv * h->HS, row + (kv + h->KVH) * h->HS, b * h->T * h->pitch + head * h->HS};
}

// p *= mask, n numbers in whole vectors
INLINE void times(float *p, const float *mask, int64_t n) {
    for (int64_t j = 0; j < n; j += 16) v16_store(p + j, v16_mul(v16_load(p + j), v16_load(mask + j)));
}

// drops from the probabilities p of keys j0 .. j0 + n for query i of head number bh
static void drop(float *p, const Heads *h, int64_t bh, int64_t i, int64_t j0, int64_t n) {
    float mask[LD];
    drop_mask(mask, h->drop, bh, i, j0, n);
    times(p, mask, n);
}

// 2^x, |error| <= 2 ulp, for x up to 127; 0 below -126, NaN stays. Scores come times log2(e), which saves exp a reduction.
INLINE v16 exp2_16(v16 x) {
    v16 y = v16_max(v16_set(-126.0f), x), n = v16_round(y), r = v16_sub(y, n);
    v16 p = v16_fma(v16_set(0.0013264727f), r, v16_set(0.009671513f));
    p = v16_fma(p, r, v16_set(0.055507336f));
    p = v16_fma(p, r, v16_set(0.24022242f));
    p = v16_fma(p, r, v16_set(0.693147f));
    p = v16_fma(p, r, v16_set(1.0f));
    return v16_where_gt(v16_set(-126.0f), x, v16_set(0.0f), v16_mul(p, v16_pow2(n)));
}

// --- rooms: what a thread works in

typedef struct { float *p, *kt, *v, *q, *o, *most, *total; } Forward;
typedef struct { float *p, *dp, *ds, *kt, *vt, *k, *dk, *dv, *q, *up, *q_right, *up_right, *dq, *dot; } Backward;

INLINE float *room(float *base, int64_t *at, int64_t n) {
    float *here = base ? base + *at : 0;
    *at += round_up(n, 16);
    return here;
}

INLINE int64_t tiles_of(const Heads *h) { return (h->T + h->QB - 1) / h->QB; }

static int64_t forward_rooms(Forward *f, float *base, const Heads *h, int64_t tiles) {
    int64_t at = 0, tile = h->tall * h->wide;
    f->p = room(base, &at, h->tall * LD);
    f->kt = room(base, &at, LD * h->HS);
    f->v = room(base, &at, LD * h->wide);
    f->q = room(base, &at, tiles * tile), f->o = room(base, &at, tiles * tile);
    f->most = room(base, &at, tiles * h->QB), f->total = room(base, &at, tiles * h->QB);
    return at;
}

static int64_t backward_rooms(Backward *r, float *base, const Heads *h) {
    int64_t at = 0, tile = h->tall * h->wide, keys = round_up(h->KB, MR) * h->wide;
    r->p = room(base, &at, h->tall * LD), r->dp = room(base, &at, h->tall * LD);
    r->kt = room(base, &at, LD * h->HS), r->vt = room(base, &at, LD * h->HS);
    r->k = room(base, &at, LD * h->wide);
    r->dk = room(base, &at, keys), r->dv = room(base, &at, keys);
    r->q = r->q_right = room(base, &at, tile), r->up = r->up_right = room(base, &at, tile);
    r->ds = r->dp;
    if (h->bf16) {  // pairs along rows are others than pairs down columns
        r->q_right = room(base, &at, tile), r->up_right = room(base, &at, tile);
        r->ds = room(base, &at, h->tall * LD);
    }
    r->dq = room(base, &at, tiles_of(h) * tile);
    r->dot = room(base, &at, h->T);
    return at;
}

// tiles of queries that a thread takes at once: few enough that all threads have work
static int64_t chunk_tiles(const Heads *h, int64_t NT) {
    int64_t most = min64(tiles_of(h), (CHUNK + h->QB - 1) / h->QB), fair = h->B * h->NH * tiles_of(h) / (4 * NT);
    return NT == 1 ? most : fair < 1 ? 1 : min64(fair, most);
}

static int64_t thread_floats(const Heads *h, int64_t NT) {
    int64_t forward = forward_rooms(&(Forward){0}, 0, h, chunk_tiles(h, NT)), backward = backward_rooms(&(Backward){0}, 0, h);
    return forward > backward ? forward : backward;
}

int64_t attention_scratch(int64_t B, int64_t T, int64_t NH, int64_t KVH, int64_t HS, int64_t BF16, int64_t QB, int64_t KB,
                          int64_t NT) {
    Heads h = heads_of(B, T, NH, KVH, HS, BF16, QB, KB, 0.0f, 0);
    return NT * thread_floats(&h, NT);
}
int64_t attention_standard_scratch(int64_t B, int64_t T, int64_t NH, int64_t KVH, int64_t HS, int64_t BF16, int64_t QB,
                                   int64_t KB, int64_t NT) {
    return attention_scratch(B, T, NH, KVH, HS, BF16, QB, KB, NT);
}

// --- forward

// One step of the online softmax: scores become probabilities relative to the running maximum of their row, and the old out
// is rescaled to it. One thing for all rows at a time, so that no row waits for its own maximum.
static void softmax_tile(float *p, float *o, float *most, float *total, const Heads *h, int64_t bh, Block t) {
    int64_t hidden = hidden_rows(t), wide = h->wide;
    float old[MOST_QUERIES], sum[MOST_QUERIES];
    v16 by = v16_set(h->scale2), zero = v16_set(0.0f);
    for (int64_t i = hidden; i < t.rows; i++) {
        v16 top = v16_set(-3.0e38f);  // finite, so that a row of -inf has no inf - inf
        FOR16(j, m, seen_keys(t, i)) {
            v16 s = v16_load(p + i * LD + j);
            top = v16_max(m < 16 ? v16_first(s, top, m) : s, top);
        }
        sum[i] = v16_maximum(top);
    }
    for (int64_t i = hidden; i < t.rows; i += 16) {
        v16 before = v16_load(most + i), now = v16_max(v16_mul(v16_load(sum + i), by), before);
        v16_store(old + i, exp2_16(v16_sub(before, now)));
        v16_store(most + i, now);
    }
    for (int64_t i = hidden; i < t.rows; i++) {
        int64_t seen = seen_keys(t, i);
        v16 shift = v16_set(-most[i]), all = zero;
        FOR16(j, m, seen) {
            v16 e = exp2_16(v16_fma(v16_load(p + i * LD + j), by, shift));
            if (m < 16) e = v16_first(e, zero, m);
            v16_store(p + i * LD + j, e);
            all = v16_add(all, e);
        }
        sum[i] = v16_sum(all);
        if (h->drop.threshold) drop(p + i * LD, h, bh, t.i0 + i, t.j0, seen);
    }
    for (int64_t i = hidden; i < t.rows; i += 16)
        v16_store(total + i, v16_add(v16_mul(v16_load(total + i), v16_load(old + i)), v16_load(sum + i)));
    for (int64_t i = hidden; i < t.rows && t.j0 > 0; i++)
        for (float *x = o + i * wide; x < o + (i + 1) * wide; x += 16) v16_store(x, v16_mul(v16_load(x), v16_set(old[i])));
    hide(p, t);
    pair_rows(p, p, h, t);
}

// queries [from, from + count) of head bh against all keys they see
static void forward_chunk(float *out, float *lse, const float *inp, const Heads *h, int64_t bh, int64_t from, int64_t count,
                          const Forward *f) {
    Place at = place_of(h, bh);
    int64_t W = h->width, tile = h->tall * h->wide;
    for (int64_t i = 0; i < count; i += h->QB)
        copy_left(f->q + i / h->QB * tile, inp + at.q + (from + i) * W, W, min64(count - i, h->QB), h);
    for (int64_t i = 0; i < count; i++) f->most[i] = -INFINITY, f->total[i] = 0.0f;
    for (int64_t j0 = 0; j0 < from + count; j0 += LD) {
        int64_t keys = min64(from + count - j0, LD);
        copy_strips(f->kt, inp + at.k + j0 * W, W, keys, h);
        copy_right(f->v, inp + at.v + j0 * W, W, keys, h);
        for (int64_t i = j0 > from ? (j0 - from) / h->QB * h->QB : 0; i < count; i += h->QB) {
            Block t = {from + i, min64(count - i, h->QB), j0, keys};
            float *o = f->o + i / h->QB * tile;
            scores_of(f->p, f->q + i / h->QB * tile, f->kt, h, t);
            softmax_tile(f->p, o, f->most + i, f->total + i, h, bh, t);
            weigh(o, f->p, f->v, h, t, j0 > 0);
        }
    }
    for (int64_t i = 0; i < count; i++) {
        v16 by = v16_set(1.0f / f->total[i]);
        float *out_i = out + at.out + (from + i) * h->pitch, *o = f->o + i / h->QB * tile + i % h->QB * h->wide;
        FOR16(j, m, h->HS) store16(out_i + j, v16_mul(v16_load(o + j), by), m);
        lse[bh * h->T + from + i] = f->most[i] * LN2 + (float)log((double)f->total[i]);
    }
}

void attention_forward(float *out, float *lse, const float *inp, const float *p_drop, const int32_t *key_drop, float *scratch,
                       int64_t B, int64_t T, int64_t NH, int64_t KVH, int64_t HS, int64_t BF16, int64_t QB, int64_t KB,
                       int64_t NT) {
    Heads h = heads_of(B, T, NH, KVH, HS, BF16, QB, KB, *p_drop, *key_drop);
    int64_t tiles = chunk_tiles(&h, NT), rows = tiles * h.QB, chunks = (T + rows - 1) / rows, floats = thread_floats(&h, NT);
    int64_t taken = 0;
    PARALLEL(NT) {
        share(0);
        Forward f;
        forward_rooms(&f, scratch + rank() * floats, &h, tiles);
        // the last chunks see most keys and come first; whoever takes a chunk computes all of it
        for (int64_t u; (u = next_of(&taken)) < chunks * B * NH;) {
            int64_t from = (chunks - 1 - u / (B * NH)) * rows;
            forward_chunk(out, lse, inp, &h, u % (B * NH), from, min64(T - from, rows), &f);
        }
    }
}

// --- backward

typedef struct {
    float *dinp;
    const float *dout, *out, *lse, *att, *inp;  // lse (flash) or att (standard)
} Arrays;

// scores become the probabilities that multiplied v; dp, their gradient, becomes that of the unscaled scores
static void backward_row(float *p, float *dp, const float *att, float lse, float dot_i, const Heads *h, int64_t bh, int64_t i,
                         int64_t j0, int64_t seen) {
    v16 dot = v16_set(dot_i), scale = v16_set(h->scale), by = v16_set(h->scale2), shift = v16_set(-lse * LOG2E);
    float mask[LD];
    if (h->drop.threshold) drop_mask(mask, h->drop, bh, i, j0, seen), times(dp, mask, seen);
    FOR16(j, m, seen) {
        v16 p_j = att ? load16(att + j, m) : exp2_16(v16_min(v16_set(127.0f), v16_fma(v16_load(p + j), by, shift)));
        v16 ds = v16_mul(v16_mul(p_j, v16_sub(v16_load(dp + j), dot)), scale);
        if (m < 16) p_j = v16_first(p_j, v16_set(0.0f), m), ds = v16_first(ds, v16_set(0.0f), m);
        v16_store(p + j, p_j);
        v16_store(dp + j, ds);
    }
    if (h->drop.threshold) times(p, mask, seen);
}

// what one tile gives to dk and dv, and to dq
static void backward_tile(const Arrays *x, const Heads *h, const Backward *r, int64_t bh, Block t, int keys_too, float *dq,
                          int into_dq) {
    Place at = place_of(h, bh);
    const float *q = x->inp + at.q + t.i0 * h->width, *up = x->dout + at.out + t.i0 * h->pitch;
    copy_left(r->q, q, h->width, t.rows, h);
    copy_left(r->up, up, h->pitch, t.rows, h);
    if (h->bf16) copy_right(r->q_right, q, h->width, t.rows, h);
    if (h->bf16) copy_right(r->up_right, up, h->pitch, t.rows, h);
    if (!x->att) scores_of(r->p, r->q, r->kt, h, t);
    scores_of(r->dp, r->up, r->vt, h, t);
    for (int64_t i = hidden_rows(t); i < t.rows; i++) {
        int64_t row = bh * h->T + t.i0 + i;
        backward_row(r->p + i * LD, r->dp + i * LD, x->att ? x->att + row * h->T + t.j0 : 0, x->lse ? x->lse[row] : 0.0f,
                     r->dot[t.i0 + i], h, bh, t.i0 + i, t.j0, seen_keys(t, i));
    }
    hide(r->p, t);
    hide(r->dp, t);
    if (dq) {
        pair_rows(r->ds, r->dp, h, t);
        weigh(dq, r->ds, r->k, h, t, into_dq);
    }
    if (!keys_too) return;
    pair_columns(r->p, h, t);
    pair_columns(r->dp, h, t);
    gather(r->dv, r->p, r->up_right, h, t);
    gather(r->dk, r->dp, r->q_right, h, t);
}

// queries [i0, i1) of head bh and keys [j0, j1): what they give to dq of these queries, to dk and dv of these keys, or to all;
// acc: whether dq, and dk and dv, hold what is added to. A sum goes on where the last tile left it, in ascending order.
typedef struct { int64_t i0, i1, j0, j1; int dq, dkv, acc_dq, acc_dkv; } Part;

static void backward_part(const Arrays *x, const Heads *h, const Backward *r, int64_t bh, Part n) {
    Place at = place_of(h, bh);
    int64_t W = h->width, tile = h->tall * h->wide;
    for (int64_t i = n.i0 > n.j0 ? n.i0 : n.j0 / h->QB * h->QB; i < n.i1; i++) {
        const float *up = x->dout + at.out + i * h->pitch, *out = x->out + at.out + i * h->pitch;
        v16 sum = v16_set(0.0f);
        FOR16(j, m, h->HS) sum = v16_fma(load16(up + j, m), load16(out + j, m), sum);
        r->dot[i] = v16_sum(sum);
    }
    for (int64_t i = n.i0; i < n.i1 && n.dq && n.acc_dq; i += h->QB)
        take_rows(r->dq + (i - n.i0) / h->QB * tile, x->dinp + at.q + i * W, W, min64(n.i1 - i, h->QB), h);
    for (int64_t j0 = n.j0; j0 < min64(n.j1, n.i1); j0 += h->KB) {
        int64_t keys = min64(n.j1 - j0, h->KB);
        float *dk = x->dinp + at.k + j0 * W, *dv = x->dinp + at.v + j0 * W;
        size_t bytes = sizeof(float) * (size_t)(keys * h->wide);
        copy_strips(r->kt, x->inp + at.k + j0 * W, W, keys, h);
        copy_strips(r->vt, x->inp + at.v + j0 * W, W, keys, h);
        if (n.dq) copy_right(r->k, x->inp + at.k + j0 * W, W, keys, h);
        if (n.dkv && n.acc_dkv) take_rows(r->dk, dk, W, keys, h), take_rows(r->dv, dv, W, keys, h);
        else if (n.dkv) memset(r->dk, 0, bytes), memset(r->dv, 0, bytes);
        for (int64_t i = n.i0 > j0 ? n.i0 : j0 / h->QB * h->QB; i < n.i1; i += h->QB) {
            Block t = {i, min64(n.i1 - i, h->QB), j0, keys};
            backward_tile(x, h, r, bh, t, n.dkv, n.dq ? r->dq + (i - n.i0) / h->QB * tile : 0, n.acc_dq || j0 > 0);
        }
        if (n.dkv) give_rows(dk, W, r->dk, keys, h), give_rows(dv, W, r->dv, keys, h);
    }
    for (int64_t i = n.i0; i < n.i1 && n.dq; i += h->QB)
        give_rows(x->dinp + at.q + i * W, W, r->dq + (i - n.i0) / h->QB * tile, min64(n.i1 - i, h->QB), h);
}

// The heads of a group share k and v, so one thread takes the group, heads in ascending order. Where that leaves threads idle,
// dk and dv are computed by blocks of keys and dq by chunks of queries: seven products in place of five, no other bits.
static void backward(const Arrays *x, const Heads *h, float *scratch, int64_t NT, int acc) {
    int64_t group = h->NH / h->KVH, groups = h->B * h->KVH, heads = h->B * h->NH, floats = thread_floats(h, NT), T = h->T;
    int64_t rows = chunk_tiles(h, NT) * h->QB, blocks = (T + h->KB - 1) / h->KB, chunks = (T + rows - 1) / rows;
    int64_t hands = granted(NT);
    int whole = blocks == 1 || 5 * ((groups + hands - 1) / hands) * hands <= 7 * groups;
    int64_t units = whole ? groups : groups * blocks + heads * chunks;
    int64_t taken = 0;
    PARALLEL(NT) {
        share(0);
        Backward r;
        backward_rooms(&r, scratch + rank() * floats, h);
        for (int64_t u; (u = next_of(&taken)) < units;) {
            int64_t q = u - groups * blocks, from = (chunks - 1 - q / heads) * rows, j0 = u / groups * h->KB;
            if (!whole && q >= 0) {
                backward_part(x, h, &r, q % heads, (Part){from, min64(from + rows, T), 0, T, 1, 0, acc, 0});
                continue;
            }
            for (int64_t i = 0; i < group; i++) {
                Part n = {0, T, whole ? 0 : j0, whole ? T : min64(j0 + h->KB, T), whole, 1, acc, acc || i > 0};
                backward_part(x, h, &r, u % groups * group + i, n);
            }
        }
    }
}

void attention_backward(float *dinp, const float *dout, const float *out, const float *lse, const float *inp,
                        const float *p_drop, const int32_t *key_drop, float *scratch, int64_t B, int64_t T, int64_t NH,
                        int64_t KVH, int64_t HS, int64_t BF16, int64_t QB, int64_t KB, int64_t NT, int64_t acc_inp) {
    Heads h = heads_of(B, T, NH, KVH, HS, BF16, QB, KB, *p_drop, *key_drop);
    backward(&(Arrays){dinp, dout, out, lse, 0, inp}, &h, scratch, NT, acc_inp != 0);
}

// --- standard

// a tile of queries with whole rows of scores and att; the softmax as in classifier.c
static void standard_tile(float *out, float *scores, float *att, const float *inp, const Heads *h, int64_t bh, int64_t i0,
                          const Forward *f) {
    Place at = place_of(h, bh);
    int64_t T = h->T, W = h->width, rows = min64(T - i0, h->QB), end = i0 + rows;
    float *s = scores + (bh * T + i0) * T, *p = att + (bh * T + i0) * T;
    copy_left(f->q, inp + at.q + i0 * W, W, rows, h);
    for (int64_t j0 = 0; j0 < end; j0 += LD) {
        Block t = {i0, rows, j0, min64(end - j0, LD)};
        copy_strips(f->kt, inp + at.k + j0 * W, W, t.keys, h);
        scores_of(f->p, f->q, f->kt, h, t);
        for (int64_t i = hidden_rows(t); i < rows; i++)
            FOR16(j, m, seen_keys(t, i)) store16(s + i * T + j0 + j, v16_mul(v16_load(f->p + i * LD + j), v16_set(h->scale)), m);
    }
    for (int64_t i = 0; i < rows; i++) {
        int64_t seen = i0 + i + 1;
        v16 shift = v16_set(row_lse(s + i * T, seen));
        FOR16(j, m, seen) store16(p + i * T + j, v16_exp(v16_sub(load16(s + i * T + j, m), shift)), m);
        memset(s + i * T + seen, 0, sizeof(float) * (size_t)(T - seen));
        memset(p + i * T + seen, 0, sizeof(float) * (size_t)(T - seen));
    }
    for (int64_t j0 = 0; j0 < end; j0 += LD) {
        Block t = {i0, rows, j0, min64(end - j0, LD)};
        for (int64_t i = hidden_rows(t); i < rows; i++) {
            int64_t seen = seen_keys(t, i);
            FOR16(j, m, seen) v16_store(f->p + i * LD + j, load16(p + i * T + j0 + j, m));
            if (h->drop.threshold) drop(f->p + i * LD, h, bh, i0 + i, j0, seen);
        }
        hide(f->p, t);
        pair_rows(f->p, f->p, h, t);
        copy_right(f->v, inp + at.v + j0 * W, W, t.keys, h);
        weigh(f->o, f->p, f->v, h, t, j0 > 0);
    }
    give_rows(out + at.out + i0 * h->pitch, h->pitch, f->o, rows, h);
}

void attention_standard_forward(float *out, float *scores, float *att, const float *inp, const float *p_drop,
                                const int32_t *key_drop, float *scratch, int64_t B, int64_t T, int64_t NH, int64_t KVH,
                                int64_t HS, int64_t BF16, int64_t QB, int64_t KB, int64_t NT) {
    Heads h = heads_of(B, T, NH, KVH, HS, BF16, QB, KB, *p_drop, *key_drop);
    int64_t tiles = tiles_of(&h), floats = thread_floats(&h, NT), taken = 0;
    PARALLEL(NT) {
        share(0);
        Forward f;
        forward_rooms(&f, scratch + rank() * floats, &h, 1);
        for (int64_t t; (t = next_of(&taken)) < B * NH * tiles;)
            standard_tile(out, scores, att, inp, &h, t / tiles, t % tiles * h.QB, &f);
    }
}

void attention_standard_backward(float *dinp, const float *dout, const float *out, const float *att, const float *inp,
                                 const float *p_drop, const int32_t *key_drop, float *scratch, int64_t B, int64_t T, int64_t NH,
                                 int64_t KVH, int64_t HS, int64_t BF16, int64_t QB, int64_t KB, int64_t NT, int64_t acc_inp) {
    Heads h = heads_of(B, T, NH, KVH, HS, BF16, QB, KB, *p_drop, *key_drop);
    backward(&(Arrays){dinp, dout, out, 0, att, inp}, &h, scratch, NT, acc_inp != 0);
}
