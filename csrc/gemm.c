// C (+)= A B + bias for strided A (M,K) and B (K,N): packing, one register-tiled micro-kernel per width, the loops around them.
// X W^T, dY W and dY^T X are this one product with other strides. Every element of C is one FMA chain over ascending k:
// a block of k starts from 0 or from C, so no bit depends on tiles, blocks or threads.
//
//   A panel: MR rows                   a(0,k) a(1,k) .. a(MR-1,k) broadcast one by one. Rows that lie along k, and those across
//                                      it that L2 can hold, are read in place; others, and bf16, are packed k-major
//   B strip: 16, 32 or 48 columns      b(k,0) b(k,1) ..           | next k ..   loaded as vectors, streams from L2
//   What is packed is padded with zeros, so the k loop has no masks; a tile cut by the edge of C is finished in a buffer.
//
// In bf16 mode the packing rounds A and B. Where the CPU multiplies bf16, an item of a panel is a pair of k (PAIR 2) in the place
// of a float and the chain runs over pairs; elsewhere an item is the rounded float. Everything counts in items.

typedef struct {
    float *c;
    int64_t ldc;
    const float *a;
    int64_t ars, acs;      // a(m,k) = a[m * ars + k * acs]; one of the two strides is 1
    const float *b;
    int64_t brs, bcs;      // b(k,n) = b[k * brs + n * bcs]; one of the two strides is 1
    const float *bias;     // (N) or NULL, added last
    const float *added;    // lies as C, or NULL: added after that
    const float *slope;    // lies as C, or NULL: C is multiplied by GELU' of it, and
    float *made;           // GELU of it is put here
    int64_t gelu;          // GELU of A, whose rows lie along k, is multiplied: taken while packing
    int64_t M, N, K, acc;  // acc: C = old C + A B
    int64_t bf16;
} Gemm;

// One tile of C. While it is computed, a line of the B that its thread packs next and a line of the next tile of C are fetched
// every FETCH items: both would otherwise make idle multipliers wait for memory, and all at once would fill the miss buffers.
typedef struct {
    float *c;
    int64_t ldc;
    const float *a;
    int64_t ars, acs;      // of a panel, in items
    const float *b;
    int64_t K, from_c;     // items; the chain starts from 0 or from C
    const float *bias, *next_c, *next_b;
    int64_t next_stride;   // from line to line of next_b
    int64_t past;          // C goes past the caches
} Tile;

INLINE void micro(const Tile *t, const int groups, const int dot) {
    enum { NV_MAX = NR / VW };
    const int NV = groups * 16 / VW;
    const int64_t ldc = t->ldc, ars = t->ars, acs = t->acs;
    const float *a[(MR + 2) / 3], *b = t->b, *next_c = t->next_c, *next_b = t->next_b;  // a pointer for three rows
    float *row = t->c;
    vf sum[MR][NV_MAX];
#pragma GCC unroll 8
    for (int i = 0; i < MR; i += 3) a[i / 3] = t->a + i * ars;
    if (t->from_c) {
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++, row += ldc)
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) sum[i][v] = vf_load(row + v * VW);
        row = t->c;
    } else {
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) sum[i][v] = vf_set(0.0f);
    }
    int64_t line = 0;
    for (int64_t left = t->K; left > 0;) {
        int64_t steps = left < FETCH ? left : FETCH;
        left -= steps;
        __builtin_prefetch(next_b, 0, 2);
        __builtin_prefetch(next_c, 1, 2);
        next_b += t->next_stride, next_c += 16;
        if (++line == groups) line = 0, next_c += ldc - groups * 16;
#pragma GCC unroll 1
        for (; steps > 0; steps--, b += NV * VW) {
            vf col[NV_MAX];
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) col[v] = vf_load(b + v * VW);
#pragma GCC unroll 8
            for (int i = 0; i < MR; i++) {
                vf x = vf_set(a[i / 3][i % 3 * ars]);
#pragma GCC unroll 16
                for (int v = 0; v < NV; v++) sum[i][v] = dot ? vf_dot(x, col[v], sum[i][v]) : vf_fma(x, col[v], sum[i][v]);
            }
#pragma GCC unroll 8
            for (int i = 0; i < MR; i += 3) a[i / 3] += acs;
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++, row += ldc)
#pragma GCC unroll 16
        for (int v = 0; v < NV; v++) {
            if (t->bias) sum[i][v] = vf_add(sum[i][v], vf_load(t->bias + v * VW));
            if (t->past) vf_store_past(row + v * VW, sum[i][v]);
            else vf_store(row + v * VW, sum[i][v]);
        }
}

