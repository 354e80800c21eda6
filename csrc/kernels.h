// The contracts of every kernel. No preprocessor lines: the C compiler, cffi and the tests read this file verbatim.
//
// Arguments: written | saved | read | weights | work | scratch | dims, NT | acc. const = read only. Matrices are row-major.
// Dims are int64_t: B T N(=B*T) C OC F NH KVH HS V Vp maxT, R rows of logits held at once, P floats of a flat range,
// BF16 0 or 1, QB KB sizes of tiles, NT threads.
// acc_x = 0: dx is overwritten and its old value never read, every element is defined afterwards; 1: dx is added to.
// An op whose kernels take `scratch` has <op>_scratch(dims, NT): the floats that any of its kernels needs.
//
// Order of sums (same bits for any thread count, and for AVX2 and AVX-512):
//   chain     one FMA chain over the ascending index, starting from 0 or from the old value (acc = 1)
//   tree16    element i goes to lane i % 16, a chain of adds per lane; lanes combine +8, +4, +2, +1
//   blocks    fixed blocks, partial sums combined in ascending order
// The scalar build multiplies and adds with two roundings; it agrees within tolerance. All of it holds for finite input: hidden
// keys of a tile are multiplied by 0, and 0 times inf is NaN.
// BF16 = 1: products round their inputs to bf16 (nearest, ties to even) and add in float32; with avx512bf16 the chain runs over
// pairs of indices, two products at a time, and denormals count as 0. Everything else stays float32.

// linear: out = inp weight^T + bias                                    parallel over tiles of out
//   out (N,OC)  inp (N,C)  weight (OC,C)  bias (OC) or NULL            2 N C OC flops; chain over C, bias last
void linear_forward(float *out, const float *inp, const float *weight, const float *bias,
                    float *scratch, int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT);
// dinp = dout weight, chain over OC; dweight = dout^T inp, chain over N; dbias = column sums of dout, chain of adds over N
void linear_backward(float *dinp, float *dweight, float *dbias, const float *dout, const float *inp, const float *weight,
                     float *scratch, int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT,
                     int64_t acc_inp, int64_t acc_weight, int64_t acc_bias);
int64_t linear_scratch(int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT);

// layernorm: out = (inp - mean) * rstd * weight + bias, rstd = 1 / sqrt(variance + 1e-5)     parallel over N
//   out,inp (N,C)  mean,rstd (N)  weight,bias (C)                      8 N C flops; row sums tree16
void layernorm_forward(float *out, float *mean, float *rstd, const float *inp, const float *weight, const float *bias,
                       int64_t N, int64_t C, int64_t NT);
// dweight, dbias: blocks of 32 rows, a chain inside each
void layernorm_backward(float *dinp, float *dweight, float *dbias, const float *dout, const float *mean, const float *rstd,
                        const float *inp, const float *weight, float *scratch, int64_t N, int64_t C, int64_t NT,
                        int64_t acc_inp, int64_t acc_weight, int64_t acc_bias);
int64_t layernorm_scratch(int64_t N, int64_t C, int64_t NT);

// embedding: out[n] = wte[tokens[n]] + wpe[n % T]                      parallel over N
//   out (N,C)  tokens (N) in [0,Vp)  wte (Vp,C)  wpe (maxT,C), T <= maxT
void embedding_forward(float *out, const int32_t *tokens, const float *wte, const float *wpe,
                       int64_t N, int64_t T, int64_t C, int64_t Vp, int64_t maxT, int64_t NT);
// dwte: chain of adds over ascending n, threads own channels; dwpe: chain of adds over ascending b
void embedding_backward(float *dwte, float *dwpe, const float *dout, const int32_t *tokens,
                        int64_t N, int64_t T, int64_t C, int64_t Vp, int64_t maxT, int64_t NT,
                        int64_t acc_wte, int64_t acc_wpe);

// gelu: out = inp * sigmoid(2 sqrt(2/pi) (inp + 0.044715 inp^3)), the tanh form of GPT-2       parallel over N C
void gelu_forward(float *out, const float *inp, int64_t N, int64_t C, int64_t NT);
void gelu_backward(float *dinp, const float *dout, const float *inp, int64_t N, int64_t C, int64_t NT, int64_t acc_inp);

// residual: out = inp1 + inp2; dinp1, dinp2 = dout, or NULL            parallel over N C
void residual_forward(float *out, const float *inp1, const float *inp2, int64_t N, int64_t C, int64_t NT);
void residual_backward(float *dinp1, float *dinp2, const float *dout, int64_t N, int64_t C, int64_t NT,
                       int64_t acc_inp1, int64_t acc_inp2);

