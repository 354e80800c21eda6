"""Runs with many features, resumed at every step: the same checkpoints to the bit, the same records. Used by test_resume.py (a few
steps) and by faults.py (all of them)."""

import contextlib
import io
import json
import shutil
from pathlib import Path

from gpt2flat.training.checkpoints import Checkpoint
from gpt2flat.train import main
from gpt2flat.training.trainer import Trainer

STEPS = 40
TEXT = "".join(
    f"{i * i % 97} green bottles, {i} times. " for i in range(260)
)  # 41 batches of 4 x 32: the run goes over an epoch
BASE = ("--n-layer 2 --n-embd 16 --n-head 2 --block-size 32 -b 4 -t 32 -i text.txt --tokenizer byte --log-every 0 -v 10 --val-batches 2 "
        "-s 15 --sample-tokens 4 --threads 1 -u 5 -n 1 -nk 0").split()  # fmt: skip
FEATURES = {
    "plain": "",
    "accumulation": "-d 384",
    "dropout": "--dropout 0.2",
    "bf16": "--precision bf16",
    "wsd, no clip": "-k wsd --grad-clip 0",
    "linear, epochs": "-k linear --epochs 1",
    "skips outliers": "-sl 0.5 -sg 0.5 --lr 0.02",
    "overfit": "-a",
    "recompute, standard attention": "-r 3 --attention standard",
    "dropout, accumulation, recompute": "--dropout 0.1 -d 256 -r 2 --fused 0",
    "other seeds": "--seed 7 --data-seed 9 -k constant",
    "rolled back": "--on-nonfinite rollback:3 -n 4",
    "typed on the way": "-sl 3",
    "control.toml": "--dropout 0.1",
}
POISONED = {"rolled back": 17}  # the batch, from 0, whose loss is NaN
CHANGES = {  # after so many updates the run goes on with these flags, or with this control.toml
    "typed on the way": (11, ["--lr", "0.003", "--grad-clip", "0.5", "--dropout", "0.1"], ""),
    "control.toml": (11, [], 'lr = 0.002\nsample_prompt = "9 green"\n'),
}


def train(*argv: str) -> str:
    """Runs the command in this process; returns what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(argv))
    assert code == 0, (argv, code, err.getvalue())
    return out.getvalue()


def whole(folder: Path, name: str, steps: int = STEPS) -> Path:
    """An uninterrupted run in folder/whole with a checkpoint after every update; with CHANGES, one that was resumed for them."""
    (folder / "text.txt").write_text(TEXT)
    length = [] if "--epochs" in FEATURES[name] else ["-x", str(steps)]
    with contextlib.chdir(folder), _poisoned(POISONED.get(name)):
        train(*BASE, *length, *FEATURES[name].split(), "-o", "whole")
    if name in CHANGES:
        step, typed, control = CHANGES[name]
        cut(folder / "whole", step, folder / "changed").joinpath("control.toml").write_text(control)
        with contextlib.chdir(folder):
            train("--resume", "changed", *typed)
        shutil.rmtree(folder / "whole")
        (folder / "changed").rename(folder / "whole")
    return folder / "whole"


def first_cut(name: str) -> int:
    """The first step at which such a run can be cut so that a resume without a word ends the same: what was typed is undone
    by a cut before it."""
    return CHANGES[name][0] if name in CHANGES and CHANGES[name][1] else 1


@contextlib.contextmanager
def _poisoned(draw: int | None):
    gradients = Trainer.gradients
    Trainer.gradients = lambda self, batch: float("nan") if self.drawn - 1 == draw else gradients(self, batch)
    try:
        yield
    finally:
        Trainer.gradients = gradients


def cut(run: Path, step: int, to: Path) -> Path:
    """A copy of the run as a kill right after the checkpoint of `step` left it, with a torn line of metrics.jsonl."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(
        run, to, ignore=lambda folder, names: [n for n in names if n.startswith("step_") and int(n[5:]) > step]
    )
    with open(to / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    return to


def state(run: Path) -> dict[str, str]:
    """Hashes of the files of the last checkpoint."""
    last = max((run / "checkpoints").glob("step_*"))
    return {name: entry.sha256 for name, entry in Checkpoint(last).manifest.files.items()}


def records(run: Path) -> list[dict]:
    """What must be equal of metrics.jsonl: every digit of every number that is no time."""
    kept = ("step", "loss", "lr", "grad_norm", "val_loss", "sample", "prompt", "loss_z", "grad_norm_z", "skipped")
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]
    told = [{name: event[name] for name in kept if name in event} for event in events]
    return [event for event in told if len(event) > 1]


def resumed_like(run: Path, step: int, folder: Path) -> str | None:
    """What differs once a copy of the run, cut at `step`, has been resumed; None if nothing does."""
    copy = cut(run, step, folder / "cut")
    with contextlib.chdir(folder):
        train("--resume", "cut")
    if state(copy) != state(run):
        return f"another state: {[name for name, hash in state(copy).items() if state(run)[name] != hash]}"
    if records(copy) != records(run):
        pairs = zip(records(copy), records(run), strict=False)
        return f"other records: {next(((a, b) for a, b in pairs if a != b), 'their number')}"
    return None
