"""How many threads a model uses while other programs want its CPUs: as many as pay, never more than it was given.

A region ends when its last thread does. A thread that shares a core with another program makes all wait, several hundred times a
step; then fewer threads are faster. The system tells when threads are kept waiting; only then are smaller teams tried, and
what the same kernels took decides. No result depends on the size of the team."""

import math
import os
import threading
import time
from collections.abc import Iterable, Iterator

from .threads import Placement

WINDOW = 0.05  # seconds of kernels between two looks: many times the few ms for which systems let a thread run
WAITING = 0.1  # threads that were kept waiting for a CPU, on average, from which on there is a crowd
CROWDED = 2  # windows in a row before anything is tried: most of what comes is gone by then
TRY = 3  # windows: systems favour threads that have slept, so a larger team looks too good at first and a smaller one too bad
GAIN = 0.97  # a team stays if it takes less than this of the time of the one before
SHARE = 0.02  # of all time is lost in tries that do not pay
REST = 3.0  # seconds at least between two tries of a larger team
SOON = 4  # windows until the first one, and between two tries of a smaller team
KINDS = 4096  # times of so many kernels are kept
WAITS = "/proc/self/task/{}/schedstat"  # nanoseconds that a thread ran, that it was ready and did not run; slices


class Policy:
    """The size of the team from what went on in each window; no clock and no threads here.

    What a team would take now is what it took at its best for the same kinds of calls, times how much slower than that it was
    when it last worked. team: the size for the next window."""

    def __init__(self, most: int):
        self.most = self.team = most
        self._seconds = 0.0  # of all windows
        self._crowds = 0  # windows in a row, up to the latest, with a crowd
        self._best: dict[int, dict] = {}  # team -> kind of call -> its least seconds
        self._slow: dict[int, float] = {}  # team -> its latest windows over the least seconds
        self._before = None  # the team that a try would do better than, while there is one
        self._rest = {"larger": 0.0, "smaller": 0.0}  # no try of that before so many seconds
        # a larger team that paid is followed by a longer step, and so is a smaller one that did not
        self._step = {"larger": 1, "smaller": 1}

    def next(self, laps: list[tuple[object, float]], waiting: float) -> int:
        """The team for the next window. laps: kind and seconds of each call of this one; waiting: how many of its threads were
        ready and kept from running, on average."""
        self._seconds += _seconds(laps)
        self._crowds = self._crowds + 1 if waiting > WAITING else 0
        self._learn(laps)
        if self._before and not self._settled(laps):
            return self.team
        smaller = max(1, self.team - math.ceil(waiting * self._step["smaller"]))
        if self._crowds >= CROWDED and self.team > 1 and self._due("smaller") and self._promises(smaller, laps):
            self._try(smaller)
        elif self.team < self.most and self._due("larger"):
            self._try(min(self.most, self.team + self._step["larger"]))
        return self.team

    def _due(self, way: str) -> bool:
        return self._seconds >= self._rest[way]

    def _try(self, team: int) -> None:
        self._before, self.team, self._windows, self._lost, self._crowds = self.team, team, 0, 0.0, 0

    def _settled(self, laps) -> bool:
        """Looks at a window of a try: a larger team has to pay in every one, a smaller one in one. True if the team stays; else the
        try goes on, or the team is the one before again."""
        larger = self.team > self._before
        least, took = self._known(self._before, laps)
        expected = least * self._slow[self._before]
        pays = took < GAIN * expected if least else not (larger and self._crowds)
        self._windows += 1
        self._lost += max(0.0, took - expected) if least else _seconds(laps)
        if pays == larger and self._windows < TRY:
            return False
        way, soon = "larger" if larger else "smaller", SOON * _seconds(laps)
        self._step[way] = 2 * self._step[way] if pays == larger and self.team > 1 else 1
        if pays:
            self._rest["larger"] = self._seconds + (0 if larger else soon)
        else:
            self._rest[way] = self._seconds + max(self._lost / SHARE, REST if larger else soon)
            self.team, self._crowds = self._before, 0
        self._before = None
        return pays

    def _promises(self, team: int, laps) -> bool:
        """Whether that team, at its best, would be faster than this one is now."""
        least, took = self._known(team, laps)
        return not least or least < took

    def _known(self, team: int, laps) -> tuple[float, float]:
        """Of the calls whose kind that team has run: its least seconds, and what they took now."""
        best = self._best.get(team, {})
        pairs = [(best[kind], seconds) for kind, seconds in laps if kind in best]
        return sum(least for least, _ in pairs), sum(seconds for _, seconds in pairs)

    def _learn(self, laps) -> None:
        best = self._best.setdefault(self.team, {})
        if len(best) > KINDS:
            best.clear()
        least = took = 0.0
        for kind, seconds in laps:
            if kind not in best:
                best[kind] = seconds  # the first of its kind may be slow for reasons of its own
                continue
            best[kind] = min(best[kind], seconds)
            least, took = least + best[kind], took + seconds
        now = took / least if least else 1.0
        self._slow[self.team] = (self._slow.get(self.team, now) + now) / 2


def _seconds(laps) -> float:
    return sum(seconds for _, seconds in laps)


class Team(Placement):
    """The threads of a model, placed; unless `adapt` is false or the backend cannot, as many as pay. size: how many now."""

    def __init__(self, kernels, threads: int, adapt: bool = True):
        """threads: the most. Starts no thread."""
        super().__init__(kernels, threads)
        self._policy = Policy(threads) if adapt and threads > 1 and kernels.adapts else None
        self._caller = None  # the calling thread that the window is about

    def _place(self) -> None:
        if self._policy:
            self._kernels.limit_team(self.size)
        super()._place()

    def __exit__(self, *_) -> None:
        if self._policy:
            self._kernels.limit_team(0)
        super().__exit__()

    def each(self, calls: Iterable) -> Iterable:
        """The calls of a pass (program.Call), to be made in this order inside of the `with`; between two the team may change."""
        return self._watched(calls) if self._policy else calls

    def _watched(self, calls: Iterable) -> Iterator:
        if self._caller != threading.get_ident():
            self._open()
        start = time.perf_counter()
        for call in calls:
            yield call
            now = time.perf_counter()
            self._laps.append((call.kind, now - start))
            self._took += now - start
            if self._took >= WINDOW:
                self._close()
                now = time.perf_counter()
            start = now

    def _open(self) -> None:
        """A new window, of this caller and a team of this size."""
        self._caller = threading.get_ident()
        self._ids = self._kernels.team(self.size)
        try:
            self._waited = self._wait()
        except OSError:  # no such file on this system
            self._ids = []
            self._waited = self._wait()
        self._since, self._laps, self._took = time.perf_counter(), [], 0.0

    def _close(self) -> None:
        try:
            waited = self._wait()
        except OSError:  # another model ended some of these threads
            return self._open()
        now = time.perf_counter()
        size = self._policy.next(self._laps, (waited - self._waited) / (now - self._since))
        if size != self.size:
            self.resize(size)
            return self._open()
        self._waited, self._since, self._laps, self._took = waited, now, [], 0.0

    def _wait(self) -> float:
        """Seconds that the threads of the team have been ready and kept from running. Where the system does not say: that they did
        not run, less a quarter of all, in which they may wait for each other."""
        if not self._ids:
            return 0.75 * self.size * time.perf_counter() - time.process_time()
        total = 0
        for thread in self._ids:
            file = os.open(WAITS.format(thread), os.O_RDONLY)
            try:
                total += int(os.read(file, 64).split()[1])
            finally:
                os.close(file)
        return total / 1e9
