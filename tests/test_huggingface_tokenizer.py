"""Byte-level BPEs beside Hugging Face's weights: the ids they give, and why some of them do not serve."""

import itertools
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from awkward import awkward
from foreign import write_folder

from gpt2flat.data import huggingface_tokenizer
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.errors import FormatError
from gpt2flat.generate import main as generate
from gpt2flat.info import main as info
from gpt2flat.training.inputs import tokenizer_of

EOT = "<|endoftext|>"
GPT2 = Tokenizer.gpt2()
SIZE = 256 + 300 + 1  # bytes, merges, end-of-text


@cache
def characters() -> dict[int, str]:
    """The character that GPT-2's files write for each byte (encoder.py of openai/gpt-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def written(token: bytes) -> str:
    return "".join(map(characters().get, token))


def merged(ranks: dict[bytes, int], token: bytes) -> list[bytes]:
    """The two parts that a token is merged from: what byte-pair encoding makes of it with lower ranks only."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


@pytest.fixture(scope="module")
def small():
    """(tokens, vocabulary, merges) of GPT-2's first merges, with end-of-text last."""
    tokens = GPT2.tokens[: SIZE - 1]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = [merged(ranks, token) for token in tokens if len(token) > 1]
    vocab = {written(token): rank for token, rank in ranks.items()} | {EOT: SIZE - 1}
    return (*tokens, EOT.encode()), vocab, [[written(a), written(b)] for a, b in merges]


def as_json(vocab, merges, **changes) -> dict:
    added = [{"id": vocab[EOT], "content": EOT, "special": True}] if EOT in vocab else []
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": cut, "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocab, "merges": merges}} | changes  # fmt: skip


def put_json(folder: Path, found: dict) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps(found))
    return folder


def put_pair(folder: Path, vocab, merges, head="#version: 0.2\n") -> Path:
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text(head + "\n".join(" ".join(pair) for pair in merges) + "\n", encoding="utf-8")
    return folder


# --- what serves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "joined", "pair", "no version"])
def test_a_vocabulary_of_its_own(tmp_path, small, kind):
    tokens, vocab, merges = small
    if kind in ("json", "joined"):
        put_json(tmp_path, as_json(vocab, merges if kind == "json" else [" ".join(pair) for pair in merges]))
    else:
        put_pair(tmp_path, vocab, merges, "" if kind == "no version" else "#version: 0.2\n")
    found, why = huggingface_tokenizer.find(tmp_path, SIZE)
    assert (why, found.kind, found.tokens, found.eot) == ("", "bpe", tokens, SIZE - 1)
    truth = Tokenizer("bpe", tokens, SIZE - 1)
    for text in ("the theory of the other", "  in\n\n", "\0ÿ日本語", f"a{EOT}b", *awkward(100)):
        ids = found.encode(text)
        assert np.array_equal(ids, truth.encode(text)) and SIZE - 1 not in ids
    found.save(tmp_path / "tokenizer.bin")
    assert Tokenizer.load(tmp_path / "tokenizer.bin") == found


def test_gpt2s_own(tmp_path):
    ranks = {token: rank for rank, token in enumerate(GPT2.tokens[:-1])}
    merges = [[written(part) for part in merged(ranks, token)] for token in GPT2.tokens[:-1] if len(token) > 1]
    vocab = {written(token): rank for token, rank in ranks.items()} | {EOT: GPT2.eot}
    put_json(tmp_path, as_json(vocab, merges))
    assert huggingface_tokenizer.find(tmp_path, 50257) == (GPT2, "")
    wider, _ = huggingface_tokenizer.find(tmp_path, 50304)  # a model with rows that no token has
    assert wider.vocab_size == 50304 and wider.decode([50303, 464]) == "<|id 50303|>The"
    assert np.array_equal(wider.encode("<|id 50303|> The"), GPT2.encode("<|id 50303|> The"))
    merges[1000], merges[1001] = merges[1001], merges[1000]
    put_json(tmp_path, as_json(vocab, merges))
    found, why = huggingface_tokenizer.find(tmp_path, 50257)
    assert found is None and "comes behind one of a later id" in why
    assert tokenizer_of(tmp_path, 50257) is None  # GPT-2's is not taken for it


def test_the_end_of_text_by_config(tmp_path, small):
    """A vocabulary that calls it otherwise, and puts it first."""
    _, vocab, merges = small
    vocab = {"<s>": 0} | {text: token + 1 for text, token in vocab.items() if text != EOT}
    added = [{"id": 0, "content": "<s>"}, {"id": SIZE, "content": "[PAD]"}]
    put_json(tmp_path, as_json(vocab, merges, added_tokens=added))
    found, why = huggingface_tokenizer.find(tmp_path, SIZE + 1)
    assert found is None and "has no <|endoftext|> among its added tokens" in why
    (tmp_path / "config.json").write_text('{"eos_token_id": 0}')
    found, why = huggingface_tokenizer.find(tmp_path, SIZE + 1)
    assert (found.eot, found.tokens[0], found.tokens[-1], found.vocab_size) == (0, b"<s>", b"[PAD]", SIZE + 1)
    assert np.array_equal(found.encode("the <s>[PAD]"), Tokenizer("bpe", found.tokens, 0).encode("the <s>[PAD]"))
    assert not {0, SIZE} & set(found.encode("the <s>[PAD]").tolist())


