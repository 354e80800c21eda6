"""llm.c's .bin files to the byte: headers, token files, tokenizers. The only home of magic numbers.

Every file starts with 256 little-endian int32. They become Python integers, are capped, and must account for the size
of the file exactly before anything is allocated. Layouts: llm.c's train_gpt2.py, data_common.py and tokenizer.h."""

import struct
import sys
from typing import NamedTuple

import numpy as np

from ..errors import DataError, FormatError, UnsupportedCPUError
from .files import RegularFile, write_atomically

if sys.byteorder != "little":
    raise UnsupportedCPUError("this machine is big-endian: gpt2flat's files and kernels are little-endian")

HEADER_BYTES = 1024
TOKEN_DTYPE, OLD_TOKEN_DTYPE = np.dtype("<u2"), np.dtype("<i4")
TOKENIZER_KINDS = ("llm.c", "char", "byte", "bpe")  # by header word 4
GPT2_VOCAB, GPT2_EOT = 50257, 50256  # what a version 1 tokenizer leaves out
MAX_VOCAB = 1 << 20

CHECKPOINT, DEBUG_STATE, TOKENIZER, TOKENS, CHOICES = 20240326, 20240327, 20240328, 20240520, 20240522
STATE, OPTIMIZER = 20240527, 20261121  # the second is gpt2flat's own
KINDS = {
    CHECKPOINT: "a model checkpoint",
    DEBUG_STATE: "a debug state",
    TOKENIZER: "a tokenizer",
    TOKENS: "a token file",
    CHOICES: "a multiple-choice evaluation file",
    STATE: "a training state",
    OPTIMIZER: "an optimizer state",
    20240801: "a Llama-3 token file",
    20240803: "a Llama-3 checkpoint",
}
OLD_TOKENS = "a token file without header"
TOKENS_VERSION, TOKENIZER_VERSION = 1, 2


# --- headers ---------------------------------------------------------------------------------------------------------


def kind_of(path) -> str | None:
    """What a file is by its magic number ("a token file", "a model checkpoint" ...), or None for anything else.

    Raises DataError when the file cannot be opened."""
    with RegularFile(path, DataError) as file:
        magic = int.from_bytes(file.read(0, min(4, file.size)), "little")
        return KINDS.get(magic) or (None if _no_old_tokens(file) else OLD_TOKENS)


def read_header(file: RegularFile, magic: int, used: int) -> list[int]:
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
        return "has no header (as llm.c's token files before June 2024)"
    return f"starts with {raw[:8]!r}"


def word_u64(words: list[int], index: int) -> int:
    """The u64 in header words index, index + 1."""
    return (words[index + 1] & 0xFFFFFFFF) << 32 | (words[index] & 0xFFFFFFFF)


def put_u64(words: list[int], index: int, value: int) -> None:
    words[index : index + 2] = struct.unpack("<2i", struct.pack("<Q", value))


def check_size(file: RegularFile, payload: int, what: str) -> None:
    """Raises FormatError unless `payload` bytes, which `what` takes, follow the header."""
    if file.size != HEADER_BYTES + payload:
        state = "cut short" if file.size < HEADER_BYTES + payload else "followed by other bytes"
        raise FormatError(
            f"{file.path}: found {file.size} bytes, expected {HEADER_BYTES + payload} for {what}: the file is {state}; "
            "copy or write it again"
        )


# --- token files (version 1: uint16; before June 2024: int32 and no header) ------------------------------------------


class TokenFile(NamedTuple):
    """An open token file: `count` ids of type `dtype` from byte `start` on. Close it."""

    file: RegularFile
    count: int
    dtype: np.dtype
    start: int

    def read(self, offset: int, n: int) -> np.ndarray:
        """A copy of n ids from `offset` on. Raises DataError when the file became shorter."""
        ids = np.empty(n, self.dtype)
        self.file.read_into(self.start + offset * ids.itemsize, ids)
        return ids

    def close(self) -> None:
        self.file.close()


def open_tokens(path) -> TokenFile:
    """Opens a token file, one of today or one without header. Later short reads raise DataError.

    Raises FormatError for a file that is not a whole token file, DataError if it cannot be opened."""
    file = RegularFile(path, DataError)
    try:
        if file.size >= 4 and 0 <= struct.unpack("<i", file.read(0, 4))[0] < GPT2_VOCAB:
            if problem := _no_old_tokens(file):
                raise FormatError(f"{path}: has no header, and is no token file of before June 2024: {problem}")
            return TokenFile(file, file.size // OLD_TOKEN_DTYPE.itemsize, OLD_TOKEN_DTYPE, 0)
        words = read_header(file, TOKENS, used=3)
        version, count = words[1:3]
        if version != TOKENS_VERSION:
            raise FormatError(f"{path}: token file version {version}, expected {TOKENS_VERSION}")
        if count < 1:
            raise FormatError(f"{path}: the header says {count} tokens, expected at least 1")
        check_size(file, TOKEN_DTYPE.itemsize * count, f"{count} tokens")
    except BaseException:
        file.close()
        raise
    return TokenFile(file, count, TOKEN_DTYPE, HEADER_BYTES)


def _no_old_tokens(file: RegularFile) -> str | None:
    """Why a file is not what llm.c wrote before June 2024, GPT-2's ids as int32 from byte 0 on; None if it is."""
    if file.size % OLD_TOKEN_DTYPE.itemsize or not file.size:
        return f"found {file.size} bytes, expected a multiple of 4"
    first = np.frombuffer(file.read(0, min(HEADER_BYTES, file.size)), OLD_TOKEN_DTYPE)
    for place in (int(first.argmin()), int(first.argmax())):
        if not 0 <= first[place] < GPT2_VOCAB:
            return f"found {first[place]} as token {place}, expected ids from 0 to {GPT2_VOCAB - 1}"
    return None if first.any() else "it starts with nothing but zeros"


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
    write_atomically(path, tokens_header(ids.size), np.ascontiguousarray(ids, TOKEN_DTYPE))


def tokens_header(count: int) -> bytes:
    """What stands before `count` ids in a token file."""
    return struct.pack("<256i", TOKENS, TOKENS_VERSION, count, *[0] * 253)


# --- tokenizers (versions 1 and 2: length byte + bytes per token) -----------------------------------------------------


def read_tokenizer(path) -> tuple[str, list[bytes], int]:
    """(kind, tokens by id, id of end-of-text); kind is one of TOKENIZER_KINDS.

    Raises FormatError for a file that is not a tokenizer, DataError if it cannot be opened."""
    with RegularFile(path, DataError, short=FormatError) as file:
        words = read_header(file, TOKENIZER, used=5)
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
