// gelu: x s with s = sigmoid(u), u = 2 sqrt(2/pi) (x + 0.044715 x^3): one exp and no cancellation in the tails.

INLINE v16 gelu_sigmoid(v16 x) {
    v16 a = v16_set(-1.59576912f), b = v16_set(-0.0713548163f);  // -2 sqrt(2/pi), and that times 0.044715
    v16 minus_u = v16_mul(x, v16_fma(v16_mul(x, x), b, a));
    return v16_div(v16_set(1.0f), v16_add(v16_set(1.0f), v16_exp(minus_u)));
}

INLINE v16 gelu_of(v16 x) { return v16_mul(x, gelu_sigmoid(x)); }

// s + x s (1 - s) u'
INLINE v16 gelu_slope(v16 x, v16 s) {
    v16 slope = v16_fma(v16_mul(x, x), v16_set(0.214064449f), v16_set(1.59576912f));  // u'
    return v16_add(s, v16_mul(v16_mul(v16_mul(x, s), v16_sub(v16_set(1.0f), s)), slope));
}

void gelu_forward(float *out, const float *inp, int64_t N, int64_t C, int64_t NT) {
    PARALLEL(NT) {
        Range r = share((N * C + 15) / 16);
        for (int64_t i = r.begin * 16; i < r.end * 16; i += 16) {
            int64_t m = min64(N * C - i, 16);
            v16 x = load16(inp + i, m);
            store16(out + i, gelu_of(x), m);
        }
    }
}

void gelu_backward(float *dinp, const float *dout, const float *inp, int64_t N, int64_t C, int64_t NT, int64_t acc_inp) {
    PARALLEL(NT) {
        Range r = share((N * C + 15) / 16);
        for (int64_t i = r.begin * 16; i < r.end * 16; i += 16) {
            int64_t m = min64(N * C - i, 16);
            v16 x = load16(inp + i, m), d = v16_mul(gelu_slope(x, gelu_sigmoid(x)), load16(dout + i, m));
            store16(dinp + i, acc_inp ? v16_add(load16(dinp + i, m), d) : d, m);
        }
    }
}
