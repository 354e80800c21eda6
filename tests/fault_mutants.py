"""Faults seeded into the code that saves: each must be seen by the sweep that it is named with.

A mutant is a piece of a function's source and what stands there instead (seeding.py), and the sweep with its cases."""

from collections.abc import Callable
from typing import NamedTuple

import fault_calls
import fault_crashes
import fault_damage
import fault_kills
from fault_scenarios import Outcome
from gpt2flat.formats import files
from gpt2flat.training import manifest
from gpt2flat.training.checkpoints import Checkpoints
from gpt2flat.formats.lock import FolderLock
from gpt2flat.training.manifest import Checkpoint
from seeding import fault

SYNC = "self._ops.fsync(fd)"
NAMES = "self._ops.fsync_dir(self.folder)"
CUT, CALLS, KILLS = (fault_crashes.power_cut, 800), (fault_calls.failing_calls, 400), (fault_kills.killed_at_calls, 150)
ONE_FILE = (fault_crashes.power_cut_of_a_file, 200)
FLIPS, CLOCKS = (fault_damage.flipped_bits, 400), (fault_damage.jumping_clocks, 40)

# pieces of Checkpoints.write
MAKE = "self._ops.mkdir(temporary)\n"
WRITE = """                written = Manifest(step, self.run_id, self._write_files(temporary, files, taken), facts or {})
                self._write_file(temporary / manifest.NAME, [manifest.encode(written)])
"""
COMMIT = """                self._ops.fsync_dir(temporary)
                self._commit(temporary, target)
"""
IN_PLACE = "self._remove(target) if os.path.lexists(target) else None; temporary = target; "
MANIFEST_FIRST = """                hashes = {name: hashlib.sha256() for name in files}
                [hashes[name].update(np.ascontiguousarray(b)) for name in files for b in files[name]]
                sizes = {name: sum(memoryview(b).nbytes for b in files[name]) for name in files}
                entries = {name: Entry(sizes[name], hashes[name].hexdigest()) for name in files}
                first = Manifest(step, self.run_id, entries, facts)
                self._write_file(temporary / manifest.NAME, [manifest.encode(first)])
                self._write_files(temporary, files, taken)
"""
SYNC_BOTH = """                self._ops.fsync_dir(target)
                self._ops.fsync_dir(self.folder)
"""


class Mutant(NamedTuple):
    function: Callable
    old: str
    new: str
    sweep: tuple[Callable, int]


