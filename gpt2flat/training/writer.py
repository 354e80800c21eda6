"""Saving while training goes on: a thread that reads the arena during forward and backward, when nobody writes there.

params, m and v change only in an update, so an update waits until the last byte has been read; syncing, verifying and
pruning then go on beside it. No copy of the state is ever made."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError
from .checkpoints import Checkpoints


@dataclass
class Save:
    """A save: its step, the folder once it is durable, how many seconds training waited for it, how many it took in
    all, which old checkpoints went, and the CheckpointError or NonFiniteError that it ran into. With a path and a
    problem, the checkpoint is there and what came after it failed."""

    step: int
    path: Path | None = None
    blocked: float = 0.0
    seconds: float = 0.0
    pruned: list[Path] = field(default_factory=list)
    problem: BaseException | None = None


class Writer:
    """Writes checkpoints, one at a time, in a thread. All methods are for the one thread that trains.

    keep, major: what is kept after each save (Checkpoints.prune); clock: seconds."""

    def __init__(self, checkpoints: Checkpoints, clock: Callable[[], float], keep: int = 0, major: int = 0):
        self._checkpoints, self._clock, self._keep, self._major = checkpoints, clock, keep, major
        self._thread: threading.Thread | None = None
        self._taken = threading.Event()
        self._now: Save | None = None
        self._done: list[Save] = []

    def start(
        self,
        step: int,
        files: dict[str, Iterable],
        facts: dict | None = None,
        best: int | None = None,
    ) -> None:
        """Begins a save, after the end of one that is under way. files, facts: as for Checkpoints.write; the buffers
        must not change before before_update() returns. best: a step that is kept."""
        save = Save(step)
        start = self._clock()
        self._join()
        self._taken.clear()
        save.blocked = self._clock() - start
        # a daemon: who aborts need not wait, as a save may end at any instant
        thread = threading.Thread(target=self._work, args=(save, files, facts, best), daemon=True)
        try:
            thread.start()
        except RuntimeError as problem:
            save.problem = CheckpointError(f"the checkpoint of step {step} has no thread to write it: {problem}")
            self._done.append(save)
        else:
            self._thread, self._now = thread, save

    def _work(self, save: Save, files, facts, best) -> None:
        start = self._clock()
        try:
            save.path = self._checkpoints.write(save.step, files, facts, self._taken.set)
            save.pruned = self._checkpoints.prune(self._keep, self._major, best)
        except BaseException as problem:  # a thread has nobody to raise it to
            save.problem = problem
        finally:
            save.seconds = self._clock() - start
            self._taken.set()

    def before_update(self) -> None:
        """Returns once nothing of the arena is still to be read."""
        if self._now and not self._taken.is_set():
            start = self._clock()
            self._taken.wait()
            self._now.blocked += self._clock() - start

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def poll(self) -> list[Save]:
        """The saves that have ended since the last call, also those that failed: it is for the caller to look and
        decide."""
        if not self.busy:
            self._join()
        ended, self._done = self._done, []
        return ended

    def finish(self) -> list[Save]:
        """As poll, after the end of what is under way."""
        if self._thread:
            start = self._clock()
            self._join()
            self._done[-1].blocked += self._clock() - start
        return self.poll()

    def _join(self) -> None:
        if self._thread:
            self._thread.join()
            self._done.append(self._now)
        self._thread = self._now = None
