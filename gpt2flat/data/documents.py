"""Documents out of bytes: a text, parts of one between separators, or lines of JSON; also packed.

A document is pieces of text, to be taken before the next document is asked for; nothing is ever held as a whole but a line
of JSON. What is left out is counted, with its first places."""

import codecs
import gzip
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ..errors import DataError
from .tokenizer import valid

Document = Iterable[str]
PIECE = 1 << 20  # bytes read at once
MAX_LINE = 1 << 26  # bytes of a line of JSON, which has to be held as a whole
LINES = (".jsonl", ".ndjson")
PACKED = ".gz"
KEPT = 3  # places told of what was left out; sources named in a report: 1000 times as many


@dataclass
class Tally:
    """What was met on the way: documents, sources as {"name", "bytes", "sha256"}, what was left out and why."""

    documents: int = 0
    now: str = ""  # the source that is being read
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


class Counted:
    """The bytes of a source on their way: counted, and hashed. read(n): at most n bytes, none at the end."""

    def __init__(self, read: Callable[[int], bytes], tally: Tally):
        self._read, self._tally = read, tally
        self.sha256, self.size = hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        data = self._read(size)
        self.sha256.update(data)
        self.size += len(data)
        self._tally.read += len(data)
        return data


def documents_of(name: str, raw: Counted, reading: Reading, tally: Tally) -> Iterator[Document]:
    """The documents in the bytes of a source, by its name; counted in `tally` when all were read."""
    tally.now = name
    form = reading.form if reading.form != "auto" else "jsonl" if suffix(name) in LINES else "text"
    yield from (_lines if form == "jsonl" else _text)(name, _blocks(name, raw), reading, tally)
    tally.finish(name, raw.size, raw.sha256.hexdigest())


def suffix(name: str) -> str:
    """What a name ends in when it is not packed."""
    return os.path.splitext(name.lower().removesuffix(PACKED))[1]


def _blocks(name: str, raw: Counted) -> Iterator[bytes]:
    """The bytes, unpacked if need be; damage is a DataError."""
    stream = gzip.GzipFile(fileobj=raw) if name.lower().endswith(PACKED) else raw
    try:
        while block := stream.read(PIECE):
            yield block
    except (gzip.BadGzipFile, EOFError, zlib.error, zipfile.BadZipFile) as problem:
        raise DataError(f"{name}: cannot be unpacked: {str(problem).lower()}: copy the file again") from None


# --- text ------------------------------------------------------------------------------------------------------------


def _text(name: str, blocks: Iterator[bytes], reading: Reading, tally: Tally) -> Iterator[Document]:
    pieces = _decoded(name, blocks, reading, tally)
    if reading.separator is None:
        yield pieces
    else:
        yield from split(pieces, reading.separator, reading.keep)


def _decoded(name: str, blocks: Iterator[bytes], reading: Reading, tally: Tally) -> Iterator[str]:
    """UTF-8 without a leading byte order mark; line ends and NUL stay as they are."""

    def replace(problem: UnicodeDecodeError):
        tally.replaced += problem.end - problem.start
        return "\ufffd", problem.end

    codecs.register_error("gpt2flat.replace", replace)
    decoder = codecs.getincrementaldecoder("utf-8-sig")("strict" if reading.invalid == "refuse" else "gpt2flat.replace")
    at = 0
    try:
        for block in blocks:
            at += len(block)
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as problem:
        offset = at - len(problem.object) + problem.start
        raise DataError(
            f"{name}: found byte 0x{problem.object[problem.start]:02x} at offset {offset}, expected UTF-8 text: convert it, "
            "for example with iconv -f latin1 -t utf-8, or --invalid replace"
        ) from None


def split(pieces: Iterable[str], separator: str, keep: bool) -> Iterator[Document]:
    """The documents of a text with a separator between them, as str.split finds them, however the pieces come."""
    pieces = iter(pieces)
    held, ended = "", False

    def unfinished() -> Document:
        """The one whose end was not in `held`; leaves there what follows it."""
        nonlocal held, ended
        while (found := held.find(separator)) < 0:
            sure = max(len(held) - len(separator) + 1, 0)  # from there on a separator may begin
            yield held[:sure]
            piece = next(pieces, None)
            held = held[sure:] + (piece or "")
            if piece is None:
                ended = True
                yield held
                return
        end = found + len(separator)
        yield held[: end if keep else found]
        held = held[end:]

    while not ended:
        *whole, held = held.split(separator)
        for part in whole:
            yield (part + separator if keep else part,)
        yield unfinished()


# --- lines of JSON ---------------------------------------------------------------------------------------------------

_JSON = json.JSONDecoder()
_JSON_SPACE = " \t\n\r"


def _lines(name: str, blocks: Iterator[bytes], reading: Reading, tally: Tally) -> Iterator[Document]:
    for number, line in enumerate(_cut_lines(blocks), 1):
        if len(line) > MAX_LINE:
            tally.skip(f"a line of more than {MAX_LINE >> 20} MiB", f"{name}:{number}")
            continue
        text, problem = _field(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, reading.field)
        if problem:
            tally.skip(problem, f"{name}:{number}")
        elif text is not None:
            yield (valid(text),)


def _cut_lines(blocks: Iterable[bytes]) -> Iterator[bytes | bytearray]:
    """Lines without their ends; of one that is longer than MAX_LINE a little more than so much."""
    held = bytearray()
    for block in blocks:
        first, *lines = block.split(b"\n")
        held += first
        if lines:
            yield held
            held = bytearray(lines.pop())
            yield from lines
        del held[MAX_LINE + 1 :]
    if held:
        yield held


def _field(line: bytes, field: str) -> tuple[str | None, str]:
    """(text, problem) of a line; a blank one has neither. Of a key that comes twice the last counts, as in json."""
    if not line or line.isspace():
        return None, ""
    try:
        text = line.decode().strip(_JSON_SPACE)
        found, end = _JSON.raw_decode(text)  # json.loads asks twice as much around it
    except UnicodeDecodeError:
        return None, "not UTF-8"
    except (ValueError, RecursionError):
        return None, "no JSON"
    return value(found, field) if end == len(text) else (None, "no JSON")


def value(row, field: str) -> tuple[str | None, str]:
    """(text, problem) of a row of a data set."""
    if not isinstance(row, dict):
        return None, "no JSON object"
    if field not in row:
        return None, f"no field {field!r}"
    if not isinstance(row[field], str):
        return None, f"field {field!r} is no text"
    return row[field], ""
