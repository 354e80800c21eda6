"""What a file of llm.c's holds, found by its magic number: (label, text) lines for people.

A checkpoint is a model, so its program and its map are told by the command as well."""

import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..data.tokenizer import Tokenizer, escape_controls
from ..errors import CheckpointError, DataError, UsageError
from ..formats import huggingface, llmc, llmc_state, pytorch
from ..formats.choices import ChoiceFile
from ..formats.debug_state import DebugState
from ..formats.optimizer import OptimizerFile
from ..model import Model
from ..training.inputs import tokenizer_beside, tokenizer_of
from ..weights import open_checkpoint, open_weights, stored_layout

Lines = list[tuple[str, str]]
SHOWN = 24  # tokens or ids of a sample
PIECE = 1 << 20


def describe(path: Path) -> Lines:
    """What `path` holds, which is no checkpoint. Raises FormatError for a file that is not whole, DataError for one that
    cannot be opened, UsageError for one of a kind that is not read here."""
    kind = llmc.kind_of(path)
    if kind not in DESCRIBERS:
        what = f"is {kind}, which nothing here reads" if kind else "is no file of llm.c's"
        raise UsageError(
            f"{path}: {what}; expected a checkpoint, token file, tokenizer, debug state, multiple-choice file or run directory"
        )
    return [("file", f"{path}: {kind}, {path.stat().st_size:,} bytes"), *DESCRIBERS[kind](path)]


def is_checkpoint(path: Path) -> bool:
    return path.is_file() and llmc.kind_of(path) == llmc.KINDS[llmc.CHECKPOINT]


def is_model(path: Path) -> bool:
    """Whether weights are there that Model.load reads."""
    return is_checkpoint(path) or huggingface.is_folder(path) or (path.is_file() and pytorch.is_archive(path))


def weights(path: Path) -> Lines:
    """How a file or folder holds the tensors; the model behind it is told by the command."""
    with open_weights(path) as file:
        about, size = file.about, file.size
    tokenizer, why = tokenizer_beside(path, file.dims["V"])
    text = f"{tokenizer.kind} tokenizer" if tokenizer else "no tokenizer beside it"
    return [("file", f"{path}: {about}, {size:,} bytes; {text}"), *([("tokenizer", why)] if why else [])]


def tensors(path: Path) -> Lines:
    """Shape, mean, standard deviation and range of every tensor of a model. Raises NonFiniteError."""
    found = []
    for name, view in Model.load(path).params.items():
        pieces = view.reshape(-1)
        mean = float(pieces.mean(dtype=np.float64))
        std = math.sqrt(float(np.square(pieces - mean, dtype=np.float64).mean()))
        shape = " x ".join(map(str, view.shape))
        found.append((name, f"{shape:<20} mean {mean:+.3e}  std {std:.3e}  from {pieces.min():+.3e} to {pieces.max():+.3e}"))
    return found


def _tokens(path: Path) -> Lines:
    file = llmc.open_tokens(path)
    try:
        seen = np.zeros(1 << 16, np.int64)
        for at in range(0, file.count, PIECE):
            ids = file.read(at, min(PIECE, file.count - at)).astype(np.int64)
            wrong = np.flatnonzero((ids < 0) | (ids >= len(seen)))
            if wrong.size:
                raise DataError(f"{path}: token {at + wrong[0]} is {ids[wrong[0]]}, expected 0 to {len(seen) - 1}")
            seen += np.bincount(ids, minlength=len(seen))
        first = file.read(0, min(SHOWN, file.count))
    finally:
        file.close()
    ids = np.flatnonzero(seen)
    tokenizer = _tokenizer_beside(path, int(ids[-1]))
    ends = f"; {seen[tokenizer.eot]:,} are end-of-text" if tokenizer else ""
    return [
        ("tokens", f"{file.count:,} of {file.dtype.name}, {'without header' if not file.start else 'version 1'}"),
        ("ids", f"from {ids[0]} to {ids[-1]}, {len(ids):,} different{ends}"),
        *_starts(first, tokenizer),
    ]


def _starts(ids: np.ndarray, tokenizer: Tokenizer | None) -> Lines:
    if tokenizer is None:
        return [("starts", f"{' '.join(map(str, ids))} (no tokenizer is beside it)")]
    return [("starts", f"{quoted(tokenizer.decode(ids))} ({tokenizer.kind} tokenizer)")]


def _tokenizer_beside(path: Path, largest: int) -> Tokenizer | None:
    """The tokenizer of the folder if it knows all ids, else GPT-2's if that does."""
    for load in (lambda: _in_folder(path.absolute().parent), Tokenizer.gpt2):
        tokenizer = load()
        if tokenizer and largest < tokenizer.vocab_size:
            return tokenizer
    return None


def _in_folder(folder: Path) -> Tokenizer | None:
    return next((Tokenizer.load(folder / n) for n in ("tokenizer.bin", "gpt2_tokenizer.bin") if (folder / n).is_file()), None)


