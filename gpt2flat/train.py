"""python -m gpt2flat.train: trains a model, from scratch or from a checkpoint, into a run directory.

Flags, the order of checks, the screen, clocks and signals live here; the table of settings is training/settings.py."""

import argparse
import os
import shlex
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from .benchmarks.machine import faster_precision, measure_peak
from .command import Parser, StopSignal, data_folders, duration, environment, open_kernels, run
from .data.tokenizer import Decoder, Tokenizer, escape_controls
from .data.tokens import TokenLoader
from .errors import DataError, UsageError
from .info import describe
from .kernels import cpu_name, default_threads
from .memory.arena import human
from .model import Model
from .training.inputs import check_shards, find_data, find_start, prompt_ids, shape_of
from .training.loop import Sample, Stopped, Update, Validation, train
from .training.metrics import Metrics
from .training.run import new_run
from .training.settings import REFUSED, SETTINGS, SHAPE, resolve, unknown

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
        switch = {"nargs": "?", "const": True} if s.kind is bool else {}
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
    one_batch = str(given.get("batch_size", 0) * given.get("seq_len", 0))  # -d asks for this: nothing to accumulate
    refused = [use for use in used if not use[0].served(use[2]) and not ("-d" in use[0].flags and use[2] == one_batch)]
    if refused:
        raise UsageError("; ".join(f"{flag} {value}".strip() + f": {row.advice}" for row, flag, value in refused))
    return given


# --- from flags to a model with its data -----------------------------------------------------------------------------


def prepare(given: dict[str, object]) -> SimpleNamespace:
    """Everything a run needs, checked, and nothing written yet: s, data, batches, validation, prompt, run, model ..."""
    folders = data_folders()
    start = find_start(given.get("init"), given.get("tokenizer"), folders)
    shape = start.shape()
    if start.path is None:
        del shape["vocab_size"]  # the tokenizer decides
    s = resolve(given, shape, start.path is not None)
    config = shape_of(start, given)
    kernels = open_kernels(None if s.backend == "auto" else s.backend)
    data = find_data(s, start, folders)
    if start.path is None:
        config = replace(config, vocab_size=data.vocab_size, padded_vocab_size=0)
    shape = (s.batch_size, s.seq_len, config.vocab_size)
    batches = TokenLoader(data.train, *shape, shuffle=True)
    validation = TokenLoader(data.val, *shape) if data.val and s.val_every else None
    check_shards(data.train + data.val, config.vocab_size)
    prompt = prompt_ids(s.sample_prompt, data.tokenizer)
    target = new_run(s.out, start.name, data.name)  # the name; it is taken last
    precision = faster_precision(kernels, default_threads(s.threads).count) if s.precision == "auto" else s.precision
    options = dict(attention=s.attention, threads=s.threads, kernels=kernels, trace=s.trace, precision=precision,
                   recompute=s.recompute, fused=s.fused)  # fmt: skip
    Model(config, **options).plan(
        s.batch_size, s.seq_len, training=True
    )  # what cannot fit fails before a weight is drawn
    if start.path:
        model = Model.load(start.path, block_size=config.block_size, **options)
    else:
        model = Model.init(config, s.seed, **options)
    model.plan(s.batch_size, s.seq_len, training=True)
    target.reserve()
    threads = default_threads(s.threads)
    settled = {name: getattr(config, name) for name in SHAPE}
    settled |= {"precision": precision, "init": str(start.path or start.name), "threads": model.threads, "out": str(target.path)}
    settled |= {"steps": batches.batches if s.steps < 0 else s.steps}
    s = SimpleNamespace(**(vars(s) | settled))
    title = str(start.path) if start.path else f"{start.name} from scratch, seed {s.seed}"
    loaders = {"data": data, "batches": batches, "validation": validation, "prompt": prompt}
    return SimpleNamespace(s=s, model=model, run=target, title=title, threads=threads, **loaders)


# --- the screen -----------------------------------------------------------------------------------------------------


def measure_update(model: Model, B: int, T: int) -> float:
    """Seconds of one forward and backward on ids 0, after one that touches the memory; the model does not change."""
    ids = np.zeros((B, T), np.int32)
    for _ in range(2):
        start = time.perf_counter()
        model.forward_backward(ids, ids)
        seconds = time.perf_counter() - start
        if seconds > 1:
            break
    return seconds


def say(label: str, text: str) -> None:
    print(f"{label:<9} {text}", flush=True)


BF16 = {True: "bf16 products, ", False: "bf16 products (rounded, then multiplied as float32: no AVX512_BF16), "}


def first_screen(p: SimpleNamespace, peak: float) -> None:
    s, model = p.s, p.model
    team, wish = model.kernels.last_team(), p.threads  # the team of the peak's measurement
    why = (
        wish.why if team == wish.count else f"{wish.count} wanted" if model.kernels.openmp() else "built without OpenMP"
    )
    threads = f"{team} thread{'s' * (team > 1)} ({why})"
    say("machine", f"{model.kernels.label}, {threads}, {cpu_name()}, {BF16[model.kernels.multiplies_bf16] if model.precision == 'bf16' else ''}"
        f"measured peak {peak / 1e9:.0f} GFLOP/s")  # fmt: skip
    say("data", p.data.about)
    say("model", describe(model, p.title, s.batch_size, s.seq_len))
    say("memory", f"{human(4 * model.buffer.size)}: {model.arena.breakdown()}")
    tokens = s.batch_size * s.seq_len
    seconds = measure_update(model, s.batch_size, s.seq_len)
    checks = s.val_batches if s.val_batches > 0 else p.validation.batches if p.validation else 0
    checks *= s.steps // s.val_every + 1 if p.validation else 0
    seconds *= s.steps + checks / 3
    say("run", f"{s.steps} updates of {s.batch_size} x {s.seq_len} tokens, {s.steps * tokens:,} in all or "
        f"{s.steps / p.batches.batches:.1f} epochs, about {duration(seconds)}, into {p.run.path}/")  # fmt: skip