// dropout: out = added + inp keep / (1 - p_drop), added may be NULL   parallel over N C
//   out,inp,added (N,C)  p_drop (1) in [0,1)  key_drop (1)            0 copies or adds to the bit
//   keep is 0 where the random word of the place is below p_drop 2^32, else 1, and does not depend on what computes it:
//     word(key, plane, row, column) = mix(mix(mix(key ^ plane 0x9e3779b9) + row) ^ mix(column)), all of 32 bits, with
//     mix(x): x ^= x >> 16, x *= 0x7feb352d, x ^= x >> 15, x *= 0x846ca68b, x ^ x >> 16
//   here plane is 0, row and column are the upper and the lower half of the index into N C
void dropout_forward(float *out, const float *inp, const float *added, const float *p_drop, const int32_t *key_drop, int64_t N,
                     int64_t C, int64_t NT);
// dinp = dout keep / (1 - p_drop), the same mask; dadded = dout, or NULL where that is its home already
void dropout_backward(float *dinp, float *dadded, const float *dout, const float *p_drop, const int32_t *key_drop, int64_t N,
                      int64_t C, int64_t NT, int64_t acc_inp, int64_t acc_added);

// linear_residual: out = added + (inp weight^T + bias); gelu_linear: out = added + (gelu(inp) weight^T + bias), added may be NULL
//   out,added (N,OC)  the rest as linear's; the bits of linear, gelu and residual apart, without what lies between them
//   dadded = dout, or NULL where that is its home already
void linear_residual_forward(float *out, const float *inp, const float *added, const float *weight, const float *bias,
                             float *scratch, int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT);
void linear_residual_backward(float *dinp, float *dadded, float *dweight, float *dbias, const float *dout, const float *inp,
                              const float *weight, float *scratch, int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT,
                              int64_t acc_inp, int64_t acc_added, int64_t acc_weight, int64_t acc_bias);
int64_t linear_residual_scratch(int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT);
void gelu_linear_forward(float *out, const float *inp, const float *added, const float *weight, const float *bias,
                         float *scratch, int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT);
void gelu_linear_backward(float *dinp, float *dadded, float *dweight, float *dbias, const float *dout, const float *inp,
                          const float *weight, float *scratch, int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT,
                          int64_t acc_inp, int64_t acc_added, int64_t acc_weight, int64_t acc_bias);
int64_t gelu_linear_scratch(int64_t N, int64_t C, int64_t OC, int64_t BF16, int64_t NT);

// attention (flash, causal): per head out = softmax(q k^T / sqrt(HS)) v; query head h reads key/value head h / (NH / KVH)
//   out (B*T, NH*HS)  lse (B,NH,T)  inp (B*T, (NH + 2*KVH)*HS): q heads | k heads | v heads
//   p_drop (1), key_drop (1): dropout of each probability, plane b NH + h, row query, column key; 0 costs nothing
//   QB, KB: queries and (of backward; forward takes its blocks of 192) keys of a tile, multiples of 16 up to 512 and 192;
//   0 = as the kernel likes. They change no bit.
//   forward parallel over B NH and chunks of queries, backward over B KVH or, where these are few, over blocks of keys for dk,
//   dv and chunks of queries for dq; arXiv 2307.08691
//   scores: chain over HS; per row online softmax of the scaled scores over ascending blocks of 192 keys: max, sum tree16;
//   out: chain over ascending keys, rescaled at each block, divided by the sum at the end
void attention_forward(float *out, float *lse, const float *inp, const float *p_drop, const int32_t *key_drop, float *scratch,
                       int64_t B, int64_t T, int64_t NH, int64_t KVH, int64_t HS, int64_t BF16, int64_t QB, int64_t KB,
                       int64_t NT);
// dq: chain over ascending keys; dk, dv: chain over the heads of the group, then ascending queries; a sum that is -0 becomes 0
void attention_backward(float *dinp, const float *dout, const float *out, const float *lse, const float *inp,
                        const float *p_drop, const int32_t *key_drop, float *scratch, int64_t B, int64_t T, int64_t NH,
                        int64_t KVH, int64_t HS, int64_t BF16, int64_t QB, int64_t KB, int64_t NT, int64_t acc_inp);
int64_t attention_scratch(int64_t B, int64_t T, int64_t NH, int64_t KVH, int64_t HS, int64_t BF16, int64_t QB, int64_t KB,
                          int64_t NT);

