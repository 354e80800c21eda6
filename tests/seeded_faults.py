"""Small faults of the kinds that kernels really have: where, what stands there, what to put instead.

test_seeded_faults.py plants one at a time in a copy of the tree and demands that the tests go red. Each `old` stands
exactly once in its file; whoever changes that place moves the fault along."""

from typing import NamedTuple


class Fault(NamedTuple):
    name: str
    file: str
    old: str
    new: str


def _in(folder: str, stem: str, *faults: tuple[str, str, str]) -> list[Fault]:
    return [Fault(name, f"{folder}/{stem}", old, new) for name, old, new in faults]


C_FAULTS = [
    *_in(
        "csrc", "simd.h",
        ("avx512: a tail mask with one lane too many", "(1u << n) - 1", "(2u << n) - 1"),
        ("avx512: two rows of a transpose swapped",
         "dst + (4 + i) * dst_stride, _mm512_shuffle_f32x4(b, d, 0x88)",
         "dst + (4 + (i ^ 1)) * dst_stride, _mm512_shuffle_f32x4(b, d, 0x88)"),
        ("avx512: a comparison that a NaN passes",
         "_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ)", "_mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ)"),
        ("avx2: the upper half of a tail is not stored",
         "_mm256_maskstore_ps(p, v8_mask(n), a.lo), _mm256_maskstore_ps(p + 8, v8_mask(n - 8), a.hi);",
         "_mm256_maskstore_ps(p, v8_mask(n), a.lo);"),
        ("avx2: lanes combine in another order",
         "INLINE float v16_sum(v16 a) {\n    __m256 e = _mm256_add_ps(a.lo, a.hi);",
         "INLINE float v16_sum(v16 a) {\n    __m256 e = _mm256_hadd_ps(a.lo, a.hi);"),
        ("scalar: a selection of one lane too many",
         "EACH16(i < n ? a.x[i] : b.x[i])", "EACH16(i <= n ? a.x[i] : b.x[i])"),
        ("avx512bf16: two halves of a vector swapped",
         "_mm512_cvtne2ps_pbh(v16_load(p + 16), v16_load(p))", "_mm512_cvtne2ps_pbh(v16_load(p), v16_load(p + 16))"),
        ("bf16: ties are rounded up", "(u + 0x7fff + (u >> 16 & 1))", "(u + 0x8000)"),
        ("exp: a coefficient wrong in the fifth digit", "4.16666667e-2f", "4.16676667e-2f"),
        ("exp: no infinity above the largest float", "p = v16_where_gt(x, hi, v16_set(INFINITY), p);", ""),
        ("exp: a NaN becomes a number", "v16_min(hi, v16_max(lo, x))", "v16_min(v16_max(x, lo), hi)"),
    ),
    *_in(
        "csrc", "threads.h",
        ("as many threads as OpenMP likes", "PRAGMA(omp parallel num_threads((int)(NT)))", "PRAGMA(omp parallel)"),
        ("the remainder of a division of work is dropped", "n * (i + 1) / parts}", "n / parts * (i + 1)}"),
    ),
    *_in(
        "csrc", "gemm.c",
        ("k - 1", "for (int64_t left = t->K; left > 0;)", "for (int64_t left = t->K - 1; left > 0;)"),
        ("each block of k starts from zero", ".from_c = g->acc || j->k > 0", ".from_c = g->acc != 0"),
        ("the bias is added with each block of k",
         "g->bias && j->k + j->K == g->K ? g->bias + j->from * 16 : 0;", "g->bias ? g->bias + j->from * 16 : 0;"),
        ("the last column of an edge has no bias", "j < cols ? t.bias[j] : 0.0f", "j + 1 < cols ? t.bias[j] : 0.0f"),
        ("packing runs into the next panel", "for (; k + 8 < K; k += 8)", "for (; k + 8 <= K; k += 8)"),
        ("packing reads columns behind the edge",
         "r < have ? src[k * brs + (j + r) * bcs] : 0.0f", "src[k * brs + (j + r) * bcs]"),
        ("rows of A are read behind the edge",
         "if (p->in_place && rows < MR) t.a = tail, t.ars = 1, t.acs = MR;", ""),
        ("panels are used before all are packed",
         "            if (parts > 1) { BARRIER }\n        }\n", "        }\n"),
        ("C is added to before the pass before is done",
         "if (round > 0 && parts > 1) { BARRIER }", ""),
        ("a block of B with one group too many", "if (p.across * room < p.groups) p.across += unit;", ""),
        ("the columns of two jobs overlap", "wide.begin, wide.end, k,", "wide.begin - (i > 0), wide.end, k,"),
        ("a job is handed out twice", "number = parts + next_of(taken), next", "number++, next"),
        ("the next block of B is packed from this one", "const float *b = g->b + j->k * g->brs + n * g->bcs;", "const float *b = g->b + n * g->bcs;"),
        ("a gradient that is added to goes past the caches", "g->ars == 1 && !g->acc && g->K <= KC", "g->ars == 1 && g->K <= KC"),
        ("bf16: B is packed without rounding",
         "    for (int64_t i = 0; i < width * K; i++) strip[i] = bf16_1(strip[i]);\n", ""),
        ("avx512bf16: an odd last k is dropped", "(K + 1) / 2 : K", "K / 2 : K"),
        ("avx512bf16: an odd last k is paired with what follows",
         "k + 1 < K ? even[acs] : 0.0f) : 0.0f;", "even[acs]) : 0.0f;"),
        ("avx512bf16: an odd last k of a transposed A is paired with what follows",
         "k + 1 < K ? v16_load(even + acs) : v16_set(0.0f)", "v16_load(even + acs)"),
    ),
    *_in(
        "csrc", "gemm.c",
        ("a residual is added with each block of k", "int unfinished = j->k + j->K == g->K && (", "int unfinished = ("),
        ("the last row has no GELU", "r < rows && !g->bf16", "r < rows - 1 && !g->bf16"),
        ("avx512bf16: a piece of GELU lies in the wrong place", "items(K, 1) + items(k, 1) * MR, piece", "items(K, 1) + k * MR, piece"),
    ),
    *_in(
        "csrc", "fused.c",
        ("the gradient is added before GELU' is multiplied",
         "if (acc_inp) dgrad.c = made, dgrad.slope = 0;", "dgrad.acc = acc_inp;"),
        ("only the last rows count in the weight gradient", ".acc = acc_weight || n > 0", ".acc = acc_weight"),
        ("scratch without the GELU", "return gelu_floats(N, C) + linear_scratch(", "return linear_scratch("),
        ("the gradient of the residual forgets acc",
         "    if (dbias) column_sums(dbias, dout, N, OC, NT, acc_bias);\n"
         "    if (dadded) residual_backward(dadded, 0, dout, N, OC, NT, acc_added, 0);",
         "    if (dbias) column_sums(dbias, dout, N, OC, NT, acc_bias);\n"
         "    if (dadded) residual_backward(dadded, 0, dout, N, OC, NT, 0, 0);"),
    ),
    *_in(
        "csrc", "linear.c",
        ("scratch without the weight gradient", "return most > wgrad ? most : wgrad;", "return most;"),
        ("a transposed stride", ".a = dout, .ars = 1, .acs = OC", ".a = dout, .ars = N, .acs = 1"),
        ("the bias gradient forgets acc",
         "v16 sum = acc ? load16(dbias + g * 16, m) : v16_set(0.0f);", "v16 sum = v16_set(0.0f);"),
        ("the order of a sum depends on the thread",
         "load16(dout + n * OC + g * 16, m)", "load16(dout + (n + r.begin) % N * OC + g * 16, m)"),
        ("column sums in descending order",
         "load16(dout + n * OC + g * 16, m)", "load16(dout + (N - 1 - n) * OC + g * 16, m)"),
    ),
    *_in(
        "csrc", "layernorm.c",
        ("eps outside the root", "sqrtf(v16_sum(sum) / (float)C + 1e-5f)", "(sqrtf(v16_sum(sum) / (float)C) + 1e-5f)"),
        ("the variance counts the padding of the tail",
         "        if (m < 16) d = v16_first(d, v16_set(0.0f), m);\n", ""),
        ("a mean over C - 1", "v16_set(v16_sum(sum_norm) / (float)C)", "v16_set(v16_sum(sum_norm) / (float)(C - 1))"),
        ("the bias gradient takes the flag of the weight", "acc_bias ? load16", "acc_weight ? load16"),
        ("blocks are added before all are there",
         "        BARRIER\n        r = share(pitch / 16);", "        r = share(pitch / 16);"),
        ("rows of the weight gradient in larger blocks", "enum { LN_ROWS = 32 };", "enum { LN_ROWS = 64 };"),
    ),
    *_in(
        "csrc", "embedding.c",
        ("the batch is taken for the position", "wpe + n % T * C", "wpe + n / T % T * C"),
        ("rows behind T are not zeroed", "if (!acc_wpe) memset", "if (0) memset"),
        ("only the last batch counts", "acc_wpe || n > t", "acc_wpe"),
        ("rows are added to before all are zeroed",
         "            BARRIER\n        }\n        // the same", "        }\n        // the same"),
        ("the last channels run into the next row",
         "width = min64(r.end * 16, C) - from;", "width = r.end * 16 - from;"),
    ),
    *_in(
        "csrc", "gelu.c",
        ("a constant wrong in the fifth digit", "-0.0713548163f", "-0.0713648163f"),
        ("the derivative of the cube without 3", "v16_set(0.214064449f)", "v16_set(0.0713548163f)"),
        ("a whole vector is read at the tail",
         "v16 x = load16(inp + i, m);\n            store16(out + i",
         "v16 x = v16_load(inp + i);\n            store16(out + i"),
    ),
    *_in(
        "csrc", "residual.c",
        ("the tail is dropped",
         "Range r = share((N * C + 15) / 16);\n        for (int64_t i = r.begin * 16; i < r.end * 16; i += 16) {\n"
         "            int64_t m = min64(N * C - i, 16);\n            store16(out",
         "Range r = share(N * C / 16);\n        for (int64_t i = r.begin * 16; i < r.end * 16; i += 16) {\n"
         "            int64_t m = min64(N * C - i, 16);\n            store16(out"),
        ("one gradient is added to the other",
         "v16_add(load16(dinp2 + i, m), up)", "v16_add(load16(dinp1 + i, m), up)"),
    ),
    *_in(
        "csrc", "classifier.c",
        ("the softmax without its maximum", "float block = v16_maximum(top),", "float block = 0.0f,"),
        ("the last block of columns is dropped", "b < V; b += STATS", "b == 0 || b + STATS <= V; b += STATS"),
        ("an ignored target has a loss", "targets[n] < 0 ? 0.0f : lse[n] -", "targets[n] < 0 ? lse[n] : lse[n] -"),
        ("an ignored target passes a NaN on",
         "            else memset(row, 0, sizeof(float) * (size_t)V);  // ignored: not even a NaN counts\n", ""),
        ("padded columns are not zeroed", "            memset(row + V, 0, sizeof(float) * (size_t)(Vp - V));\n", ""),
        ("the onehot is not scaled", "row[targets[n]] -= up;", "row[targets[n]] -= 1.0f;"),
        ("the last chunk is said to be all logits", "*held = N <= R ? (int32_t)N : 0;", "*held = (int32_t)N;"),
        ("training drops the last chunk of rows",
         "int64_t acc_weight) {\n    for (int64_t n = 0; n < N; n += R) {\n        int64_t rows = min64(N - n, R);\n"
         "        chunk",
         "int64_t acc_weight) {\n    for (int64_t n = 0; n < N; n += R) {\n        int64_t rows = min64(N, R);\n"
         "        if (N - n < rows) break;\n        chunk"),
    ),
    *_in(
        "csrc", "attention.c",
        ("scores divided by HS", "1.0f / sqrtf((float)HS)", "1.0f / (float)HS"),
        ("dropped probabilities are not made up for", "1.0f / (1.0f - p)", "1.0f"),
        ("another key and value head", "h / (a->NH / a->KVH)", "h % a->KVH"),
        ("dropout ignores its key", "mix32(a->key ^ (uint32_t)bh * 0x9e3779b9u)", "mix32((uint32_t)bh * 0x9e3779b9u)"),
        ("dropout repeats with each block of keys", "mix32((uint32_t)(j0 + j))", "mix32((uint32_t)j)"),
        ("the scratch of a thread is too small",
         "product_floats(HS) + 2 * QUERIES * KEYS + round_up", "product_floats(HS) + QUERIES * KEYS + round_up"),
        ("a query sees the next key",
         "int64_t seen = min64(i0 + i + 1 - j0, n);", "int64_t seen = min64(i0 + i + 2 - j0, n);"),
        ("backward: a query does not see itself",
         "i0 + i, seen = min64(i0 + i + 1 - j0, n)", "i0 + i, seen = min64(i0 + i - j0, n)"),
        ("the old sum is not rescaled", "            if (j0 > 0) scale_row(o + i * HS, old, HS);\n", ""),
        ("the running maximum is not kept", "    *most = now;\n", ""),
        ("lse is not stored", "        lse[bh * a->T + i0 + i] = most[i] + (float)log((double)total[i]);\n", ""),
        ("backward: v gets what was not dropped",
         "    }\n    if (a->keep > 0.0f) drop(p, a, bh, i, j0, seen);\n}", "    }\n}"),
        ("backward: one head of the group is zeroed", "(size_t)(group * a->HS)", "(size_t)a->HS"),
        ("standard: the last block of keys is dropped",
         "j0 < keys; j0 += KEYS", "j0 == 0 || j0 + KEYS <= keys; j0 += KEYS"),
    ),
    *_in(
        "csrc", "adamw.c",
        ("the norm without the last block",
         "int64_t blocks = (P + NORM_BLOCK - 1) / NORM_BLOCK;",
         "int64_t blocks = P < NORM_BLOCK ? 1 : P / NORM_BLOCK;"),
        ("the norm added in float", "block += (double)v16_sum(sum);", "block = (float)block + v16_sum(sum);"),
        ("eps inside the root", "v16_add(v16_sqrt(v16_mul(v_i, c2)), e)", "v16_sqrt(v16_add(v16_mul(v_i, c2), e))"),
        ("corrections swapped", "c1 = v16_set(1.0f / *correction1)", "c1 = v16_set(1.0f / *correction2)"),
        ("the second moment of the unscaled gradient",
         "v16_sub(v16_mul(g, g), v_i)", "v16_sub(v16_mul(load16(grads + i, n), load16(grads + i, n)), v_i)"),
        ("decay without the learning rate",
         "v16_sub(p, v16_mul(rate, v16_fma(decay, p, step)))", "v16_sub(p, v16_fma(decay, p, v16_mul(rate, step)))"),
    ),
]  # fmt: skip

