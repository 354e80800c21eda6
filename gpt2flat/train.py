"""python -m gpt2flat.train: trains a model, from scratch or from a checkpoint, into a run directory.

Flags, the order of checks, the screen, clocks and signals live here; the table of settings is training/settings.py."""

import argparse
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

from .benchmarks.machine import measure_peak
from .command import Parser, StopSignal, data_folders, environment, open_kernels, run
from .errors import DataError, Gpt2FlatError, NonFiniteError, UsageError
from .training import config
from .training.control import Control
from .training.inputs import prompt_ids
from .training.loop import RolledBack, Stopped, train
from .training.metrics import Metrics, keep
from .training.names import REFUSED
from .training.saving import Saver
from .training.manifest import MODEL
from .training.screen import Screen, duration, first_screen, record, say
from .training.settings import SETTINGS, seconds_of, unknown
from .training.start import Ready, prepare
from .training.trackers import wanted

# --- flags -----------------------------------------------------------------------------------------------------------


class _Refuse(argparse.Action):
    """Collects the flags of REFUSED as (row, flag as typed, value); `-h` alone is a cry for help."""

    def __init__(self, *args, row, **kwargs):
        super().__init__(*args, **kwargs)
        self.row = row

    def __call__(self, parser, namespace, value, option):
        if option == "-h" and not value:
            parser.print_help()
            parser.exit()
        namespace.refused = [*namespace.refused, (self.row, option, value)]


def parser() -> Parser:
    p = Parser("gpt2flat train", description=__doc__.split(": ", 1)[1].split("\n")[0], add_help=False, unknown=unknown)
    p.add_argument("--help", action="help", help="this list")
    for s in SETTINGS.values():
        flags = [f"-{s.letter}", s.flag] if s.letter else [s.flag]
        columns = [f"{value:g}" if isinstance(value, float) else str(value) for value in (s.checkpoint, s.scratch)]
        default = "" if s.scratch is None else f" ({' from a checkpoint, else '.join(dict.fromkeys(columns))})"
        alone = True if s.kind is bool else s.switch  # the value of the flag without one
        switch = {} if alone is None else {"nargs": "?", "const": alone}
        p.add_argument(*flags, dest=s.name, type=s.parse, help=s.help + default, metavar=s.metavar, **switch)
    for row in REFUSED:
        p.add_argument(*row.flags, action=_Refuse, row=row, dest="refused", default=[], nargs="?", const="",
                       help=argparse.SUPPRESS)  # fmt: skip
    return p


def read_flags(argv: list[str]) -> dict[str, object]:
    """The settings that were given. Raises UsageError, one for all flags that are not served."""
    given = vars(parser().parse(argv))
    used = given.pop("refused")
    given = {name: value for name, value in given.items() if value is not None}
    refused = [use for use in used if not use[0].served(use[2])]
    if refused:
        raise UsageError("; ".join(f"{flag} {value}".strip() + f": {row.advice}" for row, flag, value in refused))
    return given


# --- the end ---------------------------------------------------------------------------------------------------------

DATA_FLAGS = ("train_data", "val_data", "dataset", "tokenizer", "val_fraction", "val_every", "batch_size", "seq_len")


def next_commands(given: dict[str, object], p: Ready, checkpoint: Path, finished: bool) -> list[str]:
    """Three commands that work on what this run left, as one would type them here."""
    here = os.path.relpath(sys.executable)
    found = shutil.which("python")
    python = "python" if found and os.path.abspath(found) == sys.executable else min(here, sys.executable, key=len)
    script = Path(sys.argv[0]).name == "gpt2flat"  # typed as `gpt2flat train`: python -m could find another copy
    program = [sys.argv[0]] if script else [python, "-m"]
    name = (lambda command: command) if script else "gpt2flat.{}".format
    try:
        prompt_ids("The", p.data.tokenizer)
        prompt = ["--prompt", "The"]
    except (UsageError, DataError):
        prompt = []  # a vocabulary that only decodes, or lacks a letter
    data = [word for name in DATA_FLAGS if name in given for word in (SETTINGS[name].flag, str(given[name]))]
    go_on = ["--init", str(checkpoint), *data] if finished else ["--resume", str(p.run.path)]
    return [
        shlex.join([*program, name("generate"), str(p.run.path), *prompt, "--temperature", "0.8"]),
        shlex.join([*program, name("train"), *go_on]),
        shlex.join([*program, name("info"), str(checkpoint)]),
    ]


# --- the run ---------------------------------------------------------------------------------------------------------


def body(argv: list[str]) -> int:
    start = time.perf_counter()
    given = read_flags(argv)
    p = prepare(given, data_folders(), open_kernels)
    try:
        return follow(p, given, start)
    finally:
        p.run.release()


def follow(p: Ready, given: dict[str, object], began: float) -> int:
    """Trains, and tells and records what happens. began: the clock when the command did, for --max-time."""
    s, model, start = p.s, p.model, time.perf_counter()
    note = lambda line: say("note", line)  # noqa: E731
    peak = measure_peak(model.kernels, model.threads)
    first_screen(p, peak)
    screen, limit = Screen(p, peak), began + seconds_of(s.max_time)
    with StopSignal() as stop:
        if p.resumed is None or not p.run.config.is_file():
            p.run.create(environment(model, peak), p.data.tokenizer, 3 * 4 * model.config.num_parameters)
        keep(p.run.path, p.trainer.step)
        config.write(p.run.config, vars(s))
        with Metrics(p.run.path, p.trainer.step, wanted(s.report_to or ""), vars(s), note) as metrics:
            if p.resumed is not None:
                metrics.write(step=p.resumed, resumed={name: now for name, (_before, now) in p.changed.items()})
            control = Control(p.run.path, lambda text: prompt_ids(text, p.data.tokenizer), note)
            saver = Saver(p.run, model, s, p.facts, time.perf_counter, p.resumed, metrics.sync, p.other_data)
            events = train(p.trainer, p.validation, p.prompt, saver, control, time.perf_counter,
                           lambda: bool(stop) or time.perf_counter() > limit)  # fmt: skip
            last = _record(events, p, saver, metrics, screen)
        screen.clear()
        checkpoint = saver.store.place(last.step) / MODEL
        losses = f", validation loss {screen.losses[0]:.4f} -> {screen.losses[-1]:.4f}" if screen.losses else ""
        how = "done" if last.finished else "stopped"
        took = duration(time.perf_counter() - start)
        say(how, f"after {last.step} of {s.steps} updates in {took}{losses}, saved {checkpoint}")
        for label, command in zip(
            ("try next", "", ""), next_commands(given, p, checkpoint, last.finished), strict=True
        ):
            say(label, command)
    return 128 + stop.number if stop and not last.finished else 0


def _record(events, p: Ready, saver: Saver, metrics: Metrics, screen: Screen) -> Stopped:
    """Records and shows each event until the last. Whatever ends the run early, what was learned is saved first."""
    try:
        for event in events:
            if isinstance(event, RolledBack):
                metrics.rewind(event.to)
            metrics.write(**record(event, screen.tokens, screen))
            if isinstance(event, Stopped):
                return event
            screen.show(event)
    except (OSError, Gpt2FlatError) as problem:
        # nobody reads the screen any more (Ctrl-C also ends a `| tee`), the data is gone, a disk is full: keep what was learned;
        # but weights that lead to a NaN are not to push out an older checkpoint
        saver.rescue(None if isinstance(problem, NonFiniteError) else p.trainer.state())
        raise


def main(argv: list[str] | None = None) -> int:
    return run("train", body, argv)


if __name__ == "__main__":
    sys.exit(main())
