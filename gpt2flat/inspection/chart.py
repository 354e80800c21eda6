"""A panel of curves as SVG text that a page colours by its classes: no library, the same bytes for the same numbers."""

import math
from html import escape

import numpy as np

from .curves import MOST_DOTS, POINTS, Panel, average, limits, short, thin
from .history import History, Series

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 30
TICKS = 7


def panel_svg(panel: Panel, history: History, smooth: int) -> str:
    """The series of a panel over the updates; "" if there are none. smooth: updates that a line averages over."""
    lines = []  # class, series
    for key, style in panel.keys.items():
        series = history.series[key]
        if len(series.steps) and style == "dots":
            lines.append(("val", series))
        elif len(series.steps):
            over = smooth if key != "lr" else 1
            lines += [("raw", thin(*series, POINTS // 3))] * (over > 1)
            lines.append(("line", thin(series.steps, average(series.values, over), POINTS // 3)))
    if not lines:
        return ""
    last = max(float(series.steps[-1]) for _, series in lines) or 1.0
    low, high = limits(panel, np.concatenate([series.values for kind, series in lines if kind != "raw"]))
    scale = math.log10 if panel.log else float

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(value: float) -> float:
        share = (scale(min(max(value, low), high)) - scale(low)) / (scale(high) - scale(low))
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(panel.title)} by update</title>']
    for value in _log_ticks(low, high) if panel.log else _ticks(low, high):
        parts.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>'
                     f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{short(value)}</text>')  # fmt: skip
    for value in _ticks(0, last):
        anchor = "end" if x(value) > WIDTH - 40 else "middle"
        parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - 10}" text-anchor="{anchor}">{short(value)}</text>')
    parts += [_line(kind, series, x, y) for kind, series in lines]
    return "".join([*parts, "</svg>"])


def _line(kind: str, series: Series, x, y) -> str:
    points = [(x(step), y(value)) for step, value in zip(*thin(*series), strict=True)]
    line = f'<polyline class="{kind}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'
    if kind != "val" or len(points) > MOST_DOTS:
        return line
    numbers = zip(points, series.steps.tolist(), series.values.tolist(), strict=True)
    return line + "".join(
        f'<circle class="val" cx="{a:.1f}" cy="{b:.1f}" r="3"><title>{value:.4f} at step {step}</title></circle>'
        for (a, b), step, value in numbers
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, about TICKS of them."""
    rough = (high - low) / TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(n for n in (1, 2, 5, 10) if n * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    within = [n * 10.0**d for d in decades for n in (1, 2, 5) if low <= n * 10.0**d <= high]
    return within[:: -(-len(within) // (2 * TICKS)) or 1]
