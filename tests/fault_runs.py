"""Whole runs that meet a fault: resumed at every step, signalled, killed, poisoned with NaN; and the faults seeded into what saves
the state and takes it up again. Every run is a child of its own: no kernel runs here."""

import contextlib
import functools
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

import resuming
from fault_scenarios import Outcome, ended, in_child, scratch
from gpt2flat.data.mt19937 import Stream
from gpt2flat.data.tokens import TokenLoader
from gpt2flat.errors import NonFiniteError
from gpt2flat.model import Model
from gpt2flat.training import metrics, saving
from gpt2flat.training.checkpoints import Checkpoint, Checkpoints
from gpt2flat.training.control import Control
from gpt2flat.training.run import Run
from gpt2flat.training.trainer import Trainer
from seeding import fault

KILLED = -signal.SIGKILL


def told(work: Callable[[], str | None]) -> str:
    """What `work` returns in a child; how it broke if it did."""
    said, say = os.pipe()

    def child():
        os.close(said)
        try:
            text = work() or ""
        except BaseException:
            text = "broke: " + traceback.format_exc(limit=-3)
        os.write(say, text.encode()[:60000])

    pid = in_child(child)
    os.close(say)
    with os.fdopen(said) as lines:
        text = lines.read()
    code = ended(pid)
    return text or ("" if code == 0 else f"ended with {code}")


# --- resume ----------------------------------------------------------------------------------------------------------


def resumed_at_every_step(count: int, seed: int) -> Outcome:
    """Each set of features x each of 40 steps: cut there and resumed, the run ends with the same bits and records."""
    cases = [(name, step) for name in resuming.FEATURES for step in range(resuming.first_cut(name), resuming.STEPS + 1)]
    return _each(cases, count, seed, _resume_steps)


def resumed_again_and_again(count: int, seed: int) -> Outcome:
    """Chains of five: resumed at a step, cut at a later one, and so on."""
    rng = random.Random(seed)
    chains = []
    for _ in range(count):
        name = rng.choice(list(resuming.FEATURES))
        chains.append((name, tuple(sorted(rng.sample(range(resuming.first_cut(name), 41), 5)))))
    return _each(chains, count, seed, _resume_chains)


def _each(cases: list, count: int, seed: int, work: Callable) -> Outcome:
    outcome, chosen = Outcome(), sorted(random.Random(seed).sample(cases, min(count, len(cases))))
    for name in dict.fromkeys(case[0] for case in chosen):
        with scratch() as place:
            mine = [case[1] for case in chosen if case[0] == name]
            lost = told(functools.partial(work, place, name, mine))
            outcome.tried += len(mine)
            outcome.lost += [f"{name}: {line}" for line in lost.splitlines()]
    return outcome


def _resume_steps(place: Path, name: str, steps: list[int]) -> str:
    run = resuming.whole(place, name)
    last = max(int(path.name[5:]) for path in (run / "checkpoints").iterdir())
    found = ((step, resuming.resumed_like(run, min(step, last), place)) for step in steps)
    return "\n".join(f"step {step}: {wrong}" for step, wrong in found if wrong)


def _resume_chains(place: Path, name: str, chains: list[tuple]) -> str:
    run, wrong = resuming.whole(place, name), []
    for chain in chains:
        copy = run
        for step in chain:
            copy = resuming.cut(copy, step, place / f"cut{step}")
            with contextlib.chdir(place):
                resuming.train("--resume", copy.name)
        if resuming.state(copy) != resuming.state(run) or resuming.records(copy) != resuming.records(run):
            wrong.append(f"chain {chain}: another end")
        for step in chain:
            shutil.rmtree(place / f"cut{step}", ignore_errors=True)
    return "\n".join(wrong)


# --- signals and kills -----------------------------------------------------------------------------------------------

LONG = [
    *resuming.BASE,
    *"-x 120 -n 7 -nk 2 -v 4 --val-batches 9 -s 9 --sample-tokens 12 --dropout 0.1".split(),
]


