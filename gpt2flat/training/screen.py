"""What a run shows on the screen: the lines before it starts, one for each event, and on a terminal a bar.

Lines go out through print; what they say comes from events, settings and the model."""

import sys
import time

import numpy as np

from ..data.tokenizer import Decoder, Tokenizer, escape_controls
from ..kernels import cpu_name
from ..memory.arena import human
from ..model import Model
from .loop import Controlled, Event, RolledBack, Sample, Saved, Updated, Validation
from .settings import accumulation
from .start import Ready

BF16 = {True: "bf16 products, ", False: "bf16 products (rounded, then multiplied as float32: no AVX512_BF16), "}
PROMPT = 1000  # tokens of a sample's prompt that are shown and recorded


def say(label: str, text: str) -> None:
    print(f"{label:<9} {escape_controls(text)}", flush=True)


def duration(seconds: float) -> str:
    """ "28.5 s", "3.2 min", "5.0 h", "4.1 days"."""
    units = ((90, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h"), (float("inf"), 86400, "days"))
    unit, name = next((unit, name) for below, unit, name in units if seconds < below)
    return f"{seconds / unit:.1f} {name}"


def describe(model: Model, name: str, B: int, T: int) -> str:
    c = model.config
    return (
        f"{name}: {c.n_layer} layers, {c.n_head} heads, {c.n_embd} channels, block size {c.block_size}, vocabulary {c.vocab_size} "
        f"(padded {c.padded_vocab_size}), {c.num_parameters:,} parameters; B {B}, T {T}"
    )


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


def first_screen(p: Ready, peak: float) -> None:
    """Machine, data, model, memory, and how long it will take. peak: flops per second."""
    s, model = p.s, p.model
    team, wish = model.kernels.last_team(), p.threads  # the team of the peak's measurement
    why = (
        wish.why if team == wish.count else f"{wish.count} wanted" if model.kernels.openmp() else "built without OpenMP"
    )
    bf16 = BF16[model.kernels.multiplies_bf16] if model.precision == "bf16" else ""
    say(
        "machine",
        f"{model.kernels.label}, {team} thread{'s' * (team > 1)} ({why}), {cpu_name()}, {bf16}measured peak {peak / 1e9:.0f} GFLOP/s",
    )
    say("data", p.data.about)
    say("model", describe(model, p.title, s.batch_size, s.seq_len))
    say("memory", f"{human(4 * model.buffer.size)}: {model.arena.breakdown()}")
    left, n = s.steps - p.trainer.step, accumulation(s)
    checks = s.val_batches if s.val_batches > 0 else p.validation.batches if p.validation else 0
    checks *= left // s.val_every + 1 if p.validation else 0
    seconds = measure_update(model, s.batch_size, s.seq_len) * (left * n + checks / 3)
    batch = f"{n} x {s.batch_size} x {s.seq_len}" if n > 1 else f"{s.batch_size} x {s.seq_len}"
    tokens = n * s.batch_size * s.seq_len
    rest = f"{left} of {s.steps}" if p.resumed is not None else f"{s.steps}"
    say("run", f"{rest} updates of {batch} tokens, {left * tokens:,} in all or {left * n / p.trainer.batches.batches:.1f} epochs, "
        f"about {duration(seconds)}, into {p.run.path}/")  # fmt: skip
    if p.resumed is not None:
        changed = "".join(f", {name} {before} -> {now}" for name, (before, now) in p.changed.items())
        say("resumed", f"after {p.resumed} updates from {p.title}{changed}")
    for note in p.notes:
        say("note", note)


class Screen:
    """The lines of a running training: one each log_every updates, and each other event; on a terminal also a bar."""

    def __init__(self, p: Ready, peak: float):
        s = self.s = p.s
        n = accumulation(s)
        self.tokens = n * s.batch_size * s.seq_len
        self.losses: list[float] = []
        self._flops, self._peak = n * p.model.flops_per_step(s.batch_size, s.seq_len), peak
        self._tokenizer: Tokenizer | None = p.data.tokenizer
        self._bar, self._drawn = sys.stdout.isatty(), 0.0
        self._since: list[float] = []
        self._pace = 0.0  # seconds of an update, a running mean

    def text(self, ids: list[int]) -> str:
        """Ids as text that is safe for a terminal; as numbers without a tokenizer."""
        if not self._tokenizer:
            return " ".join(map(str, ids))
        decoder = Decoder(self._tokenizer)
        return escape_controls("".join(map(decoder.feed, ids)) + decoder.flush())

    def prompt(self, event: Sample) -> str:
        """The text that a sample goes on from, the end of a long one; "" for the start of a text."""
        usual = event.prompt == [self._tokenizer.start if self._tokenizer else 0]
        return "" if usual else self.text(event.prompt[-PROMPT:])

    def show(self, event: Event) -> None:
        if isinstance(event, Updated):
            self._updated(event)
        elif isinstance(event, Validation):
            self.losses.append(event.loss)
            self._line(event.step, f"val loss {event.loss:.6f}")
        elif isinstance(event, Sample):
            self._line(event.step, f"sample\n{self.prompt(event)}{self.text(event.ids)}\n---")
        elif isinstance(event, Saved) and (
            event.problem or event.step < self.s.steps
        ):  # the last line tells of the last
            took = f"in {event.seconds:.1f} s, updates waited {event.stalled:.1f} s"
            self._line(event.step, f"not saved: {event.problem}" if event.problem else f"saved {event.path} {took}")
        elif isinstance(event, Controlled):
            told = ", ".join(f"{name} {value!r}" for name, value in event.changes.items() if name != "file")
            self._line(event.step, f"control.toml: {escape_controls(told)}")
        elif isinstance(event, RolledBack):
            self._line(event.step, f"{event.why}: back to step {event.to}, without that batch")
        if self._bar:
            self._draw(event.step)

    def _updated(self, event: Updated) -> None:
        self._since.append(event.seconds)
        self._pace = event.seconds if not self._pace else 0.95 * self._pace + 0.05 * event.seconds
        due = self.s.log_every and (event.step % self.s.log_every == 0 or event.step == self.s.steps - 1)
        if due or event.update.skipped:
            self._line(event.step, self._numbers(event))
            self._since = []

    def _numbers(self, event: Updated) -> str:
        u, seconds = event.update, sum(self._since) / len(self._since)
        share = f"{100 * self._flops / seconds / self._peak:.0f}% of {'fp32 ' * (self.s.precision == 'bf16')}peak"
        norm = "-" if u.grad_norm is None else f"{u.grad_norm:.4f}"
        skipped = f" | left out: {u.skipped}" if u.skipped else ""
        return (f"loss {u.loss:.6f}{_z(u.loss_z)} | lr {u.lr:.2e} | norm {norm}{_z(u.norm_z)} | {seconds * 1e3:.2f} ms | "
                f"{self.tokens / seconds:.0f} tok/s | {share} | {duration((self.s.steps - event.step - 1) * self._pace)} left{skipped}")  # fmt: skip

    def _line(self, step: int, text: str) -> None:
        self.clear()
        print(f"step {step:>{len(str(self.s.steps))}}/{self.s.steps} | {text}", flush=True)

    def clear(self) -> None:
        if self._bar:
            print("\r\x1b[K", end="")

    def _draw(self, step: int) -> None:
        now = time.perf_counter()
        if now - self._drawn > 0.1:
            done = 40 * (step + 1) // max(1, self.s.steps)
            print(f"\r\x1b[K[{'#' * min(40, done):<40}] {step}/{self.s.steps}", end="", flush=True)
            self._drawn = now


def _z(z: float | None) -> str:
    """llm.c's z-score, once there are enough values."""
    return "" if z is None else f" ({z:+.2f}z)"


def record(event: Event, tokens: int, screen: Screen) -> dict[str, object]:
    """The line of metrics.jsonl of an event; tokens per update. Numbers that are not finite are null there."""
    if isinstance(event, Updated):
        u = event.update
        told = {"loss_z": u.loss_z, "grad_norm_z": u.norm_z, "skipped": u.skipped}
        return dict(step=u.step, loss=_finite(u.loss), lr=u.lr, grad_norm=_finite(u.grad_norm), ms=event.seconds * 1e3,
                    tokens_per_s=tokens / event.seconds) | {name: value for name, value in told.items() if value is not None}  # fmt: skip
    if isinstance(event, Validation):
        return dict(step=event.step, val_loss=event.loss)
    if isinstance(event, Sample):
        prompt = screen.prompt(event)
        return dict(step=event.step, sample=screen.text(event.ids)) | ({"prompt": prompt} if prompt else {})
    if isinstance(event, Saved):
        told = {"failed": event.problem} if event.problem else {"saved": event.path}
        return dict(step=event.step, seconds=event.seconds, stalled=event.stalled) | told
    if isinstance(event, Controlled):
        return dict(step=event.step, control=event.changes)
    if isinstance(event, RolledBack):
        return dict(step=event.step, rollback=event.to, draw=event.draw, why=event.why)
    return dict(step=event.step, stopped="finished" if event.finished else "early")


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None