# The Numba twins, and what the model tells adamw.
PYTHON_FAULTS = [
    *_in("gpt2flat", "model.py",
         ("decay of all tensors", "decay = decay_all or place.row.decay", "decay = True"),
         ("correction of t - 1", "correction2=1.0 - beta2**t", "correction2=1.0 - beta2 ** (t - 1 or 1)")),
    *_in("gpt2flat/kernels", "rows.py",
         ("numba: lanes of a tail shifted by one", "lanes[j % 16] += x[j]", "lanes[(j + 1) % 16] += x[j]"),
         ("numba: exp without its low part of ln 2", "    r = r + n * LN2_LOW\n", "")),
    *_in("gpt2flat/kernels", "gemm.py",
         ("numba: the left-over k of four rows are dropped",
          "range(rows if done < depth else 0)", "range(rows if done == 0 else 0)"),
         ("numba: the bias is added with each block of k", "if last and bias.size:", "if bias.size:")),
    *_in("gpt2flat/kernels", "layernorm.py",
         ("numba: eps outside the root", "lanes) / F(C) + EPS))", "lanes) / F(C)) + EPS)")),
    *_in("gpt2flat/kernels", "embedding.py",
         ("numba: the token gradient forgets acc", "if not acc_wte:", "if True:")),
    *_in("gpt2flat/kernels", "classifier.py",
         ("numba: padded columns are not zeroed", "            logits[n * Vp + V : (n + 1) * Vp].fill(ZERO)\n", "")),
    *_in("gpt2flat/kernels", "attention.py",
         ("numba: a query sees the next key", "seen = min(n, i0 + i + 1 - j0)\n", "seen = min(n, i0 + i + 2 - j0)\n"),
         ("numba: dropout ignores its key", "U(key_drop) ^ U(U(bh)", "U(U(bh)")),
    *_in("gpt2flat/kernels", "adamw.py",
         ("numba: eps inside the root", "(math.sqrt(v_i * c2) + e)", "math.sqrt(v_i * c2 + e)")),
]  # fmt: skip
