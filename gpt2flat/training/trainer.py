"""Trainer: everything that decides the next update, and the update itself: all of it or nothing happens.

Its state() and the floats of the model are the whole run: whoever restores both goes on with the same bits. Step i means: after i
updates, before update i."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..data.splitmix import key_of
from ..errors import CheckpointError, NonFiniteError
from .outliers import Window
from .schedule import learning_rate
from .settings import accumulation, policy_of

Batch = list  # of (tokens, targets), both (B, T): one for each forward and backward of an update


@dataclass(frozen=True)
class Update:
    """Update `step` is done: the loss before it, its learning rate, the gradient norm before clipping (None: never taken, as the
    loss was not finite), how unusual both are (outliers.py), and why nothing was changed if it was left out."""

    step: int
    loss: float
    lr: float
    grad_norm: float | None
    loss_z: float | None = None
    norm_z: float | None = None
    skipped: str | None = None


class RollBack(Exception):
    """The batch `draw` is to be left out, from the last checkpoint on. Only `train` sees it."""

    def __init__(self, draw: int, why: str):
        super().__init__(why)
        self.draw = draw


class Trainer:
    """model, batches: a TokenLoader; s: settings."""

    def __init__(self, model, batches, s):
        self.model, self.batches, self.s = model, batches, s
        self.step = 0  # of the next update
        self.drawn = 0  # batches that were taken from the data
        self.lr = None  # in place of s.lr, by control.toml
        self._losses, self._norms = Window(), Window()
        self._forgotten: set[int] = set()  # draws that a rollback leaves out
        self._bad, self._bad_step = 0, -1  # updates in a row that were not finite, and the latest of them

    # -- the state -----------------------------------------------------------------------------------------------------

    def state(self) -> dict:
        """What the floats of the model do not hold, as plain JSON values with every digit."""
        return {
            "step": self.step, "t": self.model.t, "drawn": self.drawn, "lr": self.lr,
            "bad": [self._bad, self._bad_step], "losses": self._losses.values, "norms": self._norms.values, "data": self.batches.state(),
        }  # fmt: skip

    def restore(self, state: dict, same_data: bool = True) -> None:
        """Takes over what state() returned. same_data=False: the position in the data means nothing any more, it starts a new
        epoch. Raises CheckpointError for anything else than a state."""
        try:
            counts = [state["step"], state["t"], state["drawn"], state["bad"][0]]
            if not all(type(count) is int and count >= 0 for count in counts) or type(state["bad"][1]) is not int:
                raise ValueError("expected counts")
            if state["lr"] is not None and not (type(state["lr"]) is float and 0 <= state["lr"] < 1e6):
                raise ValueError(f"learning rate {state['lr']!r}")
            losses, norms = Window(state["losses"]), Window(state["norms"])
            if same_data:
                self.batches.restore(state["data"])
        except (KeyError, TypeError, ValueError, IndexError) as problem:
            raise CheckpointError(f"the state of the run is damaged: {problem}") from None
        self.step, self.drawn, self.lr, self.model.t = state["step"], state["drawn"], state["lr"], state["t"]
        self._losses, self._norms = losses, norms
        self._bad, self._bad_step = state["bad"]

    def forget(self, draws: set[int]) -> None:
        """Leaves these batches out when their turn comes. They are no part of the state: the records of the run tell of them."""
        self._forgotten |= draws

    def roll_back(self, state: dict, draw: int) -> None:
        """Takes over an earlier state and leaves the batch `draw` out from there on."""
        bad = self._bad, self._bad_step
        self.restore(state)
        self._bad, self._bad_step = bad
        self.forget({draw})

    # -- an update -----------------------------------------------------------------------------------------------------

    def update(self, before: Callable[[], None] = lambda: None) -> Update:
        """Update `step`; `before` is called right before parameters and AdamW's state change.

        Raises NonFiniteError, with nothing changed, when the loss or a gradient is not finite and the policy is to stop or its
        patience is at an end; DataError, with nothing changed, when the data is gone."""
        position, drawn = self.batches.state(), self.drawn
        try:
            batch = self.draw()
            found = self._apply(batch, before)
        except BaseException:
            self.batches.restore(position)
            self.drawn = drawn
            raise
        self.step += 1
        return found

    def draw(self) -> Batch:
        """The next batch of the data that is to be trained on."""
        while True:
            if self.s.overfit:
                self.batches.reset()
            batch = [self.batches.next_batch() for _ in range(accumulation(self.s))]
            self.drawn += 1
            if self.drawn - 1 not in self._forgotten:
                return batch

    def gradients(self, batch: Batch) -> float:
        """The mean loss of a batch; its gradients are in the model."""
        n, losses = len(batch), []
        for i, (tokens, targets) in enumerate(batch):
            key = key_of(self.s.seed, self.step, i)  # of dropout: no two forwards of a run drop the same
            losses.append(self.model.forward_backward(tokens, targets, scale=1 / n, accumulate=i > 0, dropout_key=key))
        return math.fsum(losses) / n

    def _apply(self, batch: Batch, before: Callable[[], None]) -> Update:
        s, model, step = self.s, self.model, self.step
        lr = learning_rate(s, step, self.lr)
        loss, norm, problem = math.nan, None, None
        try:
            loss = self.gradients(batch)
            if math.isfinite(loss):
                norm = model.grad_norm()
                problem = model.unfit_norm(norm, s.grad_clip or None)
            else:
                problem = f"the loss is {loss}"
        except NonFiniteError as found:  # of a model that traces
            problem = str(found)
        if problem:
            return Update(step, loss, lr, norm, skipped=self._leave_out(batch, problem))
        z, norm_z = self._losses.z(loss), self._norms.z(norm)
        unusual = _unusual("loss", z, s.skip_loss_z) or _unusual("gradient norm", norm_z, s.skip_norm_z)
        if not unusual:
            before()
            model.update(lr=lr, beta1=s.beta1, beta2=s.beta2, eps=s.eps, weight_decay=s.weight_decay, grad_clip=s.grad_clip or None,
                         decay_all=s.decay_all, norm=norm)  # fmt: skip
        if step > self._bad_step:
            self._bad, self._bad_step = 0, -1
        return Update(step, loss, lr, norm, z, norm_z, unusual)

    def _leave_out(self, batch: Batch, problem: str) -> str:
        """What the policy says about an update that is not finite: returns why it is left out, or raises."""
        policy, patience = policy_of(self.s.on_nonfinite)
        tired = "" if policy == "stop" else f", {self._bad + 1} in a row (--on-nonfinite {self.s.on_nonfinite})"
        if self._bad >= patience:
            raise NonFiniteError(
                f"update {self.step}: {problem}{self._blame(batch)}{tired}; nothing was updated: try a smaller --lr"
            )
        self._bad, self._bad_step = self._bad + 1, max(self.step, self._bad_step)
        if policy == "rollback":
            raise RollBack(self.drawn - 1, problem)
        return problem

    def _blame(self, batch: Batch) -> str:
        """Where it began: the same batch once more, every call looked at."""
        trace, self.model.trace = self.model.trace, True
        try:
            self.gradients(batch)
        except NonFiniteError as found:
            return f" ({found})"
        finally:
            self.model.trace = trace
        return ""


def _unusual(what: str, z: float | None, limit: float) -> str | None:
    return (
        f"its {what} is {z:.1f} standard deviations above the mean" if limit and z is not None and z > limit else None
    )
