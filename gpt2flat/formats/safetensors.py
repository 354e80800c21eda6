"""Hugging Face's safetensors: the length of a JSON header (u64), the header, the tensors (huggingface/safetensors, format).

All is checked before anything is allocated; the tensors must cover the rest of the file, without holes or overlap."""

from math import prod

from ..errors import FormatError
from .files import RegularFile
from .strict_json import is_whole, parse_object, told
from .tensors import Tensor

LENGTH_BYTES, MAX_HEADER, MAX_AXES = 8, 100_000_000, 8
BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1,
    "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
METADATA, KEYS = "__metadata__", {"dtype", "shape", "data_offsets"}
CURE = "copy or download the file again"


def read_tensors(file: RegularFile) -> dict[str, Tensor]:
    """The tensors of an open file by name. Raises FormatError."""
    if file.size < LENGTH_BYTES:
        raise FormatError(f"{file.path}: found {file.size} bytes, expected a safetensors file: {CURE}")
    length = int.from_bytes(file.read(0, LENGTH_BYTES), "little")
    start = LENGTH_BYTES + length
    if not 2 <= length <= min(MAX_HEADER, file.size - LENGTH_BYTES):
        raise FormatError(
            f"{file.path}: says its header has {length} bytes, of a file of {file.size} and at most {MAX_HEADER}: it is cut "
            f"short or no safetensors file; {CURE}"
        )
    header = parse_object(file.read(LENGTH_BYTES, length), file.path)
    header.pop(METADATA, None)
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(file, *item)):
        begin, stop = _offsets(file, name, entry)
        if begin != end:
            raise FormatError(
                f"{file.path}: {told(name)} begins at byte {begin} of the data, expected {end}, where the tensor before it ends"
            )
        tensors[name] = _tensor(file, name, entry, start + begin, stop - begin)
        end = stop
    if start + end != file.size:
        state = "cut short" if start + end > file.size else "followed by other bytes"
        raise FormatError(
            f"{file.path}: found {file.size} bytes, expected {start + end} by its header: the file is {state}; {CURE}"
        )
    return tensors


def _offsets(file: RegularFile, name: str, entry) -> tuple[int, int]:
    if not isinstance(entry, dict) or entry.keys() != KEYS:
        raise FormatError(f"{file.path}: {told(name)} is {told(entry)}, expected dtype, shape and data_offsets")
    offsets = entry["data_offsets"]
    pair = isinstance(offsets, list) and len(offsets) == 2
    if not (pair and is_whole(offsets[0], 0, 1 << 62) and is_whole(offsets[1], offsets[0], 1 << 62)):
        raise FormatError(
            f"{file.path}: {told(name)} has the data_offsets {told(offsets)}, expected a begin and an end"
        )
    return offsets[0], offsets[1]


def _tensor(file: RegularFile, name: str, entry: dict, offset: int, length: int) -> Tensor:
    dtype, shape = entry["dtype"], entry["shape"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise FormatError(f"{file.path}: {told(name)} is of dtype {told(dtype)}, expected one of {', '.join(BYTES)}")
    axes = isinstance(shape, list) and len(shape) <= MAX_AXES
    if not (axes and all(is_whole(size, 0, 1 << 62) for size in shape)):
        raise FormatError(f"{file.path}: {told(name)} has the shape {told(shape)}, expected a list of sizes")
    if BYTES[dtype] * prod(shape) != length:
        raise FormatError(
            f"{file.path}: {told(name)} of {dtype} {told(shape)} has {length} bytes, expected another length"
        )
    return Tensor(file, offset, dtype, tuple(shape))
