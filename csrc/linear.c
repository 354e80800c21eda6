// linear: three GEMMs over the same two tables (gemm.c) and the column sums of the bias.

int64_t linear_scratch(int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT) {
    (void)BF16;
    int64_t forward = gemm_scratch(N, C, NT), dgrad = gemm_scratch(N, OC, NT), wgrad = gemm_scratch(OC, N, NT);
    int64_t most = forward > dgrad ? forward : dgrad;
    return most > wgrad ? most : wgrad;
}

void linear_forward(float *out, const float *inp, const float *weight, const float *bias,
                    float *scratch, int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT) {
    gemm((Gemm){.c = out, .ldc = OC, .a = inp, .ars = C, .acs = 1, .b = weight, .brs = 1, .bcs = C, .bias = bias,
                .M = N, .N = OC, .K = C, .bf16 = BF16}, scratch, NT);
}

// a thread owns groups of 16 columns and adds the rows in ascending order
static void column_sums(float *dbias, const float *dout, int64_t N, int64_t OC, int64_t NT, int64_t acc) {
    PARALLEL(NT) {
        Range r = share((OC + 15) / 16);
        for (int64_t g = r.begin; g < r.end; g++) {
            int64_t m = min64(OC - g * 16, 16);
            v16 sum = acc ? load16(dbias + g * 16, m) : v16_set(0.0f);
            for (int64_t n = 0; n < N; n++) sum = v16_add(sum, load16(dout + n * OC + g * 16, m));
            store16(dbias + g * 16, sum, m);
        }
    }
}

void linear_backward(float *dinp, float *dweight, float *dbias, const float *dout, const float *inp, const float *weight,
                     float *scratch, int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT,
                     int64_t acc_inp, int64_t acc_weight, int64_t acc_bias) {
    gemm((Gemm){.c = dinp, .ldc = C, .a = dout, .ars = OC, .acs = 1, .b = weight, .brs = C, .bcs = 1,
                .M = N, .N = C, .K = OC, .acc = acc_inp, .bf16 = BF16}, scratch, NT);
    gemm((Gemm){.c = dweight, .ldc = C, .a = dout, .ars = 1, .acs = OC, .b = inp, .brs = C, .bcs = 1,
                .M = OC, .N = C, .K = N, .acc = acc_weight, .bf16 = BF16}, scratch, NT);
    if (dbias) column_sums(dbias, dout, N, OC, NT, acc_bias);
}
