"""Results as text: one row a model, under each set its metrics."""

import math

from ..data.tokenizer import escape_controls

SHOWN = {  # metric -> its heading, its text
    "loss": ("loss", "{:.6f}".format),
    "perplexity": ("perplexity", "{:.4g}".format),
    "bits_per_byte": ("bits/byte", "{:.4f}".format),
    "acc": ("acc", "{:.4f}".format),
    "acc_norm": ("acc_norm", "{:.4f}".format),
}


def heading(metric: str) -> str:
    return SHOWN[metric][0] if metric in SHOWN else metric


def words(metric: str, found: dict[str, object]) -> str:
    """A metric of a result, with its standard error where that is known; "-" when it could not be had."""
    value, error = found.get(metric), found.get(f"{metric}_stderr")
    if value is None or not math.isfinite(value):
        return "-" if value is None else str(value)
    show = SHOWN[metric][1] if metric in SHOWN else "{:.4f}".format
    return show(value) + (f" ± {show(error)}" if error is not None else "")


def as_text(columns: list[tuple[str, tuple[str, ...]]], rows: list[tuple[str, list[dict | None]]]) -> str:
    """columns: (title, metrics) of each set; rows: (model, a result for each set or None). A line of titles, one of metrics, one a
    model. Control characters are shown."""
    head = [[heading(metric) for metric in metrics] for _title, metrics in columns]
    cells = [
        [
            [words(metric, found) if found else "" for metric in metrics]
            for (_, metrics), found in zip(columns, results, strict=True)
        ]
        for _name, results in rows
    ]
    blocks = [_block(_plain(title), lines) for (title, _), *lines in zip(columns, head, *cells, strict=True)]
    names = ["", "", *(_plain(name) for name, _ in rows)]
    width = max(map(len, names))
    return "\n".join(
        "   ".join([f"{name:<{width}}", *parts]).rstrip() for name, *parts in zip(names, *blocks, strict=True)
    )


def _block(title: str, lines: list[list[str]]) -> list[str]:
    """The lines of one set, all of one width: its title, its headings, a row for each model."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
    width = max(len(title), len(text[0]))
    return [f"{title:>{width}}", *(f"{line:>{width}}" for line in text)]


def _plain(name: str) -> str:
    return escape_controls(name).replace("\n", "\\n")
