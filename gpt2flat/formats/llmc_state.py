"""llm.c's checkpoints of a training run: model_%08d.bin, state_%08d_%05d.bin and, once both are whole, DONE_%08d.

A state is m, v, the master weights (float32), and where the shuffled data stands. Layouts: llm.c's train_gpt2.cu
(save_state), llmc/dataloader.h and llmc/rand.h. Only those of one process are read and written."""

import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.mt19937 import Stream
from ..errors import CheckpointError, FormatError, reason
from . import checkpoint, llmc
from .files import RegularFile, write_atomically
from .optimizer import read_floats, read_moments

VERSION = 1
STEP, SHARD, SAMPLE = 10, 30, 32  # header words; the last two are u64
UNUSED = (*range(6, 10), *range(11, 20), *range(24, 30))
ROUNDING = {20: 13371337, 22: 13371337}  # words (u64) of the random state that rounds to bf16, as llm.c starts it
DONE = re.compile(r"DONE_(\d{8,9})", re.ASCII)
INT32, U32 = np.dtype("<i4"), np.dtype("<u4")
# llmc/rand.h, mt19937_state: u64 seed_ (never set), i32 left_, u32 next_, u32 state_[624], u32 MATRIX_A[2]
MT = struct.Struct("<QiI624I2I")
MATRIX = (0, 0x9908B0DF)


class Names(NamedTuple):
    """The three files of a checkpoint after `step` updates, in the order in which they are written."""

    model: Path
    state: Path
    done: Path


def names(folder, step: int) -> Names:
    folder = Path(folder)
    return Names(folder / f"model_{step:08d}.bin", folder / f"state_{step:08d}_00000.bin", folder / f"DONE_{step:08d}")


def newest(folder) -> tuple[int, Names]:
    """(step, files) of the highest step in a folder that is done and has all its files. Raises CheckpointError."""
    try:
        found = sorted(
            (int(match[1]) for path in Path(folder).iterdir() if (match := DONE.fullmatch(path.name))), reverse=True
        )
    except OSError as problem:
        raise CheckpointError(f"{folder}: cannot be read: {reason(problem)}") from None
    for step in found:
        if all(path.is_file() for path in names(folder, step)):
            return step, names(folder, step)
    raise CheckpointError(
        f"{folder}: holds no checkpoint of llm.c's, expected model_*.bin, state_*_00000.bin and DONE_*"
    )


# --- writing ---------------------------------------------------------------------------------------------------------


def write(folder, step: int, dims: dict, params, m, v, loader: dict, samples: int, master: bool = True) -> Names:
    """Writes a checkpoint that llm.c resumes from (train_gpt2cu -y 1); DONE comes last, so that a half one is none.

    step: updates done; dims: of the model, as for checkpoint.write; params, m, v: all floats, in the order of the file
    (float32, one dimension); loader: TokenLoader.state(); samples: those of the shard that it stands in; master: also
    store the weights as master weights, which llm.c wants unless it runs with -w 0. Raises FormatError,
    CheckpointError."""
    files = names(folder, step)
    if not 0 <= step < 1 << 31:
        raise FormatError(f"{files.state}: {step} updates done, expected 0 to 2^31 - 1")
    header = [0] * 256
    header[:6] = llmc.STATE, VERSION, 1, 0, int(master), int(loader["stream"] is not None)
    header[STEP] = step
    for word, value in (ROUNDING | {SHARD: loader["shard"], SAMPLE: loader["sample"]}).items():
        llmc.put_u64(header, word, value)
    parts = [struct.pack("<256i", *header), m, v, *([params] if master else [])]
    if loader["stream"] is not None:
        parts += _shuffle(loader, samples)
    checkpoint.write(files.model, dims, params)
    write_atomically(files.state, *parts)
    write_atomically(files.done)
    return files


def _shuffle(loader: dict, samples: int) -> list[bytes]:
    """The order of shards, that of the samples of the current one, and the random stream behind both."""
    stream = Stream(0)
    stream.restore(loader["stream"])
    order = stream.permutation(samples)
    state = stream.state()
    return [
        *(struct.pack("<Q", len(ids)) + np.asarray(ids, INT32).tobytes() for ids in (loader["order"], order)),
        MT.pack(0, 625 - state["position"], state["position"], *state["words"], *MATRIX),
    ]


# --- reading ---------------------------------------------------------------------------------------------------------


