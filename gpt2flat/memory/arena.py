"""The arena: one reservation of address space that holds every float, cut into sections, and the views into it.

  header | params | grads | m | v | kv | packed | token | prompt || scratch | dacts | acts     (|| = what a new (B, T) plans again)

Header and params are the image of an llm.c checkpoint, so a load is one read and a save is one write. kv to prompt are
generation's. Pages cost memory only once they are touched. The only file that knows where the floats are."""

import mmap
import os
import sys

import numpy as np

from ..errors import CapacityError, reason
from .layout import Layout
from .limits import available_memory

HEADER_FLOATS = 256
HUGE_PAGE = 2 << 20
PAGE_FLOATS = max(mmap.PAGESIZE, 4096) // 4
LEAST_ROOM = 1 << 26
MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.13 on
STATE = ("header", "params", "grads", "m", "v")
GENERATION = ("kv", "packed", "token", "prompt")
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
        self._map = self._reserve_room()
        self._floats, self._skip = _floats(self._map)
        self.end = self.work_start = self.state_end
        self.turn = 0  # plans of generation so far
        self._admitted: dict[str, int] = {}  # bytes by section that were checked against free memory
        self._spare = 0  # bytes of the plan that more recompute would save
        self.admit("header", "params")

    def _reserve_room(self) -> mmap.mmap:
        most = room = max(available_memory()[0], LEAST_ROOM)
        while True:
            try:
                region = _reserve(self.state_end * 4 + room + HUGE_PAGE)
            except OSError:
                if room <= LEAST_ROOM:
                    raise CapacityError(
                        f"cannot reserve {human(self.state_end * 4)} of address space for the parameters, gradients and "
                        "AdamW state: raise the limit (ulimit -v) or take a smaller model"
                    ) from None
                room = max(room // 2, LEAST_ROOM)
                continue
            if (
                room < most
            ):  # a limit bites: leave half of what is left to thread stacks and NumPy, or libgomp ends the process
                region.close()
                region = _reserve(self.state_end * 4 + room // 2 + HUGE_PAGE)
            return region

    @property
    def whole(self) -> np.ndarray:
        """All floats that are reserved, used or not."""
        return self._floats

    @property
    def buffer(self) -> np.ndarray:
        """All floats in use, header first."""
        return self._floats[: self.end]

    def floats(self, name: str) -> np.ndarray:
        """All floats of a section."""
        return self._floats[self.starts[name] : self.starts[name] + self.sizes[name]]

    def section(self, name: str, layout: Layout, names: dict[str, str] | None = None) -> Section:
        start = self.starts[name]
        return Section(name, self._floats[start : start + layout.floats], layout, names)

    def admit(self, *names: str) -> None:
        """Before sections are first touched: raises CapacityError when free memory cannot hold those not admitted yet."""
        new = {name: 4 * self.sizes[name] for name in names if name not in self._admitted}
        if new:  # asking the system takes a third of a millisecond
            self._require(sum(new.values()), self.sizes)
            self._admitted |= new

    def plan_work(self, sizes: dict[str, int], spare: int = 0, training: bool = False) -> None:
        """Plans scratch, dacts and acts anew; their old contents are given back to the system.

        sizes: floats by section; spare: those that --recompute 3 would save, for the advice; training: all that it touches is
        admitted as well, and with the rest at once: what is admitted and not yet touched still counts as free. Raises CapacityError
        with a breakdown when they cannot fit; the old plan then stays."""
        self._spare = 4 * spare
        starts, at = _places(self.work_start, {name: sizes[name] for name in WORK})
        new = {name: 4 * sizes[name] for name in WORK if training or name != "dacts"}
        if training:
            new |= {name: 4 * self.sizes[name] for name in STATE if name not in self._admitted}
        self._require(sum(new.values()) - sum(self._admitted.get(name, 0) for name in WORK), {**self.sizes, **sizes})
        self._replace(self.work_start, starts, at, sizes, new, "a smaller batch")

    def plan_generation(self, sizes: dict[str, int]) -> bool:
        """Plans kv, packed, token and prompt (floats by section) anew, and nothing behind them; True if anything moved. A plan of the
        same sizes stays where it is, with its contents. Raises CapacityError; the old plan then stays."""
        if moved := sizes != {name: self.sizes.get(name) for name in GENERATION}:
            starts, at = _places(self.state_end, {name: sizes[name] for name in GENERATION})
            new = {name: 4 * sizes[name] for name in GENERATION}
            held = sum(self._admitted.get(name, 0) for name in (*GENERATION, *WORK))
            all_sizes = {**self.sizes, **sizes, **dict.fromkeys(WORK, 0)}
            self._require(sum(new.values()) - held, all_sizes, "fewer rows, a smaller capacity")
            self._replace(self.state_end, starts, at, {**sizes, **dict.fromkeys(WORK, 0)}, new, "fewer rows, a smaller capacity")
            self.work_start = at
        self.turn += 1
        return moved

    def _replace(self, begin: int, starts: dict, end: int, sizes: dict, admitted: dict, smaller: str) -> None:
        """Gives back what lies behind `begin` and puts other sections there."""
        if end > len(self._floats):
            raise CapacityError(
                f"the plan of {human(end * 4)} does not fit the {human(len(self._floats) * 4)} of address space that could be "
                f"reserved: raise the limit (ulimit -v) or take {smaller} ({self.breakdown(sizes)})"
            )
        if self.end > begin:
            _release(self._map, self._skip + begin * 4, (self.end - begin) * 4)
        self._admitted = {name: size for name, size in self._admitted.items() if name not in sizes} | admitted
        self.starts.update(starts)
        self.sizes.update(sizes)
        self.end = end

    def _require(self, more: int, sizes: dict[str, int], smaller: str = "a smaller --batch-size or --seq-len") -> None:
        have, limit = available_memory()
        if more > have:
            short, work = more - have, 4 * sum(sizes.get(name, 0) for name in (*GENERATION, *WORK))
            ways = ["--recompute 3"] * (short <= self._spare) + [smaller] * (short < work)
            raise CapacityError(
                f"the plan needs {human(more)} more, but only {human(have)} are available ({limit}): take "
                f"{', '.join([*ways, 'or a smaller model'] if ways else ['a smaller model'])} ({self.breakdown(sizes)})"
            )

    def breakdown(self, sizes: dict[str, int] | None = None) -> str:
        sizes = {**self.sizes, **(sizes or {})}
        return ", ".join(f"{name} {human(floats * 4)}" for name, floats in sizes.items() if floats and name != "header")


def _places(at: int, sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """Where sections start, one behind the other from `at` on, and where the last ends."""
    starts = {}
    for name, floats in sizes.items():
        starts[name] = at
        at = _round_up(at + floats, PAGE_FLOATS)
    return starts, at


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def _reserve(length: int) -> mmap.mmap:
    if os.name == "nt":
        return mmap.mmap(-1, length)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (MAP_NORESERVE if sys.platform == "linux" else 0)
    region = mmap.mmap(-1, length, flags=flags)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            region.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without transparent huge pages
    return region


def _floats(region: mmap.mmap) -> tuple[np.ndarray, int]:
    """The floats of a region from its first huge page on, and the bytes before that."""
    raw = np.frombuffer(region, np.uint8)
    skip = -raw.ctypes.data % HUGE_PAGE
    return raw[skip : skip + (len(raw) - skip) // 4 * 4].view(np.float32), skip


def flat(floats: int, what: str) -> np.ndarray:
    """Zeros in a flat float32 buffer of its own that lies in memory as the arena does. what: who needs it, for the
    CapacityError when it does not fit."""
    have, limit = available_memory()
    if 4 * floats > have:
        raise CapacityError(f"{what} needs {human(4 * floats)}, but only {human(have)} are available ({limit})")
    try:
        return _floats(_reserve(4 * floats + HUGE_PAGE))[0][:floats]
    except OSError as error:
        raise CapacityError(f"{what} needs {human(4 * floats)}, which cannot be reserved: {reason(error)}") from None


def _release(region: mmap.mmap, start: int, length: int) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        region.madvise(mmap.MADV_DONTNEED, start, _round_up(length, mmap.PAGESIZE))


def human(n: float) -> str:
    """Bytes for people: 497.9 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.2f} TB"
