"""What this machine can do at most: flops in registers, and the reads and writes of a kernel without its arithmetic.

Both are timed with the threads and the instruction set of the kernels, in windows; the best window is the limit."""

import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from statistics import median, quantiles
from typing import NamedTuple

import numpy as np

from ..errors import KernelArgError
from ..kernels import Placement, run
from ..kernels.ops import READ, UPDATE, WRITE, Move
from ..memory.arena import flat
from ..memory.limits import available_memory

WINDOW = 0.005  # seconds: long enough for the clock, short enough to slip between what else runs
PEAK_WINDOW = 0.002  # needs no memory, and the best of many counts: shorter still
WINDOWS = 20
LEAST_STREAM = 1 << 28  # bytes
PATTERNS = {  # how far apart the speeds of memory lie, from reading only to the optimizer
    "read": (READ,),
    "copy": (READ, WRITE),
    "triad": (READ, READ, WRITE),
    "adamw": (READ, UPDATE, UPDATE, UPDATE),
}


class Times(NamedTuple):
    """Seconds over the samples: the median, the quartiles, the ends."""

    median: float
    low: float
    high: float
    least: float
    most: float

    @classmethod
    def of(cls, samples: list[float]) -> "Times":
        low, middle, high = quantiles(samples if len(samples) > 1 else samples * 2, n=4, method="inclusive")
        return cls(middle, low, high, min(samples), max(samples))


class Timed:
    """Something that runs in rounds. Each sample is the seconds of a round, over as many as fill `window` seconds."""

    def __init__(self, run_rounds: Callable[[int], object], window: float | None = None):
        self.run_rounds, self.window = run_rounds, WINDOW if window is None else window
        self.rounds, self.samples = 1, []

    def sample(self) -> None:
        if self.rounds > 1:
            self.run_rounds(1)  # untimed: what ran before has the caches and may have put the threads to sleep
        while (seconds := self.clock(self.rounds)) < self.window:
            self.rounds *= 2
        self.samples.append(seconds / self.rounds)

    def clock(self, rounds: int) -> float:
        """Seconds of so many rounds."""
        start = time.perf_counter()
        self.run_rounds(rounds)
        return time.perf_counter() - start

    @property
    def best(self) -> float:
        return min(self.samples)

    @property
    def middle(self) -> float:
        return median(self.samples)

    @property
    def times(self) -> Times:
        return Times.of(self.samples)


class Machine:
    """The kernels of one backend and instruction set on a number of threads, and the peaks of these: of float32, and of
    products in bf16 where the CPU has them (else these are float32 too)."""

    def __init__(self, kernels, threads: int):
        self.kernels, self.threads = kernels, threads
        modes = (False, True) if kernels.multiplies_bf16 else (False,)
        self.timed = {bf16: Timed(placed(kernels.peak_round(threads, bf16), kernels, threads), PEAK_WINDOW) for bf16 in modes}

    def measure_peak(self, bf16: bool = False, windows: int = WINDOWS) -> float:
        """Flops per second of independent FMAs in registers, the best window so far."""
        for _ in range(windows):
            self.timed[bf16 and self.kernels.multiplies_bf16].sample()
        return self.peak(bf16)

    def measure_peaks(self, windows: int = WINDOWS) -> None:
        """measure_peak of each precision."""
        for bf16 in self.timed:
            self.measure_peak(bf16, windows)

    def peak(self, bf16: bool = False) -> float:
        bf16 = bf16 and self.kernels.multiplies_bf16
        return self.kernels.flops_of_peak_round(bf16) * self.team / self.timed[bf16].best

    @property
    def team(self) -> int:
        """Threads that were at work in the latest kernel."""
        return self.kernels.last_team()


class Stream:
    """Arrays inside a flat float32 buffer that are read, updated (read and written back as they are) or written, as by
    a kernel.

    parts: what is done to each, and at which float it starts. Arrays of equal length are walked side by side. Raises
    KernelArgError for one that leaves the buffer."""

    def __init__(self, data: np.ndarray, parts: Iterable[tuple[Move, int]]):
        parts = list(parts)
        rows = sorted((-move.floats, move.what, start) for move, start in parts)
        if any(not 0 <= start <= start - minus_floats <= data.size for minus_floats, _what, start in rows):
            raise KernelArgError(f"a stream leaves its {data.size} floats")
        self.data, self.bytes = data, sum(move.bytes for move, _ in parts)
        self.ranges = np.array([(what, start, -minus_floats) for minus_floats, what, start in rows], np.int64)

    def on(self, kernels, threads: int) -> Callable[[int], object]:
        """A callable (rounds)."""
        out = np.zeros(16 * threads, np.float32)
        return placed(kernels.stream_round(out, self.data, self.ranges, threads), kernels, threads)


def repeated(call: Callable[[], object]) -> Callable[[int], None]:
    """A callable (rounds)."""

    def run_rounds(rounds: int) -> None:
        for _ in range(rounds):
            call()

    return run_rounds


def placed(run_rounds: Callable[[int], object], kernels, threads: int) -> Callable[[int], object]:
    """The same on cores of its own, as a model runs; the twins compile here, outside of any window."""
    placement = Placement(kernels, threads)

    def run_placed(rounds: int) -> None:
        with placement:
            run_rounds(rounds)

    run_placed(0)
    return run_placed


def measure_peak(kernels, threads: int) -> float:
    """Flops per second of independent FMAs in registers: the most these kernels can do on this machine."""
    return Machine(kernels, threads).measure_peak()


def measure_memory(kernels, threads: int) -> dict[str, float]:
    """Bytes per second of each of PATTERNS on arrays that no cache holds. What writes have to fetch does not count."""
    most = max(map(len, PATTERNS.values()))
    total = max(LEAST_STREAM, 2 * threads * last_cache())  # if every thread had a last cache of its own
    floats = min(total, available_memory()[0] // 2) // 4 // most
    data, found = flat(most * floats, "the memory speed"), {}
    data[:] = 1.0
    for name, what in PATTERNS.items():
        stream = Stream(data, [(Move("", kind, floats), i * floats) for i, kind in enumerate(what)])
        timed = Timed(stream.on(kernels, threads))
        for _ in range(WINDOWS // 2):
            timed.sample()
        found[name] = stream.bytes / timed.best
    return found


def last_cache() -> int:
    """Bytes of the last cache of a core; 0 where the system does not say."""
    for name in ("SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE"):
        if name in getattr(os, "sysconf_names", ()) and (size := os.sysconf(name)) > 0:
            return size
    return 0


def faster_precision(kernels, threads: int) -> str:
    """bf16 if a product of its kind is faster here than in fp32: on some CPUs it has half the speed, on most none."""
    if not kernels.multiplies_bf16:
        return "fp32"  # what is rounded is multiplied as float32
    N, C, OC = 256, 768, 768
    x, w, y = (np.zeros(shape, np.float32) for shape in ((N, C), (OC, C), (N, OC)))

    def product(mode: int, rounds: int) -> None:
        for _ in range(rounds):
            run("linear_forward", out=y, inp=x, weight=w, BF16=mode, threads=threads, kernels=kernels)

    laps = {name: Timed(placed(partial(product, mode), kernels, threads), window=0.0) for mode, name in enumerate(("fp32", "bf16"))}
    for _ in range(7):
        for timed in laps.values():
            timed.sample()
    return "bf16" if laps["bf16"].middle < 0.95 * laps["fp32"].middle else "fp32"
