// layernorm: two passes over a row in L1 forward (exact variance), one pair of row sums backward.
enum { LN_ROWS = 32 };  // rows of a block of the dweight, dbias sums: a unit of work and of the order of sums

int64_t layernorm_scratch(int64_t N, int64_t C, int64_t NT) {
    (void)NT;
    return (N + LN_ROWS - 1) / LN_ROWS * 2 * round_up(C, 16);
}

static void layernorm_row(float *out, float *mean, float *rstd, const float *inp, const float *weight, const float *bias,
                          int64_t C) {
    v16 sum = v16_set(0.0f);
    FOR16(j, m, C) sum = v16_add(sum, load16(inp + j, m));
    float mu = v16_sum(sum) / (float)C;
    sum = v16_set(0.0f);
    FOR16(j, m, C) {
        v16 d = v16_sub(load16(inp + j, m), v16_set(mu));
        if (m < 16) d = v16_first(d, v16_set(0.0f), m);
        sum = v16_fma(d, d, sum);
    }
    float r = 1.0f / sqrtf(v16_sum(sum) / (float)C + 1e-5f);
    FOR16(j, m, C) {
        v16 norm = v16_mul(v16_sub(load16(inp + j, m), v16_set(mu)), v16_set(r));
        store16(out + j, v16_fma(norm, load16(weight + j, m), load16(bias + j, m)), m);
    }
    *mean = mu, *rstd = r;
}

void layernorm_forward(float *out, float *mean, float *rstd, const float *inp, const float *weight, const float *bias,
                       int64_t N, int64_t C, int64_t NT) {
    PARALLEL(NT) {
        Range r = share(N);
        for (int64_t n = r.begin; n < r.end; n++)
            layernorm_row(out + n * C, mean + n, rstd + n, inp + n * C, weight, bias, C);
    }
}

// dinp = rstd (dnorm - mean(dnorm) - norm mean(dnorm norm)), dnorm = dout weight; adds the row to the block sums
static void layernorm_row_backward(float *dinp, float *block_dweight, float *block_dbias, const float *dout, float mean,
                                   float rstd, const float *inp, const float *weight, int64_t C, int64_t acc) {
    v16 sum = v16_set(0.0f), sum_norm = v16_set(0.0f), mu = v16_set(mean), r = v16_set(rstd);
    FOR16(j, m, C) {
        v16 norm = v16_mul(v16_sub(load16(inp + j, m), mu), r), up = load16(dout + j, m);
        v16 dnorm = v16_mul(up, load16(weight + j, m));
        if (m < 16) norm = v16_first(norm, v16_set(0.0f), m);
        sum = v16_add(sum, dnorm);
        sum_norm = v16_fma(dnorm, norm, sum_norm);
        v16_store(block_dbias + j, v16_add(v16_load(block_dbias + j), up));
        v16_store(block_dweight + j, v16_fma(norm, up, v16_load(block_dweight + j)));
    }
    v16 a = v16_set(v16_sum(sum) / (float)C), b = v16_set(v16_sum(sum_norm) / (float)C);
    FOR16(j, m, C) {
        v16 norm = v16_mul(v16_sub(load16(inp + j, m), mu), r);
        v16 dnorm = v16_mul(load16(dout + j, m), load16(weight + j, m));
        v16 d = v16_mul(v16_sub(v16_sub(dnorm, a), v16_mul(norm, b)), r);
        store16(dinp + j, acc ? v16_add(load16(dinp + j, m), d) : d, m);
    }
}

void layernorm_backward(float *dinp, float *dweight, float *dbias, const float *dout, const float *mean, const float *rstd,
                        const float *inp, const float *weight, float *scratch, int64_t N, int64_t C, int64_t NT,
                        int64_t acc_inp, int64_t acc_weight, int64_t acc_bias) {
    int64_t blocks = (N + LN_ROWS - 1) / LN_ROWS, pitch = round_up(C, 16);
    PARALLEL(NT) {
        Range r = share(blocks);
        for (int64_t b = r.begin; b < r.end; b++) {
            float *block = scratch + b * 2 * pitch;
            memset(block, 0, sizeof(float) * (size_t)(2 * pitch));
            for (int64_t n = b * LN_ROWS; n < min64(N, (b + 1) * LN_ROWS); n++)
                layernorm_row_backward(dinp + n * C, block, block + pitch, dout + n * C, mean[n], rstd[n], inp + n * C, weight,
                                       C, acc_inp);
        }
        BARRIER
        r = share(pitch / 16);  // the blocks in ascending order, threads own columns
        for (int64_t j = r.begin * 16; j < r.end * 16; j += 16) {
            int64_t m = min64(C - j, 16);
            v16 w = acc_weight ? load16(dweight + j, m) : v16_set(0.0f), b = acc_bias ? load16(dbias + j, m) : v16_set(0.0f);
            for (int64_t i = 0; i < blocks; i++) {
                w = v16_add(w, v16_load(scratch + i * 2 * pitch + j));
                b = v16_add(b, v16_load(scratch + (i * 2 + 1) * pitch + j));
            }
            store16(dweight + j, w, m), store16(dbias + j, b, m);
        }
    }
}
