"""The token loader, with llm.c's semantics (llmc/dataloader.h): the same batches, shuffled to the bit as llm.c does.

A shard is a token file or an array in memory. Batches are copied by position from an open file, never through a map."""

import glob
import hashlib
import os
import re
from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import CheckpointError, DataError, FormatError, KernelArgError, UsageError
from ..formats import llmc
from .mt19937 import Stream

SHUFFLE_SEED = 42  # llm.c's


class Shard(Protocol):
    """A run of token ids. `count` tokens; `tokens` is all of them, for looking; close() may be called at any time."""

    name: str
    count: int

    @property
    def tokens(self) -> np.ndarray: ...

    def read(self, offset: int, n: int) -> np.ndarray: ...

    def close(self) -> None: ...


class FileShard:
    """A token file (llmc.open_tokens). Checked when made; opened at the first read, held open until close().

    Raises FormatError for a file that is not a whole token file, DataError if it cannot be opened."""

    def __init__(self, path):
        self.path, self.name = Path(path), str(path)
        self._file = llmc.open_tokens(path)
        _, self.count, self._dtype, self._start = self._file
        self.close()

    @property
    def tokens(self) -> np.ndarray:
        """A read-only memory map of the ids. For looking only: it is undefined once the file is cut short."""
        return np.memmap(self.path, self._dtype, "r", self._start, (self.count,))

    def read(self, offset: int, n: int) -> np.ndarray:
        """A copy of n ids from `offset` on. Raises DataError when the file is no longer what it was."""
        if self._file is None:
            self._open()
        return self._file.read(offset, n)

    def _open(self) -> None:
        try:
            self._file = llmc.open_tokens(self.path)
        except FormatError as problem:
            raise DataError(f"{problem} (it was whole when the run started)") from None
        found = self._file
        if (found.count, found.dtype) != (self.count, self._dtype):
            self.close()
            raise DataError(
                f"{self.name}: found {found.count} tokens of {found.dtype}, expected the {self.count} of {self._dtype} "
                "of when the run started"
            )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


class ArrayShard:
    """Token ids in memory: a 1-D integer array, and the name that messages call it by."""

    def __init__(self, ids: np.ndarray, name: str = "text"):
        self.tokens, self.name, self.count = ids, name, len(ids)

    def read(self, offset: int, n: int) -> np.ndarray:
        return self.tokens[offset : offset + n]

    def close(self) -> None:
        pass


