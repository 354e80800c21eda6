// The optimizer: the norm of all gradients and one pass of AdamW, both over flat ranges. Memory is their limit, and the CPU's own
// prefetch falls behind: the distances below were measured (NOTES.md).
enum { NORM_BLOCK = 65536, NORM_RUN = 4096, NORM_AHEAD = 1024, RUN = 64, AHEAD = 256 };  // floats

int64_t grad_norm_scratch(int64_t P, int64_t NT) {
    (void)NT;
    return 2 * ((P + NORM_BLOCK - 1) / NORM_BLOCK);  // a double per block
}

void grad_norm(float *norm, const float *grads, float *scratch, int64_t P, int64_t NT) {
    int64_t blocks = (P + NORM_BLOCK - 1) / NORM_BLOCK;
    PARALLEL(NT) {
        Range r = share(blocks);
        for (int64_t b = r.begin; b < r.end; b++) {
            double block = 0.0;
            int64_t end = min64((b + 1) * NORM_BLOCK, P);
            for (int64_t i = b * NORM_BLOCK; i < end; i += NORM_RUN) {
                v16 sum = v16_set(0.0f);
                FOR16(j, m, min64(end - i, NORM_RUN)) {
                    __builtin_prefetch(grads + i + j + NORM_AHEAD);
                    v16 g = load16(grads + i + j, m);
                    sum = v16_fma(g, g, sum);
                }
                block += (double)v16_sum(sum);
            }
            memcpy(scratch + 2 * b, &block, sizeof block);
        }
    }
    double total = 0.0, block;
    for (int64_t b = 0; b < blocks; b++) {
        memcpy(&block, scratch + 2 * b, sizeof block);
        total += block;
    }
    *norm = (float)sqrt(total);
}

void adamw(float *params, float *m, float *v, const float *grads, const float *lr, const float *beta1, const float *beta2,
           const float *eps, const float *weight_decay, const float *correction1, const float *correction2,
           const float *grad_scale, int64_t P, int64_t NT) {
    const v16 rate = v16_set(*lr), rest1 = v16_set(1.0f - *beta1), rest2 = v16_set(1.0f - *beta2), e = v16_set(*eps),
              decay = v16_set(*weight_decay), c1 = v16_set(1.0f / *correction1), c2 = v16_set(1.0f / *correction2),
              scale = v16_set(*grad_scale);
    PARALLEL(NT) {
        Range r = share((P + RUN - 1) / RUN);
        for (int64_t i = r.begin * RUN; i < min64(r.end * RUN, P); i += 16) {
            for (int64_t j = i; i % RUN == 0 && j < i + RUN; j += 16) {  // a run of each array at a time, as DRAM likes it
                __builtin_prefetch(grads + j + AHEAD);
                __builtin_prefetch(m + j + AHEAD, 1), __builtin_prefetch(v + j + AHEAD, 1), __builtin_prefetch(params + j + AHEAD, 1);
            }
            int64_t n = min64(P - i, 16);
            v16 g = v16_mul(load16(grads + i, n), scale), p = load16(params + i, n);
            v16 m_i = load16(m + i, n), v_i = load16(v + i, n);
            m_i = v16_fma(rest1, v16_sub(g, m_i), m_i);
            v_i = v16_fma(rest2, v16_sub(v16_mul(g, g), v_i), v_i);
            v16 step = v16_div(v16_mul(m_i, c1), v16_add(v16_sqrt(v16_mul(v_i, c2)), e));
            store16(m + i, m_i, n), store16(v + i, v_i, n);
            store16(params + i, v16_sub(p, v16_mul(rate, v16_fma(decay, p, step))), n);
        }
    }
}
