"""The roofline picture (Williams, Waterman, Patterson 2009): flops a byte against flops a second, below peak and memory.

Imports matplotlib, of the extra gpt2flat[plot], only when it draws."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .machine import Machine
from .measure import Row
from .peers import PeerRow
from .profile import Profile, ProfileRow
from .screen import short_name
from .step import StepRow

COLOURS = {"avx512bf16": "#1f6fb4", "avx512": "#2a9d8f", "avx2": "#e07b39", "scalar": "#8d6e63", "numba": "#8e5bb5",
           "torch": "#d62828", "numpy": "#6c757d"}  # fmt: skip
SIZE, DPI = (11.5, 7.2), 130
NUMBERED = 26  # labels in the legend beside the picture
# pixels: what a point and a number keep free around their middle, where a number may stand, from where on a line leads to it
OF_POINT, OF_NUMBER, FAR = (13, 11), (19, 16), 30
PLACES = [(round(far * math.cos(turn * math.pi / 6)), round(far * math.sin(turn * math.pi / 6)))
          for far in range(18, 140, 9) for turn in (1, 5, 11, 7, 3, 9, 0, 6)]  # fmt: skip


@dataclass(frozen=True)
class Point:
    """Work on a machine (or by a peer): its name, flops, the bytes that it has to move, seconds."""

    name: str
    by: str
    flops: int
    moved: int
    seconds: float
    bf16: bool

    @property
    def place(self) -> tuple[float, float]:
        """Flops a byte, GFLOP/s."""
        return self.flops / self.moved, self.flops / self.seconds / 1e9


def kernel_points(rows: list[Row], others: list[PeerRow]) -> list[Point]:
    timed = [(row.isa, row.seconds) for row in rows] + [(other.name, other.times.median) for other in others]
    case, moved = rows[0].case, rows[0].moved
    return [Point(short_name(case), by, case.flops, moved, seconds, case.bf16) for by, seconds in timed]


def step_points(rows: list[StepRow], others: list[PeerRow]) -> list[Point]:
    """The whole step; AdamW's bytes are what it has to move at least."""
    timed = [(row.isa, row.seconds) for row in rows] + [(other.name, other.times.median) for other in others]
    cost, bf16 = rows[0].cost, any(row.peak != row.peak32 for row in rows)
    return [Point("step", by, cost.flops, 28 * cost.parameters, seconds, bf16) for by, seconds in timed]


def profile_points(profile: Profile) -> list[Point]:
    isa = profile.step.isa
    return [Point(short_name(r.case), isa, r.flops, r.bytes, r.seconds, r.case.bf16) for r in profile.rows]


def peaks_of(machines: list[Machine], points: list[Point]) -> dict[str, float]:
    """The ceilings; of bf16 where something was computed so."""
    modes = {False} | {point.bf16 for point in points}
    return {f"{m.kernels.isa}{', bf16' * bf16}": m.peak(bf16) for m in machines for bf16 in m.timed if bf16 in modes}


def memory_roofs(adamw: float, rows: Iterable[Row | ProfileRow] = ()) -> dict[str, float]:
    """The slopes: AdamW's reads and writes, and the fastest of the rows' own streams."""
    cached = max((row.memory for row in rows), default=0)
    return {"memory, AdamW's mix": adamw} | ({"fastest cached stream": cached} if cached else {})


