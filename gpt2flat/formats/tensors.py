"""Tensors of other programs' files: by their names to the places of the tensor table, in blocks and exactly to float32.

Row.src says the names, and which matrices lie the other way round in files of Hugging Face. Knows no file format."""

import re
from collections.abc import Iterable
from math import prod
from typing import NamedTuple

import numpy as np

from ..errors import FormatError
from . import bf16
from .files import RegularFile
from .strict_json import told

PIECE = 1 << 18  # numbers at a time, which stay in a cache
STRIP = 16  # rows that are transposed at once: each writes whole cache lines; measured 5 GB/s, of whole matrices 0.8
PREFIX, HEAD = "transformer.", "lm_head.weight"
BUFFERS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # the mask of attention, which holds no weights


class Tensor(NamedTuple):
    """Numbers in a file: those of `dtype`, from byte `offset` on, row by row."""

    file: RegularFile
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def label(self) -> str:
        return f"{self.dtype} of shape {told(self.shape)}"


class Home(NamedTuple):
    """Where a tensor belongs: the row of the tensor table and its slot, its shape there, and whether the file has the transpose."""

    row: str
    slot: int
    shape: tuple[int, ...]
    flipped: bool

    def fits(self, tensor: Tensor) -> bool:
        return tensor.shape == (self.shape[::-1] if self.flipped else self.shape)


# --- numbers ---------------------------------------------------------------------------------------------------------


def _of_half(raw: np.ndarray, floats: np.ndarray) -> None:
    np.take(_halves(), raw, out=floats, mode="clip")  # "clip" skips a copy; three times as fast as NumPy's cast


_HALVES: list[np.ndarray] = []


def _halves() -> np.ndarray:
    """The float32 of every float16, by its bits."""
    if not _HALVES:
        _HALVES.append(np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32))
    return _HALVES[0]


def _of_double(raw: np.ndarray, floats: np.ndarray) -> None:
    with np.errstate(over="ignore"):  # what becomes infinite is told by the model
        floats[...] = raw


# dtype: how it is read, and how numbers of it become float32 (none: they are)
TYPES = {
    "F32": (np.dtype("<f4"), None),
    "F16": (np.dtype("<u2"), _of_half),
    "BF16": (bf16.BF16, bf16.decode_into),
    "F64": (np.dtype("<f8"), _of_double),
}


def read_into(tensor: Tensor, first: int, floats: np.ndarray) -> None:
    """Fills `floats` (float32, one dimension, contiguous) with a tensor's numbers from number `first` on."""
    dtype, decode = TYPES[tensor.dtype]
    raw = floats if decode is None else np.empty(floats.size, dtype)
    tensor.file.read_into(tensor.offset + dtype.itemsize * first, raw)
    if decode:
        decode(raw, floats)


def fill(tensor: Tensor, view: np.ndarray, flipped: bool) -> None:
    """Fills `view` (float32, contiguous) with a tensor's first rows, or with its transpose."""
    if flipped:
        return _fill_flipped(tensor, view)
    flat = view.reshape(-1)
    for start in range(0, flat.size, PIECE):
        read_into(tensor, start, flat[start : start + PIECE])


