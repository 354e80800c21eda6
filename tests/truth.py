"""The float64 reference of every kernel in csrc/kernels.h, under the kernel's own name and argument names.

Each takes its inputs as Nums (rounding.py) and its dims as integers, and returns {argument: Num} for what the kernel
writes: the value and how far a float32 kernel may be from it. Gradients are those of one call, before acc adds.
test_truth.py holds the backwards to central differences of the forwards."""

import numpy as np

from gpt2flat.kernels.float64 import kept
from gpt2flat.kernels.ops import KERNELS
from rounding import Num, concatenate, num, scatter_rows

LANES = 16


def run(name: str, arrays: dict, dims: dict) -> dict[str, Num]:
    """The reference of one kernel on arrays (float64, float32 or int32) by argument name. Absent arguments are None."""
    if dims.get("PACK"):
        arrays = arrays | {"weight": unpacked(arrays["weight"], dims["C"], dims["PACK"])}
    given = {k: v if v is None or np.asarray(v).dtype.kind in "ib" else num(v) for k, v in arrays.items()}
    with np.errstate(all="ignore"):  # NaN and infinite inputs are cases too
        return globals()[name](**given, **dims)


def missing() -> list[str]:
    """Kernels of the op table without a reference."""
    return [name for name in KERNELS if name not in globals()]