def signalled(count: int, seed: int) -> Outcome:
    """SIGINT, SIGTERM, two of them, or SIGTERM and soon SIGKILL at random times of load, training, validation, sampling and saving:
    one signal saves and ends with its number; whatever comes, the resumed run ends as if nothing had happened."""
    return _lives(
        count,
        seed,
        [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGKILL)],
    )


def killed(count: int, seed: int) -> Outcome:
    """kill -9 at random times of a whole run, again and again until it is through."""
    return _lives(count, seed, [(signal.SIGKILL,)])


def _lives(count: int, seed: int, volleys: list[tuple]) -> Outcome:
    outcome, rng = Outcome(), random.Random(seed)
    with scratch() as place:
        (place / "text.txt").write_text(resuming.TEXT)
        if wrong := told(lambda: _train(place, *LONG, "-o", "undisturbed")):
            return Outcome(1, [wrong])
        took = _timed(place)
        while outcome.tried < count:
            shutil.rmtree(place / "run", ignore_errors=True)
            for _ in range(12):
                if outcome.tried >= count:
                    break
                outcome.tried += 1
                volley = rng.choice(volleys)
                code, wrong = _life(place, volley, rng.uniform(0, 1.1 * took), rng.uniform(0, 0.05))
                if wrong:
                    outcome.lost.append(f"{[s.name for s in volley]}: {wrong}")
                if code == 0:
                    break
            if wrong := told(lambda: _train(place, *LONG, "-o", "run", "-y", "1")):
                outcome.lost.append(f"the last resume: {wrong}")
            elif resuming.state(place / "run") != resuming.state(place / "undisturbed"):
                outcome.lost.append("another end than the undisturbed run's")
            elif resuming.records(place / "run") != resuming.records(place / "undisturbed"):
                outcome.lost.append("other records than the undisturbed run's")
    return outcome


def _train(place: Path, *argv: str) -> None:
    os.chdir(place)
    resuming.train(*argv)


def _timed(place: Path) -> float:
    start = time.perf_counter()
    told(lambda: _train(place, *LONG, "-o", "timed"))
    return time.perf_counter() - start


def _life(place: Path, volley: tuple, wait: float, gap: float) -> tuple[int, str]:
    """(exit code, what is wrong with how it ended) of one start of the run that is signalled after `wait` seconds."""

    def work():
        os.chdir(place)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            sys.stderr = nowhere
            from gpt2flat.train import main

            os._exit(main([*LONG, "-o", "run", "-y", "1"]))

    pid = in_child(work)
    select.select([], [], [], wait)
    for number in volley:
        os.kill(pid, number)
        select.select([], [], [], gap)
    code = ended(pid)
    fine = {0, KILLED} if signal.SIGKILL in volley else {0}
    fine |= {128 + s for s in volley} | {-s for s in volley} | {130}  # -s: while it still loads; 130: the second aborts
    return code, "" if code in fine else f"ended with {code}"


# --- NaN -------------------------------------------------------------------------------------------------------------

VALUES = (np.nan, np.inf, -np.inf, np.float32(3e38))
POLICIES = ("stop", "skip:3", "rollback:3")
ACTS = ("stream", "qkv", "atty", "lnf", "fch")
NANS = [*resuming.BASE, "-x", "12", "-v", "0", "-s", "0", "-n", "4"]


def poisoned(count: int, seed: int) -> Outcome:
    """One update of 12 whose loss, one of whose gradients or activations is NaN, inf, -inf or too large: parameters and AdamW's
    state do not change, no checkpoint holds it, and rollback ends as a run that never saw the batch."""
    names = [("grads", name) for name in _params()] + [("acts", name) for name in ACTS] + [("loss", "")]
    cases = [(site, step, value, policy) for site in names for step in range(1, 12) for value in range(len(VALUES)) for policy in POLICIES
             if not (site[0] != "grads" and value == 3)]  # fmt: skip
    chosen, outcome = random.Random(seed).sample(cases, min(count, len(cases))), Outcome()
    with scratch() as place:
        (place / "text.txt").write_text(resuming.TEXT)
        for case in chosen:
            outcome.tried += 1
            if wrong := told(functools.partial(_poison, place, *case)):
                outcome.lost.append(f"{case}: {wrong}")
    return outcome


