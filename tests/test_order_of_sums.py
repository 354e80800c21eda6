"""The order of every sum is that of csrc/kernels.h, to the bit, on every backend and instruction set.

Factors have 11 bits, so that products are exact and only the order of additions can change a sum: one rounding or two
(FMA or not) give the same. NumPy's accumulate adds floats one after the other."""

import numpy as np
import pytest

import harness
import truth
from gpt2flat import kernels
from gpt2flat.generation.packed import pack_rows, unpack_rows
from gpt2flat.kernels.packing import BF16, INT8, packed_floats

N, C, OC = 77, 49, 35  # no multiple of a block or a vector
BY_ISA = pytest.mark.parametrize("native", harness.backends(), ids=lambda native: native.isa)
ACC = pytest.mark.parametrize("acc", [0, 1])


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    """float32 with 11 significant bits and exponents that differ, so that sums round."""
    rng = np.random.default_rng([seed, *shape])
    return np.ldexp(rng.integers(-2047, 2048, shape), rng.integers(-12, 13, shape)).astype(np.float32)


def chain(terms: np.ndarray, old=0.0) -> np.ndarray:
    """old + terms[0] + terms[1] ..., one rounding each."""
    start = np.broadcast_to(np.float32(old), terms.shape[1:])[None]
    return np.add.accumulate(np.concatenate([start, terms.astype(np.float32)]), axis=0)[-1]


def product(a: np.ndarray, b: np.ndarray, old=0.0) -> np.ndarray:
    """a b as chains over the inner index."""
    return chain(a.T[:, :, None] * b[:, None, :], old)


def tree16(terms: np.ndarray) -> np.ndarray:
    """Sums of the rows: element i to lane i % 16, then lanes +8, +4, +2, +1."""
    rows, n = terms.shape
    padded = np.concatenate([terms, np.zeros((rows, -n % 16), np.float32)], 1)
    lanes = chain(padded.reshape(rows, -1, 16).swapaxes(0, 1))
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def run(native, name: str, written: dict, threads: int = 3, **given) -> dict[str, np.ndarray]:
    kernels.run(name, kernels=native, threads=threads, **written, **given)
    return written


def same(got: dict[str, np.ndarray], **wanted: np.ndarray) -> None:
    harness.assert_same_bits("the order of kernels.h", {name: got[name] for name in wanted}, wanted)


def gradients(acc: int, **shapes) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray | float]]:
    """Arrays to write into, filled with old values or with NaN, and what a chain starts from."""
    arrays = {
        name: draw(*shape, seed=9) if acc else np.full(shape, np.nan, np.float32) for name, shape in shapes.items()
    }
    return arrays, {name: array.copy() if acc else 0.0 for name, array in arrays.items()}


def test_the_order_matters():
    """Sums in any other order differ in these numbers, or the tests below could not fail."""
    terms = draw(N, 40)
    assert (chain(terms) != chain(terms[::-1])).mean() > 0.3
    others = chain(terms), tree16(terms.T[:, np.random.default_rng(0).permutation(N)])
    assert all((tree16(terms.T) != other).mean() > 0.3 for other in others)


@BY_ISA
@pytest.mark.parametrize("K", [C, 785], ids=lambda K: f"C{K}")  # one block of k and two
def test_linear_forward_is_a_chain_with_the_bias_last(native, K):
    inp, weight, bias = draw(N, K), draw(OC, K), draw(OC)
    got = run(native, "linear_forward", {"out": np.empty((N, OC), np.float32)}, inp=inp, weight=weight, bias=bias)
    same(got, out=product(inp, weight.T) + bias)


@BY_ISA
@ACC
def test_linear_backward_is_three_chains(native, acc):
    inp, weight, dout = draw(N, C), draw(OC, C), draw(N, OC)
    got, old = gradients(acc, dinp=(N, C), dweight=(OC, C), dbias=(OC,))
    flags = dict.fromkeys(("acc_inp", "acc_weight", "acc_bias"), acc)
    run(native, "linear_backward", got, dout=dout, inp=inp, weight=weight, **flags)
    same(got, dinp=product(dout, weight, old["dinp"]), dweight=product(dout.T, inp, old["dweight"]),
         dbias=chain(dout, old["dbias"]))  # fmt: skip


