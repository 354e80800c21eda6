// classifier: logits, softmax and cross-entropy in chunks of R rows, so that the logits never exist for all tokens at once.
// The three forms share chunk_logits, chunk_losses and chunk_backward and so give the same bits.
#define STATS 192  // columns of a block of the softmax statistics: a multiple of every tile of the GEMM

int64_t classifier_scratch(int64_t N, int64_t C, int64_t V, int64_t Vp, int64_t R, int64_t BF16, int64_t NT) {
    (void)N, (void)V;
    return linear_scratch(R, C, Vp, BF16, NT);
}

static void chunk_logits(float *logits, const float *inp, const float *weight, float *scratch, int64_t rows, int64_t C,
                         int64_t Vp, int64_t BF16, int64_t NT) {
    linear_forward(logits, inp, weight, 0, scratch, rows, C, Vp, BF16, NT);
}

// log sum exp of one row: the blocks in ascending order, rescaled to the largest value so far
static float row_lse(const float *logits, int64_t V) {
    float most = -INFINITY, total = 0.0f;
    for (int64_t b = 0; b < V; b += STATS) {
        int64_t width = min64(V - b, STATS);
        v16 top = v16_set(-3.0e38f), sum = v16_set(0.0f);  // finite, so that a row of -inf has no inf - inf
        FOR16(j, m, width) top = v16_max(v16_first(load16(logits + b + j, m), top, m), top);
        float block = v16_maximum(top), now = block > most ? block : most;
        FOR16(j, m, width) {
            v16 p = v16_exp(v16_sub(load16(logits + b + j, m), v16_set(block)));
            sum = v16_add(sum, m < 16 ? v16_first(p, v16_set(0.0f), m) : p);
        }
        total = total * exp1(most - now) + v16_sum(sum) * exp1(block - now);
        most = now;
    }
    return most + (float)log((double)total);
}

static void chunk_losses(float *losses, float *lse, const float *logits, const int32_t *targets, int64_t rows, int64_t V,
                         int64_t Vp, int64_t NT) {
    PARALLEL(NT) {
        Range r = share(rows);
        for (int64_t n = r.begin; n < r.end; n++) {
            lse[n] = row_lse(logits + n * Vp, V);
            losses[n] = targets[n] < 0 ? 0.0f : lse[n] - logits[n * Vp + targets[n]];
        }
    }
}

// logits become dlogits = (softmax - onehot) * dlosses, 0 in the padding; then the two gradients of the chunk
static void chunk_backward(float *dinp, float *dweight, const float *dlosses, const float *lse, const float *inp,
                           const int32_t *targets, const float *weight, float *logits, float *scratch, int64_t rows, int64_t C,
                           int64_t V, int64_t Vp, int64_t BF16, int64_t NT, int64_t acc_inp, int64_t acc_weight) {
    PARALLEL(NT) {
        Range r = share(rows);
        for (int64_t n = r.begin; n < r.end; n++) {
            float *row = logits + n * Vp, up = targets[n] < 0 ? 0.0f : dlosses[n];
            v16 scale = v16_set(up), shift = v16_set(lse[n]);
            FOR16(j, m, V) store16(row + j, v16_mul(v16_exp(v16_sub(load16(row + j, m), shift)), scale), m);
            if (targets[n] >= 0) row[targets[n]] -= up;
            else memset(row, 0, sizeof(float) * (size_t)V);  // ignored: not even a NaN counts
            memset(row + V, 0, sizeof(float) * (size_t)(Vp - V));
        }
    }
    linear_backward(dinp, dweight, 0, logits, inp, weight, scratch, rows, C, Vp, BF16, NT, acc_inp, acc_weight, 0);
}

void classifier_forward(float *losses, float *lse, const float *inp, const int32_t *targets, const float *weight,
                        float *logits, int32_t *held, float *scratch,
                        int64_t N, int64_t C, int64_t V, int64_t Vp, int64_t R, int64_t BF16, int64_t NT) {
    for (int64_t n = 0; n < N; n += R) {
        int64_t rows = min64(N - n, R);
        chunk_logits(logits, inp + n * C, weight, scratch, rows, C, Vp, BF16, NT);
        chunk_losses(losses + n, lse + n, logits, targets + n, rows, V, Vp, NT);
    }
    *held = N <= R ? (int32_t)N : 0;
}

void classifier_backward(float *dinp, float *dweight, const float *dlosses, const float *lse, const float *inp,
                         const int32_t *targets, const float *weight, float *logits, int32_t *held, float *scratch,
                         int64_t N, int64_t C, int64_t V, int64_t Vp, int64_t R, int64_t BF16, int64_t NT,
                         int64_t acc_inp, int64_t acc_weight) {
    for (int64_t n = 0; n < N; n += R) {
        int64_t rows = min64(N - n, R);
        if (*held != N) chunk_logits(logits, inp + n * C, weight, scratch, rows, C, Vp, BF16, NT);
        chunk_backward(dinp + n * C, dweight, dlosses + n, lse + n, inp + n * C, targets + n, weight, logits, scratch, rows, C, V,
                       Vp, BF16, NT, acc_inp, acc_weight || n > 0);
    }
    *held = 0;
}

void classifier_train(float *losses, float *dinp, float *dweight, float *lse, const float *dlosses, const float *inp,
                      const int32_t *targets, const float *weight, float *logits, int32_t *held, float *scratch,
                      int64_t N, int64_t C, int64_t V, int64_t Vp, int64_t R, int64_t BF16, int64_t NT,
                      int64_t acc_inp, int64_t acc_weight) {
    for (int64_t n = 0; n < N; n += R) {
        int64_t rows = min64(N - n, R);
        chunk_logits(logits, inp + n * C, weight, scratch, rows, C, Vp, BF16, NT);
        chunk_losses(losses + n, lse + n, logits, targets + n, rows, V, Vp, NT);
        chunk_backward(dinp + n * C, dweight, dlosses + n, lse + n, inp + n * C, targets + n, weight, logits, scratch, rows, C, V,
                       Vp, BF16, NT, acc_inp, acc_weight || n > 0);
    }
    *held = 0;
}