class StateFile:
    """An open state of llm.c's; use it in a `with`, or close() it.

    step: updates done; master: whether the weights are in it; shuffled: whether the data is; shard, sample: where it
    stands, in samples taken from the shard; shards, samples: how many there are (None if not shuffled)."""

    def __init__(self, path, parameters: int):
        """parameters: how many the model has; the size of the file must agree to the byte.

        Raises FormatError for a file that is no such state, CheckpointError if it cannot be opened."""
        self._file, self._parameters = RegularFile(path, CheckpointError, short=FormatError), parameters
        try:
            words = llmc.read_header(self._file, llmc.STATE, used=34)
            if words[1] != VERSION:
                raise FormatError(f"{path}: training state of version {words[1]}, expected {VERSION}")
            if words[2:4] != [1, 0]:
                raise FormatError(
                    f"{path}: is of process {words[3]} of {words[2]}, expected 0 of 1: only those are read"
                )
            flags, self.step = words[4:6], words[STEP]
            if any(flag not in (0, 1) for flag in flags) or self.step < 0 or any(words[word] for word in UNUSED):
                raise FormatError(
                    f"{path}: master weights {flags[0]}, shuffle {flags[1]}, step {self.step}: expected 0 or 1 for the "
                    "first two, no negative step, and zeros in the words between"
                )
            self.master, self.shuffled = map(bool, flags)
            self.shard, self.sample = llmc.word_u64(words, SHARD), llmc.word_u64(words, SAMPLE)
            self._end = llmc.HEADER_BYTES + 4 * parameters * (2 + self.master)
            self._read_sizes()
        except BaseException:
            self.close()
            raise

    def _read_sizes(self) -> None:
        """Counts of shards and samples, each checked against what is left of the file before anything is read by it."""
        self.shards = self.samples = None
        at = self._end
        if self.shuffled:
            self.shards = self._count(at, "shards")
            self.samples = self._count(at + 8 + 4 * self.shards, "samples")
            at += 16 + 4 * (self.shards + self.samples) + MT.size
        what = f"a state of {self._parameters} parameters{', their master weights' if self.master else ''}"
        llmc.check_size(self._file, at - llmc.HEADER_BYTES, f"{what}{' and a shuffle' if self.shuffled else ''}")

    def _count(self, at: int, what: str) -> int:
        left = self._file.size - at - 8 - MT.size
        count = int.from_bytes(self._file.read(at, 8), "little") if left >= 0 else 0
        if not 1 <= count <= left // 4:
            raise FormatError(
                f"{self._file.path}: {count} {what} to shuffle, expected 1 or more and their order in the file: it is "
                "of another model, or cut short"
            )
        return count

    def read_into(self, m: np.ndarray, v: np.ndarray, params: np.ndarray | None = None) -> None:
        """Fills m, v and, if there are master weights, params (float32, contiguous, of all parameters).

        Raises NonFiniteError for NaN or inf, FormatError for a v below 0."""
        start, size = llmc.HEADER_BYTES, 4 * self._parameters
        read_moments(self._file, start, start + size, m, v)
        if self.master and params is not None:
            read_floats(self._file, start + 2 * size, params, "a master weight")

    def loader(self, shards: int, epoch: int = 0) -> dict:
        """The state for a TokenLoader of so many shards to go on from. llm.c keeps no count of epochs.

        Raises FormatError for an order that is none, or that is not what the random stream in the file had drawn."""
        path = self._file.path
        if self.shard >= shards or self.shards not in (None, shards) or (self.shuffled and self.sample > self.samples):
            place = f"sample {self.sample} of {self.samples} in shard {self.shard} of {self.shards}"
            raise FormatError(
                f"{path}: stands at {place}, expected a place in the {shards} shards of this data: name the same files "
                "(states of before 19 June 2024 are not read)"
            )
        found = {
            "epoch": epoch,
            "order": list(range(shards)),
            "shard": self.shard,
            "sample": self.sample,
            "stream": None,
        }
        if not self.shuffled:
            return found
        found["order"] = self._order(self._end + 8, shards, "shards")
        order = self._order(self._end + 16 + 4 * shards, self.samples, "samples")
        stream = self._stream()
        stream.back(self.samples - 1)
        found["stream"] = stream.state()
        if stream.permutation(self.samples).tolist() != order:
            raise FormatError(f"{path}: its order of samples is not what its random stream has drawn: it was damaged")
        return found

    def _order(self, at: int, count: int, what: str) -> list[int]:
        ids = np.empty(count, INT32)
        self._file.read_into(at, ids)
        if not np.array_equal(np.sort(ids), np.arange(count)):
            raise FormatError(f"{self._file.path}: its order of {what} is none of 0 to {count - 1}: it was damaged")
        return ids.tolist()

    def _stream(self) -> Stream:
        _seed, left, following, *words = MT.unpack(self._file.read(self._file.size - MT.size, MT.size))
        fresh = (left, following) == (1, 0)  # seeded and nothing drawn
        if tuple(words[624:]) != MATRIX or not (fresh or 0 <= following == 625 - left <= 624):
            raise FormatError(
                f"{self._file.path}: its random stream stands at {following}, {left} left: it was damaged"
            )
        stream = Stream(0)
        stream.restore({"words": words[:624], "position": 624 if fresh else following})
        return stream

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "StateFile":
        return self

    def __exit__(self, *exc) -> None:
        self.close()
