"""Where documents come from: text files, folders, patterns, standard input, JSON lines, Hugging Face datasets; also packed.

A document is an iterator of pieces of text, to be taken before the next document is asked for; nothing is ever held as a
whole but a line of JSON. What is left out is counted, with its first places."""

import codecs
import glob
import gzip
import hashlib
import io
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..errors import DataError, UsageError
from ..formats.files import RegularFile
from .tokenizer import valid

Document = Iterator[str]
PIECE = 1 << 20  # bytes read at once
MAX_LINE = 1 << 26  # bytes of a line of JSON, which has to be held as a whole
TEXT, LINES = (".txt", ".text", ".md", ".rst", ".raw"), (".jsonl", ".ndjson")  # what is taken from a folder
PACKED = ".gz"
STDIN, HUB = "-", "hf:"
KEPT = 3  # places told of what was left out; sources named in a report: 1000 times as many


@dataclass
class Tally:
    """What was met on the way: documents, sources as {"name", "bytes", "sha256"}, what was left out and why."""

    documents: int = 0
    read: int = 0  # bytes as they are stored
    sources: list[dict] = field(default_factory=list)
    unnamed: int = 0  # sources beyond the first thousands
    skipped: dict[str, dict] = field(default_factory=dict)
    replaced: int = 0  # bytes that are no UTF-8, and became U+FFFD

    def skip(self, why: str, where: str) -> None:
        entry = self.skipped.setdefault(why, {"count": 0, "first": []})
        entry["count"] += 1
        if len(entry["first"]) < KEPT:
            entry["first"].append(where)

    def finish(self, name: str, size: int, sha256: str | None) -> None:
        if len(self.sources) < 1000 * KEPT:
            self.sources.append({"name": name, "bytes": size, "sha256": sha256})
        else:
            self.unnamed += 1


@dataclass(frozen=True)
class Reading:
    """How documents are told apart: `form` is auto (by the name), text or jsonl; `field` that of a line of JSON.

    A text file is one document, or several with a `separator` between them, which with `keep` belongs to the one before.
    invalid: "refuse" or "replace" what is no UTF-8 in a text file."""

    form: str = "auto"
    field: str = "text"
    separator: str | None = None
    keep: bool = False
    invalid: str = "refuse"


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
        raise DataError(
            f"{' '.join(inputs)}: no text files there, expected names that end in {', '.join(TEXT + LINES)}"
        )
    return found


def _find(word: str, tally: Tally) -> Iterator[Source]:
    if word == STDIN:
        yield Source("standard input", partial(_open_stdin), again=False)
    elif word.startswith(HUB):
        yield Source(word, partial(_open_hub, word.removeprefix(HUB)))
    elif os.path.isdir(word):
        for path in sorted((p for p in Path(word).rglob("*") if p.is_file()), key=lambda p: os.fsencode(p)):
            if _suffix(path.name) in TEXT + LINES:
                yield file_source(path)
            else:
                tally.skip("its name is none of a text file", str(path))
    elif os.path.lexists(word):
        yield file_source(Path(word))
    else:
        paths = sorted(glob.glob(word, recursive=True), key=os.fsencode)
        if not paths:
            raise DataError(
                f"{word}: no such file, expected text, a folder, a pattern that matches some, - or {HUB}NAME"
            )
        for path in paths:
            if os.path.isfile(path):
                yield file_source(Path(path))


def file_source(path: Path) -> Source:
    return Source(str(path), partial(_open_file, path), path.stat().st_size if path.exists() else None)


def _suffix(name: str) -> str:
    return os.path.splitext(name.lower().removesuffix(PACKED))[1]


# --- bytes -----------------------------------------------------------------------------------------------------------


class Counted(io.RawIOBase):
    """The bytes of a source on their way: counted, and hashed."""

    def __init__(self, read: Callable[[int], bytes], tally: Tally):
        self._read, self._tally = read, tally
        self.sha256, self.size = hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, view) -> int:
        data = self._read(len(view))
        view[: len(data)] = data
        self.sha256.update(data)
        self.size += len(data)
        self._tally.read += len(data)
        return len(data)


def _open_file(path: Path, reading: Reading, tally: Tally) -> Iterator[Document]:
    with RegularFile(path, DataError) as file:
        at = 0

        def read(n: int) -> bytes:
            nonlocal at
            data = file.read(at, min(n, file.size - at))
            at += len(data)
            return data

        yield from documents_of(str(path), Counted(read, tally), reading, tally)


def _open_stdin(reading: Reading, tally: Tally) -> Iterator[Document]:
    yield from documents_of("standard input", Counted(sys.stdin.buffer.read1, tally), reading, tally)


