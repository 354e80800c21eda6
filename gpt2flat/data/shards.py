"""From encoded documents to the token files of a data set: what is for validation, shards and their names, a report.

The files appear one by one, each whole; the validation comes last, and without it nothing takes the others for a pair."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..formats import llmc
from ..formats.files import write_stream_atomically
from .spool import Spool

SHARD = 100_000_000  # tokens, as llm.c's
LEAST = 1 << 16  # a rest of fewer tokens goes into the shard before it
MANY = 100  # documents from which on the validation is some of them, and not the end of the text


@dataclass(frozen=True)
class Split:
    """What is for validation: how = "first" or "last" so many tokens, or "documents", spread evenly.

    amount: tokens from 1 on, or below 1 a fraction."""

    how: str
    amount: float

    def marks(self, spool: Spool, eot: int, total: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(ids, which of them are for validation) of each segment."""
        tokens = int(self.amount if self.amount >= 1 else total * self.amount)
        begin, end = (0, tokens) if self.how == "first" else (total - tokens, total)
        at, document = 0, -1
        for ids in spool:
            if self.how == "documents":
                bounds = np.flatnonzero(ids == eot)
                # what is in front of the first is of the document before
                number = np.arange(document, document + len(bounds) + 1)
                chosen = np.floor((number + 1) * self.amount) > np.floor(number * self.amount)
                yield ids, np.repeat(chosen, np.diff(bounds, prepend=0, append=len(ids)))
                document += len(bounds)
            else:
                place = np.arange(at, at + len(ids))
                yield ids, (begin <= place) & (place < end)
            at += len(ids)


@dataclass
class Part:
    """The tokens of one side of a data set: a spool, and of it what the split leaves to this side."""

    spool: Spool
    split: Split | None = None
    chosen: bool = False
    tokens: int = 0
    documents: int = 0

    def ids(self, eot: int) -> Iterator[np.ndarray]:
        if self.split is None:
            yield from self.spool
            return
        for ids, marked in self.split.marks(self.spool, eot, sum(self.spool.counts)):
            yield ids[marked == self.chosen]

    def count(self, ids: np.ndarray, eot: int, seen: np.ndarray) -> None:
        """Adds these of its ids to the counts, and to `seen` how often each occurs."""
        found = np.bincount(ids, minlength=len(seen))
        seen += found
        self.tokens += len(ids)
        self.documents += int(found[eot])


def count(parts: list[Part], eot: int, vocab_size: int) -> list[np.ndarray]:
    """Counts the tokens and documents of both sides, or of the one that there is. How often each id occurs, by side."""
    seen = [np.zeros(vocab_size, np.int64) for _ in parts]
    split = parts[0].split
    if split is None:
        for part, counts in zip(parts, seen, strict=True):
            for ids in part.spool:
                part.count(ids, eot, counts)
        return seen
    for ids, marked in split.marks(parts[0].spool, eot, sum(parts[0].spool.counts)):
        for part, counts in zip(parts, seen, strict=True):
            part.count(ids[marked == part.chosen], eot, counts)
    return seen


def shard_sizes(tokens: int, size: int) -> list[int]:
    """Shards of `size` tokens and the rest, unless the rest is too little to be one."""
    whole, rest = divmod(tokens, size)
    sizes = [size] * whole + ([rest] if rest else [])
    if len(sizes) > 1 and rest and rest < min(LEAST, size):
        sizes[-2:] = [size + rest]
    return sizes


def names(name: str, train: int, val: int) -> tuple[list[str], list[str]]:
    """The files of so many shards, as llm.c numbers them: validation first. One and at most one: without a number."""
    if train <= 1 and val <= 1:
        return [f"{name}_train.bin"][:train], [f"{name}_val.bin"][:val]
    numbered = [f"{name}_{'val' if i < val else 'train'}_{i:06d}.bin" for i in range(val + train)]
    return numbered[val:], numbered[:val]


def files_of(folder: Path, name: str) -> list[Path]:
    """The token files of that name that are there."""
    mine = re.compile(re.escape(name) + r"_(train|val)(_\d{6})?\.bin")
    return sorted(path for path in folder.glob("*.bin") if mine.fullmatch(path.name))


def write(folder: Path, files: list[str], sizes: list[int], ids: Iterator[np.ndarray]) -> list[dict]:
    """Writes ids into shards: {"name", "tokens", "sha256"} of each. Raises CheckpointError if that fails."""
    told, left = [], np.empty(0, llmc.TOKEN_DTYPE)
    for name, size in zip(files, sizes, strict=True):
        digest = hashlib.sha256()

        def buffers(size=size, digest=digest) -> Iterator:
            nonlocal left
            header = llmc.tokens_header(size)
            digest.update(header)
            yield header
            while size:
                if not len(left):
                    left = next(ids, None)
                    if left is None:
                        raise DataError(f"{folder}: the work of this run was changed by another: start again")
                piece, left = np.ascontiguousarray(left[:size], llmc.TOKEN_DTYPE), left[size:]
                digest.update(piece)
                size -= len(piece)
                yield piece

        write_stream_atomically(folder / name, buffers())
        told.append({"name": name, "tokens": size, "sha256": digest.hexdigest()})
    return told
