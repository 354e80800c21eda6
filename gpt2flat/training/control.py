"""control.toml: a file in the run directory that changes a run while it goes on. Obeyed before the next update.

    lr = 3e-4                  # in place of --lr, from now on; the schedule's shape stays
    sample_prompt = "Once"     # what samples go on from
    save = true                # save now, once each time the file changes
    stop = true                # save and stop

What was obeyed is written into metrics.jsonl, and a resume goes by that. A key that is taken out keeps its effect."""

import hashlib
import tomllib
from collections.abc import Callable
from pathlib import Path

from ..errors import CheckpointError, DataError, UsageError
from . import config
from .run import LONGEST, read_text
from .settings import SETTINGS

FILE = "control.toml"
ONCE = ("save", "stop")


class Control:
    """run: its directory: what it obeyed before is obeyed again at the same steps, after a resume or a rollback; encode: text -> ids,
    as of --sample-prompt; warn: told what is wrong with the file."""

    def __init__(self, run: Path, encode: Callable, warn: Callable[[str], None]):
        self._path, self._encode, self._warn, self._stamp = run / FILE, encode, warn, None
        past = config.history(run)
        self._obeyed, self._seen = past.control, past.seen

    def read(self, step: int) -> dict:
        """What is to change before update `step`: lr, sample_prompt, save, stop; usually {}. "file", a digest of it, is there when it
        was the file that said so, now."""
        changes = dict(self._obeyed.get(step, {}))
        try:
            status = self._path.stat()
        except OSError:
            status = None
        stamp = status and (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp and stamp != self._stamp:
            self._stamp = stamp
            changes |= self._obey()
        if kept := {name: changes[name] for name in config.CONTROLLED if name in changes}:
            self._obeyed[step] = kept
        return changes

    def prompt(self, step: int, usual):
        """The ids that samples before update `step` go on from: `usual` unless a text was given."""
        given = [at for at, changes in self._obeyed.items() if at <= step and "sample_prompt" in changes]
        return self._encode(self._obeyed[max(given)]["sample_prompt"]) if given else usual

    def _obey(self) -> dict:
        try:
            text = read_text(self._path, LONGEST)
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            if digest == self._seen:
                return {}
            self._seen = digest
            changes = parse(text)
            if "sample_prompt" in changes:
                self._encode(changes["sample_prompt"])
        except (CheckpointError, DataError, UsageError, ValueError, RecursionError) as problem:
            self._warn(f"{FILE} is left alone: {problem}")
            return {}
        return changes | {"file": digest} if changes else {}


def parse(text: str) -> dict:
    """The changes that a control.toml asks for. Raises UsageError, ValueError for what is none."""
    changes = {}
    for name, value in tomllib.loads(text).items():
        if name in config.CONTROLLED:
            changes[name] = SETTINGS[name].of_file(value)
        elif name in ONCE and type(value) is bool:
            if value:
                changes[name] = True
        else:
            raise UsageError(f"{name} = {value!r}: expected lr, sample_prompt, save or stop")
    return changes
