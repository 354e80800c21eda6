"""metrics.jsonl: one JSON object per event, a line each, floats with every digit; readable while the run goes on."""

import json
from pathlib import Path

from ..errors import CheckpointError, reason


class Metrics:
    """The open file. Use it in a `with`, or close() it. Raises CheckpointError when it cannot be written."""

    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = open(path, "a", buffering=1, encoding="utf-8")
        except OSError as problem:
            raise self._error(problem) from None

    def write(self, **values: int | float | str) -> None:
        """One event; the line is in the file when this returns."""
        try:
            self._file.write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")
        except OSError as problem:
            raise self._error(problem) from None

    def close(self) -> None:
        try:
            self._file.close()  # writes what an earlier failure left behind, and fails again
        except OSError as problem:
            raise self._error(problem) from None

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _error(self, problem: OSError) -> CheckpointError:
        return CheckpointError(f"{self._path}: cannot be written: {reason(problem)}")
