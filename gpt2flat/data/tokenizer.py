"""Tokenizers: text to ids and back, from tokenizer files, the packaged GPT-2 vocabulary, or a text's characters.

Text is data: a piece that looks like <|endoftext|> is encoded as its characters, never as the end-of-text token."""

import codecs
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from ..errors import DataError, FormatError, UsageError
from ..formats import llmc
from . import bpe
from .bpe import END_OF_TEXT

GPT2_FILE = Path(__file__).with_name("gpt2_tokenizer.bin")

BYTES = [bytes((b,)) for b in range(256)]
# control characters but newline and tab: C0, DEL and C1; what ends lines or turns their order elsewhere in Unicode
ESCAPES = {c: f"\\x{c:02x}" for c in [*range(32), *range(127, 160)] if chr(c) not in "\n\t"} | {
    c: f"\\u{c:04x}" for c in [0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
}


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary: `tokens` are the bytes by id, `eot` is the end-of-text id.

    kind: "gpt2" (byte-pair encoding by lowest id over 50257 tokens), "bpe" (the same over another vocabulary, with GPT-2's
    words; ids in the order of merges), "char" (one token per character), "byte" (one per byte) or "table" (another
    vocabulary of llm.c's: it only decodes, unless every token is a single byte)."""

    kind: str
    tokens: tuple[bytes, ...]
    eot: int

    @classmethod
    def gpt2(cls) -> "Tokenizer":
        """GPT-2's 50257 tokens, from the package."""
        return _packaged_gpt2()

    @classmethod
    def byte(cls) -> "Tokenizer":
        """257 tokens: id b is the byte b, 256 is end-of-text."""
        return cls("byte", (*BYTES, END_OF_TEXT.encode()), 256)

    @classmethod
    def char(cls, text: str) -> "Tokenizer":
        """One token for each character of `text`, sorted, and end-of-text last."""
        characters = sorted(set(valid(text)))
        return cls("char", (*(c.encode() for c in characters), END_OF_TEXT.encode()), len(characters))

    @classmethod
    def load(cls, path) -> "Tokenizer":
        """From a tokenizer file. Raises FormatError for any other, DataError if it cannot be opened."""
        stored, tokens, eot = llmc.read_tokenizer(path)
        kind = stored
        if stored == llmc.TOKENIZER_KINDS[0]:
            kind = "gpt2" if len(tokens) == llmc.GPT2_VOCAB else "table"
        if problem := _CHECKS[kind](tokens, eot):
            raise FormatError(f"{path}: {problem}")
        return cls(kind, tuple(tokens), eot)

    def save(self, path) -> None:
        """Writes a version 2 tokenizer file. Raises CheckpointError if it cannot be written."""
        stored = self.kind if self.kind in llmc.TOKENIZER_KINDS else llmc.TOKENIZER_KINDS[0]
        llmc.write_tokenizer(path, stored, list(self.tokens), self.eot)

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @cached_property
    def start(self) -> int:
        """The id that unconditional text begins with: newline for bytes and characters, else end-of-text."""
        newline = self.kind in ("byte", "char") and b"\n" in self.tokens
        return self.tokens.index(b"\n") if newline else self.eot

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text`, (n,) int32; lone surrogates become U+FFFD.

        Raises DataError for what the vocabulary cannot say."""
        return self._encoder(valid(text))

    def encode_documents(self, texts: Iterable[str]) -> np.ndarray:
        """The ids of all texts, end-of-text before each, (n,) int32. Raises DataError as encode does."""
        texts = [valid(text) for text in texts]
        if self.kind in ("gpt2", "bpe"):
            return self._merges.encode_documents(texts)
        eot = np.array([self.eot], np.int32)
        return np.concatenate([eot[:0], *(ids for text in texts for ids in (eot, self._encoder(text)))])

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one id. Raises DataError for an id outside the vocabulary."""
        if not 0 <= token < len(self.tokens):
            raise DataError(f"token id {token}, expected 0 to {len(self.tokens) - 1}")
        return self.tokens[token]

    def decode(self, ids) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD. Raises DataError for ids outside the vocabulary."""
        return b"".join(self.token_bytes(int(token)) for token in ids).decode("utf-8", "replace")

    @cached_property
    def _merges(self) -> bpe.Encoder:
        return bpe.Encoder(self.tokens, self.eot)

    @cached_property
    def _encoder(self) -> Callable[[str], np.ndarray]:
        return _ENCODERS[self.kind](self)


def check_tokenizer(name: str) -> None:
    """Raises UsageError for a name that is none."""
    kind, _, size = name.partition(":")
    if name in ("gpt2", "byte", "char"):
        return
    if kind != "bpe" or not (size.isascii() and size.isdigit() and bpe.LEAST_VOCAB <= int(size) <= bpe.MOST_VOCAB):
        raise UsageError(
            f"--tokenizer {name}: expected gpt2, byte, char or bpe:N with N from {bpe.LEAST_VOCAB} to {bpe.MOST_VOCAB} tokens"
        )


def make_tokenizer(name: str, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that a name and, for characters and bpe:N, all texts make. Raises UsageError."""
    check_tokenizer(name)
    if name == "char":
        seen = np.zeros(0x110000, bool)
        for text in texts:
            seen[np.frombuffer(valid(text).encode("utf-32-le"), "<u4")] = True
        return Tokenizer.char("".join(map(chr, np.flatnonzero(seen))))
    if name.startswith("bpe:"):
        tokens = bpe.learn(texts, int(name.removeprefix("bpe:")))
        return Tokenizer("bpe", tokens, len(tokens) - 1)
    return Tokenizer.gpt2() if name == "gpt2" else Tokenizer.byte()


class Decoder:
    """Text from ids one at a time: characters come out once all their bytes are in."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(int(token)))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character."""
        return self._utf8.decode(b"", final=True)


def escape_controls(text: str) -> str:
    """`text` safe for a terminal: control characters other than newline and tab become \\x1b and \\u202e and the like."""
    return text.translate(ESCAPES)


@cache
def _packaged_gpt2() -> Tokenizer:
    return Tokenizer.load(GPT2_FILE)


def valid(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates replaced, as tiktoken does; anything else unchanged."""
    if text.isascii():
        return text
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


# --- encoders, one per kind: tokenizer -> (text -> ids) ---------------------------------------------------------------


def _byte_encoder(tokenizer: Tokenizer) -> Callable[[str], np.ndarray]:
    ids = np.full(256, -1, np.int32)
    for token, piece in enumerate(tokenizer.tokens):
        if token != tokenizer.eot:
            ids[piece[0]] = token

    def encode(text: str) -> np.ndarray:
        raw = np.frombuffer(text.encode(), np.uint8)
        row = ids[raw]
        if (row < 0).any():
            at = int((row < 0).argmax())
            size = tokenizer.vocab_size
            raise DataError(
                f"byte 0x{raw[at]:02x} at offset {at} of the text is not in this vocabulary of {size} tokens"
            )
        return row

    return encode


def _char_encoder(tokenizer: Tokenizer) -> Callable[[str], np.ndarray]:
    known = [(ord(piece.decode()), token) for token, piece in enumerate(tokenizer.tokens) if token != tokenizer.eot]
    end = max((point for point, _ in known), default=-1) + 1
    ids = np.full(end + 1, -1, np.int32)  # by character; the last is for those beyond
    for point, token in known:
        ids[point] = token

    def encode(text: str) -> np.ndarray:
        row = ids[np.minimum(np.frombuffer(text.encode("utf-32-le"), "<u4"), end)]
        if (row < 0).any():
            at = int((row < 0).argmax())
            raise DataError(
                f"character {text[at]!r} at position {at} of the text is not among the {len(known)} of this "
                "tokenizer: leave it out, or train with --tokenizer byte, which knows every character"
            )
        return row

    return encode


def _table_encoder(tokenizer: Tokenizer) -> Callable[[str], np.ndarray]:
    if all(len(piece) == 1 for token, piece in enumerate(tokenizer.tokens) if token != tokenizer.eot):
        return _byte_encoder(tokenizer)
    raise DataError(
        f"this vocabulary of {tokenizer.vocab_size} tokens can only decode (its merges are not known): "
        "use a model trained with --tokenizer gpt2, byte or char"
    )


def _bpe_encoder(tokenizer: Tokenizer) -> Callable[[str], np.ndarray]:
    return tokenizer._merges.encode


_ENCODERS = {
    "gpt2": _bpe_encoder, "bpe": _bpe_encoder, "char": _char_encoder, "byte": _byte_encoder, "table": _table_encoder,
}  # fmt: skip


# --- what a file of each kind must hold: tokens, eot -> problem or "" -------------------------------------------------


def _check_bpe(tokens: list[bytes], eot: int) -> str:
    ordinary = set(tokens[:eot] + tokens[eot + 1 :])
    if len(ordinary) != len(tokens) - 1 or not ordinary.issuperset(BYTES):
        return "found repeated or missing tokens, expected those of byte-pair encoding: every byte and its merges, each once"
    return ""


def _check_byte(tokens: list[bytes], eot: int) -> str:
    right = tokens[:256] == BYTES and (len(tokens), eot) == (257, 256)
    return "" if right else "found another table, expected the 256 bytes in order and end-of-text of a byte tokenizer"


def _check_char(tokens: list[bytes], eot: int) -> str:
    seen = set()
    for token, piece in enumerate(tokens):
        character = piece.decode("utf-8", "replace")
        if token == eot:
            continue
        if len(character) != 1 or character.encode() != piece or character in seen:
            return f"token {token} is {piece[:8]!r}, expected one character, each once, in a char tokenizer"
        seen.add(character)
    return ""


_CHECKS = {
    "gpt2": _check_bpe, "bpe": _check_bpe, "char": _check_char, "byte": _check_byte, "table": lambda tokens, eot: "",
}  # fmt: skip
