"""Prompts from files and standard input: one for each line, or JSONL."""

import json
import sys
from collections.abc import Iterator

from ..errors import DataError
from ..formats.files import RegularFile

LONGEST = 1 << 28  # bytes of a file of prompts
STDIN = "-"


def read_bytes(name: str) -> bytes:
    """All of a file, or of standard input for "-". Raises DataError for more than LONGEST bytes and for what cannot be
    read."""
    if name != STDIN:
        with RegularFile(name, DataError) as file:
            data = file.read(0, min(file.size, LONGEST + 1))
    elif sys.stdin is None:
        raise DataError("standard input is closed, expected prompts in it")
    else:
        data = sys.stdin.buffer.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise DataError(f"{name}: found more than {LONGEST} bytes, expected prompts: cut it into several files")
    return data


def read_text(name: str) -> str:
    """The same as text: without a byte order mark, U+FFFD for what is not UTF-8."""
    return read_bytes(name).decode(errors="replace").removeprefix("\ufeff")


def read_prompts(name: str, jsonl: bool = False) -> list[str]:
    """The prompts of a file: each line that is not empty is one; with jsonl or a name ending in .jsonl each line is a
    JSON string or an object with a string "prompt". Raises DataError for a line that is neither, or when there is
    none."""
    lines = [(i, line.removesuffix("\r")) for i, line in enumerate(read_text(name).split("\n"), 1)]
    lines = [(i, line) for i, line in lines if line.strip()]
    prompts = list(_parsed(name, lines)) if jsonl or name.endswith(".jsonl") else [line for _i, line in lines]
    if not prompts:
        raise DataError(f"{name}: holds no prompt, expected one on each line")
    return prompts


def _parsed(name: str, lines: list[tuple[int, str]]) -> Iterator[str]:
    for i, line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        prompt = value.get("prompt") if isinstance(value, dict) else value
        if not isinstance(prompt, str):
            raise DataError(
                f'{name}: line {i} is {line[:40]!r}, expected a JSON string or an object with a string "prompt"'
            )
        yield prompt
