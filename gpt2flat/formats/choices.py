"""Multiple-choice questions: llm.c's evaluation files, such as hellaswag_val.bin (dev/data/data_common.py, llmc/dataloader.h),
and the JSON lines of HellaSwag that it makes them of (arXiv 1905.07830).

Behind the header examples of uint16: 65535, bytes, index, label, 4, length, context, and 4 times length, completion."""

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ..errors import DataError, FormatError
from . import llmc
from .files import RegularFile, write_atomically

VERSION, START, COMPLETIONS = 1, 65535, 4
HEAD_WORDS = 6  # start, bytes, index, label, completions, context length
CURE = "copy the file again, or write it again with llm.c's script"


class Example(NamedTuple):
    """One question: the ids of its context and of its four completions (uint16), and which completion is right."""

    context: np.ndarray
    completions: tuple[np.ndarray, ...]
    label: int


def _require_short(where: str, example: Example, T: int) -> None:
    tokens = len(example.context) + max(map(len, example.completions))
    if tokens >= T:
        raise FormatError(
            f"{where}: context and completion have {tokens} tokens, expected fewer than {T}: it needs a model "
            "with a longer block size"
        )


class ChoiceFile:
    """An open multiple-choice file of `count` examples; iterate over it, in a `with`, or close() it.

    Iterating reads one example at a time and raises FormatError, with its number, for one that cannot be."""

    def __init__(self, path, T: int):
        """T: the longest row that a model takes; an example must be shorter, as llm.c asks.

        Raises FormatError for a file that is not a multiple-choice file, DataError if it cannot be opened."""
        self.path, self.T = path, T
        self._file = RegularFile(path, DataError, short=FormatError)
        try:
            words = llmc.read_header(self._file, llmc.CHOICES, used=4)
            version, self.count, self._longest = words[1:4]
            if version != VERSION:
                raise FormatError(f"{path}: multiple-choice file version {version}, expected {VERSION}")
            if not 1 <= self.count < START:
                raise FormatError(f"{path}: the header says {self.count} examples, expected 1 to {START - 1}")
            bound = 2 * (1 + COMPLETIONS) * T
            if not 0 < self._longest < bound:
                raise FormatError(
                    f"{path}: the longest example has {self._longest} bytes, expected fewer than {bound} for rows of "
                    f"{T} tokens: it needs a model with a longer block size"
                )
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Example]:
        at = llmc.HEADER_BYTES
        for index in range(self.count):
            size, example = self._read(at, index)
            yield example
            at += size
        if at != self._file.size:
            rest = self._file.size - at
            raise FormatError(f"{self.path}: found {rest} bytes behind the last of {self.count} examples: {CURE}")

    def _read(self, at: int, index: int) -> tuple[int, Example]:
        where = f"{self.path}: example {index} of {self.count}"
        head = self._words(where, at, HEAD_WORDS)
        start, size, number, label, completions, length = head.tolist()
        self._require(where, "the start marker", start, START)
        self._require(where, "its number", number, index)
        self._require(where, "the count of completions", completions, COMPLETIONS)
        if not 0 <= label < COMPLETIONS:
            raise FormatError(f"{where}: the right completion is {label}, expected 0 to {COMPLETIONS - 1}: {CURE}")
        if size % 2 or not 2 * HEAD_WORDS <= size <= self._longest:
            raise FormatError(
                f"{where}: has {size} bytes, expected an even number from {2 * HEAD_WORDS} to {self._longest}, the "
                f"longest by the header: {CURE}"
            )
        words = self._words(where, at, size // 2)[HEAD_WORDS - 1 :]
        runs, rest = [], words
        for what in ("the context", *(f"completion {i}" for i in range(COMPLETIONS))):
            length = int(rest[0]) if len(rest) else 0
            if length == 0 or length + 1 > len(rest):
                left = max(len(rest) - 1, 0)
                raise FormatError(f"{where}: {what} has {length} of the {left} tokens that are left: {CURE}")
            runs.append(rest[1 : 1 + length])
            rest = rest[1 + length :]
        if len(rest):
            raise FormatError(f"{where}: found {len(rest)} words behind the last completion, expected none: {CURE}")
        context, *completions = runs
        example = Example(context, tuple(completions), label)
        _require_short(where, example, self.T)
        return size, example

    def _words(self, where: str, at: int, count: int) -> np.ndarray:
        if at + 2 * count > self._file.size:
            raise FormatError(f"{where}: the file ends within it, at {self._file.size} bytes: {CURE}")
        words = np.empty(count, llmc.TOKEN_DTYPE)
        self._file.read_into(at, words)
        return words

    @staticmethod
    def _require(where: str, what: str, found: int, expected: int) -> None:
        if found != expected:
            raise FormatError(f"{where}: {what} is {found}, expected {expected}: {CURE}")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "ChoiceFile":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


class ChoiceLines:
    """The questions of a JSON lines file with the fields ctx, endings and label: as ChoiceFile, and the same ids for one text."""

    def __init__(self, path, T: int, encode: Callable[[str], np.ndarray]):
        """encode: text to ids, of the context, and of each ending behind a space. Raises DataError if the file cannot be read."""
        self.path, self.T, self._encode = path, T, encode
        with RegularFile(path, DataError) as file:
            self._lines = [line for line in enumerate(file.read(0, file.size).split(b"\n"), 1) if line[1].strip()]
        self.count = len(self._lines)
        if not self.count:
            raise DataError(f"{path}: holds no line, expected a question in each")

    def __iter__(self) -> Iterator[Example]:
        for number, line in self._lines:
            where = f"{self.path}: line {number}"
            context, endings, label = _question(where, line)
            try:
                ids = [self._encode(text) for text in (context, *(f" {ending}" for ending in endings))]
            except DataError as problem:
                raise DataError(f"{where}: {problem}") from None
            example = Example(ids[0], tuple(ids[1:]), label)
            _require_short(where, example, self.T)
            yield example

    def close(self) -> None:
        pass

    def __enter__(self) -> "ChoiceLines":
        return self

    def __exit__(self, *exc) -> None:
        pass


def write_choices(path, examples: Iterable[Example]) -> int:
    """Writes examples (ids of any integer type) as a multiple-choice file, and returns their number.

    Raises DataError for none, too many, or one that is too long for the file; CheckpointError if it cannot be written."""
    rows = []
    for index, example in enumerate(examples):
        runs = (example.context, *example.completions)
        words = [
            START,
            0,
            index,
            example.label,
            COMPLETIONS,
            *(word for run in runs for word in (len(run), *map(int, run))),
        ]
        words[1] = 2 * len(words)
        if index >= START or words[1] > START or len(runs) != 1 + COMPLETIONS or max(words[HEAD_WORDS - 1 :]) >= START:
            raise DataError(
                f"{path}: example {index} with {words[1]} bytes and ids up to {max(words[HEAD_WORDS - 1 :])} does not fit "
                f"into this file: expected fewer than {START} of each, and of examples"
            )
        rows.append(np.array(words, llmc.TOKEN_DTYPE))
    if not rows:
        raise DataError(f"{path}: no examples, expected at least one")
    header = [llmc.CHOICES, VERSION, len(rows), max(row.nbytes for row in rows), *[0] * 252]
    write_atomically(path, struct.pack("<256i", *header), *rows)
    return len(rows)


def _question(where: str, line: bytes) -> tuple[str, list[str], int]:
    try:
        found = json.loads(line)
        context, endings, label = (found[key] for key in ("ctx", "endings", "label"))
    except (ValueError, RecursionError):
        raise FormatError(f"{where}: is no JSON in UTF-8: {CURE}") from None
    except (TypeError, KeyError, IndexError):
        raise FormatError(f'{where}: expected an object with "ctx", "endings" and "label", as HellaSwag has') from None
    if not isinstance(context, str) or not context:
        raise FormatError(f'{where}: "ctx" is {str(context)[:40]!r}, expected a text')
    if not isinstance(endings, list) or len(endings) != COMPLETIONS or not all(isinstance(e, str) for e in endings):
        raise FormatError(f'{where}: "endings" are no list of {COMPLETIONS} texts')
    label = int(label) if isinstance(label, str) and label.isascii() and label.isdigit() and len(label) == 1 else label
    if type(label) is not int or not 0 <= label < COMPLETIONS:
        raise FormatError(f'{where}: "label" is {str(label)[:40]!r}, expected 0 to {COMPLETIONS - 1}')
    return context, endings, label
