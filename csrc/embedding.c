// embedding: the sum of a token's and a position's vector; its gradients are a scatter and a sum over the batch.

void embedding_forward(float *out, const int32_t *tokens, const float *wte, const float *wpe,
                       int64_t N, int64_t T, int64_t C, int64_t Vp, int64_t maxT, int64_t NT) {
    (void)Vp, (void)maxT;
    PARALLEL(NT) {
        Range r = share(N);
        for (int64_t n = r.begin; n < r.end; n++) {
            const float *token = wte + tokens[n] * C, *position = wpe + n % T * C;
            FOR16(j, m, C) store16(out + n * C + j, v16_add(load16(token + j, m), load16(position + j, m)), m);
        }
    }
}

// row += or = a row of dout
INLINE void add_row(float *row, const float *dout, int64_t n, int64_t acc) {
    FOR16(j, m, n) {
        v16 up = load16(dout + j, m);
        store16(row + j, acc ? v16_add(load16(row + j, m), up) : up, m);
    }
}

void embedding_backward(float *dwte, float *dwpe, const float *dout, const int32_t *tokens,
                        int64_t N, int64_t T, int64_t C, int64_t Vp, int64_t maxT, int64_t NT,
                        int64_t acc_wte, int64_t acc_wpe) {
    PARALLEL(NT) {
        Range r = share(T);
        for (int64_t t = r.begin; t < r.end; t++)
            for (int64_t n = t; n < N; n += T) add_row(dwpe + t * C, dout + n * C, C, acc_wpe || n > t);
        r = share(maxT - T);
        if (!acc_wpe) memset(dwpe + (T + r.begin) * C, 0, sizeof(float) * (size_t)((r.end - r.begin) * C));
        if (!acc_wte) {
            r = share(Vp);
            memset(dwte + r.begin * C, 0, sizeof(float) * (size_t)((r.end - r.begin) * C));
            BARRIER
        }
        // the same token may come twice, so a thread owns channels: no two threads meet, and n ascends for each
        r = share((C + 15) / 16);
        int64_t from = r.begin * 16, width = min64(r.end * 16, C) - from;
        for (int64_t n = 0; n < N && width > 0; n++) add_row(dwte + tokens[n] * C + from, dout + n * C + from, width, 1);
    }
}
