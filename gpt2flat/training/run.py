"""A run directory: config.toml env.json metrics.jsonl main.log tokenizer.bin lock checkpoints/step_00001000/{model.bin, ...}.

Made once everything else has been checked; found again by when it started and by step numbers, never by file times."""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError, UsageError, reason
from ..formats import hub, huggingface
from ..formats.files import RegularFile, write_atomically
from ..formats.lock import FolderLock
from ..memory.arena import human
from .checkpoints import STEP, TEMPORARY
from .manifest import MODEL

RUNS = Path("runs")
LOCK = "lock"
CREATED = (LOCK, "checkpoints", "env.json", "tokenizer.bin")  # what a start makes before config.toml
UNFINISHED = re.compile(r"\.(env\.json|tokenizer\.bin|config\.toml)\.[0-9a-f]{16}\.tmp")
WEIGHTS = "a run or checkpoint directory, a .bin file, a Hugging Face folder, nanoGPT's ckpt.pt or hf:NAME for a model of the Hub"
LONGEST = 1 << 20  # bytes of an env.json or config.toml that are read


class Run:
    """One run directory, by its path; `stem` is set for an automatic name, which counts up."""

    def __init__(self, path, stem: str | None = None):
        self.path, self._stem, self._lock = Path(path), stem, None

    def reserve(self) -> None:
        """Makes the directory, the last thing before the run is announced. An automatic name that another run took
        meanwhile counts up. Raises CheckpointError if it cannot be made."""
        while True:
            try:
                with _writing(self.path):
                    self.path.mkdir(parents=True, exist_ok=self._stem is None)
                self.lock()
                return
            except FileExistsError:
                if self._stem is None:
                    raise UsageError(_taken(self.path)) from None
                self.path = _next_name(self._stem)

    def lock(self) -> None:
        """Makes this process the only writer of the directory until it ends. Raises RunLockedError if another one is."""
        self._lock = FolderLock(self.path / LOCK)

    def release(self) -> None:
        """Gives the lock up."""
        if self._lock:
            self._lock.release()

    def create(self, environment: dict, tokenizer, needed: int = 0) -> None:
        """Writes what a run starts with into the reserved directory; its settings are written by config.write.

        environment: plain JSON values; tokenizer: may be None; needed: bytes of a checkpoint. Raises CheckpointError if it
        cannot be written or the disk is too full, UsageError if another run has the directory."""
        with _writing(self.path):
            free = shutil.disk_usage(self.path).free
            if free < needed:
                raise CheckpointError(
                    f"{self.path}: {human(free)} are free, a checkpoint takes {human(needed)}: name another place with --out"
                )
            if os.path.lexists(self.checkpoints) and not self.is_bare:
                raise UsageError(_taken(self.path))
            self.checkpoints.mkdir(exist_ok=True)
        environment = {"id": secrets.token_hex(8)} | environment
        write_atomically(self.path / "env.json", (json.dumps(environment, indent=1) + "\n").encode())
        if tokenizer:
            tokenizer.save(self.path / "tokenizer.bin")

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def is_llmcs(self) -> bool:
        """Whether llm.c has left checkpoints there, and no run of ours has gone on with them."""
        return not self.config.is_file() and any(self.path.glob("DONE_*"))

    @property
    def is_bare(self) -> bool:
        """Whether a start left the directory and nothing that was learned: all that is there can be made again."""
        try:
            names, saved = set(os.listdir(self.path)), os.listdir(self.checkpoints)
        except OSError:
            return False
        if any(not TEMPORARY.fullmatch(name) for name in saved):
            return False
        return self.config.is_file() or all(name in CREATED or UNFINISHED.fullmatch(name) for name in names)

    @property
    def id(self) -> str:
        """What the manifests of its checkpoints carry, so that a copied directory stays itself. "unknown" if it cannot be read."""
        return self._environment("id") or "unknown"

    def checkpoint(self) -> Path | None:
        """The model.bin of the highest step, or None."""
        steps = {path: STEP.fullmatch(path.parent.name) for path in self.path.glob(f"checkpoints/*/{MODEL}")}
        found = {path: int(match[1]) for path, match in steps.items() if match}
        return max(found, key=found.get, default=None)

    @property
    def started(self) -> str:
        """When the run started, as env.json says: ISO 8601 in UTC, so it sorts; "" when that cannot be read."""
        return self._environment("started")

    def _environment(self, key: str) -> str:
        try:
            value = json.loads(read_text(self.path / "env.json"))[key]
        except (CheckpointError, ValueError, KeyError, TypeError, RecursionError):
            return ""
        return value if isinstance(value, str) else ""


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
            started = Run(path)
            killed = started.is_bare and not started.config.is_file()
            if not killed and any(entry.name != LOCK for entry in path.iterdir()):
                raise UsageError(_taken(path))
    nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        what = "is not writable" if nearest.is_dir() else "is not a directory"
        raise CheckpointError(f"{path}: cannot be made, {nearest} {what}: name another place with --out")


def _taken(path: Path) -> str:
    number = next(i for i in range(2, 1 << 30) if not os.path.lexists(f"{path}-{i}"))
    return (
        f"--out {path}: is not empty, and a run starts in a new directory: name another, such as --out {path}-{number}, or go on "
        "with the run that is there by --resume"
    )


# --- finding a checkpoint --------------------------------------------------------------------------------------------


def find_run(wish: str, out: str | None) -> Run | None:
    """The run that --resume means: a directory, else that of --out, else the newest under runs/. wish: "0" for none, "1" for one
    if there is one, "newest" or a directory for one that must be there. Raises CheckpointError, UsageError."""
    if wish == "0":
        return None
    if wish not in ("1", "newest"):
        if out is not None and Path(out) != Path(wish):
            raise UsageError(f"--resume {wish} and --out {out} name two runs: leave one out")
        out = wish
    found = newest_run() if out is None else Run(out)
    if found and not (found.config.is_file() or found.is_llmcs):
        found = None
    if found is None and wish != "1":
        raise CheckpointError(
            f"{out or RUNS}: no run to resume is there, expected a directory with a config.toml, or of llm.c's with a DONE_*"
        )
    return found


def newest_run() -> Run | None:
    """The run under runs/ that was started last."""
    runs = [Run(path) for path in _runs() if (path / "config.toml").is_file()]
    return max(runs, key=lambda run: (run.started, run.path.name), default=None)


def find_checkpoint(where: str | None) -> Path:
    """The weights that `where` names: a file or a folder of Hugging Face's itself, the file of a checkpoint directory, or of the
    highest step of a run, a model of the Hub, fetched; None: of the newest run under runs/ that has one. Raises CheckpointError
    when there is none, UsageError, DataError when it cannot be fetched."""
    if where is None:
        runs = [Run(path) for path in _runs() if path.is_dir()]
        found = [(run.started, run.path.name, run.checkpoint()) for run in runs]
        found = [entry for entry in found if entry[2]]
        if not found:
            raise CheckpointError(f"{RUNS}/: no run with a checkpoint is there: train one first, or name a .bin file")
        return max(found)[2]
    if repository := hub.repository(where):
        return hub.fetch(repository)
    path = Path(where)
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(f"{where}: no such file or directory, expected {WEIGHTS}")
    found = path / MODEL if (path / MODEL).is_file() else Run(path).checkpoint()
    if not found and huggingface.is_folder(path):
        return path
    if not found:
        what = f"checkpoints/step_.../{MODEL}, {MODEL}, or Hugging Face's {huggingface.CONFIG} and {huggingface.WHOLE}"
        raise CheckpointError(f"{where}: holds no checkpoint, expected {what} in it")
    return found
