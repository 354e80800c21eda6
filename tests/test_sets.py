"""The known sets, from local copies and from a web server on 127.0.0.1 that drops, lies and stalls."""

import hashlib
import io
import json
import random
import sys
import tarfile
import urllib.error
import zipfile
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from faulty_server import Server, cut, elsewhere, error, hang_up, ignore_range
from test_prepare import STORY, THEIRS, both, contents, documents, ids, refused, report

from gpt2flat.data import download, sets
from gpt2flat.data.sets import KNOWN
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.errors import CheckpointError, DataError
from gpt2flat.formats.choices import ChoiceFile
from gpt2flat.prepare import main

DATA = random.Random(1).randbytes(100_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server():
    with Server({"file.bin": DATA}) as server:
        yield server


def get(server, path, size=None, sha256=None):
    naps = []
    download.fetch(f"{server.address}/file.bin", path, size, sha256, sleep=naps.append)
    return naps


# --- fetching


@pytest.mark.parametrize("known", [{}, {"size": len(DATA)}, {"size": len(DATA), "sha256": SHA}])
def test_fetches_once(tmp_path, server, known):
    path = tmp_path / "deep/file.bin"
    assert get(server, path, **known) == [] and contents(tmp_path) == {"deep/file.bin": DATA}
    get(server, path, **known)
    assert server.requests == [("file.bin", None)]


def test_goes_on_after_what_goes_wrong(tmp_path, server):
    server.faults["file.bin"] = iter([cut(5000), hang_up, cut(70_000), error(503), error(429)])
    assert len(get(server, tmp_path / "f", sha256=SHA)) == 5
    assert [at for _, at in server.requests] == [
        at and f"bytes={at}-" for at in (None, 5000, 5000, 70_000, 70_000, 70_000)
    ]
    assert contents(tmp_path) == {"f": DATA}


def test_a_later_attempt_goes_on(tmp_path, server):
    server.faults["file.bin"] = repeat(cut(5000))
    with pytest.raises(DataError, match="given up, 5 attempts brought nothing new .*--from"):
        get(server, tmp_path / "f", len(DATA))
    assert contents(tmp_path) == {"f.part": DATA[:5000]}
    del server.faults["file.bin"], server.requests[:]
    get(server, tmp_path / "f", len(DATA))
    assert contents(tmp_path) == {"f": DATA} and server.requests == [("file.bin", "bytes=5000-")]


@pytest.mark.parametrize("held", [DATA[:5000], DATA, DATA + b"more"])
@pytest.mark.parametrize("fault", [None, ignore_range, elsewhere])
def test_a_part_of_before(tmp_path, server, held, fault):
    (tmp_path / "f.part").write_bytes(held)
    if fault:
        server.faults["file.bin"] = repeat(fault)
    get(server, tmp_path / "f", len(DATA), SHA)
    assert contents(tmp_path) == {"f": DATA}


def test_a_file_that_was_changed_is_begun_anew(tmp_path, server):
    """Its size and hash are not known, and its length stays: nothing else would tell."""
    for tag, expected in (("a", DATA), ("b", DATA[::-1])):
        server.tags["file.bin"], server.faults["file.bin"] = "a", repeat(cut(5000))
        with pytest.raises(DataError):
            get(server, tmp_path / tag)
        assert contents(tmp_path)[f"{tag}.part"] == DATA[:5000]
        server.tags["file.bin"], server.files["file.bin"], server.faults = tag, expected, {}
        del server.requests[:]
        get(server, tmp_path / tag)
        assert server.requests == [("file.bin", "bytes=5000-"), ("file.bin", None)][: 1 + (tag == "b")]
    assert contents(tmp_path) == {"a": DATA, "b": DATA[::-1]}


def test_a_network_that_drops_is_waited_for(tmp_path, server, monkeypatch):
    server.faults["file.bin"] = iter([cut(5000)])
    opened, urlopen = [], download.urllib.request.urlopen

    def drop(*args, **how):
        opened.append(1)
        if len(opened) in (2, 3):
            raise urllib.error.URLError("Network is unreachable")
        return urlopen(*args, **how)

    monkeypatch.setattr(download.urllib.request, "urlopen", drop)
    assert len(get(server, tmp_path / "f")) == 3 and contents(tmp_path) == {"f": DATA}


def test_another_file_takes_no_name(tmp_path, server):
    for known, why in (({"size": 5}, "has 100000 bytes, expected 5"), ({"sha256": "0" * 64}, "has the sha256")):
        with pytest.raises(DataError, match=why):
            get(server, tmp_path / "f", **known)
        assert contents(tmp_path) == {}
    (tmp_path / "f").write_bytes(b"short")
    get(server, tmp_path / "f", len(DATA))
    assert contents(tmp_path) == {"f": DATA}


def test_what_cannot_be_had(tmp_path, server):
    with pytest.raises(DataError, match="/absent: 404 Not Found: --from"):
        download.fetch(f"{server.address}/absent", tmp_path / "f", None, None)
    with pytest.raises(DataError, match="cannot be reached: .*refused.*: --from"):
        download.fetch("http://127.0.0.1:9/x", tmp_path / "f", None, None)
    assert contents(tmp_path) == {}
    (tmp_path / "d.part").mkdir()
    with pytest.raises(CheckpointError, match="d.part: cannot be written: is a directory"):
        get(server, tmp_path / "d")


# --- the sets


def known(monkeypatch, name, data):
    """The set with the size and hash of other data."""
    file = replace(KNOWN[name].file, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(KNOWN, name, replace(KNOWN[name], file=file))


TEXT = (STORY * 3000)[:300_000]


@pytest.mark.parametrize("way", ["file", "folder", "address"])
def test_tinyshakespeare(here, capsys, monkeypatch, server, way):  # noqa: F811
    for name in ("tinyshakespeare", "tinyshakespeare-char"):
        known(monkeypatch, name, TEXT.encode())
    server.files["input.txt"] = TEXT.encode()
    Path("input.txt").write_text(TEXT)
    line = ["tinyshakespeare", "--from", {"file": "input.txt", "folder": ".", "address": server.address}[way]]
    assert main(line) == 0
    sections = [section + "\n\n" for section in TEXT.split("\n\n")]
    tokens = documents(*sections[:-1], sections[-1][:-2])
    assert ids("data/tiny_shakespeare/tiny_shakespeare_val.bin") == tokens[:32_768]
    assert ids("data/tiny_shakespeare/tiny_shakespeare_train.bin") == tokens[32_768:]
    said = capsys.readouterr().out
    assert "note      expected 305,260 to train on and 32,768 to validate with: not all of it was taken" in said
    assert report("tiny_shakespeare")["set"]["licence"] == "public domain"
    assert main([*line, "--tokenizer", "char"]) == 0
    assert Tokenizer.load("data/shakespeare_char/tokenizer.bin").decode(both("shakespeare_char")[1:]) == TEXT


def test_an_address_may_end_in_the_name_of_the_file(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(sets, "fetch", lambda url, *rest: asked.append(url))
    for origin in ("http://host/x", "http://host/x/", "http://host/x/input.txt"):
        sets.locate(KNOWN["tinyshakespeare"], origin, tmp_path, print)
    assert asked == ["http://host/x/input.txt"] * 3


def test_the_text_is_known(here, capsys, server):  # noqa: F811
    server.files["input.txt"] = b"not Shakespeare"
    assert main(["tinyshakespeare", "--from", server.address]) == 4
    refused(capsys, 4, "/input.txt: has 15 bytes, expected 1115394")
    Path("mine.txt").write_text(TEXT)
    assert main(["tinyshakespeare", "--from", "mine.txt"]) == 0
    assert "mine.txt is another version of the text" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["wikitext-2", "wikitext-103"])
def test_wikitext(here, capsys, server, name):  # noqa: F811
    packed, other = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in ("train", "valid", "test"):
            archive.writestr(f"{name}-raw/wiki.{part}.raw", f" = {part} = \n\n {STORY}" * 20)
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.txt", "b")
    file = f"{name}-raw-v1.zip"
    server.files[file] = packed.getvalue()
    assert main([name, "--from", server.address]) == 0
    for part, side in (("train", "train"), ("valid", "val")):
        assert ids(f"data/{name}/{name}_{side}.bin") == documents(f" = {part} = \n\n {STORY}" * 20)
    assert report(name)["split"] == {"how": "given"}
    with zipfile.ZipFile(packed) as archive:
        archive.extractall("unpacked")
    assert main([name, "--from", "unpacked", "--out", "again"]) == 0
    files = [f"{name}/{name}_{side}.bin" for side in ("train", "val")]
    assert [contents("data")[f] for f in files] == [contents("again")[f] for f in files]
    for data, why in (
        (b"no zip", "is no zip archive"),
        (other.getvalue(), "has no wiki.train.raw"),
        (packed.getvalue()[:-30], "no zip archive"),
    ):
        Path(file).write_bytes(data)
        capsys.readouterr()
        assert main([name, "--from", file, "--out", "bad"]) == 4
        refused(capsys, 4, file, why)


def test_tinystories(here, capsys, server):  # noqa: F811
    """llm.c's recipe, said anew: the first file is for validation; each is shuffled by its number on its side, and stripped."""
    stories = [[{"story": f" {i} tells {j}: {STORY} ", "summary": "x"} for j in range(20)] for i in range(3)]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for i in (2, 0, 1):
            data = json.dumps(stories[i]).encode()
            member = tarfile.TarInfo(f"./data{i:02d}.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        archive.addfile(tarfile.TarInfo("../evil.json"))
    server.files["TinyStories_all_data.tar.gz"] = packed.getvalue()
    assert main(["tinystories", "--from", server.address]) == 0
    sides = {"val": stories[:1], "train": stories[1:]}
    for side, files in sides.items():
        texts = []
        for i, file in enumerate(files):
            told = [entry["story"].strip() for entry in file]
            random.Random(1337 + i).shuffle(told)
            texts += told
        assert ids(f"data/TinyStories/TinyStories_{side}.bin") == documents(*texts)
    assert "expected 925,653,391 to train on" in capsys.readouterr().out and not list(here.rglob("evil.json"))
    folder = "data/TinyStories/download/TinyStories_all_data"
    assert main(["tinystories", "--from", folder, "--out", "again"]) == 0
    Path(folder, "data01.json").write_text('[{"tale": 1}]')
    assert main(["tinystories", "--from", folder, "--out", "bad"]) == 4
    Path("cut.tar.gz").write_bytes(packed.getvalue()[:-100])
    assert main(["tinystories", "--from", "cut.tar.gz", "--out", "cut"]) == 4
    assert "cut.tar.gz: is no tar.gz archive that is whole" in capsys.readouterr().err


def test_fineweb_edu(here, capsys, monkeypatch):  # noqa: F811
    """By Hugging Face's datasets, which a module of that name stands for; or from local lines."""
    asked = []

    class Datasets:
        @staticmethod
        def load_dataset(*args, **flags):
            asked.append((args, flags))
            return iter([{"text": f"{STORY} {i}"} for i in range(300)] + [{"text": None}])

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    assert main(["fineweb-edu", "--max-documents", "200"]) == 0
    assert asked == [(("HuggingFaceFW/fineweb-edu", "sample-10BT"), {"split": "train", "streaming": True})]
    texts = [f"{STORY} {i}" for i in range(300)]
    assert ids("data/edu_fineweb/edu_fineweb_val.bin") == documents(*texts[:200][9::10])
    Path("local.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[:200]))
    assert main(["fineweb-edu", "--from", "local.jsonl", "--max-documents", "200", "--out", "again"]) == 0
    name = "edu_fineweb/edu_fineweb_train.bin"
    assert contents("data")[name] == contents("again")[name]
    assert main(["hf:some/where@test", "--field", "text", "--tokenizer", "byte"]) == 0
    assert (
        asked[-1] == (("some/where", None), {"split": "test", "streaming": True})
        and report("where")["documents"]["all"] == 300
    )
    assert report("where")["skipped"]["field 'text' is no text"]["first"] == ["hf:some/where@test, row 300"]
    monkeypatch.setattr(Datasets, "load_dataset", lambda *args, **flags: 1 / 0)
    assert main(["hf:some/where", "--name", "x"]) == 4
    assert "hf:some/where: cannot be read: division by zero: check name" in capsys.readouterr().err


def question(i: int) -> dict:
    return {
        "ctx": f"{i} men went to mow, ",
        "endings": [f"went {j} to mow" * (j + 1) for j in range(4)],
        "label": i % 4,
        "ind": i,
    }


def test_hellaswag(here, capsys, server):  # noqa: F811
    """As dev/data/data_common.py writes it, said anew; what evaluate reads."""
    server.files["hellaswag_val.jsonl"] = b"\n".join(json.dumps(question(i)).encode() for i in range(9))
    assert main(["hellaswag", "--from", server.address]) == 0
    assert "9, and the whole set has 10,042" in capsys.readouterr().out
    stream, longest = [], 0
    for i in range(9):
        q, row = question(i), [65535, 0, i, i % 4, 4]
        for text in (q["ctx"], *(" " + ending for ending in q["endings"])):
            found = THEIRS.encode_ordinary(text)
            row += [len(found), *found]
        row[1] = 2 * len(row)
        longest = max(longest, row[1])
        stream += row
    header = np.zeros(256, "<i4")
    header[:4] = 20240522, 1, 9, longest
    path = Path("data/hellaswag/hellaswag_val.bin")
    assert path.read_bytes() == header.tobytes() + np.array(stream, "<u2").tobytes()
    with ChoiceFile(path, 1024) as examples:
        assert [example.label for example in examples] == [i % 4 for i in range(9)]
    for text, code in (("", 4), ('{"ctx": 1}', 3), (json.dumps(question(0) | {"ctx": "a b " * 20_000}), 4)):
        Path("bad.jsonl").write_text(text)
        assert main(["hellaswag", "--from", "bad.jsonl", "--out", "bad"]) == code
        assert capsys.readouterr().err.count("\n") == 1 and not list(Path("bad").iterdir())
    assert main(["hellaswag", "--tokenizer", "byte"]) == 2
    Path("good.jsonl").write_text(json.dumps(question(0)))
    assert main(["hellaswag", "--from", "good.jsonl", "--out", "good.jsonl"]) == 5


def test_the_list_tells_of_all(capsys):
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    assert len({line.index(row.about) for line, row in zip(said.splitlines()[::2], KNOWN.values(), strict=True)}) == 1
    for row in KNOWN.values():
        assert f"{row.name} " in said and row.licence in said and (row.file.url if row.file else row.hub) in said
    assert sets.KNOWN["tinyshakespeare"].expected == {"train": 305_260, "val": 32_768}
