"""Times one kernel on several machines in turn, beside the limits of the machine in the same rounds."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..kernels import run
from .cases import Arguments, Case
from .machine import Machine, Timed, Times, WINDOW, placed, repeated
from .peers import Peer, PeerRow, remotes

TOLERANCE = 0.03  # by so much a share may exceed 1: clocks and neighbours change between two windows
ATTEMPTS = 4  # more rounds, with the peak measured anew, before such a share is believed


@dataclass(frozen=True)
class Row:
    """One kernel on one machine. arrays: bytes of its arguments; moved: bytes it has to read and write; peak: flops per
    second; memory: bytes per second of the same reads and writes without arithmetic."""

    case: Case
    backend: str
    isa: str
    threads: int
    arrays: int
    times: Times
    moved: int
    peak: float
    memory: float

    @property
    def seconds(self) -> float:
        return self.times.median

    @property
    def flops_per_s(self) -> float:
        return self.case.flops / self.seconds

    @property
    def bytes_per_s(self) -> float:
        return self.moved / self.seconds

    @property
    def of_peak(self) -> float:
        return self.flops_per_s / self.peak

    @property
    def of_memory(self) -> float:
        return self.bytes_per_s / self.memory

    @property
    def impossible(self) -> str:
        shares = {"the measured peak": self.of_peak, "the measured memory speed": self.of_memory}
        return beyond(f"{self.case.kernel.name} {self.case} ({self.isa})", shares)


def beyond(what: str, shares: dict[str, float]) -> str:
    """What is wrong with something that reaches more than all of a limit; "" if it does not."""
    over = [f"{share:.0%} of {limit}" for limit, share in shares.items() if share > 1 + TOLERANCE]
    return f"{what} reaches {' and '.join(over)}" if over else ""


def measure(
    case: Case, machines: list[Machine], memory: list, repeats: int, window: float, peers: Sequence[Peer] = ()
) -> tuple[list[Row], list[PeerRow]]:
    """The rows of a case after `repeats` rounds over all machines, each with a window of the kernel, of its stream and
    of the peak, and over the peers that know it; the limits are the best windows.

    memory: the kernels whose streams count, the fastest is the limit of all. Raises KernelArgError for dims that cannot
    be, and CapacityError; UsageError where a peer fails."""
    arguments = Arguments(case, machines)
    timed, threads = {}, {}
    for machine in machines:
        run(case.kernel.name, kernels=machine.kernels, **arguments.views, **arguments.numbers)  # checks everything
        threads[machine] = machine.team
        call = machine.kernels.bind(case.kernel, arguments.views, arguments.numbers)
        timed[machine] = Timed(placed(repeated(call), machine.kernels, machine.threads), window)
    visits = [arguments.stream.on(kernels, machines[0].threads) for kernels in memory]
    streams = [Timed(visit, max(window, WINDOW)) for visit in visits]  # as long, or what disturbs would differ
    others = remotes(peers, case.kernel.name, case.dims, window)
    for _ in range(ATTEMPTS):
        for _ in range(repeats):
            for machine in machines:
                timed[machine].sample()
                machine.measure_peak(case.bf16, windows=1)
            for timed_one in (*others, *streams):
                timed_one.sample()
        speed = arguments.stream.bytes / min(stream.best for stream in streams)
        rows = [
            Row(case, m.kernels.name, m.kernels.isa, threads[m], arguments.bytes, timed[m].times,
                arguments.stream.bytes, m.peak(case.bf16), speed)
            for m in machines
        ]  # fmt: skip
        if not any(row.impossible for row in rows):
            break
        for machine in machines:
            machine.measure_peak(case.bf16)
    return rows, [other.row for other in others]