class _Stream:
    """Bytes for a reader, unpacked if need be; damage is a DataError."""

    def __init__(self, name: str, raw: Counted):
        self._name, self._stream = name, io.BufferedReader(raw, PIECE)
        if name.lower().endswith(PACKED):
            self._stream = gzip.GzipFile(fileobj=self._stream)

    def read(self, size: int) -> bytes:
        return self._sound(self._stream.read, size)

    def readline(self, size: int) -> bytes:
        return self._sound(self._stream.readline, size)

    def _sound(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            return read(size)
        except (gzip.BadGzipFile, EOFError, zlib.error, zipfile.BadZipFile) as problem:
            raise DataError(f"{self._name}: cannot be unpacked: {str(problem).lower()}: copy the file again") from None


def documents_of(name: str, raw: Counted, reading: Reading, tally: Tally) -> Iterator[Document]:
    """The documents in the bytes of a source, by its name; counted in `tally` when all were read."""
    form = reading.form if reading.form != "auto" else "jsonl" if _suffix(name) in LINES else "text"
    yield from (_lines if form == "jsonl" else _text)(name, _Stream(name, raw), reading, tally)
    tally.finish(name, raw.size, raw.sha256.hexdigest())


# --- text ------------------------------------------------------------------------------------------------------------


def _text(name: str, stream, reading: Reading, tally: Tally) -> Iterator[Document]:
    pieces = _decoded(name, stream, reading, tally)
    if reading.separator is None:
        yield pieces
    else:
        yield from split(pieces, reading.separator, reading.keep)


def _decoded(name: str, stream, reading: Reading, tally: Tally) -> Iterator[str]:
    """UTF-8 without a leading byte order mark; line ends and NUL stay as they are."""

    def replace(problem: UnicodeDecodeError):
        tally.replaced += problem.end - problem.start
        return "\ufffd", problem.end

    codecs.register_error("gpt2flat.replace", replace)
    decoder = codecs.getincrementaldecoder("utf-8-sig")("strict" if reading.invalid == "refuse" else "gpt2flat.replace")
    at = 0
    while True:
        data = stream.read(PIECE)
        at += len(data)
        try:
            yield decoder.decode(data, final=not data)
        except UnicodeDecodeError as problem:
            offset = at - len(problem.object) + problem.start
            raise DataError(
                f"{name}: found byte 0x{problem.object[problem.start]:02x} at offset {offset}, expected UTF-8 text: convert it, "
                "for example with iconv -f latin1 -t utf-8, or --invalid replace"
            ) from None
        if not data:
            return


def split(pieces: Iterable[str], separator: str, keep: bool) -> Iterator[Document]:
    """The documents of a text with a separator between them, as str.split finds them, however the pieces come."""
    pieces = iter(pieces)
    held, at, ended = "", 0, False  # held[at:] is still to be told

    def document() -> Document:
        nonlocal held, at, ended
        while True:
            found = held.find(separator, at)
            if found >= 0:
                end = found + len(separator)
                part, at = held[at : end if keep else found], end
                yield part
                return
            sure = max(len(held) - len(separator) + 1, at)  # from there on a separator may begin
            yield held[at:sure]
            piece = next(pieces, None)
            held, at = held[sure:] + (piece or ""), 0
            if piece is None:
                ended = True
                yield held
                return

    while not ended:
        yield document()


# --- lines of JSON, and Hugging Face's datasets ----------------------------------------------------------------------


def _lines(name: str, stream, reading: Reading, tally: Tally) -> Iterator[Document]:
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            tally.skip(f"a line of more than {MAX_LINE >> 20} MiB", f"{name}:{number}")
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE)
            continue
        text, problem = _field(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, reading.field)
        if problem:
            tally.skip(problem, f"{name}:{number}")
        elif text is not None:
            yield iter((valid(text),))


def _field(line: bytes, field: str) -> tuple[str | None, str]:
    """(text, problem) of a line; a blank one has neither. Of a key that comes twice the last counts, as in json."""
    if line.isspace():
        return None, ""
    try:
        found = json.loads(line.decode())
    except UnicodeDecodeError:
        return None, "not UTF-8"
    except (ValueError, RecursionError):
        return None, "no JSON"
    return _value(found, field)


def _value(row, field: str) -> tuple[str | None, str]:
    if not isinstance(row, dict):
        return None, "no JSON object"
    if field not in row:
        return None, f"no field {field!r}"
    if not isinstance(row[field], str):
        return None, f"field {field!r} is no text"
    return row[field], ""


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
        size = 0
        for number, row in enumerate(rows):
            text, problem = _value(row, reading.field)
            if problem:
                tally.skip(problem, f"{HUB}{name}, row {number}")
            else:
                size += len(text)
                tally.read += len(text)
                yield iter((valid(text),))
    except Exception as problem:  # whatever datasets, its file systems and the network raise
        said = " ".join(str(problem).split())[:300]
        raise DataError(f"{HUB}{name}: cannot be read: {said}: check name and network, or give local files") from None
    tally.finish(f"{HUB}{name}", size, None)
