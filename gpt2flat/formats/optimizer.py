"""optimizer.bin: AdamW's m and v for one range of the flat parameters, whoever owned it when it was written.

A header as llm.c's files have (256 int32): magic, version, then as u64 from word 2 on P, begin, end, t: all parameters
of the model, the range [begin, end) of them that the file holds, the updates done. Then m[begin:end], v[begin:end],
float32."""

import struct

import numpy as np

from ..errors import CheckpointError, FormatError, NonFiniteError
from . import llmc
from .files import RegularFile
from .floats import first_nonfinite

VERSION = 1
FIELDS = {"P": 2, "begin": 4, "end": 6, "t": 8}  # by header word
MAX_PARAMETERS, MAX_UPDATES = 1 << 40, 1 << 48


def buffers(P: int, begin: int, t: int, m: np.ndarray, v: np.ndarray) -> list:
    """What the file holds, to be written one behind the other: the header, m, v.

    P: parameters of the whole model; m, v: those from flat index `begin` on (float32, one dimension, contiguous); t:
    updates done. Raises FormatError for numbers that could not be read again."""
    if not (m.dtype == v.dtype == np.float32 and m.ndim == v.ndim == 1 and m.size == v.size):
        raise FormatError(
            f"optimizer state: m is {m.dtype} {m.shape}, v is {v.dtype} {v.shape}, expected float32 rows of one length"
        )
    fields = {"P": P, "begin": begin, "end": begin + m.size, "t": t}
    _check("optimizer state", **fields)
    words = [llmc.OPTIMIZER, VERSION, *[0] * 254]
    for name, word in FIELDS.items():
        llmc.put_u64(words, word, fields[name])
    return [struct.pack("<256i", *words), m, v]


def _check(where, P: int, begin: int, end: int, t: int) -> None:
    if not 1 <= P <= MAX_PARAMETERS:
        raise FormatError(f"{where}: a model of {P} parameters, expected 1 to {MAX_PARAMETERS}")
    if not 0 <= begin < end <= P:
        raise FormatError(f"{where}: the range of parameters {begin} to {end}, expected one within 0 to {P}")
    if not 0 <= t <= MAX_UPDATES:
        raise FormatError(f"{where}: {t} updates done, expected 0 to {MAX_UPDATES}")


def read_floats(file: RegularFile, offset: int, view: np.ndarray, name: str, begin: int = 0) -> None:
    """Fills `view` from a byte on. Raises NonFiniteError for NaN or inf: `name` and the flat index, which counts from
    `begin`."""
    file.read_into(offset, view)
    index = first_nonfinite(view)
    if index is not None:
        raise NonFiniteError(
            f"{file.path}: {name} is {view.reshape(-1)[index]} at flat index {begin + index}, expected finite numbers: "
            "take the checkpoint before this one"
        )


def read_moments(file: RegularFile, m_at: int, v_at: int, m: np.ndarray, v: np.ndarray, begin: int = 0) -> None:
    """read_floats for m and v; a v below 0 raises FormatError."""
    read_floats(file, m_at, m, "m", begin)
    read_floats(file, v_at, v, "v", begin)
    if v.size and v.min() < 0:
        raise FormatError(
            f"{file.path}: v is {v.min()} at flat index {begin + int(v.argmin())}, expected no negative number: take the "
            "checkpoint before this one"
        )


class OptimizerFile:
    """An open optimizer.bin; use it in a `with`, or close() it. P, begin, end, t: see above."""

    def __init__(self, path):
        """Raises FormatError for a file that is none, CheckpointError if it cannot be opened."""
        self._file = RegularFile(path, CheckpointError, short=FormatError)
        try:
            words = llmc.read_header(self._file, llmc.OPTIMIZER, used=10)
            if words[1] != VERSION:
                raise FormatError(f"{path}: optimizer state of version {words[1]}, expected {VERSION}")
            fields = {name: llmc.word_u64(words, word) for name, word in FIELDS.items()}
            _check(path, **fields)
            self.P, self.begin, self.end, self.t = fields.values()
            llmc.check_size(self._file, 8 * (self.end - self.begin), f"m and v of {self.end - self.begin} parameters")
        except BaseException:
            self.close()
            raise

    def read_into(self, begin: int, m: np.ndarray, v: np.ndarray) -> None:
        """Fills m and v (float32, contiguous, of one size) with the state of the parameters from flat index `begin` on.

        Raises FormatError for parameters that the file does not hold or a v below 0, NonFiniteError for NaN or inf."""
        self._check_range(begin, m, v)
        start = llmc.HEADER_BYTES + 4 * (begin - self.begin)
        read_moments(self._file, start, start + 4 * (self.end - self.begin), m, v, begin)

    def _check_range(self, begin: int, m: np.ndarray, v: np.ndarray) -> None:
        if not self.begin <= begin <= begin + m.size <= self.end or m.size != v.size:
            raise FormatError(
                f"{self._file.path}: holds the parameters {self.begin} to {self.end}, expected {begin} to "
                f"{begin + m.size}"
            )

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "OptimizerFile":
        return self

    def __exit__(self, *exc) -> None:
        self.close()