def _params() -> list[str]:
    from gpt2flat.arch.gpt2 import PARAMS

    return [row.name for row in PARAMS]


def _poison(place: Path, site: tuple[str, str], step: int, value: int, policy: str) -> str:
    os.chdir(place)
    shutil.rmtree("run", ignore_errors=True)
    shutil.rmtree("never", ignore_errors=True)
    update, (section, name), seen = Trainer._apply, site, []

    def state(model):
        return [part.floats.copy() for part in (model.params, model.m, model.v)]

    def apply(self, batch, before):
        if self.drawn - 1 != step:
            return update(self, batch, before)
        then = state(self.model)
        try:
            with _poisoned(self.model, section, name, VALUES[value]):
                return update(self, batch, before)
        finally:
            seen.append(all((a == b).all() for a, b in zip(then, state(self.model), strict=True)))

    Trainer._apply = apply
    line = [*NANS, "--on-nonfinite", policy, "-o", "run"]
    try:
        resuming.train(*line)
        stopped = False
    except AssertionError as failed:
        stopped = failed.args[0][1] == NonFiniteError.code
    Trainer._apply = update
    if not seen or not all(seen):
        return "parameters or AdamW's state changed" if seen else "the poison was not met"
    if stopped != (policy == "stop"):
        return "did not stop" if policy == "stop" else "stopped"
    for path in Path("run/checkpoints").iterdir():
        if not all(
            np.isfinite(np.fromfile(path / file, np.float32, offset=1024)).all()
            for file in ("model.bin", "optimizer.bin")
        ):
            return f"{path} is not finite"
    if policy.startswith("rollback"):
        return _never_saw(step)
    return ""


def _never_saw(step: int) -> str:
    draw = Trainer.draw

    def without(self):
        batch = draw(self)
        return draw(self) if self.drawn - 1 == step else batch

    Trainer.draw = without
    resuming.train(*NANS, "-o", "never")
    Trainer.draw = draw
    ends = [{n: h for n, h in resuming.state(Path(run)).items() if n != "state.json"} for run in ("run", "never")]
    return "" if ends[0] == ends[1] else "rollback did not end as a run that never saw the batch"


