"""llm.c's .bin files to the byte: checkpoints, token files, tokenizers. The only home of magic numbers.

Every file starts with 256 little-endian int32. They become Python integers, are capped, and must account for the size
of the file exactly before anything is allocated. Layouts: llm.c's train_gpt2.py, data_common.py and tokenizer.h."""

import struct
import sys
from typing import NamedTuple

import numpy as np

from ..errors import CheckpointError, DataError, FormatError, UnsupportedCPUError
from .files import RegularFile, write_atomically

if sys.byteorder != "little":
    raise UnsupportedCPUError("this machine is big-endian: gpt2flat's files and kernels are little-endian")

HEADER_BYTES = 1024
TOKEN_DTYPE = np.dtype("<u2")
TOKENIZER_KINDS = ("llm.c", "char", "byte", "bpe")  # by header word 4
GPT2_VOCAB, GPT2_EOT = 50257, 50256  # what a version 1 tokenizer leaves out
MAX_VOCAB = 1 << 20

CHECKPOINT, TOKENIZER, TOKENS = 20240326, 20240328, 20240520
KINDS = {
    CHECKPOINT: "a model checkpoint",
    20240327: "a debug state",
    TOKENIZER: "a tokenizer",
    TOKENS: "a token file",
    20240522: "a multiple-choice evaluation file",
    20240527: "a training state",
    20240801: "a Llama-3 token file",
    20240803: "a Llama-3 checkpoint",
}
CHECKPOINT_VERSION, TOKENS_VERSION, TOKENIZER_VERSION = 3, 1, 2
OTHER_CHECKPOINTS = {
    1: "from before May 2024, without padded vocabulary",
    2: "from April 2024, in bf16",
    4: "from April 2024, of mixed precision",
    5: "in bf16",
}


class Dim(NamedTuple):
    """One dim of a checkpoint: its header word, the largest value taken for real, and what it is."""

    word: int
    cap: int
    meaning: str


DIMS = {
    "maxT": Dim(2, 1 << 16, "longest sequence"),
    "V": Dim(3, MAX_VOCAB, "vocabulary"),
    "L": Dim(4, 1 << 10, "layers"),
    "NH": Dim(5, 1 << 10, "heads"),
    "C": Dim(6, 1 << 16, "channels"),
    "Vp": Dim(7, MAX_VOCAB, "padded vocabulary"),
}


# --- headers ---------------------------------------------------------------------------------------------------------


def kind_of(path) -> str | None:
    """What a file is by its magic number ("a token file", "a model checkpoint" ...), or None for anything else.

    Raises DataError when the file cannot be opened."""
    with RegularFile(path, DataError) as file:
        return KINDS.get(int.from_bytes(file.read(0, min(4, file.size)), "little"))


def _read_header(file: RegularFile, magic: int, used: int) -> list[int]:
    """The 256 header words of `file`; its magic is checked, and that all words from `used` on are zero."""
    wanted = KINDS[magic]
    if file.size < HEADER_BYTES:
        raise FormatError(
            f"{file.path}: found {file.size} bytes, expected {wanted} with its header of {HEADER_BYTES} bytes"
        )
    raw = file.read(0, HEADER_BYTES)
    words = list(struct.unpack("<256i", raw))
    if words[0] != magic:
        raise FormatError(f"{file.path}: {_what_else(raw, words[0])}, expected {wanted}")
    for index in range(used, 256):
        if words[index]:
            raise FormatError(f"{file.path}: reserved header word {index} is {words[index]}, expected 0 in {wanted}")
    return words


def _what_else(raw: bytes, magic: int) -> str:
    swapped = int.from_bytes(raw[:4], "big", signed=True)
    if magic in KINDS:
        return f"is {KINDS[magic]}"
    if swapped in KINDS:
        return f"is {KINDS[swapped]}, but byte-swapped (written on a big-endian machine)"
    if 0 <= magic < GPT2_VOCAB:
        return "has no header (llm.c's token files before June 2024 had none: make it again with today's scripts)"
    return f"starts with {raw[:8]!r}"


