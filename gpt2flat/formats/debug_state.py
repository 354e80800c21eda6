"""llm.c's debug states: one batch with the logits, loss and gradients that PyTorch found (train_gpt2.py's write_state).

Tokens, targets (int32), logits over V columns, loss, then the gradients in the order of a checkpoint (float32)."""

import math
import struct
from collections.abc import Iterable

import numpy as np

from ..errors import CheckpointError, FormatError
from . import llmc
from .files import RegularFile, write_stream_atomically

VERSIONS = (1, 2)  # 1, before 28 April 2024: the gradient of wte has no rows of padding
MAX_BATCH = 1 << 20


class DebugState:
    """An open debug state; use it in a `with`, or close() it.

    version; tokens and targets, (B, T) int32; loss, the mean over the targets in nats; stored: the dims that the
    gradients have (version 1: Vp = V). Logits and gradients are read by read_into."""

    def __init__(self, path, dims: dict[str, int], parameters):
        """dims: those of the model (V, Vp, maxT ...), which the file does not hold; parameters: the function from dims
        to the count of numbers in the tensor table.
        Raises FormatError for a file that is no debug state of such a model, CheckpointError if it cannot be opened."""
        self._file = RegularFile(path, CheckpointError, short=FormatError)
        try:
            words = llmc.read_header(self._file, llmc.DEBUG_STATE, used=4)
            self.version, B, T = words[1:4]
            if self.version not in VERSIONS:
                raise FormatError(f"{path}: debug state version {self.version}, expected 1 or 2")
            if not (1 <= B <= MAX_BATCH and 1 <= T <= dims["maxT"]):
                raise FormatError(
                    f"{path}: a batch of {B} x {T} tokens, expected 1 to {MAX_BATCH} rows of 1 to {dims['maxT']} (the "
                    "model's block size): take the checkpoint that the debug state was made with"
                )
            self.stored = dims if self.version > 1 else dims | {"Vp": dims["V"]}
            self._starts = {"logits": llmc.HEADER_BYTES + 2 * 4 * B * T}
            self._starts["loss"] = self._starts["logits"] + 4 * B * T * dims["V"]
            self._starts["grads"] = self._starts["loss"] + 4
            end = self._starts["grads"] + 4 * parameters(self.stored)
            what = f"{B} x {T} tokens of a model with V {dims['V']}, and the gradients of that model"
            llmc.check_size(self._file, end - llmc.HEADER_BYTES, what)
            batch = np.empty((2, B, T), "<i4")
            self._file.read_into(llmc.HEADER_BYTES, batch)
            self.tokens, self.targets = batch
            for name, ids, least in (("token", self.tokens, 0), ("target", self.targets, -1)):
                for place in (int(ids.argmin()), int(ids.argmax())):
                    if not least <= ids.flat[place] < dims["V"]:
                        raise FormatError(
                            f"{path}: {name} {place} is id {ids.flat[place]}, expected {least} to {dims['V'] - 1}"
                        )
            self.loss = struct.unpack("<f", self._file.read(self._starts["loss"], 4))[0]
            if not math.isfinite(self.loss):
                raise FormatError(f"{path}: the loss is {self.loss}, expected a finite number: copy the file again")
        except BaseException:
            self.close()
            raise

    def read_into(self, what: str, first: int, view: np.ndarray) -> None:
        """Fills `view` (float32, contiguous) with the numbers of "logits" (B, T, V) or "grads" from number `first` on.

        Raises FormatError if the file became shorter."""
        self._file.read_into(self._starts[what] + 4 * first, view)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "DebugState":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def write_debug_state(path, tokens, targets, logits, loss: float, grads: Iterable, version: int = 2) -> None:
    """Writes a debug state.

    tokens, targets: (B, T) integers; logits: (B, T, V); grads: the gradients in the order of a checkpoint, that of wte
    (Vp, C) first, of which version 1 keeps V rows. Raises FormatError for shapes or versions that cannot be,
    CheckpointError if the file cannot be written."""
    tokens, targets, logits = np.asarray(tokens), np.asarray(targets), np.asarray(logits)
    if version not in VERSIONS:
        raise FormatError(f"{path}: debug state version {version}, expected 1 or 2")
    if tokens.ndim != 2 or not tokens.size or targets.shape != tokens.shape or logits.shape[:-1] != tokens.shape:
        raise FormatError(
            f"{path}: tokens {tokens.shape}, targets {targets.shape} and logits {logits.shape}, expected (B, T), "
            "(B, T), (B, T, V)"
        )
    wte, *others = grads
    grads = [wte if version > 1 else wte[: logits.shape[-1]], *others]
    header = struct.pack("<256i", llmc.DEBUG_STATE, version, *tokens.shape, *[0] * 252)
    ids = (np.ascontiguousarray(x, "<i4") for x in (tokens, targets))
    floats = (np.ascontiguousarray(x, "<f4") for x in (logits, np.float32(loss), *grads))
    write_stream_atomically(path, (part for parts in ([header], ids, floats) for part in parts))
