"""The forward kernels once more, in NumPy and float64, by the names and arguments of csrc/kernels.h: for checks only.

Every formula is analytic and takes complex numbers too, so the derivative along a direction d is Im f(x + i h d) / h:
no difference is taken, so nothing cancels, whatever h (Squire and Trapp, SIAM Review 40, 1998)."""

import math

import numpy as np

from ..errors import KernelArgError

ONE_THREAD = 1 << 17  # multiplications of a product; OpenBLAS takes two threads from 2^18 on


def run(name: str, given: dict, dims: dict[str, int]) -> dict[str, np.ndarray]:
    """What a forward kernel writes, by argument name. given: its other arguments, of float64, complex128 or int32.

    Raises KernelArgError for a kernel that has no formula here, and for dropout."""
    if name not in FORMULAS:
        raise KernelArgError(f"{name} has no formula in float64; there are {', '.join(FORMULAS)}")
    if np.any(given.get("p_drop", 0)):
        raise KernelArgError(f"{name}: the formula in float64 knows no dropout: set p_drop to 0")
    return FORMULAS[name](**dims, **given)


def embedding_forward(tokens, wte, wpe, T, **_):
    return {"out": wte[tokens] + wpe[np.arange(len(tokens)) % T]}


def layernorm_forward(inp, weight, bias, **_):
    mean = inp.mean(1, keepdims=True)
    rstd = 1 / np.sqrt(((inp - mean) ** 2).mean(1, keepdims=True) + 1e-5)
    return {"out": (inp - mean) * rstd * weight + bias, "mean": mean[:, 0], "rstd": rstd[:, 0]}


def linear_forward(inp, weight, bias=0.0, **_):
    return {"out": _product(inp, weight) + bias}


def attention_forward(inp, B, T, NH, KVH, HS, **_):
    """Rows of inp: NH queries, KVH keys, KVH values; query head h reads key head h // (NH / KVH)."""
    heads = inp.reshape(B, T, NH + 2 * KVH, HS).swapaxes(1, 2)
    query, key, value = np.split(heads, [NH, NH + KVH], axis=1)
    key, value = (x.repeat(NH // KVH, axis=1) for x in (key, value))
    seen = np.tri(T, dtype=bool)
    scores = np.where(seen, query @ key.swapaxes(2, 3) / math.sqrt(HS), -np.inf)
    lse = _log_sum_exp(scores)
    att = np.exp(scores - lse)
    out = (att @ value).swapaxes(1, 2).reshape(B * T, NH * HS)
    return {"out": out, "lse": lse[..., 0], "scores": np.where(seen, scores, 0), "att": att}


def gelu_forward(inp, **_):
    return {"out": 0.5 * inp * (1 + np.tanh(math.sqrt(2 / math.pi) * (inp + 0.044715 * inp**3)))}


def residual_forward(inp1, inp2, **_):
    return {"out": inp1 + inp2}


def dropout_forward(inp, added=0.0, **_):
    return {"out": added + inp}


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
