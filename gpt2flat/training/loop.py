"""The training loop: updates, validations, samples and checkpoints as a stream of events that a command prints and records.

No printing, no clock of its own, no files: what saves and what listens to control.toml is handed in."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..errors import NonFiniteError
from ..generation.stream import stream
from .trainer import RollBack, Trainer, Update


@dataclass(frozen=True)
class Updated:
    """An update, and the seconds from its batch to its end."""

    update: Update
    seconds: float

    @property
    def step(self) -> int:
        return self.update.step


@dataclass(frozen=True)
class Validation:
    """The mean validation loss before update `step`."""

    step: int
    loss: float


@dataclass(frozen=True)
class Sample:
    """Ids that the model wrote behind the prompt before update `step`."""

    step: int
    ids: list[int]
    prompt: list[int]


@dataclass(frozen=True)
class Saved:
    """The checkpoint of `step` is on the disk, or why it is not; seconds that it took, and that updates waited for it."""

    step: int
    path: str
    seconds: float
    stalled: float
    problem: str | None = None


@dataclass(frozen=True)
class Controlled:
    """What control.toml asked for before update `step`."""

    step: int
    changes: dict


@dataclass(frozen=True)
class RolledBack:
    """Update `step` was not finite: the run is at `to` again and leaves that batch, the `draw`th from 0, out."""

    step: int
    to: int
    draw: int
    why: str


@dataclass(frozen=True)
class Stopped:
    """The last event: `step` updates are done, all of them or as many as were when something said so; they are saved."""

    step: int
    finished: bool


Event = Updated | Validation | Sample | Saved | Controlled | RolledBack | Stopped


def train(
    trainer: Trainer, validation, prompt, saver, control, clock: Callable[[], float], stop: Callable[[], bool]
) -> Iterator[Event]:
    """Runs updates up to s.steps and yields what happens.

    validation: a TokenLoader, or None; prompt: ids that samples go on from; saver: training/saving.py; control: training/control.py;
    clock: seconds; stop: asked between updates, batches and sampled tokens, ends the run early with nothing half done. Raises
    NonFiniteError, before anything is updated, where the policy says so; CheckpointError if the last save failed."""
    s, model = trainer.s, trainer.model
    while True:
        step, last, val = trainer.step, trainer.step >= s.steps, None
        asked = control.read(step)
        if "file" in asked:  # not what an earlier start obeyed here
            yield Controlled(step, asked)
        trainer.lr = asked.get("lr", trainer.lr)
        if validation and _due(step, s.val_every, last):
            val = validate(model, validation, s.val_batches, stop)
            if val is not None:
                saver.validated(step, val)
                yield Validation(step, val)
        if step and _due(step, s.sample_every, last):
            before = control.prompt(step, prompt)
            ids = sample(model, before, s.sample_tokens, s.seed + step, stop)
            if not stop():
                yield Sample(step, ids, [int(i) for i in before])
        model.plan(s.batch_size, s.seq_len)  # now, so that it is not part of the next update's time
        over = last or stop() or asked.get("stop", False)
        if saver.due(step, over, asked.get("save", False)):
            saver.start(trainer.state(), val)
        if over:
            saver.finish()
        yield from saver.events()
        if over:
            yield Stopped(step, last)
            return
        start = clock()
        try:
            yield Updated(trainer.update(saver.before_update), clock() - start)
        except RollBack as wish:
            saver.finish()
            yield from saver.events()
            trainer.roll_back(saver.load(), wish.draw)
            yield RolledBack(step, trainer.step, wish.draw, str(wish))


def _due(step: int, every: int, last: bool) -> bool:
    return every > 0 and (step % every == 0 or last)


def validate(model, loader, batches: int, stop: Callable[[], bool] = lambda: False) -> float | None:
    """The mean of the losses of the first `batches` batches (-1: all of an epoch); None when stopped on the way."""
    loader.reset()
    means = []
    for _ in range(loader.batches if batches < 0 else batches):
        if stop():
            return None
        losses = model.losses(*loader.next_batch())
        means.append(math.fsum(losses.tolist()) / len(losses))
    loss = math.fsum(means) / len(means)
    if not math.isfinite(loss):
        raise NonFiniteError(f"the validation loss is {loss}: the weights have gone astray, try a smaller --lr")
    return loss


def sample(model, prompt, tokens: int, seed: int, stop: Callable[[], bool] = lambda: False) -> list[int]:
    """Ids that follow `prompt`, as many as there were before `stop`."""
    ids = []
    for token in stream(model, [prompt], tokens, seed=seed):
        ids.append(token.id)
        if stop():
            break
    return ids
