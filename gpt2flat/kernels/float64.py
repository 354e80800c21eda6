"""The forward kernels once more, in NumPy and float64, by the names and arguments of csrc/kernels.h: for checks only.

Every formula is analytic and takes complex numbers too, so the derivative along a direction d is Im f(x + i h d) / h:
no difference is taken, so nothing cancels, whatever h (Squire and Trapp, SIAM Review 40, 1998)."""

import math

import numpy as np

from ..errors import KernelArgError

ONE_THREAD = 1 << 17  # multiplications of a product; OpenBLAS takes two threads from 2^18 on


def run(name: str, given: dict, dims: dict[str, int]) -> dict[str, np.ndarray]:
    """What a forward kernel writes, by argument name. given: its other arguments, of float64, complex128 or int32.

    Raises KernelArgError for a kernel that has no formula here."""
    if name not in FORMULAS:
        raise KernelArgError(f"{name} has no formula in float64; there are {', '.join(FORMULAS)}")
    return FORMULAS[name](**dims, **given)


def embedding_forward(tokens, wte, wpe, T, **_):
    return {"out": wte[tokens] + wpe[np.arange(len(tokens)) % T]}


def layernorm_forward(inp, weight, bias, **_):
    mean = inp.mean(1, keepdims=True)
    rstd = 1 / np.sqrt(((inp - mean) ** 2).mean(1, keepdims=True) + 1e-5)
    return {"out": (inp - mean) * rstd * weight + bias, "mean": mean[:, 0], "rstd": rstd[:, 0]}


def linear_forward(inp, weight, bias=0.0, **_):
    return {"out": _product(inp, weight) + bias}


def kept(p_drop, key_drop, plane, row, column) -> np.ndarray:
    """Whether dropout keeps the numbers at these places, whole numbers or arrays that broadcast: the words of csrc/kernels.h,
    in 64 bits cut to 32."""
    key, plane, row, column = (np.asarray(x, np.int64) & 0xFFFFFFFF for x in (key_drop, plane, row, column))
    words = _mix(_mix(_mix(key ^ plane * 0x9E3779B9 & 0xFFFFFFFF) + row & 0xFFFFFFFF) ^ _mix(column))
    return words >= int(float(np.float32(p_drop)) * 2.0**32)


def _mix(x):
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def _dropped(x, p_drop, key_drop, *place):
    return np.where(kept(p_drop[0], key_drop[0], *place), x / (1 - p_drop[0]), 0) if p_drop[0] else x


def dropout_forward(inp, p_drop, key_drop, added=0.0, **_):
    index = np.arange(inp.size).reshape(inp.shape)
    return {"out": added + _dropped(inp, p_drop, key_drop, 0, index >> 32, index)}


def attention_forward(inp, p_drop, key_drop, B, T, NH, KVH, HS, **_):
    """Rows of inp: NH queries, KVH keys, KVH values; query head h reads key head h // (NH / KVH)."""
    heads = inp.reshape(B, T, NH + 2 * KVH, HS).swapaxes(1, 2)
    query, key, value = np.split(heads, [NH, NH + KVH], axis=1)
    key, value = (x.repeat(NH // KVH, axis=1) for x in (key, value))
    seen = np.tri(T, dtype=bool)
    scores = np.where(seen, query @ key.swapaxes(2, 3) / math.sqrt(HS), -np.inf)
    lse = _log_sum_exp(scores)
    att = np.exp(scores - lse)
    plane = np.arange(B * NH).reshape(B, NH, 1, 1)
    weights = _dropped(att, p_drop, key_drop, plane, np.arange(T)[:, None], np.arange(T))
    out = (weights @ value).swapaxes(1, 2).reshape(B * T, NH * HS)
    return {"out": out, "lse": lse[..., 0], "scores": np.where(seen, scores, 0), "att": att}


def gelu_forward(inp, **_):
    return {"out": 0.5 * inp * (1 + np.tanh(math.sqrt(2 / math.pi) * (inp + 0.044715 * inp**3)))}


def residual_forward(inp1, inp2, **_):
    return {"out": inp1 + inp2}


def linear_residual_forward(added, **linear):
    return {"out": added + linear_forward(**linear)["out"]}


def gelu_linear_forward(inp, added=0.0, **linear):
    return {"out": added + linear_forward(gelu_forward(inp)["out"], **linear)["out"]}


def classifier_forward(inp, weight, targets, V, **_):
    logits = _product(inp, weight[:V])
    lse = _log_sum_exp(logits)[:, 0]
    losses = lse - logits[np.arange(len(targets)), np.maximum(targets, 0)]
    return {"losses": np.where(targets >= 0, losses, 0), "lse": lse}


def _product(inp, weight):
    """inp @ weight.T, in blocks so small that BLAS leaves them to one thread: with its own pool on cores that are in use
    every call takes 150 times as long (measured)."""
    out = np.empty((len(inp), len(weight)), np.result_type(inp, weight))
    inp = inp.astype(out.dtype, copy=False)
    block = max(1, ONE_THREAD // max(1, inp.size))
    for start in range(0, len(weight), block):
        out[:, start : start + block] = inp @ weight[start : start + block].T
    return out


def _log_sum_exp(x):
    top = x.real.max(-1, keepdims=True)
    return top + np.log(np.exp(x - top).sum(-1, keepdims=True))


_FORWARDS = (embedding_forward, layernorm_forward, linear_forward, attention_forward, gelu_forward, residual_forward, dropout_forward, linear_residual_forward, gelu_linear_forward,
             classifier_forward)  # fmt: skip
FORMULAS = {formula.__name__: formula for formula in _FORWARDS} | {"attention_standard_forward": attention_forward}