@BY_ISA
@pytest.mark.parametrize("wide", [1040, 1041], ids=["lines", "no lines"])
def test_a_gradient_past_the_caches_is_the_same_chain(native, wide):
    """Of 4 MB, at a cache line: rows are whole lines, or not."""
    rows = 1011
    inp, weight, dout = draw(2, wide), draw(rows, wide), draw(2, rows)
    room = np.full(rows * wide + 16, np.nan, np.float32)
    dweight = room[-room.ctypes.data % 64 // 4 :][: rows * wide].reshape(rows, wide)
    got = dict(dinp=np.empty_like(inp), dweight=dweight, dbias=np.empty(rows, np.float32))
    run(native, "linear_backward", got, dout=dout, inp=inp, weight=weight)
    same(got, dweight=product(dout.T, inp))


@BY_ISA
def test_the_mean_of_a_row_is_a_tree(native):
    wide = 64 + C  # the twins have blocks of 64; lanes that are only turned round give the same tree
    inp, ones = draw(N, wide), np.ones(wide, np.float32)
    written = dict(out=np.empty_like(inp), mean=np.empty(N, np.float32), rstd=np.empty(N, np.float32))
    got = run(native, "layernorm_forward", written, inp=inp, weight=ones, bias=ones)
    same(got, mean=tree16(inp) / np.float32(wide))


@BY_ISA
@ACC
def test_the_weights_of_layernorm_sum_blocks_of_32_rows(native, acc):
    inp, dout, zeros, ones = draw(N, C), draw(N, C, seed=1), np.zeros(N, np.float32), np.ones(N, np.float32)
    got, old = gradients(acc, dinp=(N, C), dweight=(C,), dbias=(C,))
    flags = dict.fromkeys(("acc_inp", "acc_weight", "acc_bias"), acc)
    weight = np.ones(C, np.float32)
    run(native, "layernorm_backward", got, dout=dout, mean=zeros, rstd=ones, inp=inp, weight=weight, **flags)

    def blocks(terms, start):
        return chain(np.stack([chain(terms[n : n + 32]) for n in range(0, N, 32)]), start)

    same(got, dweight=blocks(dout * inp, old["dweight"]), dbias=blocks(dout, old["dbias"]))


@BY_ISA
@ACC
def test_embeddings_add_rows_as_they_come(native, acc):
    T, Vp, maxT = 11, 5, 13
    tokens, dout = np.random.default_rng(0).integers(0, Vp, N).astype(np.int32), draw(N, C)
    got, old = gradients(acc, dwte=(Vp, C), dwpe=(maxT, C))
    run(native, "embedding_backward", got, dout=dout, tokens=tokens, T=T, acc_wte=acc, acc_wpe=acc)
    for name, rows, index in (("dwte", Vp, tokens), ("dwpe", maxT, np.arange(N) % T)):
        start = np.broadcast_to(np.float32(old[name]), (rows, C))
        same(got, **{name: np.stack([chain(dout[index == row], start[row]) for row in range(rows)])})


@BY_ISA
def test_scores_are_chains_and_value_gradients_too(native):
    B, T, KVH, group, HS = 1, 70, 2, 2, 9
    NH = KVH * group
    inp, dout = draw(B * T, (NH + 2 * KVH) * HS), draw(B * T, NH * HS)
    knobs = dict(p_drop=np.zeros(1, np.float32), key_drop=np.zeros(1, np.int32), KVH=KVH, HS=HS)
    scores, att = (np.empty((B, NH, T, T), np.float32) for _ in range(2))
    out = np.empty((B * T, NH * HS), np.float32)
    got = run(native, "attention_standard_forward", dict(out=out, scores=scores, att=att), inp=inp, **knobs)
    query, key = inp[:, : NH * HS].reshape(T, NH, HS), inp[:, NH * HS :].reshape(T, 2 * KVH, HS)
    raw = [product(query[:, h], key[:, h // group].T) * (np.float32(1) / np.sqrt(np.float32(HS))) for h in range(NH)]
    same(got, scores=np.tril(np.stack(raw))[None])

    att = np.tril(draw(B, NH, T, T))  # read, so any numbers will do
    got = run(native, "attention_standard_backward", {"dinp": np.empty_like(inp)}, dout=dout, out=out, att=att, inp=inp,
              **knobs)  # fmt: skip
    up, dvalue = dout.reshape(T, NH, HS), []
    for kv in range(KVH):  # the heads of the group, then ascending queries
        heads = range(kv * group, (kv + 1) * group)
        dvalue.append(
            product(np.concatenate([att[0, h].T for h in heads], 1), np.concatenate([up[:, h] for h in heads]))
        )
    same({"dvalue": got["dinp"][:, -KVH * HS :]}, dvalue=np.concatenate(dvalue, 1))


@BY_ISA
def test_the_norm_adds_trees_of_4096_in_double(native):
    for seed in range(20):  # one number tells little
        grads = draw(140001, seed=seed)
        runs = np.concatenate([grads, np.zeros(-grads.size % 4096, np.float32)]).reshape(-1, 4096)
        sums = tree16(runs * runs).astype(np.float64)
        blocks = [np.add.accumulate(sums[i : i + 16])[-1] for i in range(0, sums.size, 16)]
        want = np.float32(np.sqrt(np.add.accumulate(blocks)[-1]))
        same(run(native, "grad_norm", {"norm": np.empty(1, np.float32)}, grads=grads), norm=want[None])


@BY_ISA
@pytest.mark.parametrize("K", [C, 800, 785], ids=lambda K: f"C{K}")  # a row of a chunk and of two, in whole blocks and not
def test_the_products_of_a_step_are_trees_with_the_bias_behind(native, K):
    """Alone and beside other rows, packed or not: the tree of 16 lanes."""
    inp, weight, bias = draw(7, K), draw(OC, K), draw(OC)
    want = np.stack([tree16(row * weight) for row in inp]) + bias
    added = draw(7, OC, seed=1)
    for B in (1, 2, 7):
        more = dict(inp=inp[:B].copy(), weight=weight, bias=bias)
        got = run(native, "decode_linear", {"out": np.empty((B, OC), np.float32)}, **more)
        same(got, out=want[:B])
        got = run(native, "decode_linear", {"out": np.empty((B, OC), np.float32)}, added=added[:B].copy(), **more)
        same(got, out=added[:B] + want[:B])
    packed = np.empty((OC, packed_floats(K, BF16)), np.float32)
    pack_rows(packed, weight, BF16)
    meant = unpack_rows(packed, K, BF16)
    for B in (1, 7):
        outs = [np.empty((B, OC), np.float32) for _ in range(2)]
        run(native, "decode_linear", {"out": outs[0]}, inp=inp[:B].copy(), weight=packed, PACK=BF16)
        run(native, "decode_linear", {"out": outs[1]}, inp=inp[:B].copy(), weight=meant)
        harness.assert_same_bits("bf16", {"out": outs[0]}, {"out": outs[1]})


def whole_numbers(rows: int, K: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers up to 127, of which each lane has one, and powers of 2, one for `group` neighbouring lanes: (rows, lanes, 8) and
    (rows, lanes, 1). Rounding their products to int8 finds both."""
    rng = np.random.default_rng([group, rows, K])
    numbers = rng.integers(-127, 128, (rows, -(-K // 128) * 16, 8))
    numbers[..., 0] = rng.choice([-127, 127], numbers.shape[:2])
    powers = np.repeat(2.0 ** rng.integers(-12, 13, (rows, numbers.shape[1] // group)), group, 1)
    return truth.by_lanes(truth.by_elements(numbers, K)), powers[..., None]


@BY_ISA
@pytest.mark.parametrize("K", [C, 800, 785, 1600], ids=lambda K: f"C{K}")
def test_int8_products_of_a_step_are_trees_of_whole_sums(native, K):
    (x, x_powers), (w, w_powers) = whole_numbers(7, K, 1), whole_numbers(OC, K, 4)
    lanes = (x[:, None] * w).sum(3) * (x_powers[:, None] * w_powers)[..., 0]
    want = tree16(lanes.reshape(7 * OC, -1).astype(np.float32)).reshape(7, OC)
    inp, weight = (np.ascontiguousarray(truth.by_elements(a, K), np.float32) for a in (x * x_powers, w * w_powers))
    packed = np.empty((OC, packed_floats(K, INT8)), np.float32)
    pack_rows(packed, weight, INT8)
    for B in (1, 2, 5, 7):
        got = run(native, "decode_linear", {"out": np.empty((B, OC), np.float32)}, inp=inp[:B].copy(), weight=packed, PACK=INT8)
        same(got, out=want[:B])


@pytest.mark.parametrize("native", harness.natives(), ids=lambda native: native.isa)
def test_attention_of_a_step_has_the_bits_of_a_row_of_attention(native):
    B, T, KVH, group, HS = 2, 437, 2, 2, 72
    NH, S, width = KVH * group, 448, (KVH * group + 2 * KVH) * HS
    inp = np.random.default_rng(3).standard_normal((B * T, width)).astype(np.float32)
    knobs = dict(p_drop=np.zeros(1, np.float32), key_drop=np.zeros(1, np.int32), KVH=KVH, HS=HS)
    whole = run(native, "attention_forward", dict(out=np.empty((B * T, NH * HS), np.float32), lse=np.empty((B, NH, T), np.float32)),
                inp=inp, **knobs)["out"].reshape(B, T, -1)  # fmt: skip
    keys, values = (np.zeros((B, KVH, S, HS), np.float32) for _ in range(2))
    heads = inp.reshape(B, T, width)
    run(native, "decode_cache", dict(keys=keys, values=values), inp=heads[:, :17].reshape(-1, width).copy(), T=17, NH=NH)
    for t in range(17, T):
        out, now = np.empty((B, NH * HS), np.float32), heads[:, t].copy()
        run(native, "decode_attention", dict(out=out, keys=keys, values=values), inp=now, positions=np.full(B, t, np.int32), NH=NH)
        same({"out": out}, out=whole[:, t])
