// Sums of rows of int8 weights times rows of x, for decode.c: x is rounded to int8 too, products are added as whole numbers, exactly and so
// in any order, and one float of eight of them at a time goes to its lane of a tree16.
//
// 128 elements of a row of x: their bytes, where those of the weights lie (kernels.h, PACK 2); sixteen whole numbers, with which the
// sums start because weights are unsigned, 128 too large; and sixteen floats, the scale of each lane.
enum { SUPER = 128, SUPER_W = 34, SUPER_X = 64 };  // elements, and their floats of weights and of x
enum { X_STARTS = 32, X_SCALES = 48 };
#if VW == 16
enum { INT8_ROWS = 4, INT8_X = 4 };  // as ROWS and MOST_X
#else
enum { INT8_ROWS = 2, INT8_X = 2 };
#endif
#define LEAST_SIZE 1e-36f  // blocks of smaller numbers become zeros: the inverse would leave float32

// 32 elements of x, where each eight that a lane adds have a scale; a NaN or an infinity makes it NaN, and with it every sum
static void round_block(float *x, const float *from, int block) {
    v16 lo = v16_load(from), hi = v16_load(from + 16), zero = v16_set(0.0f), low = v16_set(-127.0f);
    v16 most = v16_max(v16_max(lo, v16_sub(zero, lo)), v16_max(hi, v16_sub(zero, hi))), none = v16_fma(lo, zero, v16_mul(hi, zero));
    most = v16_max(most, v16_swap1(most)), most = v16_max(most, v16_swap2(most));
    none = v16_add(none, v16_swap1(none)), none = v16_add(none, v16_swap2(none));
    v16 by = v16_where_gt(most, v16_set(LEAST_SIZE), v16_div(v16_set(127.0f), most), zero);
    int8_t *to = (int8_t *)x + 16 * block;
    v16_to_int8(to, v16_max(v16_round(v16_mul(lo, by)), low));  // NaN: -127
    v16_to_int8(to + 64, v16_max(v16_round(v16_mul(hi, by)), low));
    float scales[16];
    v16_store(scales, v16_fma(most, v16_set(1.0f / 127.0f), none));
    for (int i = 0; i < 4; i++) x[X_SCALES + 4 * block + i] = scales[4 * i];
}

// n <= 128 elements of a row of x
static void round_x(float *x, const float *from, int64_t n) {
    float all[SUPER];
    if (n < SUPER) {
        memset(all, 0, sizeof all);
        memcpy(all, from, sizeof(float) * (size_t)n);
        from = all;
    }
    for (int block = 0; block < 4; block++) round_block(x, from + 32 * block, block);
    n16 zero = n16_set(0), each128 = n16_set((int32_t)0x80808080);
    n16_store(x + X_STARTS, n16_sub(zero, n16_dot(n16_dot(zero, each128, n16_load(x)), each128, n16_load(x + 16))));
}

typedef struct { n16 lo, hi; v16 scales; } Weights;
INLINE Weights weights_at(const float *w) { return (Weights){n16_load(w + 2), n16_load(w + 18), v16_of_quarters(w)}; }
INLINE v16 add_products(v16 sum, Weights w, const float *x) {
    n16 dot = n16_dot(n16_dot(n16_load(x + X_STARTS), w.lo, n16_load(x)), w.hi, n16_load(x + 16));
    return v16_fma(v16_mul(v16_of_n16(dot), w.scales), v16_load(x + X_SCALES), sum);
}

// --- one row of x: two rows of weights side by side, and what comes next as one run of lines

static __attribute__((noinline)) void alone_PACK_INT8(float *sums, const float *w, const float *x, int64_t rows, int64_t W, int64_t C) {
    for (int64_t n = 0; n < rows; n += 4) {
        v16 sum[4];
#pragma GCC unroll 2
        for (int r = 0; r < 4; r += 2) {
            const float *one = w + min64(n + r, rows - 1) * W, *other = w + min64(n + r + 1, rows - 1) * W, *next = one + FETCHED;
            sum[r] = sum[r + 1] = v16_set(0.0f);
            for (int64_t k = 0, at = 0; k * SUPER < C; k++, at += SUPER_W, next += 2 * SUPER_W) {
#pragma GCC unroll 5
                for (int i = 0; i < (2 * SUPER_W + 15) / 16; i++) __builtin_prefetch(next + 16 * i, 0, 3);
                sum[r] = add_products(sum[r], weights_at(one + at), x + k * SUPER_X);
                sum[r + 1] = add_products(sum[r + 1], weights_at(other + at), x + k * SUPER_X);
            }
        }
        v16_sum4(sums + n, sum[0], sum[1], sum[2], sum[3]);
    }
}

// --- several rows of x

INLINE void beside_int8(const Group *g, const int NB) {
    const float *x = g->x;
    Coming f = {g->next, g->next + g->first_run};
    v16 sum[INT8_ROWS][INT8_X];
#pragma GCC unroll 4
    for (int r = 0; r < INT8_ROWS; r++)
#pragma GCC unroll 4
        for (int i = 0; i < NB; i++) sum[r][i] = sum_before(g, INT8_ROWS, r, i);
    for (int64_t k = 0; k < g->blocks; k++, x += SUPER_X * g->B) {
        fetch_lines(&f, g);
        Weights w[INT8_ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < INT8_ROWS; r++) w[r] = weights_at(g->w + min64(r, g->rows - 1) * g->W + k * SUPER_W);
#pragma GCC unroll 4
        for (int i = 0; i < NB; i++)
#pragma GCC unroll 4
            for (int r = 0; r < INT8_ROWS; r++) sum[r][i] = add_products(sum[r][i], w[r], x + i * SUPER_X);
    }
    put_sums(g, &sum[0][0], INT8_ROWS, INT8_X, NB);
}

#define BESIDE_INT8(NB) \
    static __attribute__((noinline)) void int8_##NB(const Group *g) { beside_int8(g, NB); }
BESIDE_INT8(1)
BESIDE_INT8(2)
#if VW == 16
BESIDE_INT8(3)
BESIDE_INT8(4)
#endif
static Beside *const int8_sums[] = ALL_X(int8);
