// Sums of rows of float32 or bf16 weights times rows of x, for decode.c. A thread streams rows of weights, a few at a time, past all rows
// of the batch, and fetches what comes next in runs of lines. A sum is tree16 whatever the batch and the packing.
enum { PACK_FP32, PACK_BF16, PACK_INT8 };
enum { UNIT = 24 };  // rows of weights: a unit of work, and a multiple of those that are read together
enum { OF_UNIT = 32 };  // floats for the sums of a unit: some are stored by fours behind the last
enum { DEEP = 768 };  // elements of rows that stay in L1 while all of x passes: a miss there waits behind the lines that come from memory
enum { FETCHED = 4096 };  // floats from what is multiplied to what is fetched, at least
#if VW == 16
enum { ROWS = 6, MOST_X = 4 };  // rows of weights times rows of x: as many sums as stay in registers
#else
enum { ROWS = 2, MOST_X = 2 };
#endif

// sixteen of the 32 elements of a block as float32
INLINE v16 take_half(const float *block, const int half, const int pack) {
    if (pack == PACK_FP32) return v16_load(block + 16 * half);
    return half ? v16_upper(v16_load(block)) : v16_lower(v16_load(block));
}

// --- one row of x: two rows of weights side by side, straight from what is packed; x lies as it is

INLINE void alone(float *sums, const float *w, const float *x, int64_t rows, int64_t W, int64_t C, const int pack) {
    const int64_t step = pack ? 16 : 32, whole = pack ? round_up(C, 32) : C / 32 * 32;
    const float *other = w + (rows > 1 ? W : 0), *next = w + (2 * W > FETCHED ? 2 * W : FETCHED);
    v16 sum[2] = {v16_set(0.0f), v16_set(0.0f)};
    for (int64_t k = 0, at = 0; k < whole; k += 32, at += step, next += 2 * step) {
#pragma GCC unroll 4
        for (int i = 0; i < 2 * (int)step / 16; i++) __builtin_prefetch(next + 16 * i, 0, 3);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            v16 y = v16_load(x + k + 16 * half);
            sum[0] = v16_fma(take_half(w + at, half, pack), y, sum[0]);
            sum[1] = v16_fma(take_half(other + at, half, pack), y, sum[1]);
        }
    }
    for (int64_t k = whole; k < C; k += 16) {
        sum[0] = v16_fma(v16_load_n(w + k, min64(C - k, 16)), v16_load(x + k), sum[0]);
        sum[1] = v16_fma(v16_load_n(other + k, min64(C - k, 16)), v16_load(x + k), sum[1]);
    }
    sums[0] = v16_sum(sum[0]), sums[1] = v16_sum(sum[1]);
}

#define ALONE(PACK)                                                                                                                       \
    static __attribute__((noinline)) void alone_##PACK(float *sums, const float *w, const float *x, int64_t rows, int64_t W, int64_t C) { \
        for (int64_t r = 0; r < rows; r += 2) alone(sums + r, w + r * W, x, rows - r, W, C, PACK);                                        \
    }
ALONE(PACK_FP32)
ALONE(PACK_BF16)

// --- several rows of x: ROWS rows of weights and up to MOST_X of x at a time, a chunk of them after the other. Sixteen elements of
// each row of x lie side by side; floats that are not in whole blocks are copied to `room` first.

// one group of rows of weights and of x, a chunk of them; what is fetched meanwhile: lines from `next` on, the same of each row
typedef struct {
    float *partial, *sums;  // a vector of each row of weights and of x between chunks; the sums, those of a row of x OF_UNIT apart
    const float *w, *x, *next;
    int64_t W, next_W, run, first_run, lines;  // run: floats of a row of `next`; lines: for each block
    int64_t B, rows, blocks, first, last;
} Group;

// what is fetched next
typedef struct { const float *at, *end; } Coming;
INLINE void fetch_lines(Coming *f, const Group *g) {
#pragma GCC unroll 1
    for (int64_t i = 0; i < g->lines; i++) {
        __builtin_prefetch(f->at, 0, 3);
        if ((f->at += 16) >= f->end) f->end += g->next_W, f->at = f->end - g->run;
    }
}

// the sums so far go on in the next chunk or are complete; R rows of weights, NB of x
INLINE v16 sum_before(const Group *g, const int R, int r, int i) {
    return g->first ? v16_set(0.0f) : v16_load(g->partial + (i * R + r) * 16);
}
INLINE void put_sums(const Group *g, const v16 *sum, const int R, const int stride, const int NB) {
#pragma GCC unroll 4
    for (int i = 0; i < NB; i++)
        if (!g->last)
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) v16_store(g->partial + (i * R + r) * 16, sum[r * stride + i]);
        else
#pragma GCC unroll 2
            for (int r = 0; r < R; r += 4) {
                const v16 *of = sum + r * stride + i;
                v16_sum4(g->sums + i * OF_UNIT + r, of[0], of[stride], of[r + 2 < R ? 2 * stride : 0], of[r + 3 < R ? 3 * stride : 0]);
            }
}

INLINE void beside(const Group *g, const int NB, const int direct, const int pack) {
    const float *ws[ROWS], *x = g->x;
    const int64_t ahead = g->next - g->w, lines = g->lines;
    Coming f = {g->next, g->next + g->first_run};
    v16 sum[ROWS][MOST_X];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        ws[r] = g->w + min64(r, g->rows - 1) * g->W;
#pragma GCC unroll 4
        for (int i = 0; i < NB; i++) sum[r][i] = sum_before(g, ROWS, r, i);
    }
    for (int64_t k = 0; k < 32 * g->blocks; k += 32) {
        if (!direct) fetch_lines(&f, g);
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++, x += 16 * g->B) {
            v16 v[ROWS];
            if (pack) __asm__ volatile("" ::: "memory");  // words of both halves would not fit into registers
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) v[r] = take_half(ws[r] + (pack ? k / 2 : k), half, pack);
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
    put_sums(g, &sum[0][0], ROWS, MOST_X, NB);
}

typedef void Beside(const Group *g);
#define BESIDE(NB)                                                                                     \
    static __attribute__((noinline)) void fp32_##NB(const Group *g) { beside(g, NB, 1, PACK_FP32); }   \
    static __attribute__((noinline)) void room_##NB(const Group *g) { beside(g, NB, 0, PACK_FP32); }   \
    static __attribute__((noinline)) void halves_##NB(const Group *g) { beside(g, NB, 0, PACK_BF16); }
BESIDE(1)
BESIDE(2)
#if VW == 16
BESIDE(3)
BESIDE(4)
#define ALL_X(KIND) {0, KIND##_1, KIND##_2, KIND##_3, KIND##_4}
#else
#define ALL_X(KIND) {0, KIND##_1, KIND##_2}
#endif
static Beside *const fp32_sums[] = ALL_X(fp32), *const room_sums[] = ALL_X(room), *const bf16_sums[] = ALL_X(halves);

// `blocks` blocks of some rows, zeros behind the last of C elements
static void fill_room(float *room, const float *w, int64_t W, int64_t rows, int64_t blocks, int64_t C) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < 32 * blocks; k += 16)
            v16_store(room + r * DEEP + k, v16_load_n(w + r * W + k, C - k < 0 ? 0 : min64(C - k, 16)));
}
