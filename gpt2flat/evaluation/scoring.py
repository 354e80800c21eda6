"""Losses of predicted ids, row by row, and their exact sum. Batches are a matter of speed: they change no bit.

No files and no text here: ids in, float32 losses out."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ..errors import NonFiniteError

MANTISSA, LEAST = 24, -149  # bits of a float32, and the exponent of its smallest number


class Row(NamedTuple):
    """`ids` of which those from `known` on, at least 1, are predicted, each from all before it in the row."""

    ids: np.ndarray
    known: int


Look = Callable[[np.ndarray, np.ndarray], np.ndarray]  # logits (m, V) and the ids that came, (m,) -> m rows of anything


def score(model, rows: Iterable[Row], batch_size: int, grain: int, mix: int = 1) -> Iterator[np.ndarray]:
    """The losses in nats of each row's predicted ids, float32, in the order of the rows.

    grain: rows are padded to a multiple of it, so that few shapes are planned; mix: in so many batches rows may change places,
    so that those of one length come together. Raises DataError for ids outside the vocabulary, NonFiniteError."""
    return (losses for losses, _ in score_and_look(model, rows, batch_size, grain, mix, None))


def score_and_look(
    model, rows: Iterable[Row], batch_size: int, grain: int, mix: int, look: Look | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What score yields, each with what `look` made of the same predictions (None: the ids that came)."""
    rows, full = iter(rows), 0
    while group := list(itertools.islice(rows, batch_size * mix)):
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        order = sorted(range(len(group)), key=lambda i: len(group[i].ids))
        for start in range(0, len(order), batch_size):
            some = order[start : start + batch_size]
            full = max(full, len(some))  # a last batch with empty rows costs less than a plan of its own
            found |= zip(some, _batch(model, [group[i] for i in some], full, grain, look), strict=True)
        yield from (found[i] for i in range(len(group)))


def _batch(model, rows: list[Row], B: int, grain: int, look: Look | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    longest = max(len(row.ids) for row in rows) - 1
    T = min(-(-longest // grain) * grain, model.config.block_size)
    tokens, targets = np.zeros((B, T), np.int32), np.full((B, T), -1, np.int32)
    for row, inputs, wanted in zip(rows, tokens, targets, strict=False):
        inputs[: len(row.ids) - 1] = row.ids[:-1]  # attention looks back only: what stands behind changes nothing
        wanted[row.known - 1 : len(row.ids) - 1] = row.ids[row.known :]
    came, seen, done = targets[targets >= 0], [], 0

    def looked(logits: np.ndarray) -> None:
        nonlocal done
        seen.append(look(logits, came[done : done + len(logits)]))
        done += len(logits)

    losses = model.losses(tokens, targets, looked if look else None)
    if not np.isfinite(losses).all():
        raise NonFiniteError("a loss is not finite: the weights of this model have gone astray")
    ends = np.cumsum([len(row.ids) - row.known for row in rows])[:-1]
    return zip(np.split(losses, ends), np.split(np.concatenate(seen) if look else came, ends), strict=True)


class ExactSum:
    """The exact sum of float32 numbers, whatever their order and number; float() rounds it once, as math.fsum does."""

    def __init__(self):
        self._units = 0  # of 2^(LEAST - MANTISSA)
        self.count = 0

    def add(self, values: np.ndarray) -> None:
        mantissas, exponents = np.frexp(values.astype(np.float64))
        # whole numbers below 2^24, so that bincount's doubles are exact for up to 2^29 of them
        sums = np.bincount(exponents - LEAST, weights=np.ldexp(mantissas, MANTISSA))
        self._units += sum(int(total) << place for place, total in enumerate(sums.tolist()) if total)
        self.count += len(values)

    def __float__(self) -> float:
        return self._units / (1 << (MANTISSA - LEAST))