def check_plot(path: str, flag: str = "--plot", kinds: tuple[str, ...] = (".png",)) -> None:
    """Before anything is timed or read. Raises UsageError for a name that is no picture, or in no directory, and without
    matplotlib."""
    if Path(path).suffix.lower() not in kinds:
        names = " or ".join(kind[1:].upper() for kind in kinds)
        raise UsageError(f"{flag} {path}: expected the name of a {names} file, such as picture{kinds[0]}")
    if not Path(path).absolute().parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no directory {Path(path).parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as problem:
        raise UsageError(
            f"{flag} needs matplotlib, which cannot be imported: pip install 'gpt2flat[plot]' ({problem})"
        ) from None


def draw(path: str, title: str, points: list[Point], peaks: dict[str, float], memory: dict[str, float]) -> None:
    """Writes a PNG. peaks: label -> flops per second, a label starts with who has it; memory: label -> bytes per second.
    Points without flops have no place in it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [point for point in points if point.flops]
    figure = Figure(SIZE, dpi=DPI, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlabel="flops per byte that has to move", ylabel="GFLOP/s", title=title)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda *_: "")
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    xs, ys = zip(*(point.place for point in points), strict=True)
    top, fastest = max(peaks.values()) / 1e9, max(memory.values()) / 1e9
    ends = min(*xs, top / fastest / 4) / 2.5, max(xs) * 2.5
    axes.set(xlim=ends, ylim=(min(*ys, top / 20) / 2.5, max(*ys, top) * 1.9))
    for label, peak in sorted(peaks.items(), key=lambda item: item[1]):
        _ceiling(axes, peak / 1e9, label, max(ends[0], peak / 1e9 / fastest), ends[1])
    for by in dict.fromkeys(point.by for point in points):
        mine = zip(*(point.place for point in points if point.by == by), strict=True)
        axes.scatter(*mine, s=30, color=_colour(by), label=by, zorder=3, edgecolors="white", linewidths=0.6)
    axes.legend(loc="upper left", frameon=False)
    names = list(dict.fromkeys(point.name for point in points))
    if len(names) > 1:
        lines = [f"{i:2} {name}" for i, name in enumerate(names[:NUMBERED], 1)] + ["..."] * (len(names) > NUMBERED)
        axes.annotate("\n".join(lines), (1, 1), (10, 0), xycoords="axes fraction", textcoords="offset points", va="top",
                      family="monospace", fontsize=7.5)  # fmt: skip
    canvas.draw()  # places the axes: what follows is laid out in pixels
    for i, (label, speed) in enumerate(memory.items()):
        _slope(axes, speed / 1e9, ends[0], top, label, above=i > 0)
    if len(names) > 1:
        _annotate(axes, [(names.index(point.name) + 1, point) for point in points])
    figure.savefig(path, dpi=DPI)


def _colour(by: str) -> str:
    return COLOURS.get(by, "#333333")


def _slope(axes, speed: float, low: float, top: float, label: str, above: bool) -> None:
    """GFLOP/s = flops a byte x GB/s, up to the highest peak, named along the line."""
    axes.plot([low, top / speed], [low * speed, top], "--" if above else "-", color="#555555", linewidth=1.1, zorder=1)
    (x0, y0), (x1, y1) = axes.transData.transform([(low, low * speed), (top / speed, top)])
    start = 1.3 * max(low, axes.get_ylim()[0] / speed)
    axes.annotate(f"{label} {speed:.0f} GB/s", (start, start * speed), (0, 3 if above else -3),
                  textcoords="offset points", fontsize=8, color="#555555", va="baseline" if above else "top",
                  rotation=math.degrees(math.atan2(y1 - y0, x1 - x0)), rotation_mode="anchor")  # fmt: skip


def _ceiling(axes, peak: float, label: str, start: float, end: float) -> None:
    colour = _colour(label.split(",")[0])
    axes.plot([start, end], [peak, peak], color=colour, linewidth=1.4, zorder=1)
    axes.annotate(f"{label} {peak:.0f}", (end, peak), (-4, 3), textcoords="offset points", fontsize=8, color=colour,
                  ha="right", zorder=4, bbox={"color": "white", "alpha": 0.7, "pad": 0.2})  # fmt: skip


def _annotate(axes, numbers: list[tuple[int, Point]]) -> None:
    """Numbers beside their points, where neither a point nor another number is; a line leads to those far away."""
    spots = [axes.transData.transform(point.place) for _, point in numbers]
    taken = [(x, y, *OF_POINT) for x, y in spots]
    for (number, point), (x, y) in zip(numbers, spots, strict=True):
        free = (at for at in PLACES if all(abs(x + at[0] - a) > w or abs(y + at[1] - b) > h for a, b, w, h in taken))
        dx, dy = next(free, PLACES[0])
        taken.append((x + dx, y + dy, *OF_NUMBER))
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.5} if math.hypot(dx, dy) > FAR else None
        axes.annotate(str(number), point.place, (dx * 72 / DPI, dy * 72 / DPI), textcoords="offset points", fontsize=7,
                      color=_colour(point.by), ha="center", va="center", arrowprops=line, zorder=4,
                      bbox={"color": "white", "alpha": 0.6, "pad": 0.3})  # fmt: skip
