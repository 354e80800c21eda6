"""When a run is saved, what a checkpoint of it holds, and how a model and its trainer get it back."""

import json
from collections.abc import Callable, Iterator

from ..errors import CheckpointError, Gpt2FlatError
from ..formats import checkpoint as model_file
from ..formats import optimizer
from ..weights import open_checkpoint
from .checkpoints import Checkpoint, Checkpoints
from .loop import Saved
from .metrics import read_events
from .run import MODEL, Run
from .writer import Writer

OPTIMIZER, STATE = "optimizer.bin", "state.json"


class Saver:
    """run: locked; s: settings; facts: what a resume compares; clock: seconds; at: the step that the run goes on from;
    before: called when a save begins, so that the records of the run are not behind it; anew: save at once, as other data
    follows than the checkpoint that is there says."""

    def __init__(self, run: Run, model, s, facts: dict, clock: Callable[[], float], at: int | None = None,
                 before: Callable[[], None] = lambda: None, anew: bool = False):  # fmt: skip
        self._model, self._s, self._facts, self._clock, self._before = model, s, facts, clock, before
        self.store = Checkpoints(run.checkpoints, run.id)
        self._writer = Writer(self.store, clock, s.keep, s.keep_major)
        # a signal may save before a validation has ended, which then comes after the resume: its record is newer
        recorded = {event["step"]: event["val_loss"] for event in read_events(run.path, "val_loss")}
        self._losses = {c.step: recorded.get(c.step, c.facts.get("val_loss")) for c in self.store.listed()}
        self._at, self._since, self._ended = at if at in self._losses and not anew else None, clock(), []
        self._anew = anew

    def due(self, step: int, over: bool, asked: bool) -> bool:
        """Whether to save before update `step`: the run is `over` or saving was `asked` for, or it is time."""
        if step == self._at:
            return False
        every, minutes = self._s.checkpoint_every, self._s.checkpoint_minutes
        by_step = every and step and step % every == 0
        by_clock = minutes and self._clock() - self._since >= 60 * minutes
        first = step == 0 and self._s.on_nonfinite.startswith("rollback")  # somewhere to go back to
        return bool(over or asked or by_step or by_clock or first or self._anew)

    def validated(self, step: int, loss: float) -> None:
        """The validation loss of `step`, of which there may be a checkpoint already."""
        if step in self._losses:
            self._losses[step] = loss

    def start(self, state: dict, val_loss: float | None) -> None:
        """Begins to save in the background; updates go on once the floats have been read. val_loss: of this very step."""
        step = state["step"]
        self._before()
        self._anew = False
        self._losses[step] = val_loss
        known = {step: loss for step, loss in self._losses.items() if type(loss) is float}
        self._writer.start(
            step,
            contents(self._model, state),
            self._facts | {"val_loss": val_loss},
            min(known, key=known.get, default=None),
        )
        self._at, self._since = step, self._clock()

    def before_update(self) -> None:
        """Waits until the floats of the checkpoint in progress have been read."""
        self._writer.before_update()

    def finish(self) -> None:
        """Waits until all is on the disk. Raises CheckpointError, NonFiniteError if the last checkpoint is not."""
        self._ended += self._writer.finish()
        if self._ended and (problem := self._ended[-1].problem):
            raise problem

    def events(self) -> Iterator[Saved]:
        """What became of the checkpoints since the last call. A failed one is told, and tried again when the next is due."""
        ended, self._ended = self._ended + self._writer.poll(), []
        for save in ended:
            if save.problem and save.step == self._at:
                self._at = None
            yield Saved(save.step, str(save.path), save.seconds, save.blocked, save.problem and str(save.problem))

    def rescue(self, state: dict | None) -> None:
        """Saves `state`, if any, and finishes what has begun while another failure is on its way out: a failure here must not hide
        it."""
        try:
            if state and self.due(state["step"], True, False):
                self.start(state, None)
            self.finish()
        except Gpt2FlatError:
            pass

    def load(self) -> dict:
        """The newest checkpoint that verifies into the model; returns the state of its trainer. Raises CheckpointError."""
        found = self.store.newest()
        if found is None:
            raise CheckpointError(f"{self.store.folder}: no checkpoint to go back to")
        self._at = found.step
        return load(self._model, found)


def contents(model, state: dict) -> dict[str, list]:
    """The files of a checkpoint as the buffers that they hold; state: of the trainer."""
    return {
        MODEL: [model_file.header(model.config.dims()), model.params.floats],
        OPTIMIZER: optimizer.buffers(model.m.floats.size, 0, model.t, model.m.floats, model.v.floats),
        STATE: [json.dumps(state, allow_nan=False).encode()],
    }


def load(model, found: Checkpoint) -> dict:
    """The floats of a checkpoint into a model of its shape; returns the state of its trainer. Raises CheckpointError,
    FormatError, NonFiniteError."""
    with open_checkpoint(found.model) as file:
        file.read_into(0, model.params.floats)
    with optimizer.OptimizerFile(found.path / OPTIMIZER) as file:
        file.read_into(0, model.m.floats, model.v.floats)
        model.t = file.t
    return state_of(found)


def state_of(found: Checkpoint) -> dict:
    """The state of the trainer in a checkpoint. Raises CheckpointError."""
    try:
        state = json.loads(found.read(STATE))
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict) or state.get("step") != found.step:
        raise CheckpointError(f"{found.path}: its {STATE} is not that of step {found.step}")
    return state