def _check_size(file: RegularFile, payload: int, what: str) -> None:
    if file.size != HEADER_BYTES + payload:
        state = "cut short" if file.size < HEADER_BYTES + payload else "followed by other bytes"
        raise FormatError(
            f"{file.path}: found {file.size} bytes, expected {HEADER_BYTES + payload} for {what}: the file is {state}; "
            "copy or write it again"
        )


# --- checkpoints (version 3: float32, padded vocabulary) --------------------------------------------------------------


def read_checkpoint_header(path, parameters) -> dict[str, int]:
    """The dims of a checkpoint: {"maxT", "V", "L", "NH", "C", "Vp"}.

    parameters: the function from these dims to the number of float32 that the tensor table asks for; the size of the
    file must agree to the byte.
    Raises FormatError for a file that is no such checkpoint, CheckpointError if it cannot be opened."""
    with RegularFile(path, CheckpointError) as file:
        words = _read_header(file, CHECKPOINT, used=8)
        version = words[1]
        if version in OTHER_CHECKPOINTS:
            raise FormatError(
                f"{path}: is a checkpoint of version {version} ({OTHER_CHECKPOINTS[version]}), expected version 3 "
                "(float32): write it again with llm.c's train_gpt2.py, which makes gpt2_124M.bin"
            )
        if version != CHECKPOINT_VERSION:
            raise FormatError(f"{path}: checkpoint version {version}, expected {CHECKPOINT_VERSION}")
        dims = {name: words[dim.word] for name, dim in DIMS.items()}
        _check_dims(path, dims)
        listed = ", ".join(f"{name} {value}" for name, value in dims.items())
        _check_size(file, 4 * parameters(dims), f"float32 of the dims {listed}")
    return dims


def _check_dims(where, dims: dict[str, int]) -> None:
    for name, (_, cap, meaning) in DIMS.items():
        if not 1 <= dims[name] <= cap:
            raise FormatError(f"{where}: {name} ({meaning}) is {dims[name]}, expected 1 to {cap}")
    if dims["C"] % dims["NH"]:
        raise FormatError(
            f"{where}: C {dims['C']} is not a multiple of NH {dims['NH']}: heads must share the channels evenly"
        )
    if dims["V"] > dims["Vp"]:
        raise FormatError(f"{where}: the vocabulary V {dims['V']} is larger than Vp {dims['Vp']}, expected V <= Vp")


def checkpoint_header(dims: dict[str, int]) -> bytes:
    """The 1024 bytes in front of a checkpoint's float32. Raises FormatError for dims that could not be read again."""
    _check_dims("checkpoint header", dims)
    words = [0] * 256
    words[:2] = CHECKPOINT, CHECKPOINT_VERSION
    for name, dim in DIMS.items():
        words[dim.word] = dims[name]
    return struct.pack("<256i", *words)


def read_payload_into(path, offset: int, view) -> None:
    """Fills `view` (a writable contiguous array) with the file's bytes from `offset` on (1024: the first tensor).

    Raises CheckpointError if the file cannot be opened and FormatError if it ends too early."""
    with RegularFile(path, CheckpointError, short=FormatError) as file:
        file.read_into(offset, view)


# --- token files (version 1: uint16) ----------------------------------------------------------------------------------


def open_tokens(path) -> tuple[RegularFile, int]:
    """An open token file and its number of tokens, uint16 from byte 1024 on. Later short reads raise DataError.

    Raises FormatError for a file that is not a whole token file, DataError if it cannot be opened."""
    file = RegularFile(path, DataError)
    try:
        words = _read_header(file, TOKENS, used=3)
        version, count = words[1:3]
        if version != TOKENS_VERSION:
            raise FormatError(f"{path}: token file version {version}, expected {TOKENS_VERSION}")
        if count < 1:
            raise FormatError(f"{path}: the header says {count} tokens, expected at least 1")
        _check_size(file, TOKEN_DTYPE.itemsize * count, f"{count} tokens")
    except BaseException:
        file.close()
        raise
    return file, count