// one function per strip width, out of line: the k loop keeps every accumulator in a register
typedef void Micro(const Tile *t);
#define MICRO(NAME, G, DOT) \
    static __attribute__((noinline)) void NAME##G(const Tile *t) { micro(t, G, DOT); }
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
static void micro_edge(Tile t, int64_t rows, int64_t cols, Micro *whole) {
    float tile[MR * NR], edge_bias[NR], *c = t.c;
    int64_t ldc = t.ldc;
    for (int64_t i = 0; t.from_c && i < MR; i++)
        for (int64_t j = 0; j < NR; j++) tile[i * NR + j] = i < rows && j < cols ? c[i * ldc + j] : 0.0f;
    for (int64_t j = 0; t.bias && j < NR; j++) edge_bias[j] = j < cols ? t.bias[j] : 0.0f;
    t.c = tile, t.ldc = NR, t.bias = t.bias ? edge_bias : 0, t.past = 0;
    whole(&t);
    for (int64_t i = 0; i < rows; i++) memcpy(c + i * ldc, tile + i * NR, sizeof(float) * (size_t)cols);
}

// GELU of rows of A that lie along k: rows again, to be read in place (behind the last one lies anything, and no tile keeps it);
// in bf16 panels, by way of a piece that stays in L1
static void pack_gelu(const Gemm *g, float *panels, const float *src, int64_t rows, int64_t K) {
    enum { PIECE = 64 };  // of k
    for (int64_t r = 0; r < rows && !g->bf16; r++)
        FOR16(k, m, K) store16(panels + r * K + k, gelu_of(load16(src + r * g->ars + k, m)), m);
    for (int64_t p = 0; p < rows && g->bf16; p += MR)
        for (int64_t k = 0; k < K; k += PIECE) {
            float piece[8 * PIECE];  // of MR rows; the compiler sees code that would read eight
            int64_t deep = min64(K - k, PIECE), n = min64(rows - p, MR);
            for (int64_t r = 0; r < n; r++)
                FOR16(i, m, deep) store16(piece + r * PIECE + i, gelu_of(load16(src + (p + r) * g->ars + k + i, m)), m);
            pack_a_bf16(panels + p * items(K, 1) + items(k, 1) * MR, piece, PIECE, 1, n, deep);
        }
}

// What comes after the last k, on a tile that is still in L1. What lies beside C is fetched before the tile is computed: it is
// visited in short rows, which the CPU does not foresee.
static void fetch_beside(const Gemm *g, int64_t at, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++, at += g->ldc)
        for (int64_t j = at; j < at + cols; j += 16) {
            if (g->added) __builtin_prefetch(g->added + j, 0);
            if (g->slope) __builtin_prefetch(g->slope + j, 0), __builtin_prefetch(g->made + j, 1);
        }
}

static void finish(const Gemm *g, int64_t at, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++, at += g->ldc)
        FOR16(j, m, cols) {
            v16 c = load16(g->c + at + j, m);
            if (g->slope) {
                v16 x = load16(g->slope + at + j, m), s = gelu_sigmoid(x);
                store16(g->made + at + j, v16_mul(x, s), m);
                c = v16_mul(gelu_slope(x, s), c);
            }
            if (g->added) c = v16_add(load16(g->added + at + j, m), c);
            store16(g->c + at + j, c, m);
        }
}

// A weight gradient of several MB that starts anew is written past the caches: without reading its old value first, and without
// driving out what will be read. Its lines must be whole.
static int64_t goes_past(const Gemm *g) {
    return g->ars == 1 && !g->acc && g->K <= KC && g->M * g->N >= PAST_FLOATS && g->ldc % 16 == 0 && (uintptr_t)g->c % 64 == 0;
}

// How a product is cut into jobs. A round is a block of MC rows and a pass over k; its jobs are `down` parts of the rows times
// `across` parts of the column groups: as many for each thread, so that equal cores end together. Jobs are numbered round by round
// and handed out in that order, so that a slow core takes fewer; whoever takes one computes all of it, and no bit depends on who.
typedef struct { int64_t in_place, pass, passes, rounds, groups, down, across, each; } Plan;
typedef struct { int64_t round, top, m, rows, from, to, k, K; } Job;  // rows top + m .. of C, column groups, k

