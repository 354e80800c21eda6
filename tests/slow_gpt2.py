"""GPT-2 in plain float64 NumPy, one sequence at a time, without the package: what evaluations are compared with."""

import math

import numpy as np


def log_probabilities(params: dict[str, np.ndarray], NH: int, V: int, ids) -> np.ndarray:
    """The logarithms of the probabilities of what follows each of the ids, (n, V), by llm.c's 16 tensors."""
    p = {name: np.asarray(tensor, np.float64) for name, tensor in params.items()}
    n, C = len(ids), p["wte"].shape[1]
    x = p["wte"][ids] + p["wpe"][:n]
    for l in range(len(p["ln1w"])):
        h = normed(x, p["ln1w"][l], p["ln1b"][l]) @ p["qkvw"][l].T + p["qkvb"][l]
        q, k, v = h.reshape(n, 3, NH, C // NH).transpose(1, 2, 0, 3)
        scores = np.where(np.tri(n, dtype=bool), q @ k.transpose(0, 2, 1) / math.sqrt(C // NH), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        seen = (weights / weights.sum(-1, keepdims=True)) @ v
        x = x + seen.transpose(1, 0, 2).reshape(n, C) @ p["attprojw"][l].T + p["attprojb"][l]
        h = normed(x, p["ln2w"][l], p["ln2b"][l]) @ p["fcw"][l].T + p["fcb"][l]
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + h @ p["fcprojw"][l].T + p["fcprojb"][l]
    logits = normed(x, p["lnfw"], p["lnfb"]) @ p["wte"][:V].T
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def normed(x, weight, bias):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def losses(params, NH: int, V: int, ids, T: int, stride: int) -> np.ndarray:
    """The loss of every id but the first, each by a forward of its own over its context: token j stands in the first window that
    reaches it, and window k begins at k * stride."""
    found = []
    for j in range(1, len(ids)):
        begin = stride * max(0, -(-(j - T) // stride))
        assert min(j, T - stride + 1) <= j - begin <= T
        found.append(-log_probabilities(params, NH, V, ids[begin:j])[-1, ids[j]])
    return np.array(found)