// attention_standard: the same function with its matrices kept: scores (B,NH,T,T) before and att (B,NH,T,T) after the
//   softmax, 0 above the diagonal; forward parallel over B NH and tiles of queries, backward as attention's
//   softmax per row as the classifier's: log sum exp over blocks of 192 keys, then exp
void attention_standard_forward(float *out, float *scores, float *att, const float *inp, const float *p_drop,
                                const int32_t *key_drop, float *scratch, int64_t B, int64_t T, int64_t NH, int64_t KVH,
                                int64_t HS, int64_t BF16, int64_t QB, int64_t KB, int64_t NT);
void attention_standard_backward(float *dinp, const float *dout, const float *out, const float *att, const float *inp,
                                 const float *p_drop, const int32_t *key_drop, float *scratch, int64_t B, int64_t T, int64_t NH,
                                 int64_t KVH, int64_t HS, int64_t BF16, int64_t QB, int64_t KB, int64_t NT, int64_t acc_inp);
int64_t attention_standard_scratch(int64_t B, int64_t T, int64_t NH, int64_t KVH, int64_t HS, int64_t BF16, int64_t QB,
                                   int64_t KB, int64_t NT);

// classifier: losses = log sum exp(logits) - logits[target], logits = inp weight^T, over the first V of Vp columns
//   losses,lse (N)  inp (N,C)  targets (N) in [-1,V), -1 = ignored: loss 0, no gradient  weight (Vp,C)
//   logits (R,Vp): the rows of one chunk   held (1): rows of logits that are those of inp now, N after forward if N <= R, else 0
//   per row: blocks of 192 columns, max, sum tree16; chunks of R rows change no bit
void classifier_forward(float *losses, float *lse, const float *inp, const int32_t *targets, const float *weight,
                        float *logits, int32_t *held, float *scratch,
                        int64_t N, int64_t C, int64_t V, int64_t Vp, int64_t R, int64_t BF16, int64_t NT);
// dlogits = (softmax - onehot) * dlosses; dinp = dlogits weight, chain over Vp; dweight = dlogits^T inp, chain over N
void classifier_backward(float *dinp, float *dweight, const float *dlosses, const float *lse, const float *inp,
                         const int32_t *targets, const float *weight, float *logits, int32_t *held, float *scratch,
                         int64_t N, int64_t C, int64_t V, int64_t Vp, int64_t R, int64_t BF16, int64_t NT,
                         int64_t acc_inp, int64_t acc_weight);
// forward and backward with one visit of each chunk
void classifier_train(float *losses, float *dinp, float *dweight, float *lse, const float *dlosses, const float *inp,
                      const int32_t *targets, const float *weight, float *logits, int32_t *held, float *scratch,
                      int64_t N, int64_t C, int64_t V, int64_t Vp, int64_t R, int64_t BF16, int64_t NT,
                      int64_t acc_inp, int64_t acc_weight);
int64_t classifier_scratch(int64_t N, int64_t C, int64_t V, int64_t Vp, int64_t R, int64_t BF16, int64_t NT);

// decode_*: the next token of B rows whose past is in a cache; forward only. No row depends on another.
// PACK: how a row of weight lies in W floats: 0 its C floats, W = C; else blocks, zeros behind C: 1 bf16, 32 elements, word i of
// 16 holds element i in its lower half and element 16 + i in its upper; 2 int8, 128 elements: two words with the bf16 scales of four
// blocks of 32, the lower half first, then 128 bytes q + 128; byte 64 h + 16 b + i is of element 32 b + 16 h + i, which means q scale.
// With 2 x is rounded as well: lane 4 b + j of 128 elements has the eight 32 b + 16 h + 4 j + i, h < 2, i < 4, whose largest size is
// most; of them q = round(x (127 / most)), to even, each means q times most (1 / 127); where most is below 1e-36 q is 0. The q of
// x and weights are multiplied and added as whole numbers; then the lane adds (sum weight-scale) x-scale by an FMA.
// positions: how many tokens of a row came before, in [0,maxT) or [0,S)
//
// decode_embedding: out[b] = wte[tokens[b]] + wpe[positions[b]]        parallel over B
//   out (B,C)  tokens, positions (B)  wte (Vp,C)  wpe (maxT,C)
void decode_embedding(float *out, const int32_t *tokens, const int32_t *positions, const float *wte, const float *wpe,
                      int64_t B, int64_t C, int64_t Vp, int64_t maxT, int64_t NT);
