"""Where the time of a real step goes: every call of a kernel on the clock, in its order and with its caches.

A row is a kernel at one shape. Its ideal is the larger of its flops at the peak and of its own reads and writes, without
arithmetic and on its own arrays, one call repeated; what it took longer is lost."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from ..kernels.ops import OP_OF, Kernel
from .cases import Case
from .machine import Stream, Timed
from .measure import ATTEMPTS, beyond
from .step import PEAK_WINDOWS, StepRow, Trainee


class Probe:
    """Kernels whose bound calls note in `log` who they are and how long they took, while there is a log."""

    def __init__(self, kernels):
        self._kernels, self.log = kernels, None

    def __getattr__(self, name: str):
        return getattr(self._kernels, name)

    def bind(self, kernel: Kernel, tensors: dict, numbers: dict[str, int]) -> Callable[[], None]:
        call, what = self._kernels.bind(kernel, tensors, numbers), (kernel, tensors, numbers)

        def timed() -> None:
            if self.log is None:
                return call()
            start = time.perf_counter()
            call()
            self.log.append((what, time.perf_counter() - start))

        return timed


class Group:
    """The calls of a kernel that are alike, as one call of case.calls; those of the optimizer count as one on all that
    they visit. seconds: of all of them, by round."""

    def __init__(self, calls: list, buffer):
        kernel, tensors, numbers = calls[0]
        op = OP_OF[kernel.name]
        dims = {dim: numbers[dim] for dim in op.dims.split()}
        if op.update:
            dims = {dim: sum(numbers[dim] for _, _, numbers in calls) for dim in dims}
        self.case = Case(op, kernel, dims, {acc: numbers[acc] for acc in kernel.accs}, 1 if op.update else len(calls))
        self.count, self.seconds = len(calls), []
        base, parts = buffer.ctypes.data, []
        for move in self.case.moves:
            if tensors.get(move.name) is not None:
                first = min(tensors[move.name].ctypes.data for _, tensors, _ in calls)
                parts.append((move, (first - base) // 4))
        self.stream = Stream(buffer, parts)


@dataclass(frozen=True)
class ProfileRow:
    """The calls of a step that are alike: how many, the seconds of all of them, the bytes that one moves, the limits."""

    case: Case
    count: int
    seconds: float
    moved: int
    peak: float
    memory: float

    @property
    def flops(self) -> int:
        """Of all calls."""
        return self.case.calls * self.case.flops

    @property
    def bytes(self) -> int:
        """That all calls have to move."""
        return self.case.calls * self.moved

    @property
    def at_peak(self) -> float:
        """Seconds of the arithmetic alone."""
        return self.flops / self.peak

    @property
    def at_memory(self) -> float:
        """Seconds of the reads and writes alone."""
        return self.bytes / self.memory

    @property
    def ideal(self) -> float:
        return max(self.at_peak, self.at_memory)

    @property
    def lost(self) -> float:
        return self.seconds - self.ideal

    @property
    def bound(self) -> str:
        """The limit that counts."""
        return "peak" if self.at_peak >= self.at_memory else "memory"

    @property
    def flops_per_s(self) -> float:
        return self.flops / self.seconds

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / self.seconds

    @property
    def impossible(self) -> str:
        limit = "the measured peak" if self.bound == "peak" else "the measured memory speed"
        return beyond(f"{self.case.kernel.name} {self.case}", {limit: self.ideal / self.seconds})


@dataclass(frozen=True)
class Profile:
    """A step, its rows by what they lose, and the seconds outside of the kernels: Python, the batch, the mean loss.

    clocked: seconds of a step whose calls are on the clock, in the same rounds."""

    step: StepRow
    rows: list[ProfileRow]
    outside: float
    clocked: float

    @property
    def total(self) -> float:
        return sum(row.seconds for row in self.rows) + self.outside

    @property
    def ideal(self) -> float:
        return sum(row.ideal for row in self.rows)


class _Clocked:
    """Steps with every call on the clock: the groups of alike calls, and samples of what is outside of them."""

    def __init__(self, trainee: Trainee, probe: Probe):
        self.trainee, self.probe, self.totals, self.outside = trainee, probe, [], []
        probe.log = []
        trainee.step()
        by_key, buffer = {}, trainee.model.buffer
        for call, _ in probe.log:
            by_key.setdefault(_key(call), []).append(call)
        self.groups = {key: Group(calls, buffer) for key, calls in by_key.items()}
        probe.log = None

    def sample(self) -> None:
        steps, log = self.trainee.timed.rounds, []
        self.probe.log = log
        seconds = self.trainee.timed.clock(steps)
        self.probe.log = None
        took = dict.fromkeys(self.groups, 0.0)
        for call, spent in log:
            took[_key(call)] += spent / steps
        for key, group in self.groups.items():
            group.seconds.append(took[key])
        self.totals.append(seconds / steps)
        self.outside.append(seconds / steps - sum(took.values()))


def _key(call) -> tuple:
    kernel, _, numbers = call
    names = () if OP_OF[kernel.name].update else (*kernel.dims, *kernel.accs)
    return kernel.name, *(numbers[name] for name in names)


def measure_profile(trainee: Trainee, probe: Probe, memory: list, repeats: int) -> Profile:
    """A profile after `repeats` rounds of: steps, steps on the clock, the peaks, the streams of all rows and of AdamW.

    trainee: its kernels are the probe. memory: the kernels whose streams count, the fastest is the limit."""
    clocked, threads = _Clocked(trainee, probe), trainee.machine.threads
    streams = {name: [Timed(group.stream.on(kernels, threads)) for kernels in memory]
               for name, group in clocked.groups.items()}  # fmt: skip
    adamw = trainee.adamw_stream()
    adamw_timed = [Timed(adamw.on(kernels, threads)) for kernels in memory]
    for _ in range(ATTEMPTS):
        for _ in range(repeats):
            trainee.timed.sample()
            clocked.sample()
            trainee.machine.measure_peaks(PEAK_WINDOWS)
            for timed in [*adamw_timed, *(one for ones in streams.values() for one in ones)]:
                timed.sample()
        rows = []
        for name, group in clocked.groups.items():
            speed = group.stream.bytes / min(timed.best for timed in streams[name])
            peak = trainee.machine.peak(group.case.bf16)
            rows.append(ProfileRow(group.case, group.count, median(group.seconds), group.stream.bytes, peak, speed))
        step = trainee.row(adamw.bytes / min(timed.best for timed in adamw_timed))
        if not any(one.impossible for one in (step, *rows)):
            break
        trainee.machine.measure_peaks()
    rows.sort(key=lambda row: -row.lost)
    return Profile(step, rows, median(clocked.outside), median(clocked.totals))
