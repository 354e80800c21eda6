"""The byte-level BPE beside Hugging Face's weights, tokenizer.json or vocab.json and merges.txt, as a Tokenizer.

It is taken only where ids, merges and the way text is cut are those of a Tokenizer; else there is a reason to tell, and ids."""

from pathlib import Path

from ..errors import CheckpointError, FormatError
from ..formats.files import RegularFile
from ..formats.llmc import MAX_VOCAB
from ..formats.strict_json import read_object, told
from .bpe import END_OF_TEXT, shown_bytes
from .tokenizer import BYTES, Tokenizer

JSON, VOCAB, MERGES, SETTINGS, CONFIG = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "config.json",
)
LONGEST = 1 << 27  # bytes of a file
# the character that stands for a byte -> the byte; what stands for none leaves the range of bytes
_TO_BYTE = dict.fromkeys(range(256), 1 << 20) | {ord(shown): byte for byte, shown in enumerate(shown_bytes())}


class _Other(Exception):
    """Why a Tokenizer does not do what the files say."""


def find(folder: Path, vocab_size: int) -> tuple[Tokenizer | None, str]:
    """(the tokenizer of a folder, ""), or (None, why its files cannot be used; "" if there are none).

    vocab_size: that of the model; ids that only the model has become tokens that no text has. Raises FormatError for files that
    are damaged, CheckpointError for what cannot be opened."""
    whole, pair = folder / JSON, (folder / VOCAB, folder / MERGES)
    if not whole.is_file() and not all(path.is_file() for path in pair):
        return None, ""
    path = whole if whole.is_file() else pair[0]
    try:
        return _tokenizer(path, *(_of_json(whole) if whole.is_file() else _of_pair(*pair)), vocab_size), ""
    except _Other as why:
        return None, f"{path}: {why}; only ids are read and written"


def _of_json(path: Path) -> tuple[dict, list, dict[str, int]]:
    """(vocabulary, merges, added tokens) of a tokenizer.json."""
    found = read_object(path, LONGEST)
    model = _object(path, "model", found.get("model"))
    if model.get("type", "BPE") != "BPE":
        raise _Other(f"is a {told(model['type'])}, expected a byte-level BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        if model.get(name):
            raise _Other(f"its {name} is {told(model[name])}, which is not served")
    if found.get("normalizer"):
        raise _Other(f"its normalizer {told(found['normalizer'])} is not served")
    cut = found.get("pre_tokenizer") or {}
    if not (isinstance(cut, dict) and cut.get("type") == "ByteLevel" and cut.get("use_regex", True) is True):
        raise _Other(f"cuts text by {told(cut)}, expected GPT-2's ByteLevel")
    if cut.get("add_prefix_space"):
        raise _Other("begins every text with a space, which is not served")
    added = {}
    for entry in found.get("added_tokens") or []:
        entry = _object(path, "an added token", entry)
        if not isinstance(entry.get("content"), str) or not entry["content"]:
            raise FormatError(f"{path}: an added token is {told(entry)}, expected its content and id")
        added[entry["content"]] = entry.get("id")
    return _object(path, "vocab", model.get("vocab")), model.get("merges"), added


def _of_pair(vocab: Path, merges: Path) -> tuple[dict, list, dict[str, int]]:
    with RegularFile(merges, CheckpointError, short=FormatError) as file:
        if file.size > LONGEST:
            raise FormatError(f"{merges}: has {file.size} bytes, expected at most {LONGEST}")
        try:
            lines = file.read(0, file.size).decode().split("\n")
        except UnicodeDecodeError as problem:
            raise FormatError(f"{merges}: is no UTF-8 text: {problem}") from None
    settings = vocab.with_name(SETTINGS)
    if settings.is_file() and read_object(settings, LONGEST).get("add_prefix_space"):
        raise _Other("begins every text with a space, which is not served")
    found = read_object(vocab, LONGEST)
    kept = [line for number, line in enumerate(lines) if line and not (number == 0 and line.startswith("#version"))]
    return found, kept, {END_OF_TEXT: found[END_OF_TEXT]} if END_OF_TEXT in found else {}


def _object(path: Path, what: str, value) -> dict:
    if not isinstance(value, dict):
        raise FormatError(f"{path}: {what} is {told(value)}, expected an object")
    return value


def _tokenizer(path: Path, vocab: dict, merges, added: dict[str, int], vocab_size: int) -> Tokenizer:
    ids = vocab | added
    count = len(ids)
    if count > min(vocab_size, MAX_VOCAB):
        raise _Other(f"has {count} tokens, the model {vocab_size}")
    if {*map(type, ids.values())} != {int} or sorted(ids.values()) != list(range(count)):
        raise FormatError(f"{path}: its {count} tokens have other ids than 0 to {count - 1}, each once")
    tokens = [b""] * count
    for text, token in ids.items():
        tokens[token] = text.encode("utf-8", "replace") if text in added else _bytes(text)
    eot = _end_of_text(path.parent, added)
    _check_merges(path, merges, ids, added)
    gpt2 = Tokenizer.gpt2()
    if (tuple(tokens), eot, vocab_size) == (gpt2.tokens, gpt2.eot, gpt2.vocab_size):
        return gpt2
    tokens += [b"<|id %d|>" % token for token in range(count, vocab_size)]
    if len(set(tokens)) < len(tokens) or not set(tokens).issuperset(BYTES):
        raise _Other("lacks a byte, or has a token twice")
    if max(map(len, tokens)) > 255:
        raise _Other("has a token of more than 255 bytes, the most that a tokenizer file holds")
    return Tokenizer("bpe", tuple(tokens), eot)


def _bytes(text: str) -> bytes:
    try:
        return text.translate(_TO_BYTE).encode("latin-1")
    except UnicodeEncodeError:
        raise _Other(f"has the token {told(text)}, which is not written in GPT-2's characters for bytes") from None


def _end_of_text(folder: Path, added: dict[str, int]) -> int:
    """The id of the end of a text: that of <|endoftext|>, else the one that config.json names."""
    if END_OF_TEXT in added:
        return added[END_OF_TEXT]
    eos = read_object(folder / CONFIG, LONGEST).get("eos_token_id") if (folder / CONFIG).is_file() else None
    if type(eos) is not int or eos not in added.values():
        raise _Other(f"has no {END_OF_TEXT} among its added tokens, and config.json names none as eos_token_id")
    return eos


def _check_merges(path: Path, merges, ids: dict[str, int], added: dict[str, int]) -> None:
    """A Tokenizer merges the pair whose token has the least id: so merges must stand in the order of their ids, and make all tokens
    but bytes and those that were added."""
    if not isinstance(merges, list):
        raise FormatError(f"{path}: its merges are {told(merges)}, expected a list")
    before = -1
    for merge in merges:
        try:
            first, second = merge.split(" ") if isinstance(merge, str) else merge
            known = first in ids and second in ids
        except (TypeError, ValueError):
            known = False
        if not known:
            raise FormatError(f"{path}: found the merge {told(merge)}, expected two of its tokens")
        token = ids.get(first + second)
        if token is None:
            raise FormatError(f"{path}: the merge {told(merge)} makes no token of the vocabulary")
        if token <= before:
            raise _Other(f"its merge {told(merge)} comes behind one of a later id")
        before = token
    ordinary = len(ids) - len(added)
    if ordinary != 256 + len(merges):
        raise _Other(f"has {ordinary} tokens besides the added, expected 256 bytes and {len(merges)} merges")
    special = next((text for text in added if text.isalpha() or not any(map(str.isalpha, text))), None)
    if special:
        raise _Other(f"its added token {told(special)} could stand in a text")