@contextlib.contextmanager
def _poisoned(model: Model, section: str, name: str, value):
    """Within, a forward and backward of `model` leaves `value` in the middle of a tensor, or as its loss."""
    run, forward_backward = model.run, model.forward_backward

    def run_poisoned(calls):
        run(calls)
        if section == "acts" and calls is model._program.body:
            flat = model.acts[name].reshape(-1)
            flat[flat.size // 2] = value

    def do(*arguments, **options):
        loss = forward_backward(*arguments, **options)
        if section == "grads":
            flat = model.grads[name].reshape(-1)
            flat[flat.size // 2] = value
        return float(value) if section == "loss" else loss

    model.run, model.forward_backward = run_poisoned, do
    try:
        yield
    finally:
        del model.run, model.forward_backward


# --- seeded faults ---------------------------------------------------------------------------------------------------

# what it does: where, what is there, what is put there, the features that show it
FAULTS = {
    "a batch is trained twice": (TokenLoader.restore, "self._sample = sample\n", "self._sample = max(0, sample - 1)\n", "plain"),
    "a batch is left out": (TokenLoader.restore, "self._sample = sample\n", "self._sample = sample + 1\n", "plain"),
    "the loader starts the epoch again": (TokenLoader.restore, "self._sample = sample\n", "self._sample = 0\n", "plain"),
    "the order is that of epoch 0": (TokenLoader.restore, "self._stream.restore(state[\"stream\"])", "pass", "linear, epochs"),
    "the stream is one word on": (Stream.restore, "np.array(words, np.uint32), position)", "np.array(words, np.uint32), position + 1)", "plain"),
    "the moments are not loaded": (saving.load, "file.read_into(0, model.m.floats, model.v.floats)", "pass", "plain"),
    "v is loaded as m": (saving.load, "model.m.floats, model.v.floats)", "model.v.floats, model.m.floats)", "plain"),
    "t is off by one": (Trainer.restore, "self.model.t = state[\"step\"], state[\"drawn\"], state[\"lr\"], state[\"t\"]",
                        "self.model.t = state[\"step\"], state[\"drawn\"], state[\"lr\"], state[\"t\"] + 1", "plain"),
    "the rate starts from step 0": (Trainer._apply, "learning_rate(s, step, self.lr)", "learning_rate(s, step - self.resumed_at, self.lr)", "plain"),
    "the window of losses is lost": (Trainer.restore, "Window(state[\"losses\"])", "Window()", "skips outliers"),
    "the window of norms is lost": (Trainer.restore, "Window(state[\"norms\"])", "Window()", "skips outliers"),
    "dropout goes by the start": (Trainer.gradients, "key_of(self.s.seed, self.step, i)", "key_of(self.s.seed, self.step - self.resumed_at, i)", "dropout"),
    "the parameters are not loaded": (saving.load, "file.read_into(0, model.params.floats)", "pass", "rollback"),
    "the records are not dropped": (metrics.keep, "if kind.stays(line, step)", "", "plain"),
    "control.toml is forgotten": (Control.read, "self._obeyed.get(step, {})", "{}", "control"),
    "the hash of a file is not looked at": (Checkpoint._check, "if sha256 != wanted:", "if False:", "flipped"),
}  # fmt: skip


def seeded(count: int, seed: int) -> Outcome:
    """Each of FAULTS planted in turn: a fault that no comparison notices is lost."""
    outcome = Outcome()
    for what in random.Random(seed).sample(sorted(FAULTS), min(count, len(FAULTS))):
        outcome.tried += 1
        with scratch() as place:
            if wrong := told(functools.partial(_seed, place, what)):
                outcome.lost.append(f"{what}: {wrong}")
    return outcome


def _seed(place: Path, what: str) -> str:
    function, old, new, features = FAULTS[what]
    show = {"rollback": _show_rollback, "control": _show_control, "flipped": _show_flipped}.get(features)
    if show is None:
        run = resuming.whole(place, features, 160 if "window" in what else 44 if "epoch" in what else 12)
        show = functools.partial(resuming.resumed_like, run, 150 if "window" in what else 42 if "epoch" in what else 7)
    if wrong := show(place):
        return f"without it: {wrong}"
    Trainer.resumed_at = 7
    with fault(function, old, new):
        try:
            return "" if show(place) else "nothing noticed it"
        except (AssertionError, ValueError):  # the run itself did
            return ""


def _show_rollback(place: Path) -> str:
    (place / "text.txt").write_text(resuming.TEXT)
    return _poison(place, ("grads", "wte"), 6, 0, "rollback:3")


def _show_control(place: Path) -> str:
    shutil.rmtree(place / "whole", ignore_errors=True)
    run = resuming.whole(place, "plain", 12)
    copy = resuming.cut(run, 6, place / "controlled")
    (copy / "control.toml").write_text("lr = 0.3\n")
    os.chdir(place)
    resuming.train("--resume", "controlled")
    return resuming.resumed_like(copy, 6, place) or ""


def _show_flipped(place: Path) -> str:
    shutil.rmtree(place / "whole", ignore_errors=True)
    run = resuming.whole(place, "plain", 12)
    path = run / "checkpoints/step_00000012/optimizer.bin"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    found = [c.step for c in Checkpoints(run / "checkpoints", Run(run).id).verified()]
    return "" if found[0] == 11 else f"{found[0]} is taken for whole"
