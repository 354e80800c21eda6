"""The arena: one reservation of address space that holds every float, cut into sections, and the views into it.

  header | params | grads | m | v || scratch | dacts | acts            (|| = what a new (B, T) plans again)

Header and params are the image of an llm.c checkpoint, so a load is one read and a save is one write. Pages cost memory
only once they are touched. The only file that knows where the floats are."""

import mmap
import os
from pathlib import Path

import numpy as np

from ..errors import CapacityError
from .layout import Layout

HEADER_FLOATS = 256
HUGE_PAGE = 2 << 20
PAGE_FLOATS = 4096 // 4
MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.13 on
STATE = ("header", "params", "grads", "m", "v")
WORK = ("scratch", "dacts", "acts")
DTYPES = {"f32": np.float32, "i32": np.int32}


class Section:
    """A named range of the arena with a Layout: section["qkvw"] is a NumPy view, section.slot("qkvw", 3) that of one layer."""

    def __init__(self, name: str, floats: np.ndarray, layout: Layout, names: dict[str, str] | None = None):
        self.name, self.floats, self.layout = name, floats, layout
        self._names = names or {}  # other names for the same rows (homes of gradients)

    def _place(self, name: str):
        name = self._names.get(name, name)
        if name not in self.layout:
            raise KeyError(f"{self.name} has no tensor {name!r}; it has {', '.join(self.keys())}")
        return self.layout[name]

    def __getitem__(self, name: str) -> np.ndarray:
        place = self._place(name)
        flat = self.floats[place.offset : place.offset + place.floats]
        return flat.view(DTYPES[place.row.dtype]).reshape(place.shape)

    def slot(self, name: str, index: int = 0) -> np.ndarray:
        """The view of one layer; a row that is not stacked, or has one slot, gives its only one."""
        view = self[name]
        place = self._place(name)
        return view[min(index, place.slots - 1)] if place.slots else view

    def keys(self) -> list[str]:
        return list(self._names) or list(self.layout.places)

    def __iter__(self):
        return iter(self.keys())

    def __contains__(self, name: str) -> bool:
        return self._names.get(name, name) in self.layout

    def items(self):
        return [(name, self[name]) for name in self.keys()]


class Arena:
    """One buffer for a model. `sizes` maps section names to floats; `starts` to their first float."""

    def __init__(self, state_floats: int):
        """Reserves room for header and four times `state_floats`, and behind them for anything the machine can hold.

        Raises CapacityError when not even the state can be reserved (RLIMIT_AS, strict overcommit)."""
        self.starts, self.sizes, at = {}, {}, 0
        for name in STATE:
            self.starts[name], self.sizes[name] = at, HEADER_FLOATS if name == "header" else state_floats
            at += self.sizes[name]
            at = at if name == "header" else _round_up(at, PAGE_FLOATS)
        self.state_end = at
        room = max(_physical_memory(), 1 << 26)
        while True:
            try:
                self._map = _reserve(self.state_end * 4 + room + HUGE_PAGE)
                break
            except OSError:
                if room <= 1 << 26:
                    raise CapacityError(
                        f"cannot reserve {human(self.state_end * 4)} of address space for the parameters, gradients and "
                        "AdamW state: raise the limit (ulimit -v) or take a smaller model"
                    ) from None
                room //= 2
        raw = np.frombuffer(self._map, np.uint8)
        skip = -raw.ctypes.data % HUGE_PAGE
        self._floats = raw[skip : skip + (len(raw) - skip) // 4 * 4].view(np.float32)
        self._skip = skip
        self.end = self.state_end
        self.peak_work = 0

    @property
    def buffer(self) -> np.ndarray:
        """All floats in use, header first."""
        return self._floats[: self.end]

    def section(self, name: str, layout: Layout, names: dict[str, str] | None = None) -> Section:
        start = self.starts[name]
        return Section(name, self._floats[start : start + layout.floats], layout, names)

    def plan_work(self, sizes: dict[str, int]) -> None:
        """Plans scratch, dacts and acts anew; their old contents are given back to the system.

        sizes: floats by section. Raises CapacityError with a breakdown when they cannot fit; the old plan then stays."""
        starts, at = {}, self.state_end
        for name in WORK:
            starts[name] = at
            at = _round_up(at + sizes[name], PAGE_FLOATS)
        self._check(at, sizes)
        if at > len(self._floats):
            raise CapacityError(
                f"the plan of {human(at * 4)} does not fit the {human(len(self._floats) * 4)} of address space that could be "
                f"reserved: raise the limit (ulimit -v) or take a smaller batch\n{self.breakdown(sizes)}"
            )
        if self.end > self.state_end:
            _release(self._map, self._skip + self.state_end * 4, (self.end - self.state_end) * 4)
        self.starts.update(starts)
        self.sizes.update(sizes)
        self.end = at

    def _check(self, end: int, sizes: dict[str, int]) -> None:
        # what is resident now was counted as used already, so only the growth must find room
        resident = _resident_memory()
        have, limit = available_memory()
        if end * 4 > have + resident:
            raise CapacityError(
                f"the plan needs {human(end * 4)}, but only {human(have)} are available ({limit}): take a smaller --batch-size or "
                f"--seq-len, or a smaller model\n{self.breakdown(sizes)}"
            )

    def breakdown(self, sizes: dict[str, int] | None = None) -> str:
        sizes = {**self.sizes, **(sizes or {})}
        return ", ".join(f"{name} {human(floats * 4)}" for name, floats in sizes.items() if name != "header")


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def _reserve(length: int) -> mmap.mmap:
    if os.name == "nt":
        return mmap.mmap(-1, length)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (MAP_NORESERVE if os.uname().sysname == "Linux" else 0)
    region = mmap.mmap(-1, length, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            region.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without transparent huge pages
    return region


def _release(region: mmap.mmap, start: int, length: int) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        region.madvise(mmap.MADV_DONTNEED, start, _round_up(length, mmap.PAGESIZE))


def _read_number(path: str) -> int | None:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _meminfo(key: str) -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _physical_memory() -> int:
    return _meminfo("MemTotal") or 1 << 36


def _resident_memory() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def available_memory() -> tuple[int, str]:
    """Bytes this process can still take, and what sets the limit: the machine, its cgroup or RLIMIT_AS."""
    limits = [(_meminfo("MemAvailable") or 1 << 62, "free memory of the machine")]
    for most, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        cap = _read_number(most)
        if cap is not None:
            limits.append((max(0, cap - (_read_number(used) or 0)), "memory limit of the cgroup"))
    return min(limits)


def human(n: float) -> str:
    """Bytes for people: 497.9 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} TB"
