"""Tokenizers: the packaged vocabulary is GPT-2's, every text survives the round trip, hostile files are refused."""

import hashlib
import json
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2flat.data.tokenizer import GPT2_FILE, Decoder, Tokenizer, escape_controls
from gpt2flat.errors import CheckpointError, DataError, FormatError
from gpt2flat.formats import llmc

TINY = Path(__file__).parent / "llmc_tiny"
ASSET = "6f3abc21e444e4e8300e225f4e03da48ea121cf17e30f67009b8dad7a66c2f13"
# sha256 of OpenAI's two files, as tiktoken's openai_public.py pins them
VOCAB_BPE = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
ENCODER_JSON = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
ANY_TEXT = st.text(st.characters(), max_size=200)  # all planes, lone surrogates and controls too
EOT = "<|endoftext|>"


def whole(text):
    """`text` with surrogates as UTF-8 can hold them."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def write(path, tokens, eot, kind=0):
    header = struct.pack("<256i", 20240328, 2, len(tokens), eot, kind, *[0] * 251)
    path.write_bytes(header + b"".join(bytes([len(t)]) + t for t in tokens))
    return path


# --- GPT-2's vocabulary


def test_the_packaged_file():
    assert hashlib.sha256(GPT2_FILE.read_bytes()).hexdigest() == ASSET
    gpt2 = Tokenizer.gpt2()
    assert (gpt2.kind, gpt2.vocab_size, gpt2.eot, gpt2.start) == ("gpt2", 50257, 50256, 50256)
    assert gpt2.token_bytes(50256) == EOT.encode() and gpt2.token_bytes(995) == b" world"
    assert (GPT2_FILE.parents[1] / "NOTICE").read_text().count("OpenAI") >= 2


def test_openais_files_can_be_rebuilt_from_it():
    """Merges follow from the ranks: vocab.bpe and encoder.json come out with the hashes that tiktoken pins."""
    tokens = Tokenizer.gpt2().tokens[:50256]
    ranks = {token: rank for rank, token in enumerate(tokens)}

    def halves(token):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], 1 << 30))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return parts

    # OpenAI shows the 188 printable bytes as they are and the others as the characters from 256 on
    shown = {token[0]: chr(token[0] if rank < 188 else 68 + rank) for rank, token in enumerate(tokens[:256])}
    names = ["".join(shown[byte] for byte in token) for token in tokens]
    lines = [" ".join(names[ranks[half]] for half in halves(token)) for token in tokens[256:]]
    vocab_bpe = "\n".join(["#version: 0.2", *lines, ""])
    assert hashlib.sha256(vocab_bpe.encode()).hexdigest() == VOCAB_BPE
    encoder_json = json.dumps({name: rank for rank, name in enumerate([*names, EOT])})
    assert hashlib.sha256(encoder_json.encode()).hexdigest() == ENCODER_JSON


def test_every_token_encodes_to_itself():
    gpt2, texts = Tokenizer.gpt2(), 0
    for token, piece in enumerate(gpt2.tokens[:50256]):
        text = piece.decode("utf-8", "replace")
        if text.encode() == piece:
            assert gpt2.encode(text).tolist() == [token]
            texts += 1
    assert texts == 49_912  # the rest are parts of characters


@pytest.mark.parametrize(
    "text, ids",
    [
        ("hello world", [31373, 995]),
        ("Hello, I'm a language model,", [15496, 11, 314, 1101, 257, 3303, 2746, 11]),
        ("  two  spaces\n\n", [220, 734, 220, 9029, 628]),
        ("", []),
        (EOT, [27, 91, 437, 1659, 5239, 91, 29]),
    ],
)
def test_known_encodings(text, ids):
    encoded = Tokenizer.gpt2().encode(text)
    assert encoded.dtype == np.int32 and encoded.tolist() == ids


def test_words_are_cut_as_tiktoken_cuts_them():
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    gpt2 = Tokenizer.gpt2()
    ranks = {token: rank for rank, token in enumerate(gpt2.tokens[:50256])}
    theirs = tiktoken.Encoding("theirs", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={EOT: 50256})
    sources = [
        Path(__file__).read_text(),
        Path(json.__file__).read_text(),
        "naïve \u3000 x\u2028 \r\n\t  'S 's I'll 12٣ \U0001f600\u200d!",
    ]
    for text in sources:
        assert gpt2.encode(text).tolist() == theirs.encode_ordinary(text)


def test_encoding_needs_no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert Tokenizer.load(GPT2_FILE).encode("hello world").tolist() == [31373, 995]


@pytest.mark.parametrize("piece", ["^", " ", "a", "\n", "\U0001f600", "\ud800", "a\u0301"])
def test_long_repeats(piece):
    text = piece * (200_000 // len(piece))
    gpt2 = Tokenizer.gpt2()
    assert gpt2.decode(gpt2.encode(text)) == whole(text)


# --- every kind


def tokenizers(text):
    return [Tokenizer.gpt2(), Tokenizer.byte(), Tokenizer.char(text)]


@given(ANY_TEXT)
def test_every_text_survives(text):
    for tokenizer in tokenizers(text):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert not len(ids) or 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
        assert tokenizer.decode(ids) == whole(text)
        assert tokenizer.eot not in ids
        decoder = Decoder(tokenizer)
        assert "".join(map(decoder.feed, ids)) + decoder.flush() == whole(text)


@pytest.mark.parametrize("index, kind, word", [(0, "gpt2", 0), (1, "byte", 2), (2, "char", 1)])
def test_save_and_load(tmp_path, index, kind, word):
    text = f"héllo\n{EOT}\U0001f600"
    tokenizer = tokenizers(text)[index]
    tokenizer.save(tmp_path / "t.bin")
    again = Tokenizer.load(tmp_path / "t.bin")
    assert again == tokenizer and again.kind == kind
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    header = np.fromfile(tmp_path / "t.bin", "<i4", 256)
    assert header[:5].tolist() == [20240328, 2, tokenizer.vocab_size, tokenizer.eot, word] and not header[5:].any()
    again.save(tmp_path / "u.bin")
    assert (tmp_path / "t.bin").read_bytes() == (tmp_path / "u.bin").read_bytes()
    with pytest.raises(CheckpointError):
        tokenizer.save(tmp_path / "absent" / "t.bin")


def test_saving_gpt2_gives_the_packaged_file(tmp_path):
    Tokenizer.gpt2().save(tmp_path / "t.bin")
    assert (tmp_path / "t.bin").read_bytes() == GPT2_FILE.read_bytes()


def test_byte():
    byte = Tokenizer.byte()
    assert (byte.kind, byte.vocab_size, byte.eot, byte.start) == ("byte", 257, 256, 10)
    assert [byte.token_bytes(b) for b in range(256)] == [bytes([b]) for b in range(256)]
    assert byte.token_bytes(256) == EOT.encode()
    assert byte.encode("aé").tolist() == [97, 0xC3, 0xA9]


def test_char():
    char = Tokenizer.char("banana\n")
    assert char.tokens == (b"\n", b"a", b"b", b"n", EOT.encode())
    assert (char.kind, char.vocab_size, char.eot, char.start) == ("char", 5, 4, 0)
    assert char.encode("nab").tolist() == [3, 1, 2]
    assert Tokenizer.char("xyz").start == 3, "without a newline text starts with end-of-text"
    for text, at in [("bandana", 3), ("\U0010ffff", 0), ("ab\0", 2)]:
        with pytest.raises(DataError, match=f"position {at} of the text.*--tokenizer byte"):
            char.encode(text)
    empty = Tokenizer.char("")
    assert (empty.vocab_size, empty.eot, empty.encode("").tolist()) == (1, 0, [])
    with pytest.raises(DataError):
        empty.encode("a")


def test_llmcs_other_vocabularies_only_decode():
    table = Tokenizer.load(TINY / "tokenizer.bin")
    assert (table.kind, table.vocab_size, table.eot, table.start) == ("table", 97, 96, 96)
    assert table.decode([0, 12, 96]) == "0 12 96 "
    with pytest.raises(DataError, match="vocabulary of 97 tokens can only decode"):
        table.encode("0 1")


def test_a_vocabulary_of_single_bytes_encodes(tmp_path):
    table = Tokenizer.load(write(tmp_path / "t.bin", [b"<eot>", b"a", b"\xc3", b"\xa9"], 0))
    assert table.kind == "table" and table.encode("aéa").tolist() == [1, 2, 3, 1]
    with pytest.raises(DataError, match="byte 0x62 at offset 3"):
        table.encode("aéb")
    table.save(tmp_path / "u.bin")
    assert (tmp_path / "u.bin").read_bytes() == (tmp_path / "t.bin").read_bytes()


@pytest.mark.parametrize("ids", [[97, 257], [-1], [2**40]])
def test_ids_outside_the_vocabulary(ids):
    with pytest.raises(DataError, match=f"token id {ids[-1]}, expected 0 to 256"):
        Tokenizer.byte().decode(ids)
    with pytest.raises(DataError):
        Decoder(Tokenizer.byte()).feed(ids[-1])


def test_characters_come_out_whole():
    decoder = Decoder(Tokenizer.byte())
    assert [decoder.feed(byte) for byte in "é€".encode()] == ["", "é", "", "", "€"]
    assert (decoder.feed(0xE2), decoder.flush()) == ("", "\ufffd")
    assert decoder.feed(256) == EOT


# --- hostile files


LETTERS = [b"a", "é".encode(), EOT.encode()]
BYTE = [bytes([b]) for b in range(256)] + [EOT.encode()]
GPT2_SIZE = [b"%d" % i for i in range(50257)]
HOSTILE = {
    "char with two characters in a token": ([b"ab", b"c", b"e"], 2, 1),
    "char with half a character": ([b"\xc3", b"c", b"e"], 2, 1),
    "char with a surrogate": ([b"\xed\xa0\x80", b"c", b"e"], 2, 1),
    "char twice": ([b"a", b"a", b"e"], 2, 1),
    "byte with bytes in another order": (BYTE[1::-1] + BYTE[2:], 256, 2),
    "byte with another end-of-text": (BYTE, 0, 2),
    "byte that is short": (BYTE[1:], 255, 2),
    "bpe without the bytes": (LETTERS, 2, 3),
    "bpe with a token twice": ([*BYTE, b"aa", b"aa"], 256, 3),
    "gpt2 without the bytes": (GPT2_SIZE, 50256, 0),
    "gpt2 with a token twice": ([*BYTE[:256], *GPT2_SIZE[:50000], b"x"], 50256, 0),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_files(tmp_path, fault):
    with pytest.raises(FormatError, match="t.bin: "):
        Tokenizer.load(write(tmp_path / "t.bin", *HOSTILE[fault]))


def test_end_of_text_may_be_any_token(tmp_path):
    assert Tokenizer.load(write(tmp_path / "t.bin", LETTERS[::-1], 0, 1)).encode("éa").tolist() == [1, 2]
    reordered = [b"the end", *Tokenizer.gpt2().tokens[:50256]]
    gpt2 = Tokenizer.load(write(tmp_path / "t.bin", reordered, 0))
    assert gpt2.encode("hello world").tolist() == [31374, 996] and gpt2.start == 0


def test_what_is_not_a_tokenizer(tmp_path):
    with pytest.raises(FormatError, match="is a model checkpoint, expected a tokenizer"):
        Tokenizer.load(TINY / "model.bin")
    with pytest.raises(DataError, match="no such file"):
        Tokenizer.load(tmp_path / "absent.bin")


# --- terminals


def test_control_characters_are_escaped():
    assert escape_controls("a\tb\nc") == "a\tb\nc"
    assert escape_controls("\x1b]0;title\x07\r\0\x7f\x9b") == r"\x1b]0;title\x07\x0d\x00\x7f\x9b"
    assert escape_controls("\u202eabc\u2028\u2069\u200f") == r"\u202eabc\u2028\u2069\u200f"
    assert escape_controls("naïve \U0001f600 \xa0") == "naïve \U0001f600 \xa0"


@given(st.lists(st.integers(0, 256), max_size=40))
def test_no_sequence_of_tokens_reaches_the_terminal_raw(ids):
    """An escape sequence may be split over tokens, or be made of the bytes of a C1 character."""
    decoder = Decoder(Tokenizer.byte())
    shown = "".join(escape_controls(decoder.feed(token)) for token in [*ids, 0x1B, 0xC2, 0x9B]) + decoder.flush()
    assert not [c for c in shown if c not in "\n\t" and (ord(c) < 32 or 127 <= ord(c) < 160)]
    assert llmc.TOKENIZER_KINDS[2] == "byte"
