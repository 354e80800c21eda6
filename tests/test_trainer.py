"""The loop and the trainer with stand-ins for model and data: order of events, what is left out, and what is never learned from."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2flat.errors import CheckpointError, NonFiniteError
from gpt2flat.generation.stream import Token
from gpt2flat.training import loop
from gpt2flat.training.loop import RolledBack, Sample, Stopped, Updated, Validation, train, validate
from gpt2flat.training.outliers import WINDOW, Window
from gpt2flat.training.settings import resolve
from gpt2flat.training.trainer import Trainer, Update


class FakeModel:
    """Counts calls; its loss is the first token, its gradient norm twice that."""

    config = SimpleNamespace(block_size=8, vocab_size=5)

    def __init__(self):
        self.calls, self.t, self.trace, self.learned = [], 0, False, []

    def forward_backward(self, tokens, targets, **options):
        self.options = options
        self.calls.append("gradients")
        self.loss = float(tokens[0, 0])
        if self.trace:
            raise NonFiniteError("linear_forward[1]: out is not finite")
        return self.loss

    def grad_norm(self):
        return 2 * self.loss

    def unfit_norm(self, norm, clip):
        return None if norm < 1e6 else f"the gradient norm is {norm}: qkvw"

    def update(self, **settings):
        self.settings, self.t = settings, self.t + 1
        self.learned.append(self.loss)

    def losses(self, tokens, targets):
        self.calls.append("val")
        return tokens[0].astype(np.float32)[:1]

    def plan(self, B, T):
        pass


@pytest.fixture(autouse=True)
def writes(monkeypatch):
    """Samples are ids of 1."""
    monkeypatch.setattr(loop, "stream", lambda model, prompts, count, seed: (Token(0, 1) for _ in range(count)))


class FakeLoader:
    """Losses first, first + 1, ..., but those of `odd`, by number of the batch."""

    B, T, batches = 1, 2, 7

    def __init__(self, first: float = 1.0, odd: dict[int, float] | None = None):
        self.n, self.first, self.odd = 0, first, odd or {}

    def reset(self):
        self.n = 0

    def next_batch(self):
        self.n += 1
        return np.full((1, 2), self.odd.get(self.n - 1, self.first + self.n - 1)), None

    def state(self):
        return {"n": self.n}

    def restore(self, state):
        self.n = state["n"]


class FakeSaver:
    """Keeps one state, of step 0."""

    def __init__(self):
        self.kept, self.waits = None, 0

    def due(self, step, over, asked):
        return over or asked or self.kept is None

    def start(self, state, val):
        self.kept = self.kept or state

    def validated(self, step, loss):
        pass

    def before_update(self):
        self.waits += 1

    def finish(self):
        pass

    def load(self):
        return self.kept

    def events(self):
        return []


class FakeControl:
    def __init__(self, asked=None):
        self.asked = asked or {}

    def read(self, step):
        return self.asked.get(step, {})

    def prompt(self, step, usual):
        return usual


def trainer(model=None, loader=None, **flags) -> Trainer:
    flags = {"steps": 4, "val_every": 2, "sample_every": 3, "sample_tokens": 2, "val_batches": 3, **flags}
    return Trainer(
        model or FakeModel(),
        loader or FakeLoader(),
        resolve({"batch_size": 1, "seq_len": 2} | flags, {"block_size": 8}, True),
    )


def events(t=None, stop=lambda: False, control=None, saver=None, **flags) -> list:
    ticks, t = iter(range(10**6)), t or trainer(**flags)
    return list(
        train(t, FakeLoader(5.0), [1], saver or FakeSaver(), control or FakeControl(), lambda: next(ticks), stop)
    )


def test_the_order_of_events():
    kinds = [(type(event).__name__, event.step) for event in events()]
    assert kinds == [
        ("Validation", 0), ("Updated", 0), ("Updated", 1), ("Validation", 2), ("Updated", 2), ("Sample", 3), ("Updated", 3),
        ("Validation", 4), ("Sample", 4), ("Stopped", 4),
    ]  # fmt: skip
    assert events()[0] == Validation(0, 6.0) and events()[3] == Validation(2, 6.0)  # reset: the same batches
    assert events()[1] == Updated(Update(0, 1.0, 1e-4, 2.0), 1) and events()[-1] == Stopped(4, True)


def test_zero_turns_intervals_and_the_clip_off():
    t = trainer(val_every=0, sample_every=0, grad_clip=0.0)
    assert {type(event) for event in events(t)} == {Updated, Stopped}
    assert t.model.settings["grad_clip"] is None and "val" not in t.model.calls
    t = trainer(grad_clip=0.5, decay_all=True, weight_decay=0.1)
    events(t)
    assert t.model.settings["grad_clip"] == 0.5 and t.model.settings["decay_all"] is True


def test_stop_is_heard_between_updates_and_batches():
    for n in range(1, 60):
        asked = iter(range(10**6))
        seen = events(stop=lambda: next(asked) >= n, val_every=1, val_batches=-1)  # noqa: B023
        assert isinstance(seen[-1], Stopped) and seen[-1].finished == (seen[-1].step == 4)
        assert seen[-1].step == sum(isinstance(event, Updated) for event in seen)
        assert not any(isinstance(event, Sample) and len(event.ids) != 2 for event in seen)


def test_every_update_waits_for_the_reader_of_the_arena():
    saver = FakeSaver()
    events(saver=saver)
    assert saver.waits == 4


def test_accumulation_adds_up_whole_batches():
    t = trainer(total_batch_size=6)
    losses = [event.update.loss for event in events(t) if isinstance(event, Updated)]
    assert losses == [2.0, 5.0, 8.0, 11.0] and t.model.calls.count("gradients") == 12
    assert (t.model.options["scale"], t.model.options["accumulate"]) == (1 / 3, True)


def test_overfit_sees_one_batch():
    assert {event.update.loss for event in events(overfit=True) if isinstance(event, Updated)} == {1.0}


def test_control_changes_the_rate_saves_and_stops():
    asked = {1: {"lr": 0.5, "file": "x"}, 3: {"stop": True, "file": "y"}}
    seen = events(control=FakeControl(asked), val_every=0, sample_every=0)
    assert [event.update.lr for event in seen if isinstance(event, Updated)] == [1e-4, 0.5, 0.5]
    assert seen[-1] == Stopped(3, False)


# --- what is not finite ----------------------------------------------------------------------------------------------

BAD = [math.nan, math.inf, 1e7]  # the last: a finite loss with a gradient norm that is unfit


@pytest.mark.parametrize("bad", BAD)
def test_stop_names_the_update_and_the_tensor_and_changes_nothing(bad):
    t = trainer(loader=FakeLoader(odd={2: bad}), val_every=0, sample_every=0)
    with pytest.raises(
        NonFiniteError, match=r"update 2: .* \(linear_forward\[1\]: out is not finite\).*try a smaller --lr"
    ):
        events(t)
    assert t.model.learned == [1.0, 2.0] and (t.step, t.drawn, t.batches.n) == (2, 2, 2) and not t.model.trace


@pytest.mark.parametrize("bad", BAD)
def test_skip_leaves_out_at_most_so_many_in_a_row(bad):
    odd = {1: bad, 2: bad, 4: bad}
    t = trainer(loader=FakeLoader(odd=odd), val_every=0, sample_every=0, steps=6, on_nonfinite="skip:2")
    seen = [event.update for event in events(t) if isinstance(event, Updated)]
    assert [u.step for u in seen if u.skipped] == [1, 2, 4] and t.model.learned == [1.0, 4.0, 6.0] and t.model.t == 3
    t = trainer(loader=FakeLoader(odd=odd | {3: bad}), steps=6, on_nonfinite="skip:2")
    with pytest.raises(NonFiniteError, match="3 in a row"):
        events(t)


@pytest.mark.parametrize("bad", BAD)
def test_rollback_is_a_run_that_never_saw_the_batch(bad):
    t = trainer(loader=FakeLoader(odd={2: bad}), val_every=0, sample_every=0, on_nonfinite="rollback:1")
    seen = events(t)
    assert [(e.step, e.to) for e in seen if isinstance(e, RolledBack)] == [(2, 0)]
    assert t.model.learned == [1.0, 2.0] + [1.0, 2.0, 4.0, 5.0] and t.step == 4
    t = trainer(loader=FakeLoader(odd={2: bad, 3: bad}), on_nonfinite="rollback:1")
    with pytest.raises(NonFiniteError, match="2 in a row"):
        events(t)
    t = trainer(loader=FakeLoader(odd={1: bad, 4: bad}), steps=6, on_nonfinite="rollback:1")
    assert [e.step for e in events(t) if isinstance(e, RolledBack)] == [1, 3]


def test_a_state_comes_back_as_it_was():
    t = trainer(skip_loss_z=3.0)
    for _ in range(3):
        t.update()
    state = t.state()
    other = trainer(skip_loss_z=3.0)
    other.restore(state)
    assert other.state() == state and other.update() == t.update() and other.state() == t.state()
    for broken in ({}, state | {"step": -1}, state | {"bad": [1]}, state | {"lr": "1"}, state | {"losses": [math.nan]}):
        with pytest.raises(CheckpointError):
            other.restore(broken)


# --- outliers --------------------------------------------------------------------------------------------------------


def test_z_scores_are_llmcs():
    """The formula of llmc/outlier_detector.h in doubles: mean and deviation of a full window that holds the value."""
    random = np.random.default_rng(0)
    values, window = random.normal(3, 0.5, 400), Window()
    for i, value in enumerate(values):
        z = window.z(value)
        if i < WINDOW - 1:
            assert z is None
        else:
            last = values[i + 1 - WINDOW : i + 1]
            assert z == pytest.approx((value - last.mean()) / last.std(), rel=1e-9)
    assert Window([2.0] * WINDOW).z(2.0) == 0.0


def test_a_nan_does_not_turn_the_detector_off():
    window = Window([1.0, 2.0] * (WINDOW // 2))
    assert window.z(math.nan) is None and window.z(math.inf) is None
    assert window.z(50.0) > 5


def test_outliers_are_left_out():
    odd = {n: 1.0 + n % 2 for n in range(300)} | {200: 9.0, 250: 9.0}
    for flags in ({"skip_loss_z": 3.0}, {"skip_norm_z": 3.0}):
        t = trainer(loader=FakeLoader(odd=odd), val_every=0, sample_every=0, steps=260, **flags)
        skipped = [event.update for event in events(t) if isinstance(event, Updated) and event.update.skipped]
        assert [u.step for u in skipped] == [200, 250] and 9.0 not in t.model.learned and t.model.t == 258
        assert "standard deviations above the mean" in skipped[0].skipped
    t = trainer(loader=FakeLoader(odd=odd), val_every=0, sample_every=0, steps=260)
    events(t)
    assert t.model.learned.count(9.0) == 2


def test_all_validation_batches():
    assert validate(FakeModel(), FakeLoader(1.0), -1) == 4.0
    with pytest.raises(NonFiniteError):
        validate(FakeModel(), FakeLoader(math.nan), 1)
