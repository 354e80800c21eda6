"""config.toml: a flat TOML table of settings (toml.io, v1.0), written for a run and read again for --config and --resume."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, UsageError
from ..formats.files import write_atomically
from .metrics import Jsonl, read_events
from .run import read_text
from .settings import SETTINGS, Setting, unknown

CONTROLLED = ("lr", "sample_prompt")  # settings that control.toml may change
NO_SETTINGS = ("save", "stop", "file")  # of a record of it


def write(path: Path, settings: dict[str, object]) -> None:
    """Settings of a run, whole or not at all. Raises CheckpointError."""
    kept = {name: value for name, value in settings.items() if name not in SETTINGS or not SETTINGS[name].this_start}
    write_atomically(path, toml(kept).encode())


def read(path) -> dict[str, object]:
    """The settings in a file, checked one by one. Raises CheckpointError for a file that cannot be read, UsageError for one that
    is no flat TOML table of settings; names of other tools are told what they are called here."""
    try:
        entries = tomllib.loads(read_text(Path(path)))
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{path}: is no TOML file: {problem}") from None
    return checked(entries, path)


def checked(entries, where) -> dict[str, object]:
    """A table of settings as read from `where`. Raises UsageError."""
    try:
        for name in entries:
            if name not in SETTINGS or SETTINGS[name].this_start:
                raise UsageError(unknown(name) if name not in SETTINGS else f"{name} belongs on the command line")
        return {name: _checked(SETTINGS[name], value) for name, value in entries.items()}
    except UsageError as problem:
        raise UsageError(f"{where}: {problem}") from None


def _checked(setting: Setting, value):
    """JSON's null is for a setting that is found out, or was taken back."""
    return None if value is None and setting.scratch is None else setting.of_file(value)


def stored(path: Path) -> dict[str, object]:
    """All settings of a run by its config.toml; those it does not know are None. Raises CheckpointError."""
    try:
        return dict.fromkeys(SETTINGS) | read(path)
    except UsageError as problem:
        raise CheckpointError(f"{problem}: this is no config.toml of a run of this version") from None


@dataclass(frozen=True)
class History:
    """What changed in a run, by step. resumed: settings that were others from the resume at that step on; control: what control.toml
    said before that update, and what a resume there said of the same; seen: the digest of the last control.toml; forgotten: the
    draws that rollbacks left out, which a NaN that came of a passing fault would not show again."""

    resumed: dict[int, dict[str, object]]
    control: dict[int, dict[str, object]]
    seen: str | None
    forgotten: set[int]


def history(run: Path) -> History:
    """The history of a run by its metrics.jsonl. Raises CheckpointError."""
    events = []
    for event in read_events(run, "resumed", "control"):
        if "resumed" in event:  # a start that went on from a later step is undone
            events = [e for e in events if "control" in e or e["step"] <= event["step"]]
        events.append(event)
    seen = next((e["control"].get("file") for e in reversed(events) if "control" in e), None)
    found = History({}, {}, seen, {e["draw"] for e in read_events(run, "draw") if e["draw"] >= 0})
    for event in events:
        step, key = event["step"], "control" if "control" in event else "resumed"
        try:
            changes = checked({name: v for name, v in event[key].items() if name not in NO_SETTINGS}, run / Jsonl.name)
        except UsageError as problem:
            raise CheckpointError(f"{problem}: the record of step {step} is damaged") from None
        if key == "resumed":
            found.resumed[step] = found.resumed.get(step, {}) | changes
            changes = {name: changes[name] for name in CONTROLLED if changes.get(name) is not None}
        if changes:
            found.control[step] = found.control.get(step, {}) | changes
    return found


def toml(values: dict[str, str | int | float | bool | None]) -> str:
    """A flat TOML table; None is left out. Floats keep every digit."""
    return "".join(f"{key} = {_toml_value(value)}\n" for key, value in values.items() if value is not None)


def _toml_value(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, and surrogates that UTF-8 cannot hold
        return json.dumps(value.encode("utf-8", "replace").decode(), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
