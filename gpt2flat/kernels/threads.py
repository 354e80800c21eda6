"""How many threads, where they run and how they wait.

OMP_NUM_THREADS, GOMP_SPINCOUNT, OMP_WAIT_POLICY, OMP_PROC_BIND, OMP_PLACES and GOMP_CPU_AFFINITY are the user's: what is
set there is left as it is."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..memory.limits import affinity, cpu_quota
from .checked import MAX_THREADS

# A thread that waits spins this often before it sleeps. The gain over libgomp's own 300,000 is mixed. An update of the preset
# tiny, 2 threads on 2 cores, rounds in turn, 1000 spins against 300,000: alone 13.7 and 13.7 ms; beside one busy process 37-40
# and 26-41 (10,000: 60-73); beside two 36-37 and 40-49. libgomp reads it when it is loaded, so it is set here.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")


@dataclass(frozen=True)
class Threads:
    """How many threads, and what decided it."""

    count: int
    why: str


def default_threads(wish: int | None = None) -> Threads:
    """A wish (--threads), else OMP_NUM_THREADS, else the physical cores in the affinity mask, limited by the cgroup quota.

    Raises UsageError for a wish that is not a whole number from 1 to MAX_THREADS."""
    if wish is not None:
        if type(wish) is not int or not 1 <= wish <= MAX_THREADS:
            raise UsageError(f"threads = {wish!r}: expected a whole number from 1 to {MAX_THREADS}")
        return Threads(wish, "as asked")
    from_env = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if from_env.isascii() and from_env.isdigit() and int(from_env) > 0:
        return Threads(min(int(from_env), MAX_THREADS), "OMP_NUM_THREADS")
    count, why = len(_cores()), "physical cores"
    quota = cpu_quota()
    if quota is not None and quota < count:
        count, why = max(1, int(quota)), f"cgroup quota of {quota:.1f} CPUs"
    return Threads(count, why)


def _cores() -> list[set[int]]:
    """The physical cores that this process may use, each as the set of its CPUs."""
    cores: dict[object, set[int]] = {}
    for cpu in affinity():
        cores.setdefault(_core_of(cpu), set()).add(cpu)
    return list(cores.values())


def _core_of(cpu: int):
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return cpu


class Placement:
    """Keeps each thread of the kernels on a physical core of its own, if there are just as many cores as threads.

    Systems wake a thread beside the one that woke it, and some virtual machines pack threads on few CPUs: two that wait for
    each other in turn were seen to share one core of two for minutes, at half the speed. Workers are bound for good, the calling
    thread only inside of `with placement:`, so that what it starts elsewhere is free. Cores go by rank, so that all placements of
    a process agree. size: threads now. workers: thread id -> CPUs, empty where nothing is placed yet."""

    def __init__(self, kernels, threads: int):
        """Starts no thread."""
        self._kernels, self.size, self.workers, self._free = kernels, threads, {}, None
        can = hasattr(os, "sched_getaffinity") and hasattr(os, "sched_setaffinity")
        self._cores = _cores() if can and not any(os.environ.get(name) for name in BINDING) else []

    def __enter__(self) -> None:
        """Before kernels run. Raises ForkError in a child forked after kernels had run."""
        self._kernels.ready()
        self._place()

    def _place(self) -> None:
        bound = 2 <= self.size == len(self._cores)
        if not bound and (self.size == 1 or not self.workers):
            return
        # every caller has a team of its own and a smaller one ends threads: what starts now inherits CPUs that are still free
        team = self._kernels.team(self.size)
        free = os.sched_getaffinity(0)
        with contextlib.suppress(OSError):  # a system that forbids it still runs
            if not bound:  # fewer than there are cores: some other program may be on any of them
                for worker in team[1:]:
                    os.sched_setaffinity(worker, free)
                self.workers = {}
            elif len(team) == len(self._cores) and self._cores[0] <= free:
                workers = dict(zip(team[1:], self._cores[1:]))
                for worker, core in workers.items() if workers != self.workers else ():
                    os.sched_setaffinity(worker, core)
                self.workers = workers
                os.sched_setaffinity(0, self._cores[0])
                self._free = free

    def __exit__(self, *_) -> None:
        if self._free:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, self._free)
            self._free = None

    def resize(self, threads: int) -> None:
        """So many threads from now on; between two kernels, inside of the `with`."""
        self.__exit__()
        self.size = threads
        self._place()
