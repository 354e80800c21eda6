"""Calls that fail: every file operation of a save once with every error, short writes, full disks, limits of file
sizes.

What was there before stays, the error is said, nothing is left over, and the next save works."""

import contextlib
import errno
import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from fault_scenarios import FAILED, RUN, SCENARIOS, Oracle, Outcome, ended, in_child, perform, scenario, scratch
from gpt2flat.errors import CheckpointError
from gpt2flat.formats.files import FileOps
from gpt2flat.training.checkpoints import Checkpoints

CODES = (errno.ENOSPC, errno.EIO, errno.EINTR, errno.EROFS, errno.EDQUOT)
CALLS = ("create", "write", "fsync", "close", "mkdir", "rename", "unlink", "rmdir", "fsync_dir", "free")
LEFT = {".tmp-00000009-0123456789abcdef", ".old-00000002-0123456789abcdef"}  # of the scenario after a kill
CLEANUP = {"close", "unlink", "rmdir"}  # what they fail at is done at the next start


class Watched(FileOps):
    """Numbers the calls; before(number, name, arguments) may raise. retried: whether a file was synced again after that
    had failed. committed: the number of the first call after a checkpoint had its name for good. room: instead of
    free()."""

    def __init__(self, before=lambda number, name, arguments: None):
        self.names: list[str] = []
        self.retried, self.committed, self.room = False, 1 << 30, None
        self._before, self._failed = before, set()

    def __getattribute__(self, name):
        real = super().__getattribute__(name)
        if name not in CALLS:
            return real
        if name == "free" and self.room:
            real = self.room

        def call(*arguments):
            self.names.append(name)
            if name == "rename" and arguments[0].name.startswith(".tmp"):
                self.committed = len(self.names) + 1
            self.retried |= name == "fsync" and arguments[0] in self._failed
            try:
                self._before(len(self.names) - 1, name, arguments)
            except OSError:
                self._failed |= {arguments[0]} if name == "fsync" else set()
                if name == "close":
                    real(*arguments)  # a close that fails has closed
                raise
            return real(*arguments)

        return call


def calls_of(name: str) -> list[str]:
    """The calls of a scenario's last action when nothing fails."""
    ops = Watched()
    with scenario(name, ops) as (store, action, _):
        perform(store, action)
    return ops.names


def failing_calls(count: int, seed: int) -> Outcome:
    """Every call x every error x once or from then on; count: at most so many, chosen at random."""
    cases = [
        (name, number, code, lasting)
        for name in SCENARIOS
        for number in range(len(calls_of(name)))
        for code in CODES
        for lasting in (False, True)
    ]
    chosen = sorted(random.Random(seed).sample(cases, min(count, len(cases))))
    return Outcome(len(chosen), [f"{case}: {wrong}" for case in chosen if (wrong := fail_at(*case))])


def fail_at(name: str, number: int, code: int, lasting: bool) -> str:
    def fail(at, called, arguments):
        if at == number or (lasting and at > number):
            raise OSError(code, os.strerror(code))

    ops, said = Watched(fail), None
    with scenario(name, ops) as (store, action, oracle):
        try:
            perform(store, action)
        except CheckpointError as problem:
            said = str(problem)
        if ops.retried:
            return "fsync was tried again on a file that had failed"
        if said is None and ops.names[number] not in CLEANUP and number < ops.committed:
            return f"{ops.names[number]} failed and nobody said so"
        if said is not None and os.strerror(code).lower() not in said:
            return f"the reason is missing: {said}"
        if (
            said
            and action[0] == "write"
            and not lasting
            and (rubbish := {path.name for path in store.folder.glob(".*")} - LEFT)
        ):
            return f"leaves {rubbish}"
        return oracle.judge_after(store.folder)


def short_writes(count: int, seed: int) -> Outcome:
    """Disks that take a random part of each write: every save succeeds all the same."""
    outcome, rng = Outcome(), random.Random(seed)

    class Short(FileOps):
        def write(self, fd, view):
            return super().write(fd, view[: rng.randint(1, len(view))])

    for i in range(count):
        name = list(SCENARIOS)[i % len(SCENARIOS)]
        with scenario(name, Short()) as (store, action, oracle):
            outcome.tried += 1
            oracle.done(action)
            try:
                perform(store, action)
                wrong = oracle.judge_after(store.folder)
            except CheckpointError as problem:
                wrong = str(problem)
            if wrong:
                outcome.lost.append(f"{name}: {wrong}")
    return outcome


