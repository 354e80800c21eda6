"""The one reader of metrics.jsonl: series by step, samples, what else happened. Lines that are no records are counted, not
fatal; of two records of a step the last one holds. A million lines take seconds and tens of megabytes."""

import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..training.metrics import LAST_STEP, Jsonl, is_record, parse, read_lines
from ..training.trackers import whole_sample

KEYS = ("loss", "val_loss", "lr", "grad_norm", "tokens_per_s", "ms")
LINES = 4096  # parsed together: that is twice as fast as one by one
LARGEST = 1e100


class Series(NamedTuple):
    """Values by step, steps rising: int64 and float64 arrays of one length."""

    steps: np.ndarray
    values: np.ndarray

    def at(self, i: int) -> tuple[int, float]:
        return int(self.steps[i]), float(self.values[i])


@dataclass(frozen=True)
class History:
    """series: one for each of KEYS, perhaps empty; samples: (step, text), steps rising; events: every other record, as in the
    file; skipped: updates that were left out; broken: lines that are no records."""

    series: dict[str, Series]
    samples: list[tuple[int, str]]
    events: list[dict]
    skipped: int
    broken: int

    def best(self) -> tuple[int, float] | None:
        """(step, validation loss) of the lowest one, the first of equals."""
        found = self.series["val_loss"]
        return found.at(int(found.values.argmin())) if len(found.steps) else None

    def totals(self, what: str, steps: np.ndarray) -> np.ndarray:
        """What had been spent before each of `steps`: "tokens" trained on, or seconds of training as "time", in which
        validations and samples are not counted."""
        done, ms = self.series["ms"]
        spent = np.clip(ms, 0, 1e12) / 1e3
        if what == "tokens":
            rates = self.series["tokens_per_s"]
            _, here, there = np.intersect1d(done, rates.steps, assume_unique=True, return_indices=True)
            tokens = np.zeros(len(done))
            tokens[here] = np.rint(spent[here] * np.clip(rates.values[there], 0, 1e12))
            spent = tokens
        return np.concatenate([[0.0], np.cumsum(spent)])[np.searchsorted(done, steps)]

    def rate(self) -> float | None:
        """Tokens per second, the median."""
        rates = self.series["tokens_per_s"].values
        return float(np.median(rates)) if len(rates) else None

    def total(self, what: str) -> float:
        """The same for all updates."""
        return float(self.totals(what, np.array([LAST_STEP]))[0])


def read(run: Path) -> History:
    """The history of a run directory; an empty one if it has no metrics.jsonl. Raises CheckpointError for a file that cannot be
    read."""
    columns = {key: (array("q"), array("d")) for key in KEYS}
    samples, events, skipped, broken = {}, [], set(), 0
    for record in _records(run / Jsonl.name):
        if not record:
            broken += 1
            continue
        step, known = record["step"], False
        for key, value in record.items():
            if key in columns:
                known = True
                if type(value) in (float, int) and abs(value) < LARGEST:  # not NaN, and sums of these stay finite
                    columns[key][0].append(step)
                    columns[key][1].append(value)
        if isinstance(record.get("sample"), str):
            samples[step] = whole_sample(record)
        elif "skipped" in record:
            skipped.add(step)
        elif not known:
            events.append(record)
    series = {key: _rising(np.array(steps), np.array(values)) for key, (steps, values) in columns.items()}
    return History(series, sorted(samples.items()), events, len(skipped), broken)


def _rising(steps: np.ndarray, values: np.ndarray) -> Series:
    if (np.diff(steps) > 0).all():
        return Series(steps, values)
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    last = np.append(steps[1:] != steps[:-1], True)
    return Series(steps[last], values[last])


def _records(path: Path) -> Iterator[dict]:
    """The records of a file, {} for a line that is none."""
    if not path.exists():
        return
    lines = read_lines(path)
    while block := list(islice(lines, LINES)):
        yield from _parsed(block)


def _parsed(block: list[bytes]) -> Iterable[dict]:
    try:
        found = json.loads((b"[" + b",".join(block) + b"]").decode())  # of bytes it would guess a code
    except (ValueError, RecursionError):
        found = []
    if len(found) != len(block):
        return map(parse, block)
    return [record if is_record(record) else {} for record in found]
