"""A run directory: config.toml env.json metrics.jsonl tokenizer.bin checkpoints/step_00001000/model.bin.

Made once everything else has been checked; found again by when it started and by step numbers, never by file times."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError, UsageError, reason
from ..formats.files import RegularFile, write_atomically
from ..memory.arena import human

RUNS = Path("runs")
STEP = re.compile(r"step_(\d{8,})")
MODEL = "model.bin"
LONGEST = 1 << 20  # bytes of an env.json or config.toml that are read


class Run:
    """One run directory, by its path; `stem` is set for an automatic name, which counts up."""

    def __init__(self, path, stem: str | None = None):
        self.path, self._stem = Path(path), stem

    def reserve(self) -> None:
        """Makes the directory, the last thing before the run is announced. An automatic name that another run took
        meanwhile counts up. Raises CheckpointError if it cannot be made."""
        while True:
            try:
                with _writing(self.path):
                    self.path.mkdir(parents=True, exist_ok=self._stem is None)
                return
            except FileExistsError:
                if self._stem is None:
                    raise UsageError(_taken(self.path)) from None
                self.path = _next_name(self._stem)

    def create(self, settings: dict, environment: dict, tokenizer, needed: int = 0) -> None:
        """Writes what a run starts with into the reserved directory.

        settings: see toml(); environment: plain JSON values; tokenizer: may be None; needed: bytes of a checkpoint. Raises
        CheckpointError if it cannot be written or the disk is too full, UsageError if another run has the directory."""
        with _writing(self.path):
            free = shutil.disk_usage(self.path).free
            if free < needed:
                raise CheckpointError(f"{self.path}: {human(free)} are free, a checkpoint takes {human(needed)}: name another place with --out")
            try:
                (self.path / "checkpoints").mkdir()
            except FileExistsError:
                raise UsageError(_taken(self.path)) from None
        write_atomically(self.path / "config.toml", toml(settings).encode())
        write_atomically(self.path / "env.json", (json.dumps(environment, indent=1) + "\n").encode())
        if tokenizer:
            tokenizer.save(self.path / "tokenizer.bin")

    def save(self, model, step: int) -> Path:
        """Writes the checkpoint after `step` updates; returns its model.bin. Raises CheckpointError."""
        folder = self.path / "checkpoints" / f"step_{step:08d}"
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        model.save(folder / MODEL)
        return folder / MODEL

    def checkpoint(self) -> Path | None:
        """The model.bin of the highest step, or None."""
        steps = {path: STEP.fullmatch(path.parent.name) for path in self.path.glob(f"checkpoints/*/{MODEL}")}
        found = {path: int(match[1]) for path, match in steps.items() if match}
        return max(found, key=found.get, default=None)

    @property
    def started(self) -> str:
        """When the run started, as env.json says: ISO 8601 in UTC, so it sorts; "" when that cannot be read."""
        try:
            started = json.loads(read_text(self.path / "env.json"))["started"]
        except (CheckpointError, ValueError, KeyError, TypeError, RecursionError):
            return ""
        return started if isinstance(started, str) else ""


def read_text(path: Path, longest: int = LONGEST, errors: str = "strict") -> str:
    """The first `longest` bytes of a file of a run. Raises CheckpointError, UnicodeDecodeError for what is no UTF-8."""
    with RegularFile(path, CheckpointError) as file:
        return file.read(0, min(file.size, longest)).decode(errors=errors)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be written: {reason(problem)}") from None


# --- which directory -------------------------------------------------------------------------------------------------


def new_run(out: str | None, preset: str, data: str) -> Run:
    """The directory that a run will use; nothing is made yet.

    out: an explicit one, which must be new or empty; None: runs/<preset>-<data>-001, counting up. Raises UsageError for
    one that is taken, CheckpointError for one that cannot be made."""
    stem = None if out is not None else f"{_plain(preset)}-{_plain(data)}"
    path = Path(out) if out is not None else _next_name(stem)
    _require_new(path)
    return Run(path, stem)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:60] or "data"


def _next_name(stem: str) -> Path:
    matches = (re.fullmatch(re.escape(stem) + r"-(\d{3,9})", path.name) for path in _runs())
    return RUNS / f"{stem}-{max((int(match[1]) for match in matches if match), default=0) + 1:03d}"


def _runs() -> list[Path]:
    return list(RUNS.iterdir()) if RUNS.is_dir() else []


def _require_new(path: Path) -> None:
    with _writing(path):
        if os.path.lexists(path):
            if not path.is_dir():
                raise CheckpointError(
                    f"{path}: is not a directory, expected a new or empty one: name another with --out"
                )
            if any(path.iterdir()):
                raise UsageError(_taken(path))
    nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        what = "is not writable" if nearest.is_dir() else "is not a directory"
        raise CheckpointError(f"{path}: cannot be made, {nearest} {what}: name another place with --out")


def _taken(path: Path) -> str:
    number = next(i for i in range(2, 1 << 30) if not os.path.lexists(f"{path}-{i}"))
    return (
        f"--out {path}: is not empty, and a run starts in a new directory: name another, such as --out {path}-{number}"
    )


# --- finding a checkpoint --------------------------------------------------------------------------------------------


def find_checkpoint(where: str | None) -> Path:
    """The .bin file that `where` names: itself, that of a checkpoint directory, or of the highest step of a run; None:
    of the newest run under runs/ that has one. Raises CheckpointError when there is none."""
    if where is None:
        runs = [Run(path) for path in _runs() if path.is_dir()]
        found = [(run.started, run.path.name, run.checkpoint()) for run in runs]
        found = [entry for entry in found if entry[2]]
        if not found:
            raise CheckpointError(f"{RUNS}/: no run with a checkpoint is there: train one first, or name a .bin file")
        return max(found)[2]
    path = Path(where)
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"{where}: no such file or directory, expected a run directory or a .bin checkpoint")
    found = path / MODEL if (path / MODEL).is_file() else Run(path).checkpoint()
    if not found:
        raise CheckpointError(f"{where}: holds no checkpoint, expected checkpoints/step_.../{MODEL} or {MODEL} in it")
    return found


# --- config.toml -----------------------------------------------------------------------------------------------------


def toml(values: dict[str, str | int | float | bool | None]) -> str:
    """A flat TOML table; None is left out. Floats keep every digit (toml.io, v1.0)."""
    return "".join(f"{key} = {_toml_value(value)}\n" for key, value in values.items() if value is not None)


def _toml_value(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, and surrogates that UTF-8 cannot hold
        return json.dumps(value.encode("utf-8", "replace").decode(), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
