// fused: a linear with what stands beside it in a block. GELU is taken while the input is packed, GELU' is multiplied and a residual
// added on finished tiles (gemm.c). The bits are those of the ops apart.

int64_t linear_residual_scratch(int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT) {
    return linear_scratch(N, C, OC, BF16, NT);
}

void linear_residual_forward(float *out, const float *inp, const float *added, const float *weight, const float *bias,
                             float *scratch, int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT) {
    gemm((Gemm){.c = out, .ldc = OC, .a = inp, .ars = C, .acs = 1, .b = weight, .brs = 1, .bcs = C, .bias = bias,
                .added = added, .M = N, .N = OC, .K = C, .bf16 = BF16}, scratch, NT);
}

void linear_residual_backward(float *dinp, float *dadded, float *dweight, float *dbias, const float *dout, const float *inp,
                              const float *weight, float *scratch, int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT,
                              int64_t acc_inp, int64_t acc_added, int64_t acc_weight, int64_t acc_bias) {
    linear_backward(dinp, dweight, dbias, dout, inp, weight, scratch, N, C, OC, BF16, NT, acc_inp, acc_weight, acc_bias);
    if (dadded) residual_backward(dadded, 0, dout, N, OC, NT, acc_added, 0);
}

// rows that backward does at once, so that their GELU stays in cache from one product to the next; a multiple of KC and PAIR
enum { GELU_ROWS = 1536 };
INLINE int64_t gelu_floats(int64_t N, int64_t C) { return round_up(min64(N, GELU_ROWS) * C, 16); }

int64_t gelu_linear_scratch(int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT) {
    return gelu_floats(N, C) + linear_scratch(N, C, OC, BF16, NT);
}

void gelu_linear_forward(float *out, const float *inp, const float *added, const float *weight, const float *bias,
                         float *scratch, int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT) {
    gemm((Gemm){.c = out, .ldc = OC, .a = inp, .ars = C, .acs = 1, .b = weight, .brs = 1, .bcs = C, .bias = bias,
                .added = added, .gelu = 1, .M = N, .N = OC, .K = C, .bf16 = BF16}, scratch, NT);
}

void gelu_linear_backward(float *dinp, float *dadded, float *dweight, float *dbias, const float *dout, const float *inp,
                          const float *weight, float *scratch, int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT,
                          int64_t acc_inp, int64_t acc_added, int64_t acc_weight, int64_t acc_bias) {
    float *made = scratch, *rest = scratch + gelu_floats(N, C);
    for (int64_t n = 0; n < N; n += GELU_ROWS) {
        int64_t M = min64(N - n, GELU_ROWS);
        const float *up = dout + n * OC, *x = inp + n * C;
        Gemm dgrad = {.c = dinp + n * C, .ldc = C, .a = up, .ars = OC, .acs = 1, .b = weight, .brs = C, .bcs = 1, .slope = x,
                      .made = made, .M = M, .N = C, .K = OC, .bf16 = BF16};
        if (acc_inp) dgrad.c = made, dgrad.slope = 0;  // the product goes through GELU' before it is added
        gemm(dgrad, rest, NT);
        if (acc_inp) gelu_backward(dinp + n * C, made, x, M, C, NT, 1), gelu_forward(made, x, M, C, NT);
        gemm((Gemm){.c = dweight, .ldc = C, .a = up, .ars = 1, .acs = OC, .b = made, .brs = C, .bcs = 1,
                    .M = OC, .N = C, .K = M, .acc = acc_weight || n > 0, .bf16 = BF16}, rest, NT);
    }
    if (dbias) column_sums(dbias, dout, N, OC, NT, acc_bias);
    if (dadded) residual_backward(dadded, 0, dout, N, OC, NT, acc_added, 0);
}
