"""Generation against the machine: tokens a second beside the speed at which memory can be read, prompts beside the peak.

A step reads the matrices once; reading the same bytes without arithmetic, in turn with it, is its limit."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..generation.cache import WEIGHTS
from ..generation.decoder import Decoder
from ..kernels.ops import READ, Move
from ..model import PRECISIONS, Model
from .machine import Machine, Stream, Timed, Times
from .measure import ATTEMPTS, beyond
from .step import PEAK_WINDOWS, fill_weights

CONTEXT, STEPS = 64, 32  # ids that are known before the clock starts, and steps that it times
READS = 8  # windows of reading in a round


@dataclass(frozen=True)
class DecodeRow:
    """Steps of `rows` sequences on a machine. times: seconds of a step; bytes: of the matrices that it reads; memory: bytes per
    second of reading them without arithmetic."""

    isa: str
    threads: int
    weights: str
    rows: int
    times: Times
    bytes: int
    memory: float

    @property
    def tokens_per_s(self) -> float:
        return self.rows / self.times.median

    @property
    def of_memory(self) -> float:
        return self.bytes / self.times.median / self.memory

    @property
    def impossible(self) -> str:
        return beyond(f"{self.weights}, {self.rows} rows ({self.isa})", {"the measured memory speed": self.of_memory})


@dataclass(frozen=True)
class PromptRow:
    """Reading a prompt of `tokens` ids, with the logits of what follows. peak: flops per second in its precision."""

    isa: str
    threads: int
    precision: str
    tokens: int
    times: Times
    flops: int
    peak: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.times.median

    @property
    def of_peak(self) -> float:
        return self.flops / self.times.median / self.peak

    @property
    def impossible(self) -> str:
        return beyond(f"a prompt in {self.precision} ({self.isa})", {"the measured peak": self.of_peak})


def _model(config, machine: Machine, precision: str = "fp32") -> Model:
    model = Model(config, threads=machine.threads, kernels=machine.kernels, adapt=False, precision=precision)
    fill_weights(model)
    return model


def measure_decoding(
    config, machine: Machine, memory: list, rows: tuple[int, ...], repeats: int
) -> Iterator[DecodeRow]:
    """Every way to keep the weights with each number of rows, one after the other; rounds of steps and of reads in turn. memory: the
    kernels whose reads count, the fastest is the limit. Raises CapacityError."""
    model, random = _model(config, machine), np.random.default_rng(1)
    context = max(1, min(CONTEXT, config.block_size - STEPS))
    for weights in WEIGHTS:
        for count in rows:
            decoder = Decoder(model, count, weights=weights)
            ids = random.integers(0, config.vocab_size, (count, context + STEPS))
            views = decoder.matrices()
            base = model.arena.whole
            stream = Stream(base, [(Move("", READ, v.size), (v.ctypes.data - base.ctypes.data) // 4) for v in views])
            reads, samples = [Timed(stream.on(kernels, machine.threads)) for kernels in memory], []
            for _ in range(ATTEMPTS):
                for _ in range(repeats):
                    samples.append(_steps(decoder, ids, context))
                    for timed in reads * READS:
                        timed.sample()
                speed = stream.bytes / min(timed.best for timed in reads)
                row = DecodeRow(
                    machine.kernels.isa, machine.team, weights, count, Times.of(samples), stream.bytes, speed
                )
                if not row.impossible:
                    break
            yield row


def _steps(decoder: Decoder, ids: np.ndarray, context: int) -> float:
    """Seconds of a step, the mean of STEPS."""
    decoder.prefill(list(ids[:, :context]))
    start = time.perf_counter()
    for column in ids[:, context:].T:
        decoder.step(column)
    return (time.perf_counter() - start) / STEPS


def measure_prompts(config, machine: Machine, tokens: int, repeats: int) -> Iterator[PromptRow]:
    """A prompt of so many ids in each precision. Raises CapacityError."""
    prompt = [np.random.default_rng(2).integers(0, config.vocab_size, tokens)]
    for precision in PRECISIONS:
        decoder, samples = Decoder(_model(config, machine, precision), 1), []
        flops = decoder.prompt_flops(tokens)
        decoder.prefill(prompt)
        for _ in range(ATTEMPTS):
            for _ in range(repeats):
                start = time.perf_counter()
                decoder.prefill(prompt)
                samples.append(time.perf_counter() - start)
                machine.measure_peaks(PEAK_WINDOWS)
            peak = machine.peak(precision == "bf16")
            row = PromptRow(machine.kernels.isa, machine.team, precision, tokens, Times.of(samples), flops, peak)
            if not row.impossible:
                break
        yield row
