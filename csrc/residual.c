// residual: a sum. In GPT-2 its gradients share one home and no backward runs (program.py); this one serves homes that differ.

void residual_forward(float *out, const float *inp1, const float *inp2, int64_t N, int64_t C, int64_t NT) {
    PARALLEL(NT) {
        Range r = share((N * C + 15) / 16);
        for (int64_t i = r.begin * 16; i < r.end * 16; i += 16) {
            int64_t m = min64(N * C - i, 16);
            store16(out + i, v16_add(load16(inp1 + i, m), load16(inp2 + i, m)), m);
        }
    }
}

void residual_backward(float *dinp1, float *dinp2, const float *dout, int64_t N, int64_t C, int64_t NT,
                       int64_t acc_inp1, int64_t acc_inp2) {
    PARALLEL(NT) {
        Range r = share((N * C + 15) / 16);
        for (int64_t i = r.begin * 16; i < r.end * 16; i += 16) {
            int64_t m = min64(N * C - i, 16);
            v16 up = load16(dout + i, m);
            if (dinp1) store16(dinp1 + i, acc_inp1 ? v16_add(load16(dinp1 + i, m), up) : up, m);
            if (dinp2) store16(dinp2 + i, acc_inp2 ? v16_add(load16(dinp2 + i, m), up) : up, m);
        }
    }
}
