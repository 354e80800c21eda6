"""The one reader of run directories. Whatever is broken or missing in one is told, not fatal; nothing is ever written."""

import json
import os
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError
from ..memory.arena import human
from ..training.checkpoints import STEP
from ..training.manifest import MODEL, Checkpoint
from ..training.run import LOCK, RUNS, Run, read_text
from . import history
from .files import Lines, describe

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"


class Stored(NamedTuple):
    """A checkpoint of a run by its manifest: bytes of all files, and what is wrong with them, "" for nothing. Only sizes are
    compared here; a resume compares the hashes."""

    step: int
    path: Path
    size: int
    problem: str


@dataclass(frozen=True)
class RunRecord:
    """What a run directory tells: config (its settings), env (its machine), history (its records), and what follows from them."""

    path: Path
    config: dict
    env: dict
    history: history.History

    @property
    def name(self) -> str:
        return self.path.absolute().name

    @property
    def started(self) -> str:
        """ISO 8601 in UTC, "" if unknown."""
        return Run(self.path).started

    @cached_property
    def state(self) -> str:
        """RUNNING: a process holds its lock; FINISHED: all updates are done; STOPPED: it ended as asked, before that; FAILED: it
        ended in another way."""
        if _is_locked(self.path / LOCK):
            return RUNNING
        ends = [event for event in self.history.events if event.keys() & {"stopped", "resumed"}]
        if ends and "stopped" in ends[-1]:
            return FINISHED if ends[-1]["stopped"] == "finished" else STOPPED
        steps = self.config.get("steps")
        return FINISHED if not ends and type(steps) is int and 0 < steps <= self.updates else FAILED

    @property
    def updates(self) -> int:
        """How many updates were done: one more than the last step that was recorded."""
        done = (self.history.series[key].steps for key in ("loss", "ms"))
        return max((int(steps[-1]) + 1 for steps in done if len(steps)), default=0)

    @property
    def tokens(self) -> int:
        return int(self.history.total("tokens"))

    @property
    def seconds(self) -> float:
        """Of training, over all starts; without validations and samples."""
        return self.history.total("time")

    @cached_property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(_size(Path(folder, name)) for folder, _, names in os.walk(self.path) for name in names)

    @cached_property
    def checkpoints(self) -> list[Stored]:
        """Those that are there, steps rising."""
        found = ((STEP.fullmatch(path.name), path) for path in (self.path / "checkpoints").glob("*"))
        return sorted(_stored(int(match[1]), path) for match, path in found if match)


def open_run(path: Path) -> RunRecord:
    """The record of a run directory. Raises CheckpointError for any other directory."""
    try:
        config = tomllib.loads(read_text(path / "config.toml"))
    except (CheckpointError, ValueError, RecursionError) as problem:
        raise CheckpointError(f"{path}: is no run directory, its config.toml cannot be read: {problem}") from None
    return RunRecord(path, config, _json(path / "env.json"), history.read(path))


def find_runs(folder: Path = RUNS) -> tuple[list[RunRecord], list[str]]:
    """The runs in a folder, oldest first, and what is wrong with those that cannot be read. Raises CheckpointError."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: is no directory, expected one that holds run directories")
    found, problems = [], []
    for path in folder.iterdir():
        if (path / "config.toml").exists():
            try:
                found.append(open_run(path))
            except CheckpointError as problem:
                problems.append(str(problem))
    return sorted(found, key=lambda run: (run.started, run.name)), sorted(problems)


def _stored(step: int, path: Path) -> Stored:
    size = sum(_size(file) for file in path.glob("*"))
    try:
        checkpoint = Checkpoint(path)
        for name in checkpoint.manifest.files:
            checkpoint.open(name).close()
    except CheckpointError as problem:
        return Stored(step, path, size, str(problem))
    return Stored(step, path, size, "")


def _size(path: Path) -> int:
    with suppress(OSError):  # gone meanwhile
        return path.lstat().st_size
    return 0


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        if fcntl:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # a file system without locks
    finally:
        os.close(fd)
    return False


def _json(path: Path) -> dict:
    try:
        found = json.loads(read_text(path))
    except (CheckpointError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# --- lines for people ------------------------------------------------------------------------------------------------


def describe_run(path: Path) -> Lines:
    """A run directory: settings, machine, progress, checkpoints. Raises CheckpointError for any other directory."""
    run = open_run(path)
    env = run.env
    told = [
        ("run", f"{path}, {run.state}, started {run.started or 'at an unknown time'}"),
        ("settings", ", ".join(f"{key} {value}" for key, value in run.config.items())),
        ("machine", f"{env.get('cpu', '?')}, {env.get('backend', '?')} {env.get('isa', '?')}, {env.get('threads', '?')} threads, "
                    f"commit {env.get('commit') or 'unknown'}"),
        *_progress(run),
    ]  # fmt: skip
    if (path / "tokenizer.bin").is_file():
        told += [("tokenizer", text) for label, text in describe(path / "tokenizer.bin") if label == "kind"]
    saved = [f"{c.path / MODEL}, {human(_size(c.path / MODEL))}; {_how_whole(c)}" for c in run.checkpoints]
    return told + [("saved", text) for text in saved or ["no checkpoint"]]


def _how_whole(checkpoint: Stored) -> str:
    return checkpoint.problem or f"the checkpoint has {human(checkpoint.size)}, as its manifest says"


def _progress(run: RunRecord) -> Lines:
    past = run.history
    losses, vals = past.series["loss"], past.series["val_loss"]
    told = []
    if len(losses.steps):
        speed = f", {past.rate():,.0f} tokens/s" if past.rate() is not None else ""
        skipped = f", {past.skipped} of them left out" if past.skipped else ""
        told.append(
            ("progress", f"{run.updates} updates{skipped}, loss {_at(losses.at(0))} -> {_at(losses.at(-1))}{speed}")
        )
    if len(vals.steps):
        told.append(("validation", f"{_at(vals.at(0))} -> {_at(vals.at(-1))}, best {_at(past.best())}"))
    if past.broken:
        told.append(("", f"{past.broken} lines of metrics.jsonl are no records"))
    return told or [("progress", "no update yet")]


def _at(point: tuple[int, float]) -> str:
    return f"{point[1]:.4f} (step {point[0]})"