// decode_linear: out = added + (x weight^T + bias); decode_linear_gelu: out = gelu(x weight^T + bias)    parallel over OC
//   out,added (B,OC)  inp (B,C)  weight (OC,W)  bias (OC)  gain,shift (C); bias, added, gain with shift may be NULL
//   x = inp, or layernorm's of it where there is a gain             2 B C OC flops; tree16 over C, an FMA for each addition
void decode_linear(float *out, const float *inp, const float *added, const float *gain, const float *shift, const float *weight,
                   const float *bias, float *scratch, int64_t B, int64_t C, int64_t OC, int64_t W, int64_t PACK, int64_t NT);
int64_t decode_linear_scratch(int64_t B, int64_t C, int64_t OC, int64_t W, int64_t PACK, int64_t NT);
void decode_linear_gelu(float *out, const float *inp, const float *gain, const float *shift, const float *weight,
                        const float *bias, float *scratch, int64_t B, int64_t C, int64_t OC, int64_t W, int64_t PACK, int64_t NT);
int64_t decode_linear_gelu_scratch(int64_t B, int64_t C, int64_t OC, int64_t W, int64_t PACK, int64_t NT);
// decode_cache: keys, values of positions 0 to T-1 from inp, the rest stays       parallel over B KVH
//   inp (B*T, (NH + 2*KVH)*HS) as attention's  values (B,KVH,S,HS)  S a multiple of 16, T <= S
//   keys (B,KVH,S,HS), in blocks of 16 positions: element d of position s at (s / 16, d, s % 16) of (S / 16, HS, 16)
void decode_cache(float *keys, float *values, const float *inp,
                  int64_t B, int64_t T, int64_t S, int64_t NH, int64_t KVH, int64_t HS, int64_t NT);
// decode_attention: puts keys and values of inp (B, (NH + 2*KVH)*HS) to positions[b], then attends to the positions up to it
//   out (B, NH*HS)  the sums and bits of a row of attention (BF16 = 0)                        parallel over B KVH
void decode_attention(float *out, float *keys, float *values, const float *inp, const int32_t *positions,
                      int64_t B, int64_t S, int64_t NH, int64_t KVH, int64_t HS, int64_t NT);

// grad_norm: norm = sqrt(sum of grads^2)                               parallel over blocks
//   blocks of 65536 floats; inside, tree16 over runs of 4096, added in double
void grad_norm(float *norm, const float *grads, float *scratch, int64_t P, int64_t NT);
int64_t grad_norm_scratch(int64_t P, int64_t NT);

// adamw: g = grads * grad_scale; m += (1 - beta1)(g - m); v += (1 - beta2)(g^2 - v);
//   params -= lr (m / correction1 / (sqrt(v / correction2) + eps) + weight_decay params)       parallel over P
//   correction = 1 - beta^t; arXiv 1711.05101
void adamw(float *params, float *m, float *v, const float *grads, const float *lr, const float *beta1, const float *beta2,
           const float *eps, const float *weight_decay, const float *correction1, const float *correction2,
           const float *grad_scale, int64_t P, int64_t NT);

// What the machine and this build are. last_team: threads that worked in the latest parallel kernel of this build.
// limit_team: kernels that the calling thread runs from now on use at most this many threads, whatever their NT; 0 lifts it.
// team_threads: the system's ids of the threads of a team, by rank; -1 where it does not tell.
// sources_hash: which sources and flags it was built from (gpt2flat/kernels/record.py).
// peak_fma: `rounds` rounds of peak_flops(BF16) flops per thread, independent FMAs in registers; with BF16 = 1 of pairs in
// bf16 where the CPU has these; out (32*NT), zeros to start.
int64_t last_team(void);
void limit_team(int64_t threads);
void team_threads(int64_t *threads, int64_t NT);
int64_t has_openmp(void);
int64_t sources_hash(void);
void peak_fma(float *out, int64_t rounds, int64_t BF16, int64_t NT);
int64_t peak_flops(int64_t BF16);
// stream: the memory of a kernel without its arithmetic. Visits arrays inside data `rounds` times, threads their parts.
//   ranges (count,3) are rows of what, first float, floats; what = 0 read, 1 update (read and written), 2 write.
//   Neighbours of equal length are walked side by side and must come in this order: an element that is updated is
//   multiplied by factors[0], one that is written becomes factors[0], and the first of these gets factors[1] times the
//   sum of those that are read. factors (2): 1 and 0, which no compiler knows   out (16*NT): sums of what is only read
void stream(float *out, float *data, const int64_t *ranges, const float *factors, int64_t count, int64_t rounds,
            int64_t NT);
// cpu_isa: the best instruction set that both the CPU and the operating system offer: 0 scalar, 1 avx2+fma, 2 avx512,
// 3 avx512 with bf16 and vnni, which every CPU with bf16 has.
int64_t cpu_isa(void);
