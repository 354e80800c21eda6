"""Loss, perplexity and bits per byte of texts, in windows that slide over them.

Every token but the first of a text is predicted once. Window k reads the ids from k * stride on, T of them at most, and predicts
those that no window before it has: from at least T - stride + 1 ids, where there are as many."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ..data.tokenizer import Tokenizer
from ..data.tokens import Shard, check_ids
from .scoring import ExactSum, Row, score


class Windows(NamedTuple):
    """Windows of T inputs, `stride` apart (from 1 to T), of which only the first `limit` predictions count (None: all)."""

    T: int
    stride: int
    limit: int | None = None

    def over(self, count: int) -> Iterator[tuple[int, int, int]]:
        """(begin, end, done) for a text of `count` ids: the ids [begin, end) stand in a row, those from `done` on are predicted."""
        begin, done = 0, 1
        while done < count:
            end = min(begin + self.T + 1, count)
            yield begin, end, done
            begin, done = begin + self.stride, end

    def rows(self, shards: Iterable[Shard], vocab_size: int) -> Iterator[Row]:
        """The rows of all shards, each a text of its own. Raises DataError for an id outside the vocabulary."""
        left = math.inf if self.limit is None else self.limit
        for shard in shards:
            for begin, end, done in self.over(shard.count):
                end = int(min(end, done + left))
                ids = shard.read(begin, end - begin)
                check_ids(ids, vocab_size, shard.name, begin)
                yield Row(ids, done - begin)
                left -= end - done
                if left <= 0:
                    break
            shard.close()
            if left <= 0:
                return

    def predictions(self, shards: Iterable[Shard]) -> int:
        """How many tokens are predicted in all."""
        every = sum(max(0, shard.count - 1) for shard in shards)
        return every if self.limit is None else min(every, self.limit)


def bytes_of_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """The bytes of text that each id stands for, (V,) int64: none for end-of-text."""
    lengths = np.array([len(token) for token in tokenizer.tokens], np.int64)
    lengths[tokenizer.eot] = 0
    return lengths


def measure(model, shards: list[Shard], windows: Windows, batch_size: int, lengths: np.ndarray | None,
            told: Callable[[int], None] = lambda done: None) -> dict[str, float | int | None]:  # fmt: skip
    """loss (nats per token), perplexity, tokens, and with the `lengths` of bytes_of_tokens bits_per_byte and bytes.

    Sums are exact: the same bits for any batch size and threads. Bits per byte are those of the tokens that stand for text; the
    loss counts end-of-text too, as training does. told: called with the tokens done. Raises DataError, NonFiniteError."""
    every, text, size = ExactSum(), ExactSum(), 0
    rows: list[Row] = []  # that have been read and not scored yet

    def remembered() -> Iterator[Row]:
        for row in windows.rows(shards, model.config.vocab_size):
            rows.append(row)
            yield row

    for losses in score(model, remembered(), batch_size, grain=windows.T):
        row = rows.pop(0)
        every.add(losses)
        if lengths is not None:
            stands_for = lengths[row.ids[row.known :]]
            text.add(losses[stands_for > 0])
            size += int(stands_for.sum())
        told(every.count)
    loss = float(every) / every.count
    bits = float(text) / math.log(2) / size if size else None
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 709 else math.inf, "bits_per_byte": bits, "tokens": every.count,
            "bytes": size if lengths is not None else None}  # fmt: skip
