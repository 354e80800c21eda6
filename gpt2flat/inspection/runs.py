"""What a run directory holds: (label, text) lines for people. Whatever is broken or missing in it is told, not fatal."""

import json
import statistics
import tomllib
from pathlib import Path

from ..errors import CheckpointError
from ..memory.arena import human
from ..training.run import MODEL, Run, read_text
from .files import Lines, describe

LONGEST = 1 << 28  # bytes of a metrics.jsonl that are read: millions of updates


def describe_run(path: Path) -> Lines:
    """A run directory: settings, machine, progress, checkpoints. Raises CheckpointError for any other directory."""
    try:
        settings = tomllib.loads(read_text(path / "config.toml"))
    except (CheckpointError, ValueError, RecursionError) as problem:
        raise CheckpointError(f"{path}: is no run directory, its config.toml cannot be read: {problem}") from None
    env = _json(path / "env.json")
    told = [
        ("run", f"{path}, started {Run(path).started or 'at an unknown time'}"),
        ("settings", ", ".join(f"{key} {value}" for key, value in settings.items())),
        ("machine", f"{env.get('cpu', '?')}, {env.get('backend', '?')} {env.get('isa', '?')}, {env.get('threads', '?')} threads, "
                    f"commit {env.get('commit') or 'unknown'}"),
        *_progress(path),
    ]  # fmt: skip
    if (path / "tokenizer.bin").is_file():
        told += [("tokenizer", text) for label, text in describe(path / "tokenizer.bin") if label == "kind"]
    return told + _checkpoints(path)


def _checkpoints(path: Path) -> Lines:
    found = sorted(path.glob(f"checkpoints/*/{MODEL}"), key=lambda file: (len(file.parent.name), file.parent.name))
    return [("saved", f"{file}, {human(file.stat().st_size)}") for file in found] or [("saved", "no checkpoint")]


def _progress(path: Path) -> Lines:
    try:
        lines = read_text(path / "metrics.jsonl", LONGEST, errors="replace").splitlines()
    except CheckpointError:
        return [("progress", "no metrics.jsonl")]
    records = [_parsed(line) for line in lines]
    steps, vals = ([r for r in records if isinstance(r.get(key), float)] for key in ("loss", "val_loss"))
    told = []
    if steps:
        rates = [record["tokens_per_s"] for record in steps if isinstance(record.get("tokens_per_s"), float)]
        speed = f", {statistics.median(rates):,.0f} tokens/s" if rates else ""
        told.append(
            ("progress", f"{len(steps)} updates, loss {_at(steps[0], 'loss')} -> {_at(steps[-1], 'loss')}{speed}")
        )
    if vals:
        best = min(vals, key=lambda record: record["val_loss"])
        first, last, least = (_at(record, "val_loss") for record in (vals[0], vals[-1], best))
        told.append(("validation", f"{first} -> {last}, best {least}"))
    if broken := sum(not record for record in records):
        told.append(("", f"{broken} lines of metrics.jsonl are no records"))
    return told or [("progress", "no update yet")]


def _at(record: dict, key: str) -> str:
    return f"{record[key]:.4f} (step {record['step']})"


def _parsed(line: str) -> dict:
    """A record of metrics.jsonl; {} for anything else."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else {}


def _json(path: Path) -> dict:
    try:
        found = json.loads(read_text(path))
    except (CheckpointError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
