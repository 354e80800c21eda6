"""Texts: the built-in one, the user's own file, and their way to ids."""

import hashlib
import re
import sys

import numpy as np
import pytest

from gpt2flat.data import corpus
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.errors import DataError, UsageError


def test_the_built_in_text():
    text = corpus.builtin()
    from pydoc_data.topics import topics

    joined = "".join(topics[name] for name in sorted(topics))
    assert text.text == joined and len(joined) > 200_000 and len(text.documents) == len(topics) > 50
    assert text.sha256 == hashlib.sha256(joined.encode()).hexdigest()


def test_the_built_in_text_is_in_sorted_order(monkeypatch):
    monkeypatch.setattr("pydoc_data.topics.topics", {"b": "second, ", "c": "third", "a": "first, "})
    assert corpus.builtin().text == "first, second, third"


def test_a_python_without_the_built_in_text(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="--train-data"):
        corpus.builtin()


def test_text_files(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeffnaïve\r\n\0".encode())
    text = corpus.read_text(path)
    assert text.documents == ("naïve\r\n\0",) and text.name == str(path)
    for data, why in [
        (b"", "is empty"),
        ("\ufeff".encode(), "is empty"),
        (b"caf\xe9 au lait", "byte 0xe9 at offset 3, expected UTF-8.*iconv"),
        (b"abc\xe2\x82", "byte 0xe2 at offset 3"),
    ]:
        path.write_bytes(data)
        with pytest.raises(DataError, match=f"{re.escape(str(path))}: .*{why}"):
            corpus.read_text(path)
    with pytest.raises(DataError, match="no such file"):
        corpus.read_text(tmp_path / "absent.txt")
    with pytest.raises(DataError, match="a directory"):
        corpus.read_text(tmp_path)


def test_documents_start_with_end_of_text():
    ids = Tokenizer.byte().encode_documents(["ab", "", "<|endoftext|>"])
    assert ids.dtype == np.int32
    assert ids.tolist() == [256, 97, 98, 256, 256, *b"<|endoftext|>"]


def test_split():
    ids = np.arange(100)
    train, val = corpus.split(ids, 0.1)
    assert train.tolist() == list(range(90)) and val.tolist() == list(range(90, 100))
    train, val = corpus.split(ids, 0)
    assert len(train) == 100 and len(val) == 0
    for fraction in (1, -0.1, 2, float("nan")):
        with pytest.raises(UsageError, match="--val-fraction"):
            corpus.split(ids, fraction)
