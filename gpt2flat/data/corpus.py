"""Texts: the one every CPython carries, the user's own file, and how a text becomes ids for training and validation."""

import hashlib
from dataclasses import dataclass

import numpy as np

from ..errors import DataError, UsageError
from ..formats.files import RegularFile


@dataclass(frozen=True)
class Corpus:
    """A named text in documents; `sha256` is that of the joined UTF-8."""

    name: str
    documents: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(self.documents)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def builtin() -> Corpus:
    """The help topics of the running Python (about 450 kB of English), one document each, sorted by name.

    Raises DataError where Python was installed without them."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "this Python comes without its help topics (pydoc_data): give a text of your own with --train-data FILE.txt"
        ) from None
    return Corpus("pydoc_data.topics", tuple(topics[name] for name in sorted(topics)))


def read_text(path) -> Corpus:
    """A UTF-8 text file as one document, bytes as they are but for a leading byte order mark.

    Raises DataError if it cannot be opened, is empty or is not UTF-8."""
    with RegularFile(path, DataError) as file:
        data = file.read(0, file.size)
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as problem:
        raise DataError(
            f"{path}: found byte 0x{data[problem.start]:02x} at offset {problem.start}, expected UTF-8 text: convert "
            f"the file, for example with iconv -f latin1 -t utf-8"
        ) from None
    if not text:
        raise DataError(f"{path}: is empty, expected text")
    return Corpus(str(path), (text,))


def split(ids: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation): the last `fraction` of the ids is validation. Raises UsageError unless 0 <= fraction < 1."""
    if not 0 <= fraction < 1:
        raise UsageError(f"--val-fraction is {fraction}, expected a number from 0 up to, not including, 1")
    cut = len(ids) - int(len(ids) * fraction)
    return ids[:cut], ids[cut:]
