"""config.toml: a flat TOML table of settings (toml.io, v1.0), written for a run and read again for --config and --resume."""

import json
import tomllib
from pathlib import Path

from ..errors import CheckpointError, UsageError
from ..formats.files import write_atomically
from .metrics import Jsonl, read_events
from .run import read_text
from .settings import SETTINGS, unknown

NO_SETTINGS = ("save", "stop", "file")  # of a record of control.toml


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
        return {name: SETTINGS[name].of_file(value) for name, value in entries.items()}
    except UsageError as problem:
        raise UsageError(f"{where}: {problem}") from None


def stored(path: Path) -> dict[str, object]:
    """All settings of a run by its config.toml; those it does not know are None. Raises CheckpointError."""
    try:
        return dict.fromkeys(SETTINGS) | read(path)
    except UsageError as problem:
        raise CheckpointError(f"{problem}: this is no config.toml of a run of this version") from None


def recorded(run: Path, key: str) -> list[tuple[int, dict[str, object]]]:
    """(step, settings) of the records of metrics.jsonl that changed some: key "resumed" or "control". Raises CheckpointError."""
    path, found = run / Jsonl.name, []
    for event in read_events(run, key):
        try:
            settings = {name: value for name, value in event[key].items() if name not in NO_SETTINGS}
            found.append((event["step"], event[key] | checked(settings, path)))
        except UsageError as problem:
            raise CheckpointError(f"{problem}: the record of step {event['step']} is damaged") from None
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