MUTANTS = {
    "the files are not synced": Mutant(Checkpoints._write_files, SYNC, "pass", CUT),
    "the manifest is not synced": Mutant(Checkpoints._write_file, SYNC, "pass", CUT),
    "synced before the bytes are written": Mutant(
        Checkpoints._write_file, f"self._pour(fd, path, buffers)\n            {SYNC}",
        f"{SYNC}\n            self._pour(fd, path, buffers)", CUT),
    "the folder is not synced": Mutant(Checkpoints.write, "self._ops.fsync_dir(temporary)", "pass", CUT),
    "the new name is not synced": Mutant(Checkpoints._commit, NAMES, "pass", CUT),
    "the folder of checkpoints is not synced": Mutant(
        Checkpoints._make_room, "self._ops.fsync_dir(self.folder.parent)", "pass", CUT),
    "renamed before the sync": Mutant(
        Checkpoints.write, "self._ops.fsync_dir(temporary)\n                self._commit(temporary, target)",
        "self._commit(temporary, target)\n                self._ops.fsync_dir(target)", CUT),
    "written in place": Mutant(Checkpoints.write, MAKE + WRITE + COMMIT, IN_PLACE + MAKE + WRITE + SYNC_BOTH, CUT),
    "manifest first, in place": Mutant(
        Checkpoints.write, MAKE + WRITE + COMMIT, IN_PLACE + MAKE + MANIFEST_FIRST + SYNC_BOTH, CUT),
    "the old one is removed first": Mutant(
        Checkpoints._commit, "self._ops.rename(old, new)",
        "self._ops.rename(old, new) if old is temporary else self._remove(old)", KILLS),
    "pruned before the new name is safe": Mutant(
        Checkpoints._commit, NAMES, f"[self._discard(path) for step, path in self._places() if path.name < target.name]; {NAMES}", CUT),
    "removed in place": Mutant(
        Checkpoints._remove, "self._ops.rename(path, temporary)", "temporary = path", KILLS),
    "files go before the name has": Mutant(Checkpoints._remove, NAMES, "pass", CUT),
    "what was set aside is forgotten": Mutant(
        Checkpoints._places, "STEP.fullmatch(name) or ASIDE.fullmatch(name)", "STEP.fullmatch(name)", KILLS),
    "the newest by time": Mutant(
        Checkpoints._places, "sorted(found,", "sorted(found, key=lambda f: (self.folder / f[2]).stat().st_mtime,", CLOCKS),
    "the newest by name": Mutant(Checkpoints._places, "sorted(found,", "sorted(found, key=lambda f: f[2],", CLOCKS),
    "hashes are not checked": Mutant(Checkpoint._check, "if sha256 != wanted:", "if False:", FLIPS),
    "the manifest's own hash is not checked": Mutant(
        manifest.decode, "data == body + _seal(body)", "True", (fault_damage.flipped_bits, 3000)),
    "a failed sync is tried again": Mutant(
        Checkpoints._write_files, SYNC,
        f"try: {SYNC}\n                except OSError: {SYNC}", CALLS),
    "a failed sync is ignored": Mutant(
        Checkpoints._write_files, SYNC, f"try: {SYNC}\n                except OSError: pass", CALLS),
    "a failed sync of a folder is ignored": Mutant(
        Checkpoints.write, "self._ops.fsync_dir(temporary)",
        "try: self._ops.fsync_dir(temporary)\n                except OSError: pass", CALLS),
    "a failed save is left lying": Mutant(
        Checkpoints.write, "self._discard(temporary)\n                raise", "raise", CALLS),
    "a failed rename is not undone": Mutant(
        Checkpoints._commit, "self._ops.rename(new, old)", "pass", CALLS),
    "no cleaning up at the start": Mutant(
        Checkpoints._make_room, "self.recover()", "pass", (fault_kills.killed_at_random, 60)),
    "a short write is taken for a whole one": Mutant(
        files.write_all, "rest = rest[written:]", "return", (fault_calls.short_writes, 20)),
    "the arena is given back too early": Mutant(
        Checkpoints._write_files, "entries, fds = {}, []", "entries, fds = {}, []; taken()", CUT),
    "the disk's room is not looked at": Mutant(
        Checkpoints._make_room, "if free < size + SPARE:", "if False:", (fault_calls.announced_room, 40)),
    "readers give up when all that was listed is gone": Mutant(
        Checkpoints.newest, "if found or all(", "if found or True or all(", (fault_damage.readers_beside, 400)),
    "one file: not synced": Mutant(files.write_stream_atomically, "ops.fsync(fd)", "pass", ONE_FILE),
    "one file: its name is not synced": Mutant(
        files.write_stream_atomically, "ops.fsync_dir(path.parent)", "pass", ONE_FILE),
    "the lock can be shared": Mutant(
        FolderLock._take, "return fcntl.flock(self._fd, fcntl.LOCK_EX", "return fcntl.flock(self._fd, fcntl.LOCK_SH", (fault_damage.many_starters, 10)),
    "the lock file is removed": Mutant(
        FolderLock.release, "os.close(self._fd)", "os.close(self._fd); self.path.unlink(missing_ok=True)",
        (fault_damage.many_starters, 10)),
}  # fmt: skip


def seeded(count: int, seed: int) -> Outcome:
    """The mutants that their sweep does not see; count: at most so many."""
    chosen = list(MUTANTS.items())[:count]
    return Outcome(len(chosen), [f"not seen: {name}" for name, mutant in chosen if not seen(mutant, seed)])


def seen(mutant: Mutant, seed: int) -> bool:
    sweep, cases = mutant.sweep
    with fault(mutant.function, mutant.old, mutant.new):
        try:
            return bool(sweep(cases, seed).lost)
        except (AssertionError, OSError, KeyError):
            return True  # the sweep itself could not go on