# --- what does not ----------------------------------------------------------------------------------------------------


def model(change):
    """A tokenizer.json whose model is changed."""
    return lambda found: change(found["model"])


def added(*tokens):
    return lambda found: found["added_tokens"].extend(tokens)


REASONS = {
    "another model": (model(lambda m: m.update(type="Unigram")), "is a 'Unigram', expected a byte-level BPE"),
    "dropout": (model(lambda m: m.update(dropout=0.1)), "its dropout is 0.1"),
    "bytes apart": (model(lambda m: m.update(byte_fallback=True)), "its byte_fallback is True"),
    "a normalizer": (lambda f: f.update(normalizer={"type": "NFC"}), "its normalizer {'type': 'NFC'} is not served"),
    "another cut": (lambda f: f.update(pre_tokenizer={"type": "Whitespace"}), "cuts text by {'type': 'Whitespace'}"),
    "no cut": (lambda f: f["pre_tokenizer"].update(use_regex=False), "cuts text by"),
    "a space in front": (lambda f: f["pre_tokenizer"].update(add_prefix_space=True), "begins every text with a space"),
    "no end-of-text": (lambda f: f.update(added_tokens=[]), "has no <|endoftext|>"),
    "a word added": (added({"id": SIZE, "content": "word"}), "its added token 'word' could stand in a text"),
    "signs added": (added({"id": SIZE, "content": "--->"}), "its added token '--->' could stand in a text"),
    "too many": (added(*({"id": SIZE + i, "content": f"<{i}>"} for i in range(9))), "has 566 tokens, the model 558"),
    "another merge order": (model(lambda m: m["merges"].reverse()), "comes behind one of a later id"),
    "a token without merge": (model(lambda m: m["merges"].pop()), "expected 256 bytes and 299 merges"),
    "other characters": (model(lambda m: m["vocab"].update({"日": m["vocab"].pop("!")})), "the token '日'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_why_a_tokenizer_does_not_serve(tmp_path, small, name):
    change, why = REASONS[name]
    found = json.loads(json.dumps(as_json(*small[1:])))
    change(found)
    put_json(tmp_path, found)
    tokenizer, told = huggingface_tokenizer.find(tmp_path, SIZE + 1)
    assert tokenizer is None and why in told and told.endswith("only ids are read and written") and "\n" not in told
    assert told.startswith(str(tmp_path / "tokenizer.json"))


FAULTS = {
    "no JSON": (b"{", "is no JSON"),
    "no object": (b"[]", "found a JSON list"),
    "no model": (b"{}", "model is None, expected an object"),
    "no vocabulary": (model(lambda m: m.pop("vocab")), "vocab is None, expected an object"),
    "no merges": (model(lambda m: m.pop("merges")), "its merges are None"),
    "an id twice": (model(lambda m: m["vocab"].update({"!": 7})), "have other ids than 0 to 556, each once"),
    "an id of text": (model(lambda m: m["vocab"].update({"!": "0"})), "have other ids than"),
    "a hole": (model(lambda m: m["vocab"].update({"!": 900})), "have other ids than"),
    "three parts": (model(lambda m: m["merges"].append(["a", "b", "c"])), "expected two of its tokens"),
    "a merge of numbers": (model(lambda m: m["merges"].append([1, 2])), "expected two of its tokens"),
    "a merge of nothing": (model(lambda m: m["merges"].append(["!", "!"])), "makes no token"),
    "an unknown part": (model(lambda m: m["merges"].append(["日", "!"])), "expected two of its tokens"),
    "an added number": (added(5), "an added token is 5, expected an object"),
    "an added nothing": (added({"id": 1, "content": ""}), "expected its content and id"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_tokenizer_that_is_damaged(tmp_path, small, name):
    change, said = FAULTS[name]
    found = json.loads(json.dumps(as_json(*small[1:])))
    (tmp_path / "tokenizer.json").write_bytes(
        change if isinstance(change, bytes) else (change(found), json.dumps(found))[1].encode()
    )
    with pytest.raises(FormatError, match=said) as problem:
        huggingface_tokenizer.find(tmp_path, SIZE + 1)
    assert str(problem.value).startswith(str(tmp_path)) and "\n" not in str(problem.value)


def test_merges_that_are_no_text(tmp_path, small):
    put_pair(tmp_path, *small[1:])
    (tmp_path / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match=r"merges.txt: is no UTF-8 text"):
        huggingface_tokenizer.find(tmp_path, SIZE)
    put_pair(tmp_path, *small[1:])
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    assert "begins every text with a space" in huggingface_tokenizer.find(tmp_path, SIZE)[1]


# --- the commands -----------------------------------------------------------------------------------------------------


def test_generate_with_it_and_without(tmp_path, small, capsys):
    _, vocab, merges = small
    folder = put_json(write_folder(tmp_path / "m", vocab_size=SIZE), as_json(vocab, merges))
    assert generate([str(folder), "--prompt", "the other", "-n", "3", "--threads", "1"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("the other") and told.err == ""
    put_json(folder, as_json(vocab, merges, normalizer={"type": "Lowercase"}))
    assert generate([str(folder), "-n", "3", "--threads", "1"]) == 0
    told = capsys.readouterr()
    assert len(told.out.split()) == 3 and told.err.count("\n") == 1 and "only ids are read and written" in told.err
    assert info([str(folder)]) == 0 and "its normalizer" in capsys.readouterr().out
