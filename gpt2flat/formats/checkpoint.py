"""llm.c's checkpoints: a header with the dims, then the tensors; which versions there are and how each holds them.

Layouts: llm.c's train_gpt2.py (write_model) and its history."""

import itertools
import struct
from typing import NamedTuple

import numpy as np

from ..errors import CheckpointError, FormatError, NonFiniteError
from . import bf16, llmc
from .files import RegularFile, write_atomically, write_stream_atomically

REFUSED = {2: "from April 2024, in bf16", 4: "from April 2024, of mixed precision"}


class Storage(NamedTuple):
    """How a version of checkpoints holds the tensors: the type of its numbers, and whether wte has rows of padding."""

    dtype: str
    padded: bool

    @property
    def itemsize(self) -> int:
        return 4 if self.dtype == "fp32" else bf16.BF16.itemsize


VERSIONS = {1: Storage("fp32", False), 3: Storage("fp32", True), 5: Storage("bf16", True)}
WRITTEN = {"fp32": 3, "bf16": 5}  # the version that is written for a type


class Dim(NamedTuple):
    """One dim of a checkpoint: its header word, the largest value taken for real, and what it is."""

    word: int
    cap: int
    meaning: str


DIMS = {
    "maxT": Dim(2, 1 << 16, "longest sequence"),
    "V": Dim(3, llmc.MAX_VOCAB, "vocabulary"),
    "L": Dim(4, 1 << 10, "layers"),
    "NH": Dim(5, 1 << 10, "heads"),
    "C": Dim(6, 1 << 16, "channels"),
    "Vp": Dim(7, llmc.MAX_VOCAB, "padded vocabulary"),
}


class Checkpoint:
    """An open checkpoint; use it in a `with`, or close() it.

    version: 1 (float32, wte without padding), 3 (float32) or 5 (bf16). dims: {"maxT", "V", "L", "NH", "C", "Vp"} as the
    header has them, Vp is 0 in version 1. stored: the dims that the tensors of the file have (Vp = V in version 1)."""

    def __init__(self, path, parameters):
        """parameters: the function from the stored dims to the count of numbers that the tensor table asks for; the
        size of the file must agree to the byte.
        Raises FormatError for a file that is no such checkpoint, CheckpointError if it cannot be opened."""
        self._file = RegularFile(path, CheckpointError, short=FormatError)
        try:
            self.version, self.dims = _read_header(self._file)
            self.storage = VERSIONS[self.version]
            self.stored = self.dims if self.storage.padded else self.dims | {"Vp": self.dims["V"]}
            listed = ", ".join(f"{name} {value}" for name, value in self.stored.items())
            what = f"{self.storage.dtype} of the dims {listed}"
            llmc.check_size(self._file, self.storage.itemsize * parameters(self.stored), what)
        except BaseException:
            self.close()
            raise

    @property
    def about(self) -> str:
        """What it is, in a few words."""
        padded = "" if self.storage.padded else ", wte without padding"
        return f"{llmc.KINDS[llmc.CHECKPOINT]}, version {self.version}, {self.storage.dtype}{padded}"

    @property
    def size(self) -> int:
        """Bytes."""
        return self._file.size

    def read_into(self, first: int, view: np.ndarray) -> None:
        """Fills `view` (float32, one dimension, contiguous) with the file's numbers from number `first` on.

        Raises FormatError if the file ends too early."""
        if self.storage.dtype == "fp32":
            self._file.read_into(llmc.HEADER_BYTES + 4 * first, view)
            return
        for piece in bf16.pieces(view.size):
            bits = np.empty(piece.stop - piece.start, bf16.BF16)
            self._file.read_into(llmc.HEADER_BYTES + bits.itemsize * (first + piece.start), bits)
            bf16.decode_into(bits, view[piece])

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def _read_header(file: RegularFile) -> tuple[int, dict[str, int]]:
    words = llmc.read_header(file, llmc.CHECKPOINT, used=8)
    version, dims = words[1], {name: words[dim.word] for name, dim in DIMS.items()}
    known = f"expected {', '.join(map(str, VERSIONS))}"
    if version in REFUSED or (version == 3 and not dims["Vp"]):
        what = REFUSED.get(version, "without padded vocabulary: from April 2024, in bf16, in another order")
        raise FormatError(
            f"{file.path}: is a checkpoint of version {version} ({what}), {known}: write it again with llm.c's "
            "train_gpt2.py, which makes gpt2_124M.bin"
        )
    if version not in VERSIONS:
        raise FormatError(f"{file.path}: checkpoint version {version}, {known}")
    if not VERSIONS[version].padded:
        if dims["Vp"]:
            raise FormatError(f"{file.path}: Vp (padded vocabulary) is {dims['Vp']}, expected 0 in version {version}")
        check_dims(file.path, dims | {"Vp": dims["V"]})
    else:
        check_dims(file.path, dims)
    return version, dims


def check_dims(where, dims: dict[str, int]) -> None:
    """Raises FormatError that begins with `where` for dims that no model has."""
    for name, (_, cap, meaning) in DIMS.items():
        if not 1 <= dims[name] <= cap:
            raise FormatError(f"{where}: {name} ({meaning}) is {dims[name]}, expected 1 to {cap}")
    if dims["C"] % dims["NH"]:
        raise FormatError(
            f"{where}: C {dims['C']} is not a multiple of NH {dims['NH']}: heads must share the channels evenly"
        )
    if dims["V"] > dims["Vp"]:
        raise FormatError(f"{where}: the vocabulary V {dims['V']} is larger than Vp {dims['Vp']}, expected V <= Vp")


def header(dims: dict[str, int], dtype: str = "fp32") -> bytes:
    """The 1024 bytes in front of a checkpoint's tensors. Raises FormatError for dims that could not be read again."""
    check_dims("checkpoint header", dims)
    words = [0] * 256
    words[:2] = llmc.CHECKPOINT, WRITTEN[dtype]
    for name, dim in DIMS.items():
        words[dim.word] = dims[name]
    return struct.pack("<256i", *words)


def write(path, dims: dict[str, int], floats: np.ndarray, dtype: str = "fp32") -> None:
    """Writes a checkpoint of version 3 (dtype "fp32") or 5 ("bf16", rounded to nearest even).

    floats: every number of the tensors (float32, one dimension). Raises CheckpointError, or NonFiniteError for a number
    that bf16 rounds to infinity (beyond 3.39e38); the old file then stays."""
    if dtype == "fp32":
        write_atomically(path, header(dims, dtype), floats)
    else:
        body = (_rounded(path, floats, piece) for piece in bf16.pieces(floats.size))
        write_stream_atomically(path, itertools.chain([header(dims, dtype)], body))


def _rounded(path, floats: np.ndarray, piece: slice) -> np.ndarray:
    bits = bf16.encode(floats[piece])
    beyond = ~bf16.is_finite(bits)
    if beyond.any():
        index = piece.start + int(beyond.argmax())
        raise NonFiniteError(f"{path}: number {index} is {floats[index]}, which is no finite bf16; nothing was saved")
    return bits
