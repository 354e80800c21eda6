"""Accuracy on multiple-choice questions, as llm.c counts it (dev/data/hellaswag.py, train_gpt2.cu).

A model's answer is the completion that it finds likeliest behind the context: acc by the sum of its losses, acc_norm by their mean,
so that length does not count. Of equals the first."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ..data.tokens import check_ids
from ..formats.choices import COMPLETIONS, Example
from .scoring import Row, score

GRAIN, MIX = 32, 16  # rows of 16 batches are sorted by length and padded to a multiple of 32


def rows(examples: Iterable[Example], vocab_size: int, name: str) -> Iterator[Row]:
    """COMPLETIONS rows for each example. Raises DataError for an id outside the vocabulary."""
    for number, (context, completions, _label) in enumerate(examples):
        for completion in completions:
            ids = np.concatenate([context, completion]).astype(np.int32)
            check_ids(ids, vocab_size, f"{name}: example {number}")
            yield Row(ids, len(context))


def answers(losses: list[np.ndarray]) -> tuple[int, int]:
    """The answer by the least sum and by the least mean, of the losses of each completion."""
    sums = [math.fsum(found.tolist()) for found in losses]
    means = [total / len(found) for total, found in zip(sums, losses, strict=True)]
    return sums.index(min(sums)), means.index(min(means))


def measure(model, examples: list[Example], batch_size: int, name: str,
            told: Callable[[int], None] = lambda done: None) -> dict[str, float | int | None]:  # fmt: skip
    """acc and acc_norm, their standard errors (None for a single question) and the number of questions.

    told: called with the questions done. Raises DataError, NonFiniteError."""
    scored = score(model, rows(examples, model.config.vocab_size, name), batch_size, GRAIN, MIX)
    right = {"acc": 0, "acc_norm": 0}
    for done, example in enumerate(examples, 1):
        for metric, answer in zip(right, answers(list(itertools.islice(scored, COMPLETIONS))), strict=True):
            right[metric] += answer == example.label
        told(done)
    n = len(examples)
    shares = {metric: count / n for metric, count in right.items()}
    errors = {f"{metric}_stderr": math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else None for metric, p in shares.items()}
    return shares | errors | {"questions": n}
