"""The checkpoints of one run: written beside their place, synced, renamed, verified, and only then are old ones
removed.

At any instant, also of a kill or a power cut, the newest durable checkpoint loads. Which one is newest is a matter of
step numbers, which one is whole of its manifest's hashes; file times mean nothing. tests/faults.py holds this to it."""

import contextlib
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import CheckpointError, NonFiniteError, reason
from ..formats.files import BLOCK, DISK, FileOps, in_blocks, write_block
from ..formats.floats import first_nonfinite
from ..memory.arena import human
from . import manifest
from .manifest import Checkpoint, Entry, Manifest

DIGITS, RANDOM = r"\d{8,18}", "[0-9a-f]{16}"
STEP = re.compile(f"step_({DIGITS})", re.ASCII)
ASIDE = re.compile(rf"\.old-({DIGITS})-{RANDOM}", re.ASCII)  # a checkpoint whose step is being written anew
TEMPORARY = re.compile(rf"\.tmp-{DIGITS}-{RANDOM}", re.ASCII)  # being written, or being removed
SPARE = 1 << 20  # bytes that a file system may want besides the files


class Checkpoints:
    """The checkpoints of the run `run_id` in one folder. Only one process may write there: see lock.py.

    passed_over: (path, why) of what looked like a checkpoint and was none, since the last listing began."""

    def __init__(self, folder, run_id: str, ops: FileOps = DISK):
        self.folder, self.run_id, self._ops = Path(folder), run_id, ops
        self.passed_over: list[tuple[Path, str]] = []
        self._sound: dict[str, Manifest] = {}  # verified by this process: name -> manifest
        self._anchored = False

    # -- reading -------------------------------------------------------------------------------------------------------

    def verified(self, any_run: bool = False) -> Iterator[Checkpoint]:
        """The checkpoints whose manifest, sizes and hashes hold, highest step first; any_run: also other runs'."""
        self.passed_over = []
        done = None
        for step, path in self._places():
            if step == done:
                continue  # a copy that was set aside
            try:
                checkpoint = self._identified(step, path, any_run)
                checkpoint.verify()
            except CheckpointError as problem:
                self.passed_over.append((path, str(problem)))
                continue
            self._sound[path.name] = checkpoint.manifest
            done = step
            yield checkpoint

    def listed(self) -> Iterator[Checkpoint]:
        """This run's checkpoints whose manifests hold, highest step first. No other file is read."""
        for step, path in self._places():
            with contextlib.suppress(CheckpointError):
                yield self._identified(step, path)

    def newest(self, any_run: bool = False) -> Checkpoint | None:
        """The verified checkpoint of the highest step, or None. Right also while another process saves and prunes."""
        while True:
            found = next(self.verified(any_run), None)
            if found or all(os.path.lexists(path) for path, _ in self.passed_over):
                return found  # else what was listed went meanwhile, and newer ones came

    def _places(self) -> list[tuple[int, Path]]:
        """(step, path) of what is named as a checkpoint, highest step first, its own place before a copy set aside."""
        found = []
        for name in self._names():
            match = STEP.fullmatch(name) or ASIDE.fullmatch(name)
            if match:
                found.append((int(match[1]), name.startswith("step"), name))
        return [(step, self.folder / name) for step, _, name in sorted(found, reverse=True)]

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise CheckpointError(f"{self.folder}: cannot be read: {reason(problem)}") from None

    def _identified(self, step: int, path: Path, any_run: bool = False) -> Checkpoint:
        checkpoint = Checkpoint(path)
        if checkpoint.step != step:
            raise CheckpointError(f"{path}: its manifest is of step {checkpoint.step}, expected {step}")
        if checkpoint.run_id != self.run_id and not any_run:
            raise CheckpointError(f"{path}: belongs to the run {checkpoint.run_id}, expected {self.run_id}")
        return checkpoint

    def place(self, step: int) -> Path:
        """Where the checkpoint of `step` lies, or would."""
        return self.folder / f"step_{step:08d}"

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(
        self, step: int, files: dict[str, Iterable], facts: dict | None = None, taken: Callable[[], None] = lambda: None
    ) -> Path:
        """Writes the checkpoint of `step` and returns its folder once it is durable and verified.

        files: by name the buffers (bytes or contiguous arrays) that it holds one behind the other; facts: plain JSON
        values; taken: called as soon as the last buffer has been read. One of the same step is replaced. Raises
        NonFiniteError for a float that is NaN or inf, CheckpointError for anything that fails; then all is as
        before."""
        files = {name: list(buffers) for name, buffers in files.items()}
        target = self.place(step)
        temporary = self._unused("tmp", target)
        manifest.require_names(files)
        with self._reporting(target, "cannot be written"):
            try:
                self._make_room(sum(memoryview(b).nbytes for buffers in files.values() for b in buffers))
                self._ops.mkdir(temporary)
                written = Manifest(step, self.run_id, self._write_files(temporary, files, taken), facts or {})
                self._write_file(temporary / manifest.NAME, [manifest.encode(written)])
                self._ops.fsync_dir(temporary)
                self._commit(temporary, target)
            except BaseException:
                self._discard(temporary)
                raise
        return target

    def _make_room(self, size: int) -> None:
        if not self.folder.is_dir():
            self._ops.mkdir(self.folder)
        self.recover()
        if not self._anchored:  # or a power cut could take the folder with all that is durable in it
            self._ops.fsync_dir(self.folder.parent)
            with contextlib.suppress(PermissionError):  # of the run directory, whose place may be somebody else's
                self._ops.fsync_dir(self.folder.parent.parent)
            self._anchored = True
        free = self._ops.free(self.folder)
        if free < size + SPARE:
            raise CheckpointError(
                f"{self.folder}: {human(free)} are free, a checkpoint takes {human(size)}: make room, or keep fewer "
                "(--keep)"
            )

    def _write_files(self, folder: Path, files: dict[str, list], taken: Callable[[], None]) -> dict[str, Entry]:
        """Writes all files, calls `taken`, and then syncs: a disk may take its time while the arena is in use again."""
        entries, fds = {}, []
        try:
            for name, buffers in files.items():
                fds.append(self._ops.create(folder / name))
                entries[name] = self._pour(fds[-1], folder / name, buffers)
            taken()
            for fd in fds:
                self._ops.fsync(fd)
        finally:
            self._close(fds)
        return entries

    def _write_file(self, path: Path, buffers: list) -> None:
        fd = self._ops.create(path)
        try:
            self._pour(fd, path, buffers)
            self._ops.fsync(fd)
        finally:
            self._close([fd])

    def _close(self, fds: list[int]) -> None:
        for fd in fds:
            with contextlib.suppress(OSError):  # what counts, fsync, has said so already
                self._ops.close(fd)

    def _pour(self, fd: int, path: Path, buffers: list) -> Entry:
        digest, size = hashlib.sha256(), 0
        with ThreadPoolExecutor(1) as beside:  # writing waits for the disk, hashing does not
            for block in in_blocks(self._pieces(path, buffers)):
                hashed = beside.submit(digest.update, block)
                write_block(self._ops, fd, block)
                hashed.result()
                size += len(block)
        return Entry(size, digest.hexdigest())

    def _pieces(self, path: Path, buffers: list) -> Iterator[np.ndarray]:
        """The bytes of all buffers, at most BLOCK at a time. Raises NonFiniteError for a float that is NaN or inf."""
        floats = 0
        for buffer in buffers:
            is_float = isinstance(buffer, np.ndarray) and buffer.dtype.kind == "f"
            flat = np.frombuffer(buffer, np.uint8) if memoryview(buffer).nbytes else np.empty(0, np.uint8)
            for start in range(0, flat.size, BLOCK):
                piece = flat[start : start + BLOCK]
                if is_float:
                    part = piece.view(buffer.dtype)
                    if (index := first_nonfinite(part)) is not None:
                        number = f"{path.name}: float {floats + index} is {part[index]}"
                        raise NonFiniteError(f"{number}, expected finite numbers; nothing was saved")
                    floats += part.size
                yield piece

    def _commit(self, temporary: Path, target: Path) -> None:
        """Gives a whole checkpoint its name. One that has it is set aside, where a reader still finds it."""
        aside, done = self._unused("old", target), []
        self._sound.pop(target.name, None)
        try:
            for old, new in ((target, aside), (temporary, target)):
                if old is temporary or os.path.lexists(old):
                    self._ops.rename(old, new)
                    done.append((old, new))
            self._ops.fsync_dir(self.folder)
            checkpoint = Checkpoint(target)
            checkpoint.verify()
        except BaseException:
            for old, new in reversed(done):
                with contextlib.suppress(OSError):
                    self._ops.rename(new, old)
            raise
        self._sound[target.name] = checkpoint.manifest
        if len(done) > 1 and self._is_ours(aside):
            with contextlib.suppress(OSError):  # the save is done; recover() comes back to what is left
                self._remove(aside)

    # -- removing ------------------------------------------------------------------------------------------------------

    def prune(self, keep: int, major: int = 0, best: int | None = None) -> list[Path]:
        """Removes old checkpoints and returns which. The `keep` newest that verify stay (0: all), multiples of `major`
        (0: none), the step `best`, and everything that is not wholly ours. Raises CheckpointError."""
        if keep < 1:
            return []
        kept, removed = set(), []
        with self._reporting(self.folder, "old checkpoints cannot be removed"):
            for step, path in self._places():
                if len(kept) < keep:
                    kept |= {step} if self._is_sound(step, path) else set()
                elif not (step == best or (major and step % major == 0)) and self._is_ours(path):
                    self._remove(path)
                    removed.append(path)
        return removed

    def recover(self) -> None:
        """Cleans up after a writer that was killed: its temporaries go; what it had set aside gets its name back, or
        goes if the new one is whole. Raises CheckpointError."""
        with self._reporting(self.folder, "cannot be cleaned up"):
            for name in self._names():
                path, match = self.folder / name, ASIDE.fullmatch(name)
                if TEMPORARY.fullmatch(name):
                    self._discard(path)
                elif match and self._is_ours(path):
                    place = self.place(int(match[1]))
                    if not os.path.lexists(place):
                        self._ops.rename(path, place)
                        self._ops.fsync_dir(self.folder)
                    elif self._is_sound(int(match[1]), place):
                        self._remove(path)

    def _is_sound(self, step: int, path: Path) -> bool:
        """Whether a checkpoint verifies, or did so before in this process."""
        try:
            checkpoint = self._identified(step, path)
            if self._sound.get(path.name) != checkpoint.manifest:
                checkpoint.verify()
        except CheckpointError:
            return False
        self._sound[path.name] = checkpoint.manifest
        return True

    def _is_ours(self, path: Path) -> bool:
        """Whether a folder is this run's checkpoint and holds nothing else: then it may be removed."""
        match = STEP.fullmatch(path.name) or ASIDE.fullmatch(path.name)
        try:
            checkpoint = self._identified(int(match[1]), path)
            return _is_folder(path) and set(os.listdir(path)) <= {*checkpoint.manifest.files, manifest.NAME}
        except (CheckpointError, OSError):
            return False

    def _remove(self, path: Path) -> None:
        """Takes away the name for good, so that no half of it is ever taken for a checkpoint, and then the files."""
        temporary = self._unused("tmp", path)
        self._ops.rename(path, temporary)
        self._ops.fsync_dir(self.folder)
        self._sound.pop(path.name, None)
        self._discard(temporary)

    def _discard(self, temporary: Path) -> None:
        """Removes a temporary folder as far as it can be: what is left has no meaning, and goes at the next start."""
        with contextlib.suppress(OSError):
            if _is_folder(temporary):
                for name in os.listdir(temporary):
                    self._ops.unlink(temporary / name)
                self._ops.rmdir(temporary)

    def _unused(self, kind: str, path: Path) -> Path:
        """A name of its kind for the checkpoint `path`, which nothing has."""
        return self.folder / f".{kind}-{re.search(DIGITS, path.name)[0]}-{secrets.token_hex(8)}"

    @contextlib.contextmanager
    def _reporting(self, path: Path, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise CheckpointError(f"{path}: {what}: {reason(problem)}") from None
        except RuntimeError as problem:  # no thread could be started
            raise CheckpointError(f"{path}: {what}: {problem}") from None


def _is_folder(path: Path) -> bool:
    """Whether `path` is a folder itself, no link to one."""
    return stat.S_ISDIR(os.lstat(path).st_mode)
