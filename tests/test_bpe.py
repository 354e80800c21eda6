"""Byte-pair encoding: the ids are tiktoken's, however text is cut, whatever it holds, and whichever encoder serves."""

import random
import time

import numpy as np
import pytest
from awkward import EOT, awkward, plain

from gpt2flat.data import bpe
from gpt2flat.data.tokenizer import Tokenizer

GPT2 = Tokenizer.gpt2()
THEIRS = plain(GPT2.tokens, GPT2.eot)
STRINGS = list(awkward(10_000))


@pytest.fixture(params=["exact", "fast"])
def encoder(request, monkeypatch):
    if request.param == "fast":
        monkeypatch.setattr(bpe, "SHORT", 0)
    return GPT2


def test_awkward_strings_are_tiktokens(encoder):
    for text in STRINGS:
        assert encoder.encode(text).tolist() == THEIRS.encode_ordinary(text), repr(text)


def test_awkward_strings_survive():
    for text in STRINGS[:2000]:
        assert GPT2.decode(GPT2.encode(text)) == text


def test_documents_are_encoded_apart(encoder):
    """Each starts with end-of-text and has the ids that it has alone; what looks like end-of-text stays text."""
    for start in range(0, 3000, 7):
        texts = STRINGS[start : start + 7]
        expected = [id for text in texts for id in (GPT2.eot, *THEIRS.encode_ordinary(text))]
        assert encoder.encode_documents(texts).tolist() == expected
    assert encoder.encode_documents([]).tolist() == [] and encoder.encode_documents(["", ""]).tolist() == [50256] * 2


def in_pieces(text, rng):
    while text:
        n = int(rng.integers(1, 60))
        yield text[:n]
        text = text[n:]


def test_text_can_be_cut_without_a_trace(monkeypatch):
    """Every cut but those through a word that is too long; and however the text comes, the parts are the same."""
    monkeypatch.setattr(bpe, "CUT", 700)  # longer than any word of these
    rng = np.random.default_rng(0)
    for start in range(0, 5000, 100):
        text = " and ".join(STRINGS[start : start + 100])
        parts = list(bpe.cut([text]))
        assert "".join(parts) == text and max(map(len, parts)) <= 700 and len(parts) > 3
        ids = [id for part in parts for id in THEIRS.encode_ordinary(part)]
        assert ids == THEIRS.encode_ordinary(text) == GPT2.encode(text).tolist()
        assert list(bpe.cut(in_pieces(text, rng))) == parts


@pytest.mark.parametrize("size", range(12, 20))
def test_no_cut_in_white_space(monkeypatch, size):
    """With a vocabulary in which every run of white space would tell."""
    monkeypatch.setattr(bpe, "CUT", size)
    tokens = (*Tokenizer.byte().tokens[:256], b"  ", b"\n\n", b" \n", b"    ", b"  \n", EOT.encode())
    theirs, rng = plain(tokens, len(tokens) - 1), random.Random(size)
    text = "".join(rng.choice(["a", "don't", "it's", "12", "!?", "é"]) + " " * rng.randrange(5) + "\n" * rng.randrange(3) for _ in range(500))
    parts = list(bpe.cut([text]))
    assert [id for part in parts for id in theirs.encode_ordinary(part)] == theirs.encode_ordinary(text) and len(parts) > 50


def test_a_word_that_is_too_long_is_cut_behind_each_so_many_characters(monkeypatch):
    monkeypatch.setattr(bpe, "CUT", 1000)
    parts = list(bpe.cut(["so it is ", "a" * 2500, " x"]))
    assert [len(part) for part in parts] == [8, 1000, 1000, 503] and parts[-1] == "a" * 501 + " x"
    assert list(bpe.cut([])) == [] and list(bpe.cut(["", "a", ""])) == ["a"]


@pytest.mark.parametrize("piece", ["a", " ", " \n", "^", "0", "\0", "\U0001f600", "'", "日", EOT])
def test_much_of_one_thing_is_fast_and_as_tiktoken_has_it(piece):
    text = piece * (300_000 // len(piece.encode()))
    began = time.process_time()
    ids = GPT2.encode(text)
    assert time.process_time() - began < 20  # seconds: it takes minutes where time is quadratic
    assert ids.tolist() == THEIRS.encode_ordinary(text)


@pytest.mark.parametrize("count, last", [(1_100_000, "x"), (520_000, "x\U0010fffd")])  # the latter is not for the fast encoder
def test_white_space_that_tiktoken_gives_up_at(count, last):
    text = "x" + " \n" * count + last
    with pytest.raises(ValueError, match="stack"):
        THEIRS.encode_to_numpy(text)
    ids = GPT2.encode(text)
    assert GPT2.decode(ids) == text
    short = GPT2.encode("x" + " \n" * 1100 + last).tolist()
    assert ids[-len(short) // 2 :].tolist() == short[-len(short) // 2 :]
    assert EOT not in GPT2.decode(GPT2.encode("a" + EOT)[:-3])