// parts of the rows for `parts` threads, so that the largest tile count of a thread is smallest
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

// Whether A is read where it lies. Rows across k are if an L2 of 1 MB in 16 ways holds a pass of them twice, conflicts counted: at a
// pitch of 4 KB they would all meet in 16 of its 1024 sets.
static int64_t reads_in_place(const Gemm *g) {
    int64_t sets = 1024, K = min64(g->K, KC);
    for (int64_t lines = g->acs / 16; lines > 0 && lines % 2 == 0 && sets > 1; lines /= 2) sets /= 2;
    return !g->bf16 && !g->gelu && (g->acs == 1 || (2 * K <= 16 * sets && K * g->acs <= MC * KC));
}

static Plan plan_of(const Gemm *g, int64_t parts) {
    Plan p = {.in_place = reads_in_place(g), .pass = g->bf16 ? KC * PAIR : KC, .groups = (g->N + 15) / 16,
              .down = grid_down(g->M, g->N, parts)};
    p.passes = (g->K + p.pass - 1) / p.pass;
    p.rounds = (g->M + MC - 1) / MC * p.passes;
    int64_t room = B_FLOATS / items(min64(g->K, p.pass), g->bf16) / 16, unit = parts / p.down;
    p.across = (p.groups + room - 1) / room;
    if (parts > 1 && p.across < JOBS * unit) p.across = min64(JOBS * unit, p.groups / GROUPS);  // whole strips
    p.across = p.across < unit ? unit : p.across / unit * unit;
    if (p.across * room < p.groups) p.across += unit;
    p.each = p.down * p.across;
    return p;
}

static Job job_at(const Gemm *g, const Plan *p, int64_t number) {
    int64_t round = number / p->each, i = number % p->each, top = round / p->passes * MC, k = round % p->passes * p->pass;
    int64_t rows = min64(g->M - top, MC);
    Range tall = part((rows + MR - 1) / MR, i % p->down, p->down), wide = part(p->groups, i / p->down, p->across);
    return (Job){round, top, tall.begin * MR, min64(tall.end * MR, rows) - tall.begin * MR, wide.begin, wide.end, k,
                 min64(g->K - k, p->pass)};
}

// the lines of the B of a job as it lies in memory: runs of `length` lines, `stride` floats apart
typedef struct { const float *b; int64_t runs, run, length, stride, at; } Lines;
static Lines lines_of(const Gemm *g, const Job *j) {
    int64_t cols = min64(j->to * 16, g->N) - j->from * 16;
    const float *b = g->b + j->k * g->brs + j->from * 16 * g->bcs;
    if (g->bcs == 1) return (Lines){b, (cols + 15) / 16, 16, j->K, g->brs, 0};  // down the rows
    return (Lines){b, cols, g->bcs, (j->K + 15) / 16, 16, 0};
}
// the next `count` of them, into a tile; a tile ends with its run
INLINE void fetch(Tile *t, Lines *l, int64_t count) {
    t->next_b = t->b, t->next_stride = 0;
    if (l->runs == 0) return;
    t->next_b = l->b + l->at * l->stride, t->next_stride = l->stride, l->at += count;
    if (l->at >= l->length) l->at = 0, l->b += l->run, l->runs--;
}

