"""Where documents come from: text files, folders, patterns, standard input, lines of JSON, Hugging Face's datasets."""

import glob
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import DataError, UsageError
from ..formats.files import RegularFile
from .documents import LINES, Counted, Document, Reading, Tally, documents_of, suffix, value
from .tokenizer import valid

SUFFIXES = (".txt", ".text", ".md", ".rst", ".raw", *LINES)  # what is taken from a folder
STDIN, HUB = "-", "hf:"


@dataclass(frozen=True)
class Source:
    """Something that documents come from; `open` is called for each pass over them. size: its bytes, if they are known."""

    name: str
    open: Callable[[Reading, Tally], Iterator[Document]]
    size: int | None = None
    again: bool = True  # whether it can be read twice


def find_sources(inputs: list[str], tally: Tally) -> list[Source]:
    """The sources that words of a command line name, in their order; of a folder or pattern sorted by bytes.

    Raises UsageError, DataError for what is not there."""
    found = [source for word in inputs for source in _find(word, tally)]
    if not found:
        raise DataError(f"{' '.join(inputs)}: no text files there, expected names that end in {', '.join(SUFFIXES)}")
    return found


def _find(word: str, tally: Tally) -> Iterator[Source]:
    if word == STDIN:
        if sys.stdin is None:
            raise DataError("standard input is closed, expected text in it")
        yield Source("standard input", _open_stdin, again=False)
    elif word.startswith(HUB):
        yield Source(word, partial(_open_hub, word.removeprefix(HUB)))
    elif os.path.isdir(word):
        for path, size in sorted(_files(str(Path(word)), tally), key=lambda found: os.fsencode(found[0])):
            if suffix(path) in SUFFIXES:
                yield Source(path, partial(_open_file, path), size)
            else:
                tally.skip("its name is none of a text file", path)
    elif os.path.lexists(word):
        yield file_source(Path(word))
    else:
        paths = sorted(glob.glob(word, recursive=True), key=os.fsencode)
        if not paths:
            raise DataError(
                f"{word}: no such file, expected text, a folder, a pattern that matches some, - or {HUB}NAME"
            )
        yield from (file_source(Path(path)) for path in paths if os.path.isfile(path))


def _files(folder: str, tally: Tally) -> Iterator[tuple[str, int]]:
    """The regular files of a folder and of those in it, and their bytes. Links to folders are not followed."""
    try:
        entries = os.scandir(folder)
    except OSError:
        return tally.skip("a folder that cannot be read", folder)
    with entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, tally)
            elif entry.is_file():
                yield entry.path.removeprefix(os.path.join(os.curdir, "")), entry.stat().st_size


def file_source(path: Path) -> Source:
    """A file that is there, or is refused when it is opened."""
    path = str(path)
    return Source(path, partial(_open_file, path), os.path.getsize(path) if os.path.exists(path) else None)


def _open_file(path: str, reading: Reading, tally: Tally) -> Iterator[Document]:
    with RegularFile(path, DataError) as file:
        at = 0

        def read(n: int) -> bytes:
            nonlocal at
            data = file.read(at, min(n, file.size - at))
            at += len(data)
            return data

        yield from documents_of(path, Counted(read, tally), reading, tally)


def _open_stdin(reading: Reading, tally: Tally) -> Iterator[Document]:
    yield from documents_of("standard input", Counted(sys.stdin.buffer.read1, tally), reading, tally)


def _open_hub(name: str, reading: Reading, tally: Tally) -> Iterator[Document]:
    """hf:NAME, hf:NAME:CONFIG, and @SPLIT behind either; the default split is train."""
    try:
        import datasets
    except ImportError:
        raise UsageError(f"{HUB}{name} needs the package datasets: pip install 'gpt2flat[datasets]'") from None
    whole, _, part = name.partition("@")
    path, _, config = whole.partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split=part or "train", streaming=True)
        size, tally.now = 0, f"{HUB}{name}"
        for number, row in enumerate(rows):
            text, problem = value(row, reading.field)
            if problem:
                tally.skip(problem, f"{HUB}{name}, row {number}")
            else:
                size += len(text)
                tally.read += len(text)
                yield (valid(text),)
    except Exception as problem:  # whatever datasets, its file systems and the network raise
        said = " ".join(str(problem).split())[:300]
        raise DataError(f"{HUB}{name}: cannot be read: {said}: check name and network, or give local files") from None
    tally.finish(f"{HUB}{name}", size, None)
