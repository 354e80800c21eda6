"""JSON objects of other programs' files, strictly: UTF-8, no key twice, no NaN, nothing that Python's reader trips over."""

import json

from ..errors import CheckpointError, FormatError
from .files import RegularFile


def read_object(path, longest: int) -> dict:
    """The object that a file of at most `longest` bytes holds. Raises FormatError, or CheckpointError if it cannot be opened."""
    with RegularFile(path, CheckpointError, short=FormatError) as file:
        if file.size > longest:
            raise FormatError(f"{path}: has {file.size} bytes, expected at most {longest} of JSON")
        return parse_object(file.read(0, file.size), path)


def parse_object(data: bytes, where) -> dict:
    """The JSON object in `data`. Raises FormatError that begins with `where`."""
    try:
        found = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as problem:
        raise FormatError(f"{where}: is no JSON: {problem}: copy the file again") from None
    if not isinstance(found, dict):
        raise FormatError(f"{where}: found a JSON {type(found).__name__}, expected an object")
    return found


def is_whole(value, low: int, high: int) -> bool:
    """Whether a JSON value is a whole number from low to high (true is none)."""
    return type(value) is int and low <= value <= high


def told(value) -> str:
    """A JSON value for a message, of one line, cut where it is long."""
    text = repr(value) if type(value) is not int or abs(value) < 1 << 64 else "a number beyond 2^64"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _once(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {told(twice)} is there twice")
    return found


def _no_number(text: str):
    raise ValueError(f"{text} is no JSON number")
