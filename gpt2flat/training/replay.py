"""Opens a past step of a run again, to the bit: from the checkpoint before it, the same batches, settings and control.toml.

A replay writes nothing into the run. What it finds is held to metrics.jsonl and to the hashes of later checkpoints."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ..errors import CheckpointError, UsageError
from . import config
from .checkpoints import Checkpoint, Checkpoints
from .facts import REORDERING
from .metrics import read_events
from .run import Run
from .saving import STATE, contents, load, state_of
from .settings import settle
from .start import Ready, reopen, settings_at
from .trainer import RollBack, Update

SECTIONS = ("params", "grads", "m", "v", "acts", "dacts")


@dataclass(frozen=True)
class Replayed:
    """An update that was done again, and the loss that the run recorded for it (None: no record)."""

    update: Update
    recorded: float | None

    @property
    def equal(self) -> bool:
        return self.recorded is None or self.recorded == self.update.loss


class Replay:
    """A run at one of its checkpoints, to go on from there. s.override as for train's --resume."""

    def __init__(
        self, run: Run, found: Checkpoint, folders: list[Path], open_kernels: Callable, override: str | None = None
    ):
        self._run, self._found = run, found
        self._history = config.history(run.path)
        self._losses = {event["step"]: event["loss"] for event in read_events(run.path, "loss")}
        s = settle(settings_at(run, found), {})
        s.override = override
        # every tensor is kept: no bit depends on these
        self.ready: Ready = reopen(run, found, s, folders, open_kernels, fused=False, recompute=0)
        self.s: SimpleNamespace = self.ready.trainer.s
        self.step = found.step

    def to(self, step: int) -> Iterator[Replayed]:
        """Does the updates again until `step` of them are done. Raises NonFiniteError where the run did."""
        trainer = self.ready.trainer
        while trainer.step < step:
            self._obey(trainer.step)
            try:
                update = trainer.update()
            except RollBack as wish:
                trainer.roll_back(load(trainer.model, self._found), wish.draw)
                continue
            yield Replayed(update, self._losses.get(update.step))

    def look(self) -> float:
        """Forward and backward of the step where it stands: its loss; activations and gradients are in the model."""
        self._obey(self.ready.trainer.step)
        return self.ready.trainer.gradients(self.ready.trainer.draw())

    def hashes(self, saved: Checkpoint) -> dict[str, str]:
        """The SHA-256 of each file of a checkpoint that would be taken here. saved: the one that was, whose learning rate is
        told by control.toml at its very step."""
        found = {}
        if saved.step in self._history.control:
            self.ready.trainer.lr = state_of(saved).get("lr")
        for name, buffers in contents(self.ready.model, self.ready.trainer.state()).items():
            digest = hashlib.sha256()
            for buffer in buffers:
                digest.update(buffer)
            found[name] = digest.hexdigest()
        if REORDERING & self._history.resumed.get(saved.step, {}).keys():
            del found[STATE]  # saved anew, with other data to come
        return found

    def view(self, name: str) -> np.ndarray:
        """The floats of "grads.qkvw", "acts.stream[3]" (slot 3), "m.wte". Raises UsageError for a name that is none."""
        section, _, rest = name.partition(".")
        tensor, _, slot = rest.partition("[")
        views = getattr(self.ready.model, section) if section in SECTIONS else {}
        if tensor not in views or (slot and not (slot[:-1].isdigit() and slot.endswith("]"))):
            known = ", ".join(views.keys()) if views else ", ".join(f"{section}." for section in SECTIONS)
            raise UsageError(f"{name}: no such tensor, expected one of {known}")
        view = views[tensor]
        if slot and int(slot[:-1]) >= len(view):
            raise UsageError(f"{name}: {tensor} has {len(view)} slots")
        return view[int(slot[:-1])] if slot else view

    def _obey(self, step: int) -> None:
        trainer = self.ready.trainer
        changes = self._history.resumed.get(step, {}) if step > self._found.step else {}
        if moved := REORDERING & changes.keys():
            raise CheckpointError(
                f"{self._run.path}: went on with another {', '.join(sorted(moved))} at step {step}: replay from a "
                "checkpoint at that step or later"
            )
        for name, value in changes.items():
            setattr(trainer.s, name, value)
        trainer.lr = self._history.control.get(step, {}).get("lr", trainer.lr)


def checkpoint_before(run: Run, step: int) -> Checkpoint:
    """The newest checkpoint that verifies and from which `step` can be reached. Raises CheckpointError."""
    store = Checkpoints(run.checkpoints, run.id)
    steps = []
    for found in store.verified():
        if found.step <= step:
            return found
        steps.append(found.step)
    there = f"the first that is there and whole is of step {min(steps)}" if steps else "none is there that is whole"
    raise CheckpointError(
        f"{run.path}: no checkpoint of step {step} or before, {there}: keep more with --keep or --keep-major"
    )


def verified_steps(run: Run) -> list[Checkpoint]:
    """All checkpoints that verify, in rising order. Raises CheckpointError if there are none."""
    found = sorted(Checkpoints(run.checkpoints, run.id).verified(), key=lambda checkpoint: checkpoint.step)
    if not found:
        raise CheckpointError(f"{run.path}: no checkpoint that is whole")
    return found


def last_step(run: Run) -> int:
    """Updates that the run has recorded."""
    return max((event["step"] + 1 for event in read_events(run.path, "loss")), default=0)