def tree16(n: int) -> int:
    """The longest chain of additions of a row sum over 16 lanes."""
    return -(-n // LANES) + 4


# --- linear


def linear_forward(inp, weight, BF16, bias=None, **_):
    out = inp.product(weight.T, BF16)
    return {"out": out if bias is None else out + bias}


def linear_backward(dout, inp, weight, BF16, **_):
    return {"dinp": dout.product(weight, BF16), "dweight": dout.T.product(inp, BF16), "dbias": dout.sum(0)}


# --- layernorm


def layernorm_forward(inp, weight, bias, C, **_):
    mean = inp.sum(1, tree16(C), keepdims=True) / num(float(C))
    centred = inp - mean
    variance = (centred * centred).sum(1, tree16(C), keepdims=True) / num(float(C))
    rstd = 1.0 / (variance + 1e-5).sqrt()
    return {"out": centred * rstd * weight + bias, "mean": mean[:, 0], "rstd": rstd[:, 0]}


def layernorm_backward(dout, mean, rstd, inp, weight, C, **_):
    mean, rstd = mean.reshape(-1, 1), rstd.reshape(-1, 1)
    norm = (inp - mean) * rstd
    dnorm = dout * weight
    centre = dnorm.sum(1, tree16(C), keepdims=True) / num(float(C))
    slope = (dnorm * norm).sum(1, tree16(C), keepdims=True) / num(float(C))
    return {"dinp": (dnorm - centre - norm * slope) * rstd, "dweight": (dout * norm).sum(0), "dbias": dout.sum(0)}


# --- embedding


def embedding_forward(tokens, wte, wpe, N, T, **_):
    return {"out": wte[tokens] + wpe[np.arange(N) % T]}


def embedding_backward(dout, tokens, N, T, Vp, maxT, **_):
    return {"dwte": scatter_rows(Vp, tokens, dout), "dwpe": scatter_rows(maxT, np.arange(N) % T, dout)}


# --- gelu: x sigmoid(z), z = c (x + a x^3)

GELU_C, GELU_A = 2 * np.sqrt(2 / np.pi).item(), 0.044715


def gelu_forward(inp, **_):
    return {"out": inp * _gelu_gate(inp)}


def gelu_backward(dout, inp, **_):
    gate = _gelu_gate(inp)
    slope = (inp * inp * (3 * GELU_A) + 1.0) * GELU_C
    return {"dinp": dout * (gate + inp * gate * (1.0 - gate) * slope)}


def _gelu_gate(x):
    return ((x * x * x * GELU_A + x) * GELU_C).sigmoid()


# --- residual


def residual_forward(inp1, inp2, **_):
    return {"out": inp1 + inp2}


def residual_backward(dout, **_):
    return {"dinp1": dout, "dinp2": dout}


# --- dropout


def _dropped(x, p_drop, key_drop, *place):
    if not p_drop.value[0]:
        return x
    return x.only(kept(p_drop.value[0], key_drop[0], *place)) / (1.0 - p_drop)


def dropout_forward(inp, p_drop, key_drop, N, C, added=None, **_):
    index = np.arange(N * C).reshape(N, C)
    out = _dropped(inp, p_drop, key_drop, 0, index >> 32, index)
    return {"out": out if added is None else out + added}


def dropout_backward(dout, p_drop, key_drop, **dims):
    return {"dinp": dropout_forward(dout, p_drop, key_drop, **dims)["out"], "dadded": dout}


# --- fused


def linear_residual_forward(added, **linear):
    return {"out": linear_forward(**linear)["out"] + added}


def linear_residual_backward(dout, **linear):
    return {**linear_backward(dout, **linear), "dadded": dout}


def gelu_linear_forward(inp, added=None, **linear):
    out = linear_forward(inp=gelu_forward(inp)["out"], **linear)["out"]
    return {"out": out if added is None else out + added}


def gelu_linear_backward(dout, inp, **linear):
    found = linear_backward(dout=dout, inp=gelu_forward(inp)["out"], **linear)
    return {**found, "dinp": gelu_backward(found["dinp"], inp)["dinp"], "dadded": dout}


# --- attention: heads first (B, NH, T, HS)


def causal(T: int) -> np.ndarray:
    return np.tril(np.ones((T, T), bool))


def _heads(x, first: int, heads: int, B, T, HS):
    return x.reshape(B, T, -1, HS)[:, :, first : first + heads].swapaxes(1, 2)


def _flat(x):
    B, H, T, HS = x.shape
    return x.swapaxes(1, 2).reshape(B * T, H * HS)


def _qkv(inp, B, T, NH, KVH, HS):
    key, value = (_heads(inp, first, KVH, B, T, HS).repeat(NH // KVH, 1) for first in (NH, NH + KVH))
    return _heads(inp, 0, NH, B, T, HS), key, value


def _scores(query, key, HS, BF16):
    return query.product(key.swapaxes(2, 3), BF16) * (1 / np.sqrt(HS).item())


def _thinned(probabilities, p_drop, key_drop, B, T, NH):
    plane = np.arange(B * NH).reshape(B, NH, 1, 1)
    return _dropped(probabilities, p_drop, key_drop, plane, np.arange(T)[:, None], np.arange(T))


def _attention(inp, p_drop, key_drop, B, T, NH, KVH, HS, BF16):
    query, key, value = _qkv(inp, B, T, NH, KVH, HS)
    seen, scores = causal(T), _scores(query, key, HS, BF16)
    top = num(np.where(seen, scores.value, -np.inf).max(3, keepdims=True))
    weights = (scores - top).only(seen).exp().only(seen)
    total = weights.sum(3, keepdims=True)
    att = weights / total
    out = _thinned(weights, p_drop, key_drop, B, T, NH).product(value, BF16) / total
    return _flat(out), (top + total.log())[..., 0], scores.only(seen), att


def attention_forward(inp, p_drop, key_drop, B, T, NH, KVH, HS, BF16, **_):
    out, lse, _scores_, _att = _attention(inp, p_drop, key_drop, B, T, NH, KVH, HS, BF16)
    return {"out": out, "lse": lse}


def attention_standard_forward(inp, p_drop, key_drop, B, T, NH, KVH, HS, BF16, **_):
    out, _lse, scores, att = _attention(inp, p_drop, key_drop, B, T, NH, KVH, HS, BF16)
    return {"out": out, "scores": scores, "att": att}


def attention_standard_backward(dout, out, att, inp, p_drop, key_drop, B, T, NH, KVH, HS, BF16, **_):
    query, key, value = _qkv(inp, B, T, NH, KVH, HS)
    upstream = _heads(dout, 0, NH, B, T, HS)
    weighted = (upstream * _heads(out, 0, NH, B, T, HS)).sum(3, tree16(HS), keepdims=True)  # = that of att datt
    datt = _thinned(upstream.product(value.swapaxes(2, 3), BF16), p_drop, key_drop, B, T, NH)
    dscores = (att * (datt - weighted)).only(causal(T)) * (1 / np.sqrt(HS).item())
    dquery, dkey = dscores.product(key, BF16), dscores.swapaxes(2, 3).product(query, BF16)
    dvalue = _thinned(att, p_drop, key_drop, B, T, NH).swapaxes(2, 3).product(upstream, BF16)
    dkey, dvalue = (x.reshape(B, KVH, NH // KVH, T, HS).sum(2) for x in (dkey, dvalue))
    return {"dinp": concatenate([_flat(x) for x in (dquery, dkey, dvalue)], 1)}


def attention_backward(dout, out, lse, inp, p_drop, key_drop, B, T, NH, KVH, HS, BF16, **rest):
    query, key, _value = _qkv(inp, B, T, NH, KVH, HS)
    att = (_scores(query, key, HS, BF16) - lse.reshape(B, NH, T, 1)).only(causal(T)).exp().only(causal(T))
    return attention_standard_backward(dout, out, att, inp, p_drop, key_drop, B, T, NH, KVH, HS, BF16, **rest)


# --- classifier


def classifier_forward(inp, targets, weight, V, BF16, **_):
    logits = inp.product(weight[:V].T, BF16)
    top = num(logits.value.max(1, keepdims=True))
    lse = (top + (logits - top).exp().sum(1, keepdims=True).log())[:, 0]
    counts = targets >= 0
    picked = logits[np.arange(len(targets)), np.maximum(targets, 0)]
    return {"losses": (lse - picked).only(counts), "lse": lse}


def classifier_backward(dlosses, lse, inp, targets, weight, V, Vp, N, BF16, **_):
    logits = inp.product(weight[:V].T, BF16)
    hit = num(np.arange(V)[None, :] == targets[:, None])
    dlogits = ((logits - lse.reshape(-1, 1)).exp() - hit) * dlosses.reshape(-1, 1)
    dlogits = concatenate([dlogits.only((targets >= 0)[:, None]), np.zeros((N, Vp - V))], 1)
    return {"dinp": dlogits.product(weight, BF16), "dweight": dlogits.T.product(inp, BF16)}


def classifier_train(dlosses, inp, targets, weight, **dims):
    forward = classifier_forward(inp, targets, weight, **dims)
    return forward | classifier_backward(dlosses, forward["lse"], inp, targets, weight, **dims)


# --- decode: the next token of each row


def unpacked(weight, C: int, PACK: int) -> np.ndarray:
    """The numbers that packed rows (OC, W) mean, float32: element by element, as kernels.h has it."""
    rows = [row.tobytes() for row in np.asarray(weight, np.float32)]
    out = np.empty((len(rows), C), np.float32)
    for j in range(C):
        block, i = divmod(j, 32)
        for row, raw in enumerate(rows):
            if PACK == 1:
                out[row, j] = _bf16(raw, j // 32 * 64 + i % 16 * 4 + i // 16 * 2)
            else:
                at = j // 128 * 136
                byte = raw[at + 8 + i // 16 * 64 + block % 4 * 16 + i % 16]
                out[row, j] = (byte - 128) * _bf16(raw, at + block % 4 * 2)
    return out


def _bf16(raw: bytes, at: int) -> np.float32:
    return np.frombuffer(b"\0\0" + raw[at : at + 2], "<f4")[0]


def by_lanes(a: np.ndarray) -> np.ndarray:
    """Rows (B, C) -> (B, lanes, 8): the elements of each lane of each 128, zeros behind the last; `by_elements` is the way back."""
    whole = np.pad(a, [(0, 0), (0, -a.shape[1] % 128)]).reshape(len(a), -1, 4, 2, 4, 4)
    return whole.swapaxes(3, 4).reshape(len(a), -1, 8)


def by_elements(a: np.ndarray, C: int) -> np.ndarray:
    return a.reshape(len(a), -1, 4, 4, 2, 4).swapaxes(3, 4).reshape(len(a), -1)[:, :C]


def rounded_x(x: Num) -> Num:
    """Rows (B, C) rounded to int8, as kernels.h has it for PACK 2: exactly what float32 makes of exact numbers; of others a number that may
    be on either side of a half may be off by one."""
    value, err = by_lanes(x.value), by_lanes(x.err)
    most, most_err = abs(value).max(2, keepdims=True), err.max(2, keepdims=True)
    by = np.where(most > 1e-36, np.float32(127) / most.astype(np.float32), np.float32(0))
    scaled = value.astype(np.float32) * by
    scale = (most.astype(np.float32) * (np.float32(1) / np.float32(127))).astype(np.float64)
    number = np.rint(scaled).astype(np.float64)
    doubt = 127 * (err + abs(value) * most_err / most) / most + np.where(err > 0, 127 * 3 * 2.0**-24, 0.0)
    either = abs(abs(scaled - np.floor(scaled)) - 0.5) <= doubt
    off = np.where(err.any(2, keepdims=True), abs(number) * (most_err / 127 + scale * 2.0**-23) + either * (scale + most_err), 0.0)
    off = np.where(most > 0, np.where(np.isnan(off), np.inf, off), 0.0)
    return Num(*(by_elements(a, x.shape[1]) for a in (number * scale, off)))


def decode_embedding(tokens, positions, wte, wpe, **_):
    return {"out": wte[tokens] + wpe[positions]}


def _decode_product(inp, weight, gain, shift, bias, C, PACK):
    x = inp if gain is None else layernorm_forward(inp, gain, shift, C)["out"]
    out = (rounded_x(x) if PACK == 2 else x) @ weight.T
    return out if bias is None else out + bias


def decode_linear(inp, weight, C, PACK, added=None, gain=None, shift=None, bias=None, **_):
    out = _decode_product(inp, weight, gain, shift, bias, C, PACK)
    return {"out": out if added is None else out + added}


def decode_linear_gelu(inp, weight, C, PACK, gain=None, shift=None, bias=None, **_):
    return gelu_forward(_decode_product(inp, weight, gain, shift, bias, C, PACK))


def blocked(keys, B, S, KVH, HS):
    """Keys by position -> as the cache has them; and back, with `by_position`."""
    return keys.reshape(B, KVH, S // 16, 16, HS).swapaxes(3, 4).reshape(B, KVH, S, HS)


def by_position(keys, B, S, KVH, HS):
    return keys.reshape(B, KVH, S // 16, HS, 16).swapaxes(3, 4).reshape(B, KVH, S, HS)


def _kept(keys, values, inp, rows, places, B, S, NH, KVH, HS):
    """Keys by position and values, with those of inp (rows (B, n)) at places (B, n)."""
    keys, values = by_position(keys, B, S, KVH, HS).value.copy(), values.value.copy()
    new = inp.value.reshape(len(inp.value), NH + 2 * KVH, HS)
    for b in range(B):
        for row, place in zip(rows[b], places[b]):
            keys[b, :, place], values[b, :, place] = new[row, NH : NH + KVH], new[row, NH + KVH :]
    return keys, values


def decode_cache(keys, values, inp, B, T, S, NH, KVH, HS, **_):
    rows = np.arange(B * T).reshape(B, T)
    keys, values = _kept(keys, values, inp, rows, rows % T, B, S, NH, KVH, HS)
    return {"keys": num(blocked(keys, B, S, KVH, HS)), "values": num(values)}


def decode_attention(keys, values, inp, positions, B, S, NH, KVH, HS, **_):
    keys, values = _kept(keys, values, inp, np.arange(B)[:, None], positions[:, None], B, S, NH, KVH, HS)
    seen = (np.arange(S) <= positions[:, None]).reshape(B, 1, 1, S)
    query = inp.reshape(B, 1, NH + 2 * KVH, HS)[:, :, :NH].swapaxes(1, 2)
    key, value = (num(np.where(seen[..., 0, :, None], x, 0.0)).repeat(NH // KVH, 1) for x in (keys, values))
    scores = _scores(query, key, HS, 0)
    top = num(np.where(seen, scores.value, -np.inf).max(3, keepdims=True))
    weights = (scores - top).only(seen).exp().only(seen)
    out = weights @ value / weights.sum(3, keepdims=True)
    return {"out": out.reshape(B, NH * HS), "keys": num(blocked(keys, B, S, KVH, HS)), "values": num(values)}


# --- optimizer


def grad_norm(grads, P, **_):
    runs = concatenate([grads, np.zeros(-P % 4096)], 0).reshape(-1, 4096)
    sums = (runs * runs).sum(1, tree16(4096))
    total = Num(sums.value.sum(), sums.err.sum())  # added in double
    return {"norm": total.sqrt().reshape(1)}


def adamw(params, m, v, grads, lr, beta1, beta2, eps, weight_decay, correction1, correction2, grad_scale, **_):
    g = grads * grad_scale
    m = m + (1.0 - beta1) * (g - m)
    v = v + (1.0 - beta2) * (g * g - v)
    step = m / correction1 / ((v / correction2).sqrt() + eps) + weight_decay * params
    return {"params": params - lr * step, "m": m, "v": v}
