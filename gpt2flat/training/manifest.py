"""One checkpoint on disk, and manifest.json, its commit record: which run and step, every file with its size and
SHA-256, the facts that a resume needs (plain JSON values), and last the SHA-256 of all that stands before it.

Read as what a stranger may have written: bounded, no names with folders, no key twice, no NaN."""

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError
from ..formats.files import RegularFile

NAME = "manifest.json"
FORMAT = 1
MODEL = "model.bin"
LONGEST = 4 << 20  # bytes that are read
MOST_FILES = 64
FILE_NAME, RUN_ID, SHA256 = (re.compile(p) for p in (r"[a-z0-9][a-z0-9_.-]{0,63}", r"[\w.:+-]{1,128}", r"[0-9a-f]{64}"))


class Entry(NamedTuple):
    """A file of a checkpoint: its bytes and their SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a manifest.json says."""

    step: int
    run: str
    files: dict[str, Entry]
    facts: dict = field(default_factory=dict)


def encode(manifest: Manifest) -> bytes:
    """The text of a manifest. Raises CheckpointError for one that could not be read again, such as NaN in the facts."""
    found = {"format": FORMAT, "step": manifest.step, "run": manifest.run}
    found |= {"files": {name: entry._asdict() for name, entry in manifest.files.items()}, "facts": manifest.facts}
    try:
        body = json.dumps(found, indent=1, allow_nan=False).encode().removesuffix(b"\n}")
    except (TypeError, ValueError, RecursionError) as problem:
        raise CheckpointError(f"{NAME}: the facts are no plain, finite JSON values: {problem}") from None
    data = body + _seal(body)
    decode(NAME, data)
    return data


def _seal(body: bytes) -> bytes:
    """The end of a manifest: its own hash, so that no bit of it can change unseen either."""
    return b',\n "sha256": "%b"\n}\n' % hashlib.sha256(body).hexdigest().encode()


def require_names(names) -> None:
    """Raises CheckpointError unless these can be the files of a checkpoint."""
    for name in names:
        _require(name, _is_name(name), "a file is named by small letters, digits, '_', '-' and '.', without folders")


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint's folder. Raises CheckpointError if there is none or it is not whole."""
    with RegularFile(folder / NAME, CheckpointError) as file:
        _require(file.path, file.size <= LONGEST, f"has {file.size} bytes, expected at most {LONGEST}")
        return decode(file.path, file.read(0, file.size))


def decode(where, data: bytes) -> Manifest:
    """The manifest in `data`. Raises CheckpointError that names `where`."""
    _require(where, len(data) <= LONGEST, f"has {len(data)} bytes, expected at most {LONGEST}")
    try:
        found = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite, parse_int=_int
        )
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(f"{where}: is no manifest: {str(problem)[:200]}") from None
    keys = {"format", "step", "run", "files", "facts", "sha256"}
    _require(
        where, isinstance(found, dict) and found.keys() == keys, f"expected an object of {', '.join(sorted(keys))}"
    )
    body = data[: -len(_seal(b""))]
    _require(
        where, data == body + _seal(body), "its own SHA-256 does not hold: it was damaged after it had been written"
    )
    _require(where, found["format"] == FORMAT, f"expected format {FORMAT}, written by this version of gpt2flat")
    _require(where, _whole(found["step"]), "step: expected a whole number of 0 or more")
    _require(where, _matches(RUN_ID, found["run"]), "run: expected an identifier of 1 to 128 characters")
    _require(where, isinstance(found["facts"], dict), "facts: expected an object")
    files = found["files"]
    good = isinstance(files, dict) and len(files) <= MOST_FILES and all(map(_is_file, files.items()))
    _require(where, good, "files: expected names without folders, each with a size and a sha256")
    return Manifest(
        found["step"], found["run"], {name: Entry(**entry) for name, entry in files.items()}, found["facts"]
    )


class Checkpoint:
    """One checkpoint: step, run_id, facts (what its writer wanted kept), and its files by name."""

    def __init__(self, path: Path):
        """Reads the manifest only. Raises CheckpointError if there is none, or one that is not whole."""
        self.path, self.manifest = Path(path), read(Path(path))
        self.step, self.run_id, self.facts = self.manifest.step, self.manifest.run, self.manifest.facts

    @property
    def model(self) -> Path:
        return self.path / MODEL

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(entry.size for entry in self.manifest.files.values())

    def open(self, name: str) -> RegularFile:
        """An open file of the checkpoint, for a `with`. Raises CheckpointError."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise CheckpointError(f"{self.path}: holds no {name}, only {', '.join(self.manifest.files)}")
        file = RegularFile(self.path / name, CheckpointError)
        if file.size != entry.size:
            file.close()
            raise CheckpointError(f"{file.path}: found {file.size} bytes, expected the {entry.size} of its manifest")
        return file

    def read(self, name: str) -> bytes:
        """All bytes of a (small) file, checked against its hash. Raises CheckpointError."""
        with self.open(name) as file:
            data = file.read(0, file.size)
        self._check(name, hashlib.sha256(data).hexdigest())
        return data

    def verify(self) -> None:
        """Reads every file again. Raises CheckpointError unless all sizes and hashes hold."""
        for name in self.manifest.files:
            digest = hashlib.sha256()
            with self.open(name) as file:
                for block in file.blocks():
                    digest.update(block)
            self._check(name, digest.hexdigest())

    def _check(self, name: str, sha256: str) -> None:
        wanted = self.manifest.files[name].sha256
        if sha256 != wanted:
            raise CheckpointError(
                f"{self.path / name}: its SHA-256 is {sha256[:16]}..., expected the {wanted[:16]}... of its manifest: "
                "the file was damaged after it had been written"
            )


def _is_file(item) -> bool:
    name, entry = item
    good = isinstance(entry, dict) and entry.keys() == set(Entry._fields)
    return _is_name(name) and good and _whole(entry["size"]) and _matches(SHA256, entry["sha256"])


def _is_name(name) -> bool:
    return _matches(FILE_NAME, name) and name != NAME


def _whole(value) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _matches(pattern: re.Pattern, value) -> bool:
    return isinstance(value, str) and value.isascii() and pattern.fullmatch(value) is not None


def _require(where, good: bool, what: str) -> None:
    if not good:
        raise CheckpointError(f"{where}: is no manifest of a checkpoint: {what}")


def _unique(pairs: list) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


def _int(text: str) -> int:
    if len(text) > 40:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)
