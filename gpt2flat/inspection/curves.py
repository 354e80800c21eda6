"""The curves of runs as a picture: a panel for each quantity, the runs over each other. Imports matplotlib, of the extra
gpt2flat[plot], only when it draws."""

import itertools
import warnings
from typing import NamedTuple

import numpy as np

from ..data.tokenizer import escape_controls
from ..errors import CheckpointError, reason
from .history import Series
from .runs import RunRecord

KINDS = (".png", ".svg")
COLOURS = ("#1f6fb4", "#e07b39", "#2a9d8f", "#b5486f", "#8e5bb5", "#6b8e23", "#8d6e63", "#455a64")
DPI = 130
POINTS = 1500  # of a line; more are averaged in as many groups
MOST_DOTS = 60  # of validations; more are a line only


class Panel(NamedTuple):
    """A quantity: its title, the series that it shows (key -> style), and whether its axis is logarithmic."""

    title: str
    keys: dict[str, str]
    log: bool = False


PANELS = (
    Panel("loss", {"loss": "line", "val_loss": "dots"}),
    Panel("learning rate", {"lr": "line"}),
    Panel("gradient norm", {"grad_norm": "line"}, log=True),
    Panel("tokens per second", {"tokens_per_s": "line"}),
)
KEYS = tuple(key for panel in PANELS for key in panel.keys)
AXES = {"step": "updates", "tokens": "tokens", "time": "hours of training"}


def draw(path: str, runs: list[RunRecord], x: str, keys: list[str], smooth: int = 0) -> None:
    """Writes a PNG or SVG. x: one of AXES; keys: out of KEYS; smooth: updates that a line averages over, 0: a fiftieth of
    the run. Raises CheckpointError if the file cannot be written."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "gpt2flat", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that no font has, a logarithm of nothing: the picture shows it
        figure = _figure(runs, x, keys, smooth)
        try:
            figure.savefig(path, dpi=DPI, metadata={"Date": None} if path.lower().endswith(".svg") else None)
        except OSError as problem:
            raise CheckpointError(f"{path}: cannot be written: {reason(problem)}") from None


def _figure(runs: list[RunRecord], x: str, keys: list[str], smooth: int):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [panel._replace(keys={k: v for k, v in panel.keys.items() if k in keys}) for panel in PANELS]
    panels = [panel for panel in panels if panel.keys]
    figure = Figure((11.5, 6.5) if len(panels) > 1 else (9, 5.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    looks = list(zip(runs, _names(runs), itertools.cycle(COLOURS), strict=False))
    for axes, panel in zip(_places(figure, len(panels)), panels, strict=True):
        _frame(axes, panel, x)
        for run, _name, colour in looks:
            for key, style in panel.keys.items():
                _curve(axes, run, key, style, x, smooth, colour)
        _limits(axes, panel)
    handles = [figure.axes[0].plot([], [], color=colour, linewidth=2, label=name)[0] for _run, name, colour in looks]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(runs)), frameon=False)
    return figure


def _names(runs: list[RunRecord]) -> list[str]:
    """What the runs are called beside each other: by their paths if two have one name. A $ would be mathematics."""
    short = [run.name for run in runs]
    names = short if len(set(short)) == len(short) else [str(run.path) for run in runs]
    return [escape_controls(name).replace("\n", " ").replace("$", r"\$").lstrip("_")[:60] or "run" for name in names]


def _places(figure, count: int) -> list:
    """The first panel is large, the others stand on its right."""
    if count == 1:
        return [figure.add_subplot()]
    grid = figure.add_gridspec(count - 1, 2, width_ratios=(1.75, 1))
    return [figure.add_subplot(grid[:, 0]), *(figure.add_subplot(grid[i, 1]) for i in range(count - 1))]


def _frame(axes, panel: Panel, x: str) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_title(panel.title, loc="left", fontsize=10, color="#333333")
    axes.set_xlabel(AXES[x], fontsize=8.5, color="#555555")
    axes.tick_params(labelsize=8, colors="#555555")
    axes.grid(color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#bbbbbb")
    if len(panel.keys) > 1:
        for style, label in (("-", "training"), ("o-", "validation")):
            axes.plot([], [], style, color="#777777", markersize=4, linewidth=1.5, label=label)
        axes.legend(frameon=False, fontsize=8.5, labelcolor="#555555")
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda *_: "")
    elif panel.title.startswith("tokens"):
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
    if x == "tokens":
        axes.xaxis.set_major_formatter(lambda value, _: short(value))


def short(value: float) -> str:
    """1500 -> 1.5k; 2e9 -> 2G."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _curve(axes, run: RunRecord, key: str, style: str, x: str, smooth: int, colour: str) -> None:
    series = run.history.series[key]
    if not len(series.steps):
        return
    xs = series.steps if x == "step" else run.history.totals(x, series.steps) / (3600 if x == "time" else 1)
    if style == "dots":
        marks = "o-" if len(xs) <= MOST_DOTS else "-"
        axes.plot(
            *thin(xs, series.values),
            marks,
            color=colour,
            markersize=4,
            linewidth=1.4,
            markeredgecolor="white",
            markeredgewidth=0.6,
            zorder=4,
        )
        return
    over = smooth or smoothing(len(xs)) if key != "lr" else 1
    if over > 1:
        axes.plot(*thin(xs, series.values), color=colour, linewidth=0.7, alpha=0.3, zorder=2)
    axes.plot(*thin(xs, average(series.values, over)), color=colour, linewidth=1.5, zorder=3)


def _limits(axes, panel: Panel) -> None:
    """What belongs to the bulk of the numbers: a spike of the raw lines may leave the picture."""
    lines = [line.get_ydata() for line in axes.lines if line.get_alpha() is None and len(line.get_ydata())]
    if lines:
        axes.set_ylim(*limits(panel, np.concatenate(lines)))
    else:
        axes.text(0.5, 0.5, "no numbers", transform=axes.transAxes, ha="center", color="#999999")
        axes.set(xticks=[], yticks=[])


def limits(panel: Panel, values: np.ndarray) -> tuple[float, float]:
    """What an axis reaches from and to, given the numbers that it has to show."""
    low, high = float(values.min()), float(values.max())
    if panel.log:
        return max(low, 1e-30) / 1.5, max(high, 1e-30) * 1.5
    if panel.title == "loss":
        margin = max(0.06 * (high - low), 1e-6 * abs(high))
        return low - max(margin, 1e-9), high + max(margin, 1e-9)
    return 0.0, 1.1 * high if high > 1e-30 else 1.0


def smoothing(updates: int) -> int:
    """How many updates a line averages over unless somebody says so."""
    return max(1, updates // 50)


def average(values: np.ndarray, over: int) -> np.ndarray:
    """The mean of each value and the `over` - 1 before it (of fewer at the start)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - over)
    return (sums[ends] - sums[starts]) / (ends - starts)


def thin(xs: np.ndarray, values: np.ndarray, points: int = POINTS) -> Series:
    """At most `points` of them: the means of groups of neighbours."""
    if len(xs) <= points:
        return Series(xs, values)
    edges = np.linspace(0, len(xs), points + 1).astype(int)
    counts = np.diff(edges)
    return Series(np.add.reduceat(xs, edges[:-1]) / counts, np.add.reduceat(values, edges[:-1]) / counts)


def default_name(runs: list[RunRecord], kind: str = ".png") -> str:
    """A file in the current directory, by the names of the runs."""
    plain = ("".join(c if c.isalnum() or c in "._-" else "-" for c in run.name).strip(".-") for run in runs)
    return "-".join(name or "run" for name in plain)[:80] + kind
