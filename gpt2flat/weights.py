"""Where weights come from: checkpoints, folders of Hugging Face's, nanoGPT's files, or a random stream; and which shape a name means."""

import math
import os
from pathlib import Path

from .arch import gpt2
from .data.mt19937 import Stream, normal_
from .errors import CheckpointError, FormatError
from .formats import checkpoint, hub, huggingface, pytorch
from .formats.tensors import Weights
from .memory.arena import Section
from .memory.layout import Layout


def find_shape(name) -> tuple[gpt2.GPT2Config, Path | None]:
    """The shape that a preset, a descriptor or weights name, and the path of the weights (None for the others). A model of the Hub
    ("hf:gpt2", "owner/name") is fetched.

    Raises FormatError, CheckpointError for what holds no weights, UsageError for a name that is no shape, DataError."""
    if repository := hub.repository(name):
        name = hub.fetch(repository)
    if str(name) in gpt2.PRESETS or not (str(name).endswith((".bin", *pytorch.SUFFIXES)) or Path(name).exists()):
        return gpt2.config_of(str(name)), None
    with open_weights(name) as file:
        return gpt2.GPT2Config.of_dims(file.dims), Path(name)


def open_weights(path) -> checkpoint.Checkpoint | Weights:
    """Open weights, for a `with`: a checkpoint, a folder of Hugging Face's or nanoGPT's ckpt.pt. What they are made of is checked.
    Raises FormatError, CheckpointError."""
    if huggingface.is_folder(path):
        return huggingface.open_folder(path, stored_layout)
    if isinstance(path, str | os.PathLike) and os.path.isdir(path):
        raise CheckpointError(f"{path}: is a folder without {huggingface.CONFIG}: name the file, of a run checkpoints/step_.../model.bin")
    if str(path).endswith(huggingface.SUFFIX):
        raise FormatError(f"{path}: is one of the files of a Hugging Face folder: name the folder, with its {huggingface.CONFIG}")
    return pytorch.open_nanogpt(path, stored_layout) if pytorch.is_archive(path) else open_checkpoint(path)


def open_checkpoint(path) -> checkpoint.Checkpoint:
    """An open checkpoint of GPT-2's tensors, for a `with`; its header is checked. Raises FormatError, CheckpointError."""
    return checkpoint.Checkpoint(path, lambda stored: stored_layout(stored).floats)


def stored_layout(stored: dict[str, int]) -> Layout:
    """Where GPT-2's tensors lie in a file whose header gave these dims."""
    return Layout.plan(gpt2.PARAMS, gpt2.GPT2Config.of_dims(stored).dims())


def fill(params: Section, file: checkpoint.Checkpoint | Weights) -> None:
    """Reads the rows that both have: version 1 of a checkpoint lacks the end of wte, a smaller block size the end of wpe."""
    if isinstance(file, Weights):
        return file.fill(params)
    stored = stored_layout(file.stored)
    if stored.floats == params.layout.floats:
        return file.read_into(0, params.floats)  # the image as it is: one read
    for name, view in params.items():
        file.read_into(stored[name].offset, view.reshape(-1)[: stored[name].floats])


def draw(params: Section, config: gpt2.GPT2Config, seed: int) -> None:
    """Random weights with llm.c's and PyTorch's random stream: wte and wpe, then layer by layer the matrices."""
    stream = Stream(seed)
    std = {"normal": gpt2.INIT_STD, "scaled": gpt2.INIT_STD / math.sqrt(2 * config.n_layer)}
    rows = [place.row for place in params.layout]
    for row in rows:
        if row.init == "ones":
            params[row.name][...] = 1.0
    drawn = [row for row in rows if row.init in std]
    order = [(row, None) for row in drawn if not row.slots]
    order += [(row, l) for l in range(config.n_layer) for row in drawn if row.slots]
    for row, layer in order:
        view = params[row.name] if layer is None else params.slot(row.name, layer)
        if row.name == "wte":
            view = view[: config.vocab_size]  # the padding stays 0
        normal_(view, std[row.init], stream)