def write_tokens(path, ids) -> None:
    """Writes ids (1-D integers in [0, 65536)) as a token file.

    Raises DataError for no ids, too many (2^31) or one out of range, CheckpointError if the file cannot be written."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(f"{path}: token ids are {ids.dtype} of shape {ids.shape}, expected a row of integers")
    if not 1 <= ids.size < 1 << 31:
        raise DataError(f"{path}: {ids.size} tokens, expected 1 to 2^31 - 1 in one file: write several shards")
    for extreme in (int(ids.argmin()), int(ids.argmax())):
        if not 0 <= ids[extreme] < 1 << 16:
            raise DataError(
                f"{path}: token {extreme} is id {ids[extreme]}, expected 0 to 65535, the ids a token file holds"
            )
    header = struct.pack("<256i", TOKENS, TOKENS_VERSION, ids.size, *[0] * 253)
    write_atomically(path, header, np.ascontiguousarray(ids, TOKEN_DTYPE))


# --- tokenizers (versions 1 and 2: length byte + bytes per token) -----------------------------------------------------


def read_tokenizer(path) -> tuple[str, list[bytes], int]:
    """(kind, tokens by id, id of end-of-text); kind is one of TOKENIZER_KINDS.

    Raises FormatError for a file that is not a tokenizer, DataError if it cannot be opened."""
    with RegularFile(path, DataError, short=FormatError) as file:
        words = _read_header(file, TOKENIZER, used=5)
        version, count, eot, kind = words[1:5]
        if version not in (1, TOKENIZER_VERSION):
            raise FormatError(f"{path}: tokenizer version {version}, expected 1 or {TOKENIZER_VERSION}")
        if version == 1:
            if (count, eot, kind) != (GPT2_VOCAB, 0, 0):
                raise FormatError(f"{path}: tokenizer version 1 with {count} tokens, expected GPT-2's {GPT2_VOCAB}")
            eot = GPT2_EOT
        if not 1 <= count <= MAX_VOCAB:
            raise FormatError(f"{path}: tokenizer of {count} tokens, expected 1 to {MAX_VOCAB}")
        if not 0 <= eot < count:
            raise FormatError(f"{path}: end-of-text is token {eot}, expected 0 to {count - 1}")
        if not 0 <= kind < len(TOKENIZER_KINDS):
            raise FormatError(f"{path}: tokenizer of kind {kind}, expected 0 to {len(TOKENIZER_KINDS) - 1}")
        if not 2 * count <= file.size - HEADER_BYTES <= 256 * count:
            raise FormatError(f"{path}: found {file.size} bytes, which cannot hold {count} tokens of 1 to 255 bytes")
        payload = file.read(HEADER_BYTES, file.size - HEADER_BYTES)
    return TOKENIZER_KINDS[kind], _parse_tokens(path, payload, count), eot


def _parse_tokens(path, payload: bytes, count: int) -> list[bytes]:
    tokens, at = [], 0
    for token in range(count):
        length = payload[at] if at < len(payload) else 0
        if length == 0 or at + 1 + length > len(payload):
            problem = "is empty" if at < len(payload) and length == 0 else "is cut short"
            raise FormatError(
                f"{path}: token {token} of {count} {problem} at byte {HEADER_BYTES + at}: copy the file again"
            )
        tokens.append(payload[at + 1 : at + 1 + length])
        at += 1 + length
    if at != len(payload):
        raise FormatError(f"{path}: found {len(payload) - at} bytes behind the last of {count} tokens, expected none")
    return tokens


def write_tokenizer(path, kind: str, tokens: list[bytes], eot: int) -> None:
    """Writes a version 2 tokenizer. Raises FormatError for tokens it cannot hold, CheckpointError on failure."""
    if not 1 <= len(tokens) <= MAX_VOCAB or not 0 <= eot < len(tokens):
        raise FormatError(f"{path}: {len(tokens)} tokens with end-of-text {eot} do not make a tokenizer")
    for token, text in enumerate(tokens):
        if not 1 <= len(text) <= 255:
            raise FormatError(f"{path}: token {token} has {len(text)} bytes, expected 1 to 255")
    words = (TOKENIZER, TOKENIZER_VERSION, len(tokens), eot, TOKENIZER_KINDS.index(kind))
    body = b"".join(bytes((len(text),)) + text for text in tokens)
    write_atomically(path, struct.pack("<256i", *words, *[0] * 251), body)