class Screen:
    """The lines of a running training: one each log_every updates, validations, samples; on a terminal also a bar."""

    def __init__(self, s, tokenizer: Tokenizer | None, flops: float, peak: float):
        self.s, self.tokenizer = s, tokenizer
        self.flops, self.peak, self.tokens = flops, peak, s.batch_size * s.seq_len
        self.bar = sys.stdout.isatty()
        self.since, self.drawn = [], 0.0
        self.losses = []

    def text(self, ids: list[int]) -> str:
        """Ids as text that is safe for a terminal; as numbers without a tokenizer."""
        if not self.tokenizer:
            return " ".join(map(str, ids))
        decoder = Decoder(self.tokenizer)
        return escape_controls("".join(map(decoder.feed, ids)) + decoder.flush())

    def show(self, event: Update | Validation | Sample) -> None:
        if isinstance(event, Update):
            self.since.append(event.seconds)
            if self.s.log_every and (event.step % self.s.log_every == 0 or event.step == self.s.steps - 1):
                self.line(event.step, self.numbers(event))
                self.since = []
        elif isinstance(event, Validation):
            self.losses.append(event.loss)
            self.line(event.step, f"val loss {event.loss:.6f}")
        else:
            self.line(event.step, f"sample\n{self.text(event.ids)}\n---")
        if self.bar:
            self.draw(event.step)

    def numbers(self, event: Update) -> str:
        seconds = sum(self.since) / len(self.since)
        share = f"{100 * self.flops / seconds / self.peak:.0f}% of {'fp32 ' * (self.s.precision == 'bf16')}peak"
        return (f"loss {event.loss:.6f} | lr {event.lr:.2e} | norm {event.grad_norm:.4f} | {seconds * 1e3:.2f} ms | "
                f"{self.tokens / seconds:.0f} tok/s | {share}")  # fmt: skip

    def line(self, step: int, text: str) -> None:
        self.clear()
        print(f"step {step:>{len(str(self.s.steps))}}/{self.s.steps} | {text}", flush=True)

    def clear(self) -> None:
        if self.bar:
            print("\r\x1b[K", end="")

    def draw(self, step: int) -> None:
        now = time.perf_counter()
        if now - self.drawn > 0.1:
            done = 40 * (step + 1) // max(1, self.s.steps)
            print(f"\r\x1b[K[{'#' * min(40, done):<40}] {step}/{self.s.steps}", end="", flush=True)
            self.drawn = now


def record(event: Update | Validation | Sample, tokens: int, screen: Screen) -> dict[str, int | float | str]:
    """The line of metrics.jsonl of an event; tokens per update."""
    if isinstance(event, Update):
        return dict(step=event.step, loss=event.loss, lr=event.lr, grad_norm=event.grad_norm, ms=event.seconds * 1e3,
                    tokens_per_s=tokens / event.seconds)  # fmt: skip
    if isinstance(event, Validation):
        return dict(step=event.step, val_loss=event.loss)
    return dict(step=event.step, sample=screen.text(event.ids))


# --- the end ---------------------------------------------------------------------------------------------------------

DATA_FLAGS = ("train_data", "val_data", "dataset", "tokenizer", "val_fraction", "val_every", "batch_size", "seq_len")


def next_commands(given: dict[str, object], p: SimpleNamespace, checkpoint: Path) -> list[str]:
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
    return [
        shlex.join([*program, name("generate"), str(p.run.path), *prompt, "--temperature", "0.8"]),
        shlex.join([*program, name("train"), "--init", str(checkpoint), *data]),
        shlex.join([*program, name("info"), str(checkpoint)]),
    ]


def body(argv: list[str]) -> int:
    given = read_flags(argv)
    p = prepare(given)
    s, model = p.s, p.model
    peak = measure_peak(model.kernels, model.threads)
    first_screen(p, peak)
    screen = Screen(s, p.data.tokenizer, model.flops_per_step(s.batch_size, s.seq_len), peak)
    with StopSignal() as stop:
        p.run.create(vars(s), environment(model, peak), p.data.tokenizer, 4 * model.config.num_parameters)
        start = time.perf_counter()
        events = train(model, p.batches, p.validation, p.prompt, s, time.perf_counter, lambda: bool(stop))
        with Metrics(p.run.path) as metrics:
            try:
                for event in events:
                    if isinstance(event, Stopped):
                        break
                    metrics.write(**record(event, screen.tokens, screen))
                    screen.show(event)
            except (OSError, DataError):
                # nobody reads the screen any more (Ctrl-C also ends a `| tee`), or the data is gone: keep what was learned
                p.run.save(model, model.t)
                raise
        screen.clear()
        checkpoint = p.run.save(model, event.step)
        losses = f", validation loss {screen.losses[0]:.4f} -> {screen.losses[-1]:.4f}" if screen.losses else ""
        how = "done" if event.finished else "stopped"
        took = duration(time.perf_counter() - start)
        say(how, f"after {event.step} of {s.steps} updates in {took}{losses}, saved {checkpoint}")
        for label, command in zip(("try next", "", ""), next_commands(given, p, checkpoint), strict=True):
            say(label, command)
    return 0 if event.finished else 128 + stop.number


def main(argv: list[str] | None = None) -> int:
    return run("train", body, argv)


if __name__ == "__main__":
    sys.exit(main())
