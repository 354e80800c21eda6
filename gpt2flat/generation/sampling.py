"""How the next id is drawn from a row of logits. Order of application, as in transformers: repetition penalty,
temperature, top-k, top-p, min-p; then the inverse of the cumulated float64 softmax at one random number. No model and
no text here."""

import math
from dataclasses import dataclass

import numpy as np

from ..errors import NonFiniteError, require_number

# setting -> kind, least, largest
LIMITS = {
    "temperature": (float, 0, 1e6), "top_k": (int, 1, 1 << 31), "top_p": (float, 0, 1), "min_p": (float, 0, 1),
    "repetition_penalty": (float, 1e-6, 1e6), "repetition_window": (int, 0, 1 << 31),
}  # fmt: skip
BLOCK = 256  # weights that are cumulated together
COLDEST = 1e-9  # colder is no different, and logits divided by this are finite in float64
STEPS, BUCKETS = 32, 1024  # of the nucleus: buckets of 1/32 nat; the last one holds all that is below exp(-32)


@dataclass(frozen=True)
class Sampling:
    """Settings of drawing; None turns one off.

    temperature: logits are divided by it; 0 takes the likeliest id, the first of equals. top_k: only the k likeliest
    ids, and those equal to the k-th. top_p: only the fewest likeliest ids whose probability reaches p, of equals the
    first (Holtzman et al. 2020, arXiv 1904.09751). min_p: only ids with at least this share of the likeliest one's
    probability (Nguyen et al. 2024, arXiv 2407.01082). repetition_penalty: the logits of ids that are there already, in
    the prompt or behind it, are divided by it if they are positive and multiplied if not (Keskar et al. 2019, arXiv
    1909.05858); repetition_window: it looks at the last so many ids only (llama.cpp's repeat_last_n; transformers looks
    at all). Raises UsageError for what is out of range."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    repetition_window: int | None = None

    def __post_init__(self):
        for name, (kind, least, largest) in LIMITS.items():
            value = getattr(self, name)
            if value is None and name not in ("temperature", "repetition_penalty"):
                continue
            require_number(name, value, least, math.nextafter(largest, math.inf), whole=kind is int)

    def draw(self, logits: np.ndarray, seen: np.ndarray, random: np.random.Generator) -> int:
        """One id. logits: (V,) float32; seen: the ids so far, (n,). Takes one random() unless the temperature is 0.

        Raises NonFiniteError for logits that are."""
        if self.temperature == 0:
            return int(self.penalised(logits, seen).argmax())
        ids, weights = self.weights(logits, seen)
        at = invert(weights, random.random())
        return at if ids is None else int(ids[at])

    def probabilities(self, logits: np.ndarray, seen: np.ndarray = ()) -> np.ndarray:
        """The probability of each id to be drawn, (V,) float64."""
        out = np.zeros(len(logits))
        if self.temperature == 0:
            out[self.penalised(logits, seen).argmax()] = 1.0
        else:
            ids, weights = self.weights(logits, seen)
            out[slice(None) if ids is None else ids] = weights / weights.sum()
        return out

    def penalised(self, logits: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """The logits in float64 after the repetition penalty. Raises NonFiniteError."""
        if not (math.isfinite(logits.min()) and math.isfinite(logits.max())):  # NaN wins in both
            raise NonFiniteError("the logits are not finite: the weights of this model are damaged")
        x = logits.astype(np.float64)
        if self.repetition_penalty != 1.0:
            seen = np.asarray(seen, np.int64)
            if self.repetition_window is not None:
                seen = seen[max(0, len(seen) - self.repetition_window) :]
            met = x[seen]
            x[seen] = np.where(met > 0, met / self.repetition_penalty, met * self.repetition_penalty)
        return x

    def weights(self, logits: np.ndarray, seen: np.ndarray = ()) -> tuple[np.ndarray | None, np.ndarray]:
        """What may be drawn at a temperature above 0: the ids, rising (None: all), and their probabilities but for a
        factor."""
        x = self.penalised(logits, seen)
        x -= x.max()
        if self.temperature != 1.0:
            x /= max(self.temperature, COLDEST)
        ids = None
        if self.top_k is not None and self.top_k < len(x):
            ids = np.flatnonzero(x >= np.partition(x, -self.top_k)[-self.top_k])
            x = x[ids]
        weights = np.exp(x)
        if self.top_p is not None and self.top_p < 1:
            kept = _nucleus(x, weights, self.top_p)
            ids, weights = kept if ids is None else ids[kept], weights[kept]
        if self.min_p:
            kept = np.flatnonzero(weights >= self.min_p)
            ids, weights = kept if ids is None else ids[kept], weights[kept]
        return ids, weights


USUAL = Sampling()


def invert(weights: np.ndarray, at: float) -> int:
    """The place where the cumulated weights pass the share `at`, below 1, of their sum; never one of weight 0.

    By sums of blocks, then within one: a cumulated sum of all is one long chain of additions."""
    starts = np.arange(0, len(weights), BLOCK)
    cumulated = np.cumsum(np.add.reduceat(weights, starts))
    # random() is at most 1 - 2^-53, so the product stays below the total
    wanted = at * cumulated[-1]
    block = int(np.searchsorted(cumulated, wanted, side="right"))
    part = weights[block * BLOCK : (block + 1) * BLOCK]
    within = np.searchsorted(np.cumsum(part), wanted - (cumulated[block - 1] if block else 0.0), side="right")
    # rounding may leave the end of the block's own sum short of it
    return block * BLOCK + min(int(within), int(np.flatnonzero(part)[-1]))


def _nucleus(x: np.ndarray, weights: np.ndarray, p: float) -> np.ndarray:
    """The places, rising, of the fewest largest weights, exp(x), whose share of their sum reaches p. x is at most 0, and lost.

    They fall into buckets by x, and those of the bucket in which p is reached into finer ones; only one of these is sorted. Few
    arrays of the vocabulary's size: it is to write new memory that takes the time."""
    wanted = p * weights.sum()
    place = np.minimum(np.multiply(x, -STEPS, out=x), BUCKETS - 1, out=x)
    bucket = place.astype(np.intp)
    last, before = _reached(bucket, weights, 0.0, wanted)
    kept, border = bucket < last, np.flatnonzero(bucket == last)
    bucket = ((place[border] - last) * BUCKETS).astype(np.intp)
    last, before = _reached(bucket, weights[border], before, wanted)
    kept[border[bucket < last]] = True
    border = border[bucket == last]
    border = border[np.argsort(-weights[border], kind="stable")]
    kept[border[: 1 + np.searchsorted(before + np.cumsum(weights[border]), wanted)]] = True
    return np.flatnonzero(kept)


def _reached(bucket: np.ndarray, weights: np.ndarray, before: float, wanted: float) -> tuple[int, float]:
    """The bucket with which the sum of the weights from `before` on reaches `wanted`, and the sum in front of it."""
    cumulated = before + np.cumsum(np.bincount(bucket, weights, BUCKETS))
    last = int(np.searchsorted(cumulated, wanted))
    return last, float(cumulated[last - 1]) if last else before


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """The log-probabilities of the model's own distribution, float64 of the shape of `logits`; rows are the last
    axis."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def log_probability(logits: np.ndarray, token: int) -> float:
    """That of one id, in nats; logits (V,)."""
    x = logits.astype(np.float64)
    x -= x.max()
    return float(x[token] - math.log(np.exp(x).sum()))
