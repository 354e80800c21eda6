"""Sampling: ids that continue a prompt, one full forward per token. The same seed gives the same ids.

A row that has outgrown the block size sees its last block_size ids. No text here: ids in, ids out."""

import math
from collections.abc import Iterator

import numpy as np

from ..data.tokens import as_ids
from ..errors import NonFiniteError, UsageError, require_number

PLAN = 64  # contexts are padded to a multiple of this, so that the activations are planned once per 64 tokens


def generate(model, tokens, max_new_tokens: int = 64, temperature: float = 1.0, top_k: int | None = None,
             top_p: float | None = None, seed: int = 0, stop: int | None = None) -> np.ndarray:  # fmt: skip
    """`tokens` and behind them the new ids: (n,) or (B, n) integers in, int32 of shape (n + new,) or (B, n + new) out.

    temperature: logits are divided by it; 0 takes the likeliest id. top_k: only the k likeliest ids. Row r draws from
    NumPy's PCG64(seed + r). stop: ends once every row has produced this id; a row that has repeats it.
    Raises KernelArgError and DataError for tokens that do not fit, UsageError for settings that do not."""
    new = list(stream(model, tokens, max_new_tokens, temperature, top_k, top_p, seed, stop))
    whole = np.concatenate([np.atleast_2d(tokens), *[ids[:, None] for ids in new]], axis=1).astype(np.int32)
    return whole if np.ndim(tokens) == 2 else whole[0]


def stream(model, tokens, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None,
           top_p: float | None = None, seed: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:  # fmt: skip
    """The new ids of `generate`, one (B,) array per step, as they are made. Arguments are checked before the first."""
    rows = as_ids("tokens", tokens, model.config.vocab_size, axes=(1, 2))
    require_number("temperature", temperature, 0)
    for name, value, low, end in (
        ("max_new_tokens", max_new_tokens, 0, 1 << 63), ("top_k", 1 if top_k is None else top_k, 1, 1 << 63),
        ("seed", seed, 0, 1 << 63), ("stop", 0 if stop is None else stop, 0, model.config.vocab_size),
    ):  # fmt: skip
        require_number(name, value, low, end, whole=True)
    if top_p is not None:
        raise UsageError("top_p comes with a later version: leave it out, top_k and temperature are there")
    return _steps(model, np.atleast_2d(rows), max_new_tokens, temperature, top_k, seed, stop)


def _steps(model, rows: np.ndarray, n: int, temperature: float, top_k: int | None, seed: int, stop: int | None):
    randoms = [np.random.Generator(np.random.PCG64(seed + r)) for r in range(len(rows))]
    done = np.zeros(len(rows), bool)
    for _ in range(n):
        logits = next_logits(model, rows)
        ids = np.array(
            [pick(row, temperature, top_k, random) for row, random in zip(logits, randoms, strict=True)], np.int32
        )
        if stop is not None:
            ids[done] = stop
            done |= ids == stop
        rows = np.concatenate([rows, ids[:, None]], axis=1)
        yield ids
        if done.all():
            return


def next_logits(model, rows: np.ndarray) -> np.ndarray:
    """The logits of what follows, (B, V) float32, for (B, n) ids of which the last block_size count."""
    limit = model.config.block_size
    context = rows[:, -limit:]
    B, n = context.shape
    padded = np.zeros((B, min(limit, -(-n // PLAN) * PLAN)), np.int32)
    padded[:, :n] = context  # attention looks back only, so what stands behind changes nothing
    return model.logits(padded, at=n - 1)


def pick(logits: np.ndarray, temperature: float, top_k: int | None, random: np.random.Generator) -> int:
    """One id from a row of logits, by softmax in float64; with temperature 0 the likeliest, the first of equals."""
    if not np.isfinite(logits).all():
        raise NonFiniteError("the logits are not finite: the weights of this model are damaged")
    if temperature == 0:
        return int(logits.argmax())
    scaled = (logits.astype(np.float64) - float(logits.max())) / max(temperature, 1e-9)
    if top_k is not None and top_k < scaled.size:
        scaled[scaled < np.partition(scaled, -top_k)[-top_k]] = -math.inf
    cumulative = np.cumsum(np.exp(scaled))
    # random() is at most 1 - 2^-53, so the product stays below the total and no id of probability 0 is met
    return int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
