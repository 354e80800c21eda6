// dropout: a number stays, times 1 / (1 - p), or becomes 0, by a random word that is a function of a key and of its place.
// So no thread, tile or order of work changes a mask, and backward makes it again. Attention drops with the same words.

typedef struct { float keep; uint32_t key, threshold; } Drop;  // 1 / (1 - p); a word below the threshold drops: 0 without dropout

INLINE Drop drop_of(float p, int32_t key) {
    return (Drop){1.0f / (1.0f - p), (uint32_t)key, (uint32_t)((double)p * 4294967296.0)};
}

// two rounds of a 32-bit mixer (kernels.h, mix)
INLINE uint32_t mix32(uint32_t x) {
    x ^= x >> 16, x *= 0x7feb352du;
    x ^= x >> 15, x *= 0x846ca68bu;
    return x ^ x >> 16;
}

// mask[k] = 0 or keep for places (plane, row, from) .. (plane, row, from + n); whole vectors of mask are written. The loop is
// plain C, which compilers turn into vectors of integers.
static void drop_mask(float *mask, Drop d, int64_t plane, int64_t row, int64_t from, int64_t n) {
    uint32_t words = mix32(mix32(d.key ^ (uint32_t)plane * 0x9e3779b9u) + (uint32_t)row), first = (uint32_t)from;
    for (uint32_t k = 0; k < (uint32_t)round_up(n, 16); k++)
        mask[k] = mix32(words ^ mix32(first + k)) < d.threshold ? 0.0f : d.keep;
}

enum { DROP_FLOATS = 256 };  // whose mask is made at once; divides 2^32

void dropout_forward(float *out, const float *inp, const float *added, const float *p_drop, const int32_t *key_drop, int64_t N,
                     int64_t C, int64_t NT) {
    Drop d = drop_of(*p_drop, *key_drop);
    PARALLEL(NT) {
        Range r = share((N * C + DROP_FLOATS - 1) / DROP_FLOATS);
        float mask[DROP_FLOATS];
        for (int64_t i = r.begin * DROP_FLOATS; i < min64(r.end * DROP_FLOATS, N * C); i += DROP_FLOATS) {
            int64_t n = min64(N * C - i, DROP_FLOATS);
            drop_mask(mask, d, 0, i >> 32, i, n);
            FOR16(j, m, n) {
                v16 x = v16_mul(load16(inp + i + j, m), v16_load(mask + j));
                store16(out + i + j, added ? v16_add(load16(added + i + j, m), x) : x, m);
            }
        }
    }
}

void dropout_backward(float *dinp, float *dadded, const float *dout, const float *p_drop, const int32_t *key_drop, int64_t N,
                      int64_t C, int64_t NT, int64_t acc_inp, int64_t acc_added) {
    dropout_forward(dinp, dout, acc_inp ? dinp : 0, p_drop, key_drop, N, C, NT);
    if (dadded) residual_backward(dadded, 0, dout, N, C, NT, acc_added, 0);
}