// A job: pack B into `strips` of up to GROUPS column groups, nearly equal, then walk the tiles. `panels` holds the A of the round if
// it is packed, `tail` has room for the last rows if not; `next` is the B to fetch.
static void gemm_job(const Gemm *g, const Plan *p, const Job *j, const float *panels, float *strips, float *tail, Lines next) {
    int64_t groups = j->to - j->from, count = (groups + GROUPS - 1) / GROUPS;
    if (groups == 0 || j->rows == 0) return;
    int64_t narrow = groups / count, wide = groups % count;
    int64_t deep = items(j->K, g->bf16), whole = j->rows / MR * MR, fetched = deep / FETCH;
    for (int64_t s = 0, n = j->from * 16, width; s < count; s++, n += width) {
        width = (narrow + (s < wide)) * 16;
        const float *b = g->b + j->k * g->brs + n * g->bcs;
        (g->bf16 ? pack_b_bf16 : pack_b)(strips + (n - j->from * 16) * deep, width, b, g->brs, g->bcs, g->N - n, j->K);
    }
    const float *a = g->a + (j->top + j->m) * g->ars + j->k * g->acs;
    if (p->in_place && whole < j->rows) pack_a(tail, a + whole * g->ars, g->ars, g->acs, j->rows - whole, j->K);
    Tile t = {.ldc = g->ldc, .ars = p->in_place ? g->ars : 1, .acs = p->in_place ? g->acs : MR, .K = deep,
              .from_c = g->acc || j->k > 0, .past = goes_past(g)};
    if (g->gelu && !g->bf16) t.ars = j->K, t.acs = 1;
    int unfinished = j->k + j->K == g->K && (g->added || g->slope);
    for (int64_t i = 0; i < j->rows; i += MR) {
        int64_t rows = min64(j->rows - i, MR);
        t.a = p->in_place ? a + i * g->ars : panels + (j->m + i) * deep;
        if (p->in_place && rows < MR) t.a = tail, t.ars = 1, t.acs = MR;
        t.b = strips, t.c = g->c + (j->top + j->m + i) * g->ldc + j->from * 16;
        t.bias = g->bias && j->k + j->K == g->K ? g->bias + j->from * 16 : 0;
        for (int64_t s = 0, n = j->from * 16, width; s < count; s++, n += width) {
            width = (narrow + (s < wide)) * 16;
            t.next_c = s + 1 < count ? t.c + width : t.c + MR * t.ldc - (n - j->from * 16);
            fetch(&t, &next, fetched);
            int64_t cols = min64(g->N - n, width), at = t.c - g->c;
            if (unfinished) fetch_beside(g, at, rows, cols);
            Micro *micro_kernel = micros[g->bf16 != 0][width / 16];
            if (rows == MR && cols == width) micro_kernel(&t);
            else micro_edge(t, rows, cols, micro_kernel);
            if (unfinished) finish(g, at, rows, cols);
            t.b += width * deep, t.c += width, t.bias = t.bias ? t.bias + width : 0;
        }
    }
}

// floats of packed A, and of all scratch for `parts` threads
INLINE int64_t gemm_a_floats(int64_t M, int64_t K) { return round_up(round_up(min64(M, MC), MR) * min64(K, KC), 16); }
INLINE int64_t gemm_scratch(int64_t M, int64_t K, int64_t parts) {
    return gemm_a_floats(M, K) + parts * (B_FLOATS + TAIL_FLOATS);
}

// The loops, run by every thread of a team of `parts` (`me` is its rank), which share `taken`, the number of jobs handed out, 0 to
// start; a team of one needs no parallel region.
static void gemm_part(const Gemm *g, int64_t *taken, float *scratch, int64_t me, int64_t parts) {
    Plan p = plan_of(g, parts);
    float *panels = scratch, *strips = scratch + gemm_a_floats(g->M, g->K) + me * (B_FLOATS + TAIL_FLOATS);
    int64_t number = me;  // the first by rank, or the first to come would take two
    Job next = job_at(g, &p, number);
    for (int64_t round = 0; round < p.rounds; round++) {
        if (round > 0 && parts > 1) { BARRIER }  // C is added to pass by pass; the panels are read no more
        if (!p.in_place) {
            Job any = job_at(g, &p, round * p.each);
            int64_t rows = min64(g->M - any.top, MC), unit = 2 * MR;  // pairs of panels share the lines of A
            Range mine = part((rows + unit - 1) / unit, me, parts);
            const float *a = g->a + (any.top + mine.begin * unit) * g->ars + any.k * g->acs;
            float *to = panels + mine.begin * unit * items(any.K, g->bf16);
            rows = min64(mine.end * unit, rows) - mine.begin * unit;
            if (g->gelu) pack_gelu(g, to, a, rows, any.K);
            else (g->bf16 ? pack_a_bf16 : pack_a)(to, a, g->ars, g->acs, rows, any.K);
            if (parts > 1) { BARRIER }
        }
        while (next.round == round) {
            Job job = next;
            Lines after = {0};
            number = parts + next_of(taken), next = job_at(g, &p, number);
            if (next.round < p.rounds) after = lines_of(g, &next);
            gemm_job(g, &p, &job, panels, strips, strips + B_FLOATS, after);
        }
    }
    if (goes_past(g)) store_fence();
}

static void gemm(Gemm g, float *scratch, int64_t NT) {
    int64_t taken = 0;
    PARALLEL(NT) {
        share(0);
        gemm_part(&g, &taken, scratch, rank(), team());
    }
}
