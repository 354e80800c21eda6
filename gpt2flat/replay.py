"""python -m gpt2flat.replay RUN --step N: opens a past step of a run again, to the bit; shows or saves any tensor of it; or
recomputes what lies between checkpoints and compares."""

import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from .command import Parser, data_folders, number, open_kernels, run
from .errors import CheckpointError, UsageError
from .training.replay import Replay, checkpoint_before, last_step, verified_steps
from .training.run import Run
from .training.screen import duration, say

SHOWN = 6  # values of a tensor


def parser() -> Parser:
    p = Parser("gpt2flat replay", description=__doc__.split(": ", 1)[1])
    p.add_argument("run", metavar="RUN", help="a run directory")
    p.add_argument(
        "--step", type=number("--step", int, 0, 1 << 60), metavar="N", help="the step: after N updates, before update N"
    )
    p.add_argument("--show", nargs="+", default=[], metavar="TENSOR",
                   help="print params.NAME, grads.NAME, m.NAME, v.NAME, acts.NAME or dacts.NAME, acts.NAME[3] for one slot")  # fmt: skip
    p.add_argument("--save", metavar="FOLDER", help="write the shown tensors as FOLDER/NAME.npy")
    p.add_argument("--verify", action="store_true",
                   help="recompute every stretch between two checkpoints, up to --step, and compare the hashes")  # fmt: skip
    p.add_argument("--override", metavar="NAMES", help="replay although these changed: data, vocabulary, isa")
    return p


def body(argv: list[str]) -> int:
    args = parser().parse(argv)
    source = Run(args.run)
    if not source.config.is_file():
        raise CheckpointError(f"{source.path}: is no run directory, it has no config.toml")
    if args.verify:
        if args.show or args.save:
            raise UsageError("--verify compares checkpoints: leave out --show and --save")
        return verify(source, args)
    if args.step is None:
        raise UsageError(f"--step N says which step; the run has recorded {last_step(source)}")
    if args.save and not args.show:
        raise UsageError("--save writes what --show names: add --show TENSOR ...")
    start, found = time.perf_counter(), checkpoint_before(source, args.step)
    if args.step > max(last_step(source), found.step):
        raise UsageError(f"--step {args.step}: the run has recorded {last_step(source)} updates, expected at most that")
    replay = Replay(source, found, data_folders(), open_kernels, args.override)
    for name in args.show:
        replay.view(name)  # one that is not there is told before the work
    say("from", f"{found.path}, {replay.ready.model.kernels.label}")
    odd = [done for done in replay.to(args.step) if not done.equal]
    loss = replay.look()
    say(
        "step",
        f"{args.step}, {args.step - found.step} updates done again in {duration(time.perf_counter() - start)}, loss {loss!r}",
    )
    for name in args.show:
        show(name, replay.view(name))
        if args.save:
            save(Path(args.save), name, replay.view(name))
    return tell(odd)


def tell(odd: list) -> int:
    if not odd:
        return 0
    first = odd[0]
    say("differs", f"{len(odd)} losses are not those of metrics.jsonl, the first of update {first.update.step}: "
        f"{first.update.loss!r}, recorded {first.recorded!r}")  # fmt: skip
    return 1


def show(name: str, view: np.ndarray) -> None:
    floats = view.astype(np.float64)
    values = " ".join(f"{value:.6g}" for value in view.reshape(-1)[:SHOWN])
    say(
        name,
        f"{view.shape}, mean {floats.mean():.6g}, deviation {floats.std():.6g}, {view.min():.6g} to {view.max():.6g}: {values} ...",
    )


def save(folder: Path, name: str, view: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", view, allow_pickle=False)


def verify(source: Run, args) -> int:
    places = [c for c in verified_steps(source) if args.step is None or c.step <= args.step]
    bad = 0
    for before, after in pairwise(places):
        start, replay = time.perf_counter(), Replay(source, before, data_folders(), open_kernels, args.override)
        odd = [done for done in replay.to(after.step) if not done.equal]
        hashes = replay.hashes(after)
        differ = [
            name for name, entry in after.manifest.files.items() if hashes.get(name, entry.sha256) != entry.sha256
        ]
        took = duration(time.perf_counter() - start)
        how = f"differs in {', '.join(differ)}" if differ else "equal to the bit"
        say("verified", f"{after.step - before.step} updates from step {before.step} to {after.step} in {took}: {how}")
        bad |= tell(odd) | bool(differ)
    if len(places) < 2:
        raise CheckpointError(f"{source.path}: {len(places)} checkpoints are there, comparing takes two")
    return int(bad)


def main(argv: list[str] | None = None) -> int:
    return run("replay", body, argv)


if __name__ == "__main__":
    sys.exit(main())
