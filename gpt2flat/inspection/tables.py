"""Tables of what there is: runs, two of them side by side, model files. Rows are plain values, for JSON; words() are for people."""

from collections.abc import Iterable
from pathlib import Path

from ..arch.gpt2 import GPT2Config
from ..data.tokenizer import escape_controls
from ..errors import Gpt2FlatError
from ..formats import llmc
from ..memory.arena import human
from ..training.manifest import MODEL
from ..training.screen import duration
from ..weights import open_checkpoint
from .runs import RunRecord

RUN_HEAD = ("run", "state", "best val loss", "updates", "tokens", "time", "size", "started (UTC)")
MODEL_HEAD = ("model", "format", "layers", "heads", "channels", "block size", "vocabulary", "parameters", "size")


def run_row(run: RunRecord) -> dict[str, object]:
    """A run in numbers: seconds of training, bytes on disk; None for what is not known."""
    best = run.history.best()
    step, loss = best or (None, None)
    return dict(run=run.name, path=str(run.path), state=run.state, best_val_loss=loss, best_step=step, updates=run.updates,
                tokens=run.tokens, seconds=run.seconds, bytes=run.size, started=run.started or None)  # fmt: skip


def run_words(row: dict[str, object]) -> list[str]:
    """A run_row as texts below RUN_HEAD."""
    best = f"{row['best_val_loss']:.4f}" if row["best_val_loss"] is not None else "-"
    when = (row["started"] or "-")[:16].replace("T", " ")
    return [
        row["run"],
        row["state"],
        best,
        f"{row['updates']:,}",
        f"{row['tokens']:,}",
        duration(row["seconds"]),
        human(row["bytes"]),
        when,
    ]


# --- runs side by side -----------------------------------------------------------------------------------------------

APART = ("out",)  # settings that differ by their nature
MACHINE = ("cpu", "backend", "isa", "precision", "threads", "commit")


def compare(runs: list[RunRecord]) -> dict[str, dict[str, list]]:
    """{"settings": what differs, "machine": what differs, "numbers": how far they got}, each {name: a value for each run}."""
    return {
        "settings": _differing([{k: v for k, v in run.config.items() if k not in APART} for run in runs]),
        "machine": _differing([{k: run.env.get(k) for k in MACHINE} for run in runs]),
        "numbers": {name: [row[name] for row in map(_numbers, runs)] for name in _numbers(runs[0])},
    }


def _differing(tables: list[dict]) -> dict[str, list]:
    names = dict.fromkeys(name for table in tables for name in table)
    rows = {name: [table.get(name) for table in tables] for name in names}
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


def _numbers(run: RunRecord) -> dict[str, object]:
    row, series = run_row(run), run.history.series
    last = {name: float(series[key].values[-1]) if len(series[key].steps) else None for name, key in LAST.items()}
    told = {key: row[key] for key in ("state", "updates", "tokens", "seconds", "bytes", "best_val_loss", "best_step")}
    return told | last | {"tokens_per_s": run.history.rate()}


LAST = {"last_val_loss": "val_loss", "last_loss": "loss"}
NUMBER_WORDS = {
    "tokens": "{:,}".format,
    "updates": "{:,}".format,
    "seconds": duration,
    "bytes": human,
    "tokens_per_s": "{:,.0f}".format,
}


def compare_words(name: str, values: Iterable) -> list[str]:
    """A row of compare() as texts."""
    show = NUMBER_WORDS.get(name, lambda value: f"{value:.6g}" if isinstance(value, float) else str(value))
    return [name.replace("_", " "), *("-" if value is None else show(value) for value in values)]


# --- models ----------------------------------------------------------------------------------------------------------


def model_row(path: Path) -> dict[str, object]:
    """A checkpoint file by its header; "problem" says what is wrong with it."""
    try:
        with open_checkpoint(path) as file:
            config = GPT2Config.of_dims(file.stored)
            stored = dict(format=f"{file.storage.dtype}, version {file.version}", layers=config.n_layer, heads=config.n_head,
                          channels=config.n_embd, block_size=config.block_size, vocabulary=config.vocab_size,
                          parameters=config.num_parameters)  # fmt: skip
        return {"model": str(path), **stored, "bytes": path.stat().st_size}
    except (Gpt2FlatError, OSError) as problem:
        return {"model": str(path), "problem": str(problem)}


def find_models(folders: list[Path], runs: list[RunRecord]) -> list[dict[str, object]]:
    """The checkpoint files in data folders, then the newest of each run."""
    files = [path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.bin"))]
    newest = [run.checkpoints[-1].path / MODEL for run in runs if run.checkpoints]
    return [model_row(path) for path in [*filter(_is_model, files), *newest]]


def _is_model(path: Path) -> bool:
    try:
        return llmc.kind_of(path) == llmc.KINDS[llmc.CHECKPOINT]
    except Gpt2FlatError:
        return False


def model_words(row: dict[str, object]) -> list[str]:
    """A model_row as texts below MODEL_HEAD."""
    if "problem" in row:
        return [row["model"], row["problem"]]
    counts = [f"{row[key]:,}" for key in ("layers", "heads", "channels", "block_size", "vocabulary", "parameters")]
    return [row["model"], row["format"], *counts, human(row["bytes"])]


# --- text ------------------------------------------------------------------------------------------------------------


def as_text(head: Iterable[str], rows: list[list[str]], left: int = 1) -> str:
    """Columns under `head`: the first `left` flush left, the others flush right. Rows that are shorter say something else and
    set no width. Control characters are shown."""
    head = list(head)
    rows = [[escape_controls(cell).replace("\n", "\\n") for cell in row] for row in [head, *rows]]
    full = [row for row in rows if len(row) == len(head)]
    widths = [max(len(row[i]) for row in full) for i in range(len(head))]
    widths[0] = max([widths[0], *(len(row[0]) for row in rows)])
    lines = ("  ".join(f"{cell:{'<' if i < left else '>'}{width}}" for i, (cell, width) in enumerate(zip(row, widths)))
             if len(row) == len(head) else f"{row[0]:<{widths[0]}}  {'  '.join(row[1:])}" for row in rows)  # fmt: skip
    return "\n".join(line.rstrip() for line in lines)