def _fill_flipped(tensor: Tensor, view: np.ndarray) -> None:
    rows, width = tensor.shape
    step = max(PIECE // width // STRIP, 1) * STRIP
    block = np.empty((min(step, rows), width), np.float32)
    for start in range(0, rows, step):
        part = block[: min(step, rows - start)]
        read_into(tensor, start * width, part.reshape(-1))
        for row in range(0, len(part), STRIP):
            strip = part[row : row + STRIP]
            view[:, start + row : start + row + len(strip)] = strip.T


def same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bits."""
    if a == b:
        return True
    if a.shape != b.shape:
        return False
    count, found = prod(a.shape), np.empty((2, PIECE), np.float32)
    for start in range(0, count, PIECE):
        pair = found[:, : min(PIECE, count - start)]
        for tensor, floats in zip((a, b), pair, strict=True):
            read_into(tensor, start, floats)
        if not np.array_equal(pair[0].view(np.uint32), pair[1].view(np.uint32)):
            return False
    return True


# --- a model's tensors -----------------------------------------------------------------------------------------------


class Weights:
    """Open weights of another program; use it in a `with`, or close() it.

    dims: maxT, V, L, NH, C, Vp as in the header of a checkpoint (Vp 0: V rounded up). about: what they are, in a few words."""

    def __init__(self, path, files: list[RegularFile], tensors: dict[str, Tensor], dims: dict[str, int], layout, about: str,
                 flips: bool = True, biases: bool = True, tied: bool = True):  # fmt: skip
        """layout: the function from dims to the layout of the tensor table. flips: matrices lie as Row.src says; biases: none may
        be missing (else they are 0); tied: the head may be missing. Raises FormatError for a tensor that is missing, not known,
        of another shape or of a type without fractions."""
        self.path, self.dims, self.about, self._files = path, dims, about, files
        stored = layout(dims | {"Vp": dims["Vp"] or dims["V"]})
        homes, prefix = dict(_homes(stored, flips)), any(name.startswith(PREFIX) for name in tensors)
        known = {name if prefix or name == HEAD else PREFIX + name: tensor for name, tensor in tensors.items()}
        self._head = known.pop(HEAD, None)
        named = {name: tensor for name, tensor in known.items() if not BUFFERS.fullmatch(name.removeprefix(PREFIX))}
        self._refuse(named, homes, biases, _spoken(prefix))
        self._places = [(homes[name], tensor) for name, tensor in named.items()]
        if self._head:
            self._refuse_shape(HEAD, self._head, homes[_wte(stored)])
        elif not tied:
            raise FormatError(f"{path}: has no {HEAD}, and its head is not tied to the embedding (tie_word_embeddings)")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self._files)

    def fill(self, params) -> None:
        """Fills a model's parameters (a section of the arena, all 0): what both have, so a shorter wpe is cut, and rows behind the
        vocabulary stay 0. Raises FormatError."""
        if self._head:
            wte = next(tensor for home, tensor in self._places if home.row == "wte")
            if not same_numbers(self._head, wte):
                raise FormatError(
                    f"{self.path}: {HEAD} is not the embedding wte: a head of its own, which this GPT-2 does not have"
                )
        for home, tensor in self._places:
            view = params.slot(home.row, home.slot)
            if not home.flipped:
                view = view[: min(tensor.shape[0], self.dims["V"])] if home.row == "wte" else view[: tensor.shape[0]]
            fill(tensor, view, home.flipped)

    def _refuse(self, tensors: dict[str, Tensor], homes: dict[str, Home], biases: bool, spoken) -> None:
        missing = [name for name in homes if name not in tensors and (biases or not name.endswith(".bias"))]
        if missing:
            home = homes[missing[0]]
            shape = home.shape[::-1] if home.flipped else home.shape
            more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
            raise FormatError(
                f"{self.path}: lacks the tensor {spoken(missing[0])} of shape {told(shape)}{more}: {_DAMAGED}"
            )
        for name, tensor in tensors.items():
            if name not in homes:
                raise FormatError(
                    f"{self.path}: holds the tensor {told(spoken(name))} ({tensor.label()}), which a GPT-2 of "
                    f"{self.dims['L']} layers does not have: it is another model, or config.json is another's"
                )
            self._refuse_shape(spoken(name), tensor, homes[name])

    def _refuse_shape(self, name: str, tensor: Tensor, home: Home) -> None:
        if not home.fits(tensor):
            shape = home.shape[::-1] if home.flipped else home.shape
            raise FormatError(
                f"{self.path}: {name} has the shape {told(tensor.shape)}, expected {told(shape)} by its dims"
            )
        if tensor.dtype not in TYPES:
            raise FormatError(
                f"{self.path}: {name} is {tensor.dtype}, expected one of {', '.join(TYPES)}: it is quantised"
            )

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


_DAMAGED = "the files are not whole, or are another model's; copy or download them again"


def _homes(layout, flips: bool) -> Iterable[tuple[str, Home]]:
    for place in layout:
        name, flipped = place.row.src.removesuffix("^T"), flips and place.row.src.endswith("^T")
        for slot in range(place.slots or 1):
            yield name.format(l=slot), Home(place.row.name, slot, place.slot_shape, flipped)


def _wte(layout) -> str:
    return layout["wte"].row.src


def _spoken(prefix: bool):
    """How a file calls a tensor that is known with its prefix."""
    return (lambda name: name) if prefix else (lambda name: name.removeprefix(PREFIX))
