"""What makes a run the same run: the facts that its checkpoints hold, and what a resume lets change. No model is made here."""

import hashlib
from typing import NamedTuple

from ..data.tokens import fingerprint
from ..errors import CheckpointError, UsageError
from ..model import Model
from . import config
from .checkpoints import Checkpoint
from .inputs import Data
from .settings import SETTINGS


class Fact(NamedTuple):
    """what: it is, for people; settings: of which one that was typed may change it."""

    what: str
    settings: frozenset[str] = frozenset()


FACTS = {
    "data": Fact(
        "the tokens to train on or their validation",
        frozenset({"train_data", "val_data", "dataset", "val_fraction", "tokenizer"}),
    ),
    "vocabulary": Fact("the tokenizer", frozenset({"tokenizer"})),
    "isa": Fact("the kernels, whose sums differ in the last bits", frozenset({"backend", "precision"})),
    "settings": Fact("config.toml"),
}
REORDERING = {
    "batch_size",
    "seq_len",
    "total_batch_size",
    "data_seed",
    "overfit",
}  # settings by which other batches come
ELSEWHERE = {"out", "threads"}  # settings by which a run is the same on another machine or in another place


def facts_of(s, model: Model, data: Data) -> dict:
    """FACTS of a run with the settings s."""
    tokenizer = data.tokenizer
    words = (
        f"{tokenizer.kind} {tokenizer.eot} {tokenizer.tokens!r}" if tokenizer else f"none, V {model.config.vocab_size}"
    )
    return {
        "data": {"train": fingerprint(data.train), "val": fingerprint(data.val)},
        "vocabulary": hashlib.sha256(words.encode()).hexdigest()[:16],
        "isa": _order_of_sums(model.kernels, model.precision),
        "settings": made_with(s),
    }


def made_with(s) -> dict[str, object]:
    """The settings that a checkpoint keeps."""
    return {name: value for name, value in vars(s).items() if value is not None and not SETTINGS[name].this_start}


def _order_of_sums(kernels, precision: str) -> str:
    """What decides the last bits: in fp32 AVX2 and AVX-512 are one."""
    if kernels.name == "numba" or kernels.isa == "scalar":
        width = ""
    elif precision == "bf16" and kernels.multiplies_bf16:
        width = " in pairs"
    else:
        width = " in vectors"
    return f"{kernels.name}{width} {precision}"


def own_settings(found: Checkpoint) -> dict[str, object]:
    """All settings that a checkpoint was made with. Raises CheckpointError."""
    try:
        return dict.fromkeys(SETTINGS) | config.checked(found.facts.get("settings"), found.path)
    except (UsageError, TypeError, AttributeError) as problem:
        raise CheckpointError(f"{found.path}: the settings in its manifest are damaged: {problem}") from None


def changes(before: dict[str, object], now: dict[str, object]) -> dict[str, tuple]:
    """name: (before, now) of the settings that differ and are part of the run."""
    kept = (name for name in SETTINGS if name not in ELSEWHERE and not SETTINGS[name].this_start)
    return {name: (before[name], now[name]) for name in kept if before[name] != now[name]}


def allowed(s) -> set[str]:
    """The FACTS that --override names. Raises UsageError."""
    named = set(filter(None, (s.override or "").split(",")))
    if unknown := named - FACTS.keys():
        raise UsageError(f"--override {','.join(sorted(unknown))}: expected {', '.join(FACTS)}")
    return named


def compare(found: Checkpoint, facts: dict, s) -> tuple[list[str], bool]:
    """What changed since the checkpoint, to tell, and whether the same data goes on in the same batches. Raises CheckpointError for
    a change that neither a typed setting nor --override allows. The settings themselves are start.py's to compare."""
    named, changed = allowed(s), changes(own_settings(found), vars(s)).keys()
    differ = sorted(kind for kind in facts if kind != "settings" and found.facts.get(kind) != facts[kind])
    refused = [kind for kind in differ if kind not in named and not FACTS[kind].settings & changed]
    if refused:
        told = "; ".join(
            f"{kind} ({FACTS[kind].what}) was {found.facts.get(kind)}, is {facts[kind]}" for kind in refused
        )
        raise CheckpointError(
            f"{found.path}: not the same run any more: {told}: --override {','.join(refused)} goes on all the same"
        )
    notes = [f"{kind} changed" for kind in differ]
    if REORDERING & changed or "data" in differ:
        return [*notes, "other batches than before: the data starts a new epoch"], False
    return notes, True
