"""Byte-pair encoding through tiktoken: GPT-2's words, where a text can be cut without changing its ids, and fast encoding.

Words of more than CUT characters are the one exception: they are cut behind each CUT of them, or one word of 2 GB would
take 100 GB of memory. tiktoken's own pattern looks ahead, which is half as fast and fails on a million spaces."""

import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise

import numpy as np

from ..errors import UsageError

END_OF_TEXT = "<|endoftext|>"
# GPT-2's way of cutting text into words (tiktoken's r50k_base): contractions, letters, digits, signs, white space
GPT2_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# the same without looking ahead, for text whose runs of white space have been taken out
FAST_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s"
CUT = 1 << 20  # characters
SHORT = 1 << 13  # a text below this is not worth a second encoder
LONG_SPACE = 1 << 16  # tiktoken gives up at a million characters of white space
RUN = "\U0010fffd"  # stands for a run of white space that was taken out; a private character

# Unicode's White_Space, tiktoken's \s
_SPACES = (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
_IS_SPACE = np.isin(np.arange(_SPACES[-1] + 2), _SPACES)  # the last is for all characters beyond
_IS_SPACE_BYTE = _IS_SPACE[:256].tobytes()
_LETTERS = r"0-9A-Za-z\u3042-\u3093\u30a2-\u30f3\u4e00-\u9fa5\uac00-\ud7a3"  # letters and digits in any Unicode version
_SIGNS = r"!-/:-@\[-`{-~\u3001\u3002\uff01\uff0c\uff1b\uff1f"
# Behind what is no space before a space, and behind a letter before a sign, a word ends whatever surrounds them.
_LAST_CUT = re.compile(rf"(?s:.*)(?:\S(?=[ \n])|[{_LETTERS}](?=[{_SIGNS}]))")


def cut(pieces: Iterable[str]) -> Iterator[str]:
    """A text that comes in pieces, in parts of at most CUT characters whose ids, one behind the other, are the text's.

    The parts depend on the text only, not on how it comes."""
    held, at = "", 0
    for piece in pieces:
        held, at = held[at:] + piece, 0
        while len(held) - at > CUT:  # `at` moves, since a text that comes whole would be copied again for every part
            found = _LAST_CUT.match(held, at, at + CUT + 1)
            begin, at = at, found.end() if found else at + CUT
            yield held[begin:at]
    if at < len(held):
        yield held[at:]


def _apart(text: str, ends: np.ndarray, least: int = 2) -> list[str]:
    """text, white space, text ... text: runs of white space that are one word of at least so many characters, each taken out.

    Such a word is all of a run but its last character, or all of it where a text ends."""
    if text.isascii():
        space = np.frombuffer(text.encode().translate(_IS_SPACE_BYTE), bool)
    else:
        space = _IS_SPACE[np.minimum(np.frombuffer(text.encode("utf-32-le"), "<u4"), len(_IS_SPACE) - 1)]
    pairs = np.flatnonzero(space[1:] & space[:-1])
    apart = np.diff(pairs) > 1
    begins, stops = pairs[np.r_[True, apart][: len(pairs)]], pairs[np.r_[apart, True][: len(pairs)]] + 2
    at_end = np.zeros(len(text) + 1, bool)
    at_end[ends] = True
    stops -= ~at_end[stops]
    words = stops - begins >= least
    bounds = np.stack([begins[words], stops[words]], 1).ravel().tolist()
    return [text[begin:end] for begin, end in pairwise([0, *bounds, len(text)])]


class Encoder:
    """Ids of text by the ranks of byte strings, each id its rank; `eot` is no merge."""

    def __init__(self, tokens: tuple[bytes, ...], eot: int):
        self._ranks = {token: rank for rank, token in enumerate(tokens) if rank != eot}
        self._special = {END_OF_TEXT: eot, RUN: len(tokens)}
        self._runs: dict[str, np.ndarray] = {}

    @cached_property
    def _exact(self):
        return self._encoding(GPT2_SPLIT)

    @cached_property
    def _fast(self):
        return self._encoding(FAST_SPLIT)

    def _encoding(self, split: str):
        import tiktoken  # here, because only encoding needs it

        return tiktoken.Encoding("bpe", pat_str=split, mergeable_ranks=self._ranks, special_tokens=self._special)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text without surrogates, (n,) int32."""
        return _join([self._part([part]) for part in cut([text])])

    def encode_documents(self, texts: list[str]) -> np.ndarray:
        """The ids of all texts, end-of-text before each of them; what looks like it stays text."""
        if any(END_OF_TEXT in text for text in texts) or max(map(len, texts), default=0) > CUT:
            eot = np.array([self._special[END_OF_TEXT]], np.int32)
            return _join([ids for text in texts for ids in (eot, self.encode(text))])
        return _join([self._part(["", *texts])])

    def _part(self, texts: list[str]) -> np.ndarray:
        """The ids of texts with end-of-text between them; only one alone may hold what looks like it."""
        text, special = END_OF_TEXT.join(texts), {END_OF_TEXT} if len(texts) > 1 else set()
        ends = np.cumsum([len(text) + len(END_OF_TEXT) for text in texts]) - len(END_OF_TEXT)
        if len(text) < SHORT or RUN in text:
            words = _apart(text, ends, LONG_SPACE)
            return _join(
                [self._exact.encode_to_numpy(w, allowed_special=special, disallowed_special=()) for w in words]
            )
        words = _apart(text, ends)
        ids = self._fast.encode_to_numpy(RUN.join(words[::2]), allowed_special={RUN, *special}, disallowed_special=())
        if len(words) == 1:
            return ids
        at, taken_out = ids == self._special[RUN], [self._run(run) for run in words[1::2]]
        lengths = np.ones(len(ids), np.int64)
        lengths[at] = [len(run) for run in taken_out]
        ids = np.repeat(ids, lengths)
        ids[np.repeat(at, lengths)] = np.concatenate(taken_out)
        return ids

    def _run(self, run: str) -> np.ndarray:
        found = self._runs.get(run)
        if found is None:
            found = self._exact.encode_to_numpy(run, disallowed_special=())
            if len(run) <= 64 and len(self._runs) < 1 << 16:
                self._runs[run] = found
        return found


# --- learning --------------------------------------------------------------------------------------------------------

LEARNED_FROM = 1 << 27  # characters: learning keeps each different word, so that memory is bounded by them
LEAST_VOCAB, MOST_VOCAB = 257, 1 << 16  # every byte and end-of-text; what a token file can hold


def learn(texts: Iterable[str], size: int) -> tuple[bytes, ...]:
    """At most `size` tokens from the first LEARNED_FROM characters: the bytes, merges by rank, and end-of-text last.

    It takes Hugging Face's tokenizers: the same words as tiktoken's, in Rust, and merges that do not depend on threads. Only
    learning needs it. Raises UsageError without it."""
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise UsageError("learning a vocabulary needs the package tokenizers: pip install 'gpt2flat[bpe]'") from None
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        initial_alphabet=words.alphabet(),
        max_token_length=255,
        min_frequency=2,
        show_progress=False,
    )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = words
    learner.train_from_iterator(_first(texts, LEARNED_FROM), trainer)
    byte_of = {shown: bytes((byte,)) for byte, shown in enumerate(shown_bytes())}
    merges = json.loads(learner.to_str())["model"]["merges"]
    tokens = [*byte_of.values(), *(b"".join(map(byte_of.get, "".join(pair))) for pair in merges)]
    return (*dict.fromkeys(tokens), END_OF_TEXT.encode())


def shown_bytes() -> list[str]:
    """The character that stands for each byte in OpenAI's and Hugging Face's vocabularies."""
    shown = [chr(byte) if chr(byte).isprintable() and byte not in (0x20, 0xA0, 0xAD) else "" for byte in range(256)]
    rest = iter(range(256, 512))
    return [character or chr(next(rest)) for character in shown]


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


def _join(rows: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.uint32), *rows]).astype(np.int32)
