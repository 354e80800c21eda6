"""Where the events of a run go: metrics.jsonl and llm.c's main.log always, TensorBoard and wandb (trackers.py) if asked for.

An event is a flat dict with "step". metrics.jsonl holds every one, a line each, floats with every digit. Both files can be
read while the run goes on, and lag behind it by a second at most."""

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import CheckpointError, reason
from ..formats.files import RegularFile, write_stream_atomically
from .trackers import TRACKERS

# keys of what a resumed run writes anew; saved, control, resumed ... stay as they happened
AGAIN = {"loss", "val_loss", "sample", "skipped"}
# seconds between two writes: after a step the caches are cold, and then a write of one update takes 0.15 ms, 1 % of a step of
# the preset tiny; a batch of them takes 0.015 ms each
PACE = 1.0
PIECE = 1 << 20
LONGEST = 1 << 20  # bytes of a line
LAST_STEP = 1 << 53


class _Lines:
    """A text file in the run directory that grows by a line an event."""

    name: str

    def __init__(self, run: Path):
        self._path = run / self.name
        try:
            self._file = open(self._path, "a", encoding="utf-8")
        except OSError as problem:
            raise self._error(problem) from None

    def write(self, events: list[dict]) -> None:
        try:
            self._file.write("".join(map(self.line, events)))
            self._file.flush()
        except OSError as problem:
            raise self._error(problem) from None

    def sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as problem:
            raise self._error(problem) from None

    def close(self) -> None:
        try:
            self._file.close()  # writes what an earlier failure left behind, and fails again
        except OSError as problem:
            raise self._error(problem) from None

    def _error(self, problem: OSError) -> CheckpointError:
        return CheckpointError(f"{self._path}: cannot be written: {reason(problem)}")


class Jsonl(_Lines):
    """Every event as a JSON object."""

    name = "metrics.jsonl"

    @staticmethod
    def line(event: dict) -> str:
        return json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def stays(line: bytes, step: int) -> bool:
        record = parse(line)
        return bool(record) and (record["step"] < step or not AGAIN & record.keys())


class MainLog(_Lines):
    """Updates and validations as llm.c writes them (llmc/logger.h), for its dev/vislog.ipynb."""

    name = "main.log"

    @staticmethod
    def line(event: dict) -> str:
        if isinstance(event.get("val_loss"), float):
            return f"s:{event['step']} tel:{event['val_loss']:.4f}\n"
        if all(isinstance(event.get(key), float) for key in ("loss", "lr", "grad_norm")):
            return f"s:{event['step']} trl:{event['loss']:.4f} lr:{event['lr']:.6f} norm:{event['grad_norm']:.2f}\n"
        return ""

    @staticmethod
    def stays(line: bytes, step: int) -> bool:
        found = re.fullmatch(rb"s:(\d{1,18}) (trl:\S+ lr:\S+ norm:\S+|(tel|eval):\S+)", line)
        return bool(found) and int(found[1]) < step


FILES = (Jsonl, MainLog)


class Metrics:
    """All trackers of a run, open: write(step=..., ...) tells each. Use it in a `with`, or close() it.

    run: its directory; step: where it starts; report_to: names out of trackers.TRACKERS; settings: those of the run;
    announce: called with one line when one of these fails, which ends the reports to it and nothing else. Raises
    CheckpointError when metrics.jsonl or main.log cannot be written."""

    def __init__(self, run: Path, step: int = 0, report_to: Iterable[str] = (), settings: dict | None = None,
                 announce: Callable[[str], None] = lambda line: None):  # fmt: skip
        self._run, self._report_to, self._settings, self._announce = run, list(report_to), settings or {}, announce
        self._files, self._trackers = [], {}
        self._waiting, self._next = [], 0.0  # events, and the time from which on they are written
        self._open(step)

    def _open(self, step: int) -> None:
        self._files = [kind(self._run) for kind in FILES]
        for name in self._report_to:
            self._guarded(
                name, lambda name=name: self._trackers.update({name: TRACKERS[name](self._run, step, self._settings)})
            )

    def write(self, **values) -> None:
        """One event, its "step" among the values. Updates may wait for the next event, all others are in the files when
        this returns."""
        self._waiting.append(values)
        now = time.monotonic()
        if now >= self._next or "loss" not in values:
            self._flush()
            self._next = now + PACE

    def _flush(self) -> None:
        events, self._waiting = [_finite(event) for event in self._waiting], []
        for file in self._files:
            file.write(events)
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, tracker.write, events)

    def sync(self) -> None:
        """Returns when all events are on the disk: call it before a checkpoint counts, so that none outlives its records."""
        self._flush()
        for file in self._files:
            file.sync()

    def rewind(self, step: int) -> None:
        """The run goes back to `step`: what it wrote from there on is dropped, as keep() does."""
        self.close()
        keep(self._run, step)
        self._open(step)

    def close(self) -> None:
        self._flush()
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, tracker.close)
        self._trackers = {}
        files, self._files = self._files, []
        for file in files:
            file.close()

    def _guarded(self, name: str, call: Callable, *values) -> None:
        try:
            call(*values)
        except Exception as problem:  # of a package that is not ours: it may not end a run
            self._trackers.pop(name, None)
            self._announce(f"--report-to {name}: {type(problem).__name__}: {problem}: nothing more is reported there")

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def _finite(event: dict) -> dict:
    """The event with null for a number that is not finite, which JSON does not have."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in event.items()}


def parse(line: bytes | str) -> dict:
    """A record of metrics.jsonl; {} for anything else."""
    try:
        record = json.loads(line if isinstance(line, str) else line.decode(errors="replace"))  # of bytes it would guess a code
    except (ValueError, RecursionError):
        return {}
    return record if is_record(record) else {}


def is_record(value) -> bool:
    """Whether a value of JSON is a record: an object with a step."""
    return isinstance(value, dict) and type(value.get("step")) is int and 0 <= value["step"] < LAST_STEP


def keep(run: Path, step: int) -> None:
    """Before a run resumes at `step`: drops the records of updates, validations and samples from `step` on from
    metrics.jsonl and main.log, and lines that are no records, such as a torn last one. What else happened stays.

    Each file is replaced whole or not at all. Raises CheckpointError."""
    for kind in FILES:
        if os.path.lexists(run / kind.name):
            kept = (line + b"\n" for line in read_lines(run / kind.name) if kind.stays(line, step))
            write_stream_atomically(run / kind.name, kept)


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, one that is longer than LONGEST cut off; in bounded memory. Raises CheckpointError."""
    with RegularFile(path, CheckpointError) as file:
        rest = b""
        for start in range(0, file.size, PIECE):
            *lines, rest = (rest + file.read(start, min(PIECE, file.size - start))).split(b"\n")
            yield from lines
            rest = rest[:LONGEST]
        if rest:
            yield rest


KINDS = {"loss": float, "val_loss": float, "control": dict, "resumed": dict, "draw": int}


def read_events(run: Path, *keys: str) -> Iterator[dict]:
    """The records of metrics.jsonl that have one of `keys` out of KINDS; none where there is no such file. Raises CheckpointError."""
    if (run / Jsonl.name).exists():
        for line in read_lines(run / Jsonl.name):
            event = parse(line)
            if any(type(event.get(key)) is KINDS[key] for key in keys):
                yield event
