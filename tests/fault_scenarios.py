"""What the fault sweeps do to a folder of checkpoints, and how they judge what is left of it.

A scenario is a list of actions that are done and one more that meets the fault. The oracle stands outside: it knows
from the actions alone which contents each step may have afterwards."""

import contextlib
import functools
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt2flat.errors import CheckpointError
from gpt2flat.formats import files
from gpt2flat.formats.files import DISK, FileOps
from gpt2flat.training.checkpoints import Checkpoints

RUN = "2026-11-21T00:00:00+00:00"
FAILED, BROKEN = 5, 70  # how a child ends: with a CheckpointError, with something else

# ("write", step, version) | ("prune", keep) | ("aside", step): as a kill between the two renames of a step leaves it
SCENARIOS = {
    "first": ([], ("write", 1, 0)),
    "next": ([("write", 1, 0), ("write", 2, 0)], ("write", 3, 0)),
    "the same step anew": ([("write", 1, 0), ("write", 2, 0)], ("write", 2, 1)),
    "after a kill in that": ([("write", 1, 0), ("write", 2, 0), ("aside", 2)], ("write", 2, 1)),
    "prune": ([("write", step, 0) for step in (1, 2, 3, 4)], ("prune", 2)),
}


@dataclass
class Outcome:
    """What a sweep tried, and what was lost: one line a case. left_out: why a part could not be tried here."""

    tried: int = 0
    lost: list[str] = field(default_factory=list)
    left_out: str = ""


def contents(step: int, version: int) -> dict[str, list]:
    """The files of a checkpoint: some hundred bytes to some sectors, different for each step and version."""
    x = np.random.default_rng((step, version)).standard_normal(1200).astype(np.float32)
    return {"model.bin": [bytes(1024), x[:700]], "optimizer.bin": [x[700:1000], x[1000:]], "state.json": [b"%d" % step]}


def perform(store: Checkpoints, action: tuple) -> None:
    kind, *values = action
    if kind == "write":
        step, version = values
        poured = contents(step, version)

        def taken():
            for buffers in poured.values():
                for array in buffers:
                    if isinstance(array, np.ndarray):
                        array[:] = 7  # as the next update does

        store.write(step, poured, {"version": version}, taken)
    elif kind == "prune":
        store.prune(*values)
    else:
        place = store.folder / f"step_{values[0]:08d}"
        os.rename(place, store.folder / f".old-{values[0]:08d}-0123456789abcdef")
        shutil.copytree(store.folder / "step_00000001", store.folder / ".tmp-00000009-0123456789abcdef")


class Oracle:
    """allowed: step -> the versions that may be found there, None for nothing."""

    def __init__(self, *actions: tuple):
        self.allowed: dict[int, set] = {}
        for action in actions:
            self.done(action)

    def _outcome(self, action: tuple) -> dict[int, set]:
        kind, *values = action
        if kind == "write":
            return {values[0]: {values[1]}}
        if kind == "prune":
            there = sorted(step for step, versions in self.allowed.items() if versions != {None})
            return {step: {None} for step in there[: -values[0]]}
        return {}

    def begun(self, action: tuple) -> None:
        """From now on the outcome is possible, and so is what was there before."""
        for step, versions in self._outcome(action).items():
            self.allowed[step] = self.allowed.get(step, {None}) | versions

    def done(self, action: tuple) -> None:
        """From now on only the outcome is."""
        self.allowed |= self._outcome(action)

    def judge(self, folder: Path) -> str:
        """What is wrong with the checkpoints in a folder, or ""."""
        return self.verdict(*find(folder))

    def verdict(self, found: dict[int, object], passed_over: list[str]) -> str:
        """Of what find() says. Nothing may look like a checkpoint without being one."""
        for step in self.allowed.keys() | found.keys():
            if found.get(step) not in self.allowed.get(step, {None}):
                return f"step {step} has version {found.get(step)}, expected one of {self.allowed.get(step)}"
        return f"looks like a checkpoint: {passed_over[0]}" if passed_over else ""

    def judge_after(self, folder: Path) -> str:
        """judge, then what the next start and its save make of the folder: all is still there, and no rubbish."""
        if wrong := self.judge(folder):
            return wrong
        store = Checkpoints(folder, RUN)
        if folder.exists():
            store.recover()
        if wrong := self.judge(folder):
            return f"after recover: {wrong}"
        perform(store, ("write", 99, 0))
        self.done(("write", 99, 0))
        rubbish = [name for name in os.listdir(folder) if not name.startswith("step_")]
        return self.judge(folder) or (f"leaves {rubbish}" if rubbish else "")


def find(folder: Path) -> tuple[dict[int, object], list[str]]:
    """({step: the version that is there}, what looked like a checkpoint and was passed over)."""
    store, found = Checkpoints(folder, RUN), {}
    for checkpoint in store.verified():
        version = checkpoint.facts["version"]
        same = _bytes(checkpoint.step, version) == {name: checkpoint.read(name) for name in checkpoint.manifest.files}
        found[checkpoint.step] = version if same else "other bytes"
    return found, [why for _, why in store.passed_over]


@functools.cache
def _bytes(step: int, version: int) -> dict[str, bytes]:
    return {
        name: b"".join(bytes(memoryview(part)) for part in parts) for name, parts in contents(step, version).items()
    }


def prepare(folder: Path, name: str) -> tuple[Checkpoints, tuple, Oracle]:
    """The folder of checkpoints as a scenario finds it, in a run directory; the action that meets the fault; what may
    come of it."""
    before, action = SCENARIOS[name]
    (folder / "run").mkdir(parents=True)
    store = Checkpoints(folder / "run" / "checkpoints", RUN)
    for done in before:
        perform(store, done)
    oracle = Oracle(*before)
    oracle.begun(action)
    return store, action, oracle


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A new folder, in memory where there is one."""
    with tempfile.TemporaryDirectory(
        prefix="faults-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    ) as place:
        yield Path(place)


@contextlib.contextmanager
def small_blocks() -> Iterator[None]:
    """Within, files are written in blocks of two sectors, so that these small ones go past the page cache too."""
    whole, files.BLOCK = files.BLOCK, 1024
    try:
        yield
    finally:
        files.BLOCK = whole


@contextlib.contextmanager
def scenario(name: str, ops: FileOps = DISK) -> Iterator[tuple[Checkpoints, tuple, Oracle]]:
    """prepare() in a folder of its own; the store that meets the fault is new, as that of a new process, and uses
    `ops`."""
    with scratch() as place, small_blocks():
        store, action, oracle = prepare(place, name)
        yield Checkpoints(store.folder, RUN, ops), action, oracle


def in_child(work: Callable[[], None]) -> int:
    """Forks and works in the child; its pid. It ends with 0, FAILED or BROKEN."""
    pid = os.fork()
    if pid:
        return pid
    code = BROKEN
    try:
        work()
        code = 0
    except CheckpointError:
        code = FAILED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Waits for a child: its exit code, or -N for signal N."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