class TokenLoader:
    """Batches from a list of shards, epoch after epoch.

    A sample is nproc*B*T neighbouring tokens, of which rank r reads the r-th B*T and one more; the tail of a shard that
    fills no sample is unused. `batches` samples make an epoch; `num_tokens` counts all tokens. With `shuffle` the
    shards and the samples of each are permuted anew every epoch (seed + rank); without, they come in order."""

    def __init__(self, shards, B: int, T: int, vocab_size: int, shuffle: bool = False, rank: int = 0, nproc: int = 1,
                 seed: int = SHUFFLE_SEED):  # fmt: skip
        """shards: Shards with ids below vocab_size. Raises DataError for a shard too short to hold one sample."""
        if B < 1 or T < 1 or not 0 <= rank < nproc:
            raise UsageError(
                f"batch size {B}, sequence length {T}, rank {rank} of {nproc}: expected B, T >= 1, rank < nproc"
            )
        if not shards:
            raise DataError("no token shards, expected at least one")
        self.shards, self.B, self.T, self.vocab_size = list(shards), B, T, vocab_size
        self.rank, self.nproc = rank, nproc
        self._sample_tokens = nproc * B * T
        for shard in self.shards:
            if shard.count < self._sample_tokens + 1:
                raise DataError(
                    f"{shard.name}: found {shard.count} tokens, expected at least {self._sample_tokens + 1} for a "
                    f"batch of {nproc} x {B} x {T} and the token after it: give more text, or a smaller --batch-size "
                    "or --seq-len"
                )
        self.num_tokens = sum(shard.count for shard in self.shards)
        self.batches = sum(map(self.samples, self.shards))
        self._stream = Stream(seed + rank) if shuffle else None
        self._shard_order = np.arange(len(self.shards))
        self._epoch, self._shard = -1, self.shards[0]
        self.reset()

    def reset(self) -> None:
        """To the start of the next epoch: in order the first batch again, with shuffle a new order."""
        if self._stream:
            # llm.c permutes the order it already has: epochs build on each other
            self._shard_order = self._shard_order[self._stream.permutation(len(self.shards))]
        self._epoch += 1
        self._enter(0)

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, targets), both (B, T) int32; a target is the token that follows.

        Raises DataError for an id outside the vocabulary or a file cut short underneath."""
        if self._sample == len(self._sample_order):
            self._advance()
        shard, sample = self._shard, int(self._sample_order[self._sample])
        offset = sample * self._sample_tokens + self.rank * self.B * self.T
        ids = shard.read(offset, self.B * self.T + 1)
        check_ids(ids, self.vocab_size, shard.name, offset)
        self._sample += 1
        tokens, targets = (part.astype(np.int32).reshape(self.B, self.T) for part in (ids[:-1], ids[1:]))
        return tokens, targets

    def state(self) -> dict:
        """The position, as plain JSON values: full epochs done, the order of shards and the place in it, samples taken from that
        shard, and the random stream (None without shuffle) as it was before the samples of that shard were permuted."""
        order = [int(i) for i in self._shard_order]
        return {
            "epoch": self._epoch,
            "order": order,
            "shard": self._index,
            "sample": self._sample,
            "stream": self._before,
        }

    def restore(self, state: dict) -> None:
        """Goes on where state() was taken: the same batches to the bit. Raises CheckpointError for a state that does not fit
        these shards; then the loader is as it was."""
        try:
            epoch, order, index, sample = (state[name] for name in ("epoch", "order", "shard", "sample"))
            if not all(type(number) is int and number >= 0 for number in (epoch, index, sample, *order)):
                raise ValueError("expected whole numbers")
            if sorted(order) != list(range(len(self.shards))) or index >= len(order):
                raise ValueError(f"{len(order)} shards, here are {len(self.shards)}")
            if sample > self.samples(self.shards[order[index]]):
                raise ValueError(f"sample {sample} of {self.samples(self.shards[order[index]])}")
            if (state["stream"] is None) != (self._stream is None):
                raise ValueError("one is shuffled and the other not")
            if self._stream:
                self._stream.restore(state["stream"])
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise CheckpointError(f"the position in the data does not fit it: {problem}") from None
        self._epoch, self._shard_order = epoch, np.array(order)
        self._enter(index)
        self._sample = sample

    @property
    def tokens(self) -> np.ndarray:
        """The ids of the shard being read; a memory map if it is a file. For looking only."""
        return self._shard.tokens

    def samples(self, shard: Shard) -> int:
        """How many samples a shard holds."""
        return (shard.count - 1) // self._sample_tokens

    def _advance(self) -> None:
        if self._index == len(self.shards) - 1:
            self.reset()
        else:
            self._enter(self._index + 1)

    def _enter(self, index: int) -> None:
        shard = self.shards[self._shard_order[index]]
        if shard is not self._shard:
            self._shard.close()
        self._shard, self._index, self._sample = shard, index, 0
        n = self.samples(shard)
        self._before = self._stream.state() if self._stream else None
        self._sample_order = self._stream.permutation(n) if self._stream else range(n)


def as_ids(what: str, ids, vocab_size: int, least: int = 0, axes: tuple[int, ...] = (2,)) -> np.ndarray:
    """A batch of ids, `what` it is called, as an array of integers with that many axes.

    Raises KernelArgError for anything else, DataError for ids outside [least, vocab_size)."""
    try:
        found = np.asarray(ids)
    except (TypeError, ValueError):  # rows of different lengths
        found = np.empty(0, object)
    if found.ndim not in axes or found.dtype.kind not in "iu" or not found.size:
        shape = "(B, T)" if axes == (2,) else "(n,) or (B, n)"
        raise KernelArgError(f"{what}: expected integers of shape {shape}, found {found.dtype} of shape {found.shape}")
    low, high = int(found.min()), int(found.max())
    if low < least or high >= vocab_size:
        raise DataError(f"{what} hold ids from {low} to {high}, expected {least} to {vocab_size - 1} (vocabulary)")
    return found


def check_ids(ids: np.ndarray, vocab_size: int, name: str, offset: int = 0) -> None:
    """Raises DataError for an id outside [0, vocab_size); `ids` start at token `offset` of the shard `name`."""
    for place in (int(ids.argmax()), int(ids.argmin())):
        if not 0 <= ids[place] < vocab_size:
            raise DataError(
                f"{name}: token {offset + place} is id {ids[place]}, expected 0 to {vocab_size - 1}: the data was made "
                "with another tokenizer than the model's; prepare it again or take another model"
            )


def fingerprint(shards: list[Shard]) -> list[list]:
    """[tokens, digest] of each shard: all of its ids, or of a long one the first and last million."""
    found = []
    for shard in shards:
        part = min(shard.count, 1 << 20)
        starts = range(0, shard.count, part) if shard.count <= 1 << 24 else (0, shard.count - part)
        digest = hashlib.sha256()
        for start in starts:
            digest.update(np.ascontiguousarray(shard.read(start, min(part, shard.count - start)), "<u4"))
        shard.close()
        found.append([shard.count, digest.hexdigest()[:16]])
    return found


def find_shards(pattern) -> list[FileShard]:
    """The token files that a path or glob pattern names, sorted by bytes. Raises DataError if there are none."""
    pattern = os.fspath(pattern)
    paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern), key=os.fsencode)
    if not paths:
        raise DataError(f"{pattern}: no such file, expected a token file or a pattern that matches some")
    return [FileShard(path) for path in paths]


def find_datasets(folders) -> dict[str, tuple[Path, Path]]:
    """Pairs <name>_train.bin, <name>_val.bin in the folders and their subfolders: {name: (train, val)}, sorted by name; of
    shards (<name>_train_000001.bin ...) the patterns that match them.

    Of two pairs with the same name the one in the earlier folder counts, a folder before its subfolders."""
    found: dict[str, tuple[Path, Path]] = {}
    for folder in map(Path, folders):
        for train in [*sorted(folder.glob("*_train*.bin")), *sorted(folder.glob("*/*_train*.bin"))]:
            parts = re.fullmatch(r"(.+)_train(_\d+)?\.bin", train.name)
            if not parts or not train.is_file():
                continue
            name, shard = parts.groups()
            if not shard:
                pair = train, train.with_name(f"{name}_val.bin")
            else:
                home = Path(glob.escape(os.fspath(train.parent)))
                pair = home / f"{name}_train_*.bin", home / f"{name}_val_*.bin"
            if pair[1].is_file() or (shard and glob.glob(os.fspath(pair[1]))):
                found.setdefault(name, pair)
    return dict(sorted(found.items()))
