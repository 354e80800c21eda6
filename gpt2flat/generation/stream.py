"""Sequences of ids that go on from prompts, many at once: the one way in for the generate command, Model.generate and
the trainer's samples. Sequence i, the prompts in order and the samples of each next to each other, draws from NumPy's
PCG64(seed + i), one number per id, so neither batches nor threads nor its neighbours change it. Ids in, ids out; text
lives in text.py."""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.tokens import as_ids
from ..errors import require_number
from .decoder import Decoder
from .sampling import USUAL, Sampling, log_probability

BATCH = 8  # sequences at once; the weights are then read once for all of them
LENGTH, STOP = "length", "stop"  # why a sequence ended
END = 1 << 63


@dataclass(frozen=True)
class Token:
    """A new id of a sequence. log_prob: of the model's own distribution, in nats, where it was asked for; end: why the
    sequence ends with this id, else None; score: that of the beam it ends."""

    sequence: int
    id: int
    log_prob: float | None = None
    end: str | None = None
    score: float | None = None


def at_ids(ids: Container[int]) -> Callable[[int, int], str | None]:
    """The rule by which every sequence ends with the first of these ids."""
    return lambda sequence, token: STOP if token in ids else None


NEVER = at_ids(())


def stream(model, prompts: Sequence, max_new_tokens: int = 64, sampling: Sampling = USUAL, samples: int = 1, seed: int = 0,
           ends: Callable[[int, int], str | None] = NEVER, batch: int = BATCH, weights: str = "fp32",
           log_probs: bool = False, decoder: Decoder | None = None) -> Iterator[Token]:  # fmt: skip
    """The new ids of `samples` sequences for each prompt, as they are made; arguments are checked before the first.

    prompts: rows of ids, (n,) each and of any lengths; ends(sequence, id): asked for each new id, why the sequence ends
    with it, or None; batch: sequences at once; weights: how those of the model are kept, "fp32", "bf16" or "int8";
    decoder: one of this model to use again, with its own weights and at most its rows at once. A sequence beyond the
    block size goes on by the rule of decoder.py. Raises KernelArgError and DataError for ids that do not fit,
    UsageError for settings."""
    rows = check_prompts(model, prompts)
    check_counts(
        max_new_tokens=(max_new_tokens, 0, END), samples=(samples, 1, END), seed=(seed, 0, END), batch=(batch, 1, END)
    )
    return _batches(model, rows, max_new_tokens, sampling, samples, seed, ends, batch, weights, log_probs, decoder)


def check_prompts(model, prompts: Sequence) -> list[np.ndarray]:
    """The prompts as rows of int32 ids. Raises KernelArgError, DataError."""
    return [as_ids(f"prompt {i}", prompt, model.config.vocab_size, axes=(1,)) for i, prompt in enumerate(prompts)]


def check_counts(**counts: tuple[int, int, int]) -> None:
    """name=(value, least, end). Raises UsageError."""
    for name, (value, least, end) in counts.items():
        require_number(name, value, least, end, whole=True)


def make_decoder(model, prompts: Sequence, max_new_tokens: int, rows: int, weights: str) -> Decoder:
    """One for `rows` of these prompts at once, and no more memory than they need. Raises CapacityError, UsageError."""
    return Decoder(model, rows, min(model.config.block_size, max(map(len, prompts)) + max_new_tokens), weights)


def _batches(model, prompts, n, sampling, samples, seed, ends, batch, weights, log_probs, decoder) -> Iterator[Token]:
    count = len(prompts) * samples
    if not count or not n:
        return
    decoder = decoder or make_decoder(model, prompts, n, min(batch, count), weights)
    batch = min(batch, decoder.rows)
    for first in range(0, count, batch):
        of_prompt = [i // samples for i in range(first, min(first + batch, count))]
        distinct = sorted(set(of_prompt))
        logits = decoder.prefill([prompts[p] for p in distinct])
        sources = np.array([p - distinct[0] for p in of_prompt])
        live = [_Sequence(i, prompts[i // samples], n, seed + i) for i in range(first, first + len(of_prompt))]
        if len(sources) > len(distinct):
            decoder.select(sources)
        logits = logits[sources]
        while live:
            tokens = [one.draw(row, sampling, ends, log_probs) for one, row in zip(live, logits, strict=True)]
            yield from tokens
            kept = [row for row, token in enumerate(tokens) if token.end is None]
            if kept and len(kept) < len(live):
                decoder.select(np.array(kept))  # what is done costs nothing more
            live = [live[row] for row in kept]
            if live:
                logits = decoder.step(np.array([tokens[row].id for row in kept], np.int32))


class _Sequence:
    """One sequence on its way: its ids so far and its random numbers."""

    def __init__(self, index: int, prompt: np.ndarray, new: int, seed: int):
        self.index, self.n, self.end = index, len(prompt), len(prompt) + new
        self.ids = np.empty(len(prompt) + min(new, 1 << 16), np.int32)
        self.ids[: self.n] = prompt
        self.random = np.random.Generator(np.random.PCG64(seed))

    def draw(self, logits: np.ndarray, sampling: Sampling, ends, log_probs: bool) -> Token:
        token = sampling.draw(logits, self.ids[: self.n], self.random)
        if self.n == len(self.ids):
            self.ids = np.concatenate([self.ids, np.empty_like(self.ids)])
        self.ids[self.n] = token
        self.n += 1
        end = ends(self.index, token) or (LENGTH if self.n == self.end else None)
        return Token(self.index, token, log_probability(logits, token) if log_probs else None, end)
