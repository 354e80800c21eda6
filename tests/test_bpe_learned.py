"""bpe:N: what is learned from a text is byte-pair encoding, the same every time, and serves without the library that learned it."""

import re
import sys
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import harness
import pytest
from awkward import EOT, awkward, plain
from test_prepare import STORY, both, refused, report

from gpt2flat.data import bpe
from gpt2flat.data.tokenizer import Tokenizer, make_tokenizer
from gpt2flat.errors import UsageError
from gpt2flat.prepare import main

TEXT = "".join(topics[name] for name in sorted(topics))[:200_000] + "naïve café 日本語 " * 50
LEARNED = make_tokenizer("bpe:1000", iter([TEXT]))


def test_what_is_learned(tmp_path):
    assert (LEARNED.kind, LEARNED.vocab_size, LEARNED.eot, LEARNED.start) == ("bpe", 1000, 999, 999)
    assert LEARNED.tokens[:256] == tuple(bytes((b,)) for b in range(256)) and LEARNED.tokens[-1] == EOT.encode()
    assert len(set(LEARNED.tokens)) == 1000 and max(map(len, LEARNED.tokens)) <= 255
    assert len(LEARNED.encode(TEXT)) < 0.5 * len(TEXT.encode())
    LEARNED.save(tmp_path / "t.bin")
    assert Tokenizer.load(tmp_path / "t.bin") == LEARNED
    assert int.from_bytes((tmp_path / "t.bin").read_bytes()[16:20], "little") == 3


def test_awkward_strings_are_tiktokens(monkeypatch):
    theirs = plain(LEARNED.tokens, LEARNED.eot)
    for text in awkward(10_000, seed=1):
        ids = LEARNED.encode(text)
        assert ids.tolist() == theirs.encode_ordinary(text) and LEARNED.decode(ids) == text
    monkeypatch.setattr(bpe, "SHORT", 0)
    for text in awkward(3000, seed=2):
        assert LEARNED.encode(text).tolist() == theirs.encode_ordinary(text)


def test_each_merge_was_a_most_frequent_pair():
    """Byte-pair encoding by hand, on a text small enough for it."""
    text = "the cat sat on the mat, the rat ran; cats that sat ate. " * 3 + STORY
    tokens = bpe.learn([text], 290)[256:-1]
    words = Counter(
        tuple(bytes((b,)) for b in word.encode()) for word in re.findall(r" ?\w+| ?[^\s\w]+|\s+(?!\S)|\s", text)
    )
    for token in tokens:
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += count
        most = max(pairs.values())
        pair = next(pair for pair, count in pairs.items() if count == most and b"".join(pair) == token)
        words, before = Counter(), words
        for word, count in before.items():
            parts, i = [], 0
            while i < len(word):
                step = 2 if word[i : i + 2] == pair else 1
                parts.append(b"".join(word[i : i + step]))
                i += step
            words[tuple(parts)] += count


def test_it_does_not_depend_on_how_the_text_comes_nor_on_threads():
    pieces = re.split(r"(?<=\S)(?= )", TEXT)
    assert make_tokenizer("bpe:1000", iter(pieces)) == LEARNED
    code = "import os\nos.environ['TOKENIZERS_PARALLELISM'] = '{}'\nfrom test_bpe_learned import LEARNED\nprint(LEARNED.tokens)"
    for parallel in ("true", "false"):
        done = harness.python("-c", code.format(parallel))
        assert done.stdout == f"{LEARNED.tokens}\n", done.stderr


def test_the_first_characters_are_learned_from(monkeypatch):
    monkeypatch.setattr(bpe, "LEARNED_FROM", 5000)
    at = TEXT.index(" ", 600)
    assert bpe.learn(iter([TEXT[:at], TEXT[at:]]), 400) == bpe.learn([TEXT[:5000]], 400) == bpe.learn([TEXT], 400)


def test_a_text_with_little_to_learn():
    few = make_tokenizer("bpe:5000", iter(["aaaa aaaa aaaa"]))
    assert few.vocab_size < 270 and few.encode("aaaa").size == 1
    assert make_tokenizer("bpe:257", iter([TEXT])).tokens == Tokenizer.byte().tokens


def test_the_library_is_needed_for_learning_only(tmp_path, monkeypatch):
    LEARNED.save(tmp_path / "t.bin")
    ids = LEARNED.encode(STORY).tolist()
    code = (f"import sys\nsys.modules['tokenizers'] = None\nfrom gpt2flat.data.tokenizer import Tokenizer\n"
            f"t = Tokenizer.load({str(tmp_path / 't.bin')!r})\nassert t.encode({STORY!r}).tolist() == {ids} and t.decode({ids}) == {STORY!r}")  # fmt: skip
    done = harness.python("-c", code)
    assert done.returncode == 0, done.stderr
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"pip install 'gpt2flat\[bpe\]'"):
        make_tokenizer("bpe:300", iter([TEXT]))


def test_prepare_and_train(here, capsys):  # noqa: F811
    from gpt2flat.train import main as train

    Path("t.txt").write_text(TEXT)
    assert main(["t.txt", "--tokenizer", "bpe:500"]) == 0
    told = report("t")["tokenizer"]
    assert (told["kind"], told["vocab_size"], told["end_of_text"]) == ("bpe:500", 500, 499)
    assert Tokenizer.load("data/t/tokenizer.bin").decode(both("t")) == EOT + TEXT
    assert train(["--steps", "2", "-b", "2", "-s", "0", "--n-layer", "1"]) == 0
    assert "(bpe tokenizer, V 500)" in capsys.readouterr().out
    assert (
        train(
            [
                "--train-data",
                "t.txt",
                "--tokenizer",
                "bpe:500",
                "--steps",
                "2",
                "-b",
                "2",
                "-s",
                "0",
                "--n-layer",
                "1",
                "-o",
                "run",
            ]
        )
        == 0
    )
    assert "(bpe tokenizer, V 500)" in capsys.readouterr().out
    assert Tokenizer.load("run/tokenizer.bin") == Tokenizer.load("data/t/tokenizer.bin")
    model = "run/checkpoints/step_00000002/model.bin"
    assert (
        train(
            [
                "--init",
                model,
                "--train-data",
                "t.txt",
                "--tokenizer",
                "bpe:500",
                "--steps",
                "1",
                "-s",
                "0",
                "-o",
                "more",
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert main(["t.txt", "--tokenizer", "bpe:65537"]) == 2
    refused(capsys, 2, "from 257 to 65536")