def _tokenizer(path: Path) -> Lines:
    found = Tokenizer.load(path)
    longest = max(found.tokens, key=len)
    return [
        ("kind", f"{found.kind}: {found.vocab_size:,} tokens, end-of-text is {found.eot}"),
        ("longest", f"{quoted(longest.decode('utf-8', 'replace'))}, {len(longest)} bytes"),
        ("tokens", " ".join(quoted(found.tokens[i].decode("utf-8", "replace")) for i in _spread(found.vocab_size))),
    ]


def _spread(count: int) -> Iterable[int]:
    return sorted({round(i * (count - 1) / 11) for i in range(12)})


def _debug_state(path: Path) -> Lines:
    """Its dims are those of the checkpoint that it was made with, which is beside it by llm.c's names."""
    model = path.with_name(path.name.replace("_debug_state", ""))
    if model == path or not is_checkpoint(model):
        with llmc.RegularFile(path, CheckpointError) as file:
            version, B, T = llmc.read_header(file, llmc.DEBUG_STATE, used=4)[1:4]
        how = "without its checkpoint beside it (NAME.bin to NAME_debug_state.bin) no more can be told"
        return [("batch", f"version {version}, {B} x {T} tokens; {how}")]
    with open_checkpoint(model) as file:
        dims = file.dims | {"Vp": file.stored["Vp"]}
    with DebugState(path, dims, lambda stored: stored_layout(stored).floats) as state:
        B, T = state.tokens.shape
        layout, norms = stored_layout(state.stored), []
        for slot in layout:
            values = np.empty(slot.floats, np.float32)
            state.read_into("grads", slot.offset, values)
            norms.append((slot.row.name, f"gradient of norm {math.sqrt(float(np.square(values, dtype=np.float64).sum())):.6g}"))
        ignored = int((state.targets < 0).sum())
        return [("batch", f"version {state.version}, {B} x {T} tokens, {ignored} targets ignored; made with {model}"),
                ("loss", f"{state.loss:.6f}"), *_starts(state.tokens[0, :SHOWN], tokenizer_of(model, dims["V"])), *norms]  # fmt: skip


def _choices(path: Path) -> Lines:
    longest, labels, first, count = 0, np.zeros(4, np.int64), None, 0
    with ChoiceFile(path, 1 << 16) as file:
        for example in file:
            first = first or example
            count += 1
            labels[example.label] += 1
            longest = max(longest, *(len(example.context) + len(c) for c in example.completions))
    gpt2 = Tokenizer.gpt2()
    told = [("examples", f"{count:,}, the longest row has {longest} tokens; the right one is {_shares(labels)}")]
    told.append(("first", quoted(gpt2.decode(first.context))))
    for number, ids in enumerate(first.completions):
        told.append(("", f"{number}{' (right)' if number == first.label else ''}: {quoted(gpt2.decode(ids))}"))
    return told


def _shares(labels: np.ndarray) -> str:
    return ", ".join(f"{i} in {100 * n / labels.sum():.0f}%" for i, n in enumerate(labels))


def _optimizer(path: Path) -> Lines:
    with OptimizerFile(path) as file:
        part = f"parameters {file.begin:,} to {file.end:,} of {file.P:,}"
        return [("state", f"AdamW's m and v of {part}, after {file.t:,} updates")]


def _state(path: Path) -> Lines:
    """How many parameters it is of, its model knows, which is beside it by llm.c's names."""
    model = path.with_name(re.sub(r"^state_(\d+)_\d+", r"model_\1", path.name))
    if model == path or not is_checkpoint(model):
        with llmc.RegularFile(path, CheckpointError) as file:
            step = llmc.read_header(file, llmc.STATE, used=34)[llmc_state.STEP]
        return [("state", f"after {step:,} updates; without its model beside it (model_STEP.bin) no more can be told")]
    with open_checkpoint(model) as file:
        parameters = stored_layout(file.stored).floats
    with llmc_state.StateFile(path, parameters) as state:
        weights = "with" if state.master else "without"
        order = f"of {state.samples:,}, shuffled" if state.shuffled else "in order"
        return [("state", f"m and v of {parameters:,} parameters after {state.step:,} updates, {weights} master weights"),
                ("data", f"sample {state.sample:,} {order}, in shard {state.shard}")]  # fmt: skip


DESCRIBERS = {
    llmc.KINDS[llmc.TOKENS]: _tokens, llmc.OLD_TOKENS: _tokens, llmc.KINDS[llmc.TOKENIZER]: _tokenizer,
    llmc.KINDS[llmc.OPTIMIZER]: _optimizer, llmc.KINDS[llmc.STATE]: _state,
    llmc.KINDS[llmc.DEBUG_STATE]: _debug_state, llmc.KINDS[llmc.CHOICES]: _choices,
}  # fmt: skip


def quoted(text: str) -> str:
    return f'"{escape_controls(text).replace(chr(10), chr(92) + "n")}"'
