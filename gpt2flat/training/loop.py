"""The training loop: updates, validations and samples as a stream of events that a command prints and records.

Step i means: after i updates, before update i. No printing, no clock of its own, no files."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..errors import NonFiniteError
from ..generation.sample import stream
from .schedule import learning_rate


@dataclass(frozen=True)
class Update:
    """Update `step` is done: the loss before it, its learning rate, the gradient norm before clipping, and its time."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float


@dataclass(frozen=True)
class Validation:
    """The mean validation loss before update `step`."""

    step: int
    loss: float


@dataclass(frozen=True)
class Sample:
    """Ids that the model wrote before update `step`; the prompt is not among them."""

    step: int
    ids: list[int]


@dataclass(frozen=True)
class Stopped:
    """The last event: `step` updates are done, all of them or as many as were when `stop` said so."""

    step: int
    finished: bool


Event = Update | Validation | Sample | Stopped


def train(
    model, batches, validation, prompt, s, clock: Callable[[], float], stop: Callable[[], bool]
) -> Iterator[Event]:
    """Runs s.steps updates and yields what happens.

    batches, validation: TokenLoaders (validation may be None); prompt: ids that samples go on from; s: settings; clock:
    seconds; stop: asked between updates, batches and sampled tokens, ends the run early with nothing half done.
    Raises NonFiniteError, before anything is updated, when a loss or the gradient norm is not finite."""
    for step in range(s.steps + 1):
        last = step == s.steps
        if validation and _due(step, s.val_every, last):
            loss = validate(model, validation, s.val_batches, stop)
            if loss is not None:
                yield Validation(step, loss)
        if step and _due(step, s.sample_every, last):
            ids = sample(model, prompt, s.sample_tokens, s.seed + step, stop)
            model.plan(batches.B, batches.T)  # now, so that it is not part of the next update's time
            if not stop():
                yield Sample(step, ids)
        if last or stop():
            yield Stopped(step, last)
            return
        start = clock()
        loss = model.forward_backward(*batches.next_batch())
        if not math.isfinite(loss):
            raise NonFiniteError(f"the loss of update {step} is {loss}; nothing was updated: try a smaller --lr")
        lr = learning_rate(s, step)
        try:
            norm = model.update(lr=lr, beta1=s.beta1, beta2=s.beta2, eps=s.eps, weight_decay=s.weight_decay,
                                grad_clip=s.grad_clip or None, decay_all=s.decay_all)  # fmt: skip
        except NonFiniteError as problem:
            raise NonFiniteError(f"update {step}: {problem}: try a smaller --lr") from None
        yield Update(step, loss, lr, norm, clock() - start)


def _due(step: int, every: int, last: bool) -> bool:
    return every > 0 and (step % every == 0 or last)


def validate(model, loader, batches: int, stop: Callable[[], bool] = lambda: False) -> float | None:
    """The mean of the losses of the first `batches` batches (-1: all of an epoch); None when stopped on the way."""
    loader.reset()
    losses = []
    for _ in range(loader.batches if batches < 0 else batches):
        if stop():
            return None
        losses.append(model.forward(*loader.next_batch()))
    loss = math.fsum(losses) / len(losses)
    if not math.isfinite(loss):
        raise NonFiniteError(f"the validation loss is {loss}: the weights have gone astray, try a smaller --lr")
    return loss


def sample(model, prompt, tokens: int, seed: int, stop: Callable[[], bool] = lambda: False) -> list[int]:
    """Ids that follow `prompt`, as many as there were before `stop`."""
    ids = []
    for step in stream(model, prompt, tokens, seed=seed):
        ids.append(int(step[0]))
        if stop():
            break
    return ids