class Boundless(FileOps):
    """A disk that says it has room."""

    def free(self, folder):
        return 1 << 60


def file_limits(count: int, seed: int) -> Outcome:
    """RLIMIT_FSIZE: the system writes short first and refuses then, as a disk that fills up."""
    outcome = Outcome()
    for i in range(count):
        name = list(SCENARIOS)[i % len(SCENARIOS)]
        limit = i * 5200 // count
        with scenario(name, Boundless()) as (store, action, oracle):

            def work(limit=limit, store=store, action=action):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                perform(store, action)

            code = ended(in_child(work))
            outcome.tried += 1
            if wrong := (code not in (0, FAILED) and f"ended with {code}") or oracle.judge_after(store.folder):
                outcome.lost.append(f"{name}, limit {limit}: {wrong}")
    return outcome


def announced_room(count: int, seed: int) -> Outcome:
    """Disks that say how little is free: a save that could not fit is refused before anything is written."""
    outcome, rng = Outcome(), random.Random(seed)
    for _ in range(count):
        ops, room = Watched(), rng.randrange(2 << 20)
        ops.room = lambda folder, room=room: room
        with scenario("next", ops) as (store, action, oracle):
            outcome.tried += 1
            fits = room > (1 << 20) + 8000
            with contextlib.suppress(CheckpointError):
                perform(store, action)
                oracle.done(action)
            wrong = oracle.judge(store.folder)
            if wrong or ("create" in ops.names) != fits:
                outcome.lost.append(f"{room} bytes free: {ops.names}, {wrong}")
    return outcome


# --- a disk that is really full --------------------------------------------------------------------------------------


def full_disks(count: int, seed: int) -> Outcome:
    """tmpfs of `count` sizes and numbers of files; half of them claim to have room."""
    if not shutil.which("unshare"):
        return Outcome(left_out="no unshare")
    command = ["unshare", "-Urm", sys.executable, __file__, str(count)]
    path = os.pathsep.join([str(Path(RUNNING).parents[1]), str(Path(__file__).parent)])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    if done.returncode not in (0, 1):
        return Outcome(left_out=f"unshare and mount are not permitted: {done.stderr.strip()[-200:]}")
    return Outcome(count, done.stdout.splitlines())


RUNNING = sys.modules[Checkpoints.__module__].__file__ + "/.."


def fill(place: Path, part: float, few_files: bool, lies: bool) -> str:
    """One size, in a name space where mounting is allowed: `part` of what three checkpoints take."""
    pages = 2 + int(part * 3 * 6)
    size = f"nr_inodes={2 + int(part * 18)},size=1m" if few_files else f"size={4096 * pages}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)], check=True)
    try:
        oracle, done = Oracle(), []
        with contextlib.suppress(OSError):
            (place / "run").mkdir()
        store = Checkpoints(place / "run" / "checkpoints", RUN, Boundless() if lies else FileOps())
        for action in (("write", 1, 0), ("write", 2, 0), ("write", 2, 1), ("write", 3, 0)):
            oracle.begun(action)
            try:
                perform(store, action)
            except CheckpointError as problem:
                done.append(str(problem))
                if (
                    "space" not in str(problem)
                    and "are free" not in str(problem)
                    and "no such file" not in str(problem)
                ):
                    return f"another reason: {problem}"
            else:
                oracle.done(action)
            if wrong := oracle.judge(store.folder):
                return wrong
        if part > 1 and lies and done:
            return f"failed with room: {done}"
        rubbish = [path.name for path in store.folder.glob(".*")] if store.folder.exists() else []
        return f"leaves {rubbish}" if rubbish else ""
    finally:
        subprocess.run(["umount", str(place)], check=True)


def main(count: int) -> int:
    wrong = []
    with scratch() as place:
        (place / "disk").mkdir()
        for i in range(count):
            case = i / (count - 1) * 1.5, i % 4 == 3, i % 2 == 1
            if found := fill(place / "disk", *case):
                wrong.append(f"part {case[0]:.2f}, few files {case[1]}, lies {case[2]}: {found}")
    for line in wrong:
        print(line)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
