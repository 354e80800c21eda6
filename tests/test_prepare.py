"""python -m gpt2flat.prepare: what users give it becomes what train takes, whatever the input holds and however it ends."""

import fcntl
import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from awkward import EOT, awkward, plain

from gpt2flat.data import shards, spool
from gpt2flat.data.documents import _cut_lines as cut_lines, split
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.errors import DataError
from gpt2flat.formats import llmc
from gpt2flat.prepare import main
from gpt2flat.train import main as train

GPT2 = Tokenizer.gpt2()
THEIRS = plain(GPT2.tokens, GPT2.eot)
STORY = "Once upon a time there was a tokenizer.\n\nIt didn't like 'quotes'   nor tabs\there.\n\nThe end of naïve cafés \U0001f600.\n"
ROOT = Path(__file__).parents[1]


def ids(path) -> list[int]:
    file = llmc.open_tokens(path)
    with file.file:
        return file.read(0, file.count).tolist()


def both(name: str, folder="data") -> list[int]:
    """All tokens of a data set whose validation is its end."""
    return [token for side in ("train", "val") for token in ids(f"{folder}/{name}/{name}_{side}.bin")]


def documents(*texts: str) -> list[int]:
    return [token for text in texts for token in (GPT2.eot, *THEIRS.encode_ordinary(text))]


def report(name: str, folder="data") -> dict:
    return json.loads(Path(f"{folder}/{name}/{name}.json").read_text())


def contents(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()
    }


def refused(capsys, code: int, *says: str) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in says), error
    return error


# --- from text to a model


def test_a_text_and_nothing_further(here, capsys):
    Path("input.txt").write_text(STORY * 40)
    assert main(["input.txt", "--tokenizer", "char"]) == 0
    said = capsys.readouterr()
    assert "try next  python -m gpt2flat.train --dataset input" in said.out and not said.err
    text = STORY * 40
    assert Tokenizer.load("data/input/tokenizer.bin") == Tokenizer.char(text)
    assert Tokenizer.char(text).decode(both("input")) == EOT + text
    assert len(ids("data/input/input_val.bin")) == (len(text) + 1) // 10
    assert train(["--steps", "2", "-b", "2", "-s", "0", "--n-layer", "1"]) == 0
    assert (
        "data/input/input_train.bin" in capsys.readouterr().out and Path("runs/tiny-input-001/tokenizer.bin").exists()
    )
    assert sorted(path.name for path in Path("data/input").iterdir()) == [
        "input.json",
        "input_train.bin",
        "input_val.bin",
        "tokenizer.bin",
    ]


def test_llm_cs_recipe_of_tinyshakespeare(here):
    """dev/data/tinyshakespeare.py, said anew: sections between blank lines, each behind end-of-text, the first tokens to validate."""
    text = "\n\n".join(awkward(300, seed=5)).replace("\0", "") + "\n\n\nlast: no blank line\n"
    Path("t.txt").write_bytes(text.encode())
    assert main(["t.txt", "--split-on-blank-lines", "--val-split", "first", "--val-tokens", "1000"]) == 0
    tokens, sections = [], text.split("\n\n")
    for i, section in enumerate(sections):
        tokens += [50256, *THEIRS.encode_ordinary(section + ("\n\n" if i < len(sections) - 1 else ""))]
    for side, part in (("val", tokens[:1000]), ("train", tokens[1000:])):
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, len(part)
        assert Path(f"data/t/t_{side}.bin").read_bytes() == header.tobytes() + np.array(part, "<u2").tobytes()
    assert Path("data/t/tokenizer.bin").read_bytes() == Path(ROOT / "gpt2flat/data/gpt2_tokenizer.bin").read_bytes()


# --- inputs


def write_inputs():
    texts = [f"{STORY} number {i}" for i in range(3)]
    Path("in/deep").mkdir(parents=True)
    for name, text in zip(("in/a.txt", "in/b.md", "in/deep/c.txt"), texts, strict=True):
        Path(name).write_text(text)
    Path("in/picture.png").write_bytes(b"\x89PNG")
    lines = [json.dumps({"text": text, "id": i}) for i, text in enumerate(texts)]
    Path("lines.jsonl").write_text("\n".join(lines) + "\n")
    Path("lines.jsonl.gz").write_bytes(gzip.compress(Path("lines.jsonl").read_bytes()))
    Path("field.data").write_text("\n".join(json.dumps({"body": text}, ensure_ascii=False) for text in texts))
    Path("marked.txt").write_text(f"\n{EOT}\n".join(texts))
    return texts


@pytest.mark.parametrize("line", [
    ["in"], ["in/a.txt", "in/b.md", "in/deep/c.txt"], ["in/**/*.txt", "in/b.md"], ["lines.jsonl"], ["lines.jsonl.gz"], ["-", "--format", "jsonl"],
    ["field.data", "--format", "jsonl", "--field", "body"], ["marked.txt", "--split-on", f"\\n{EOT}\\n"],
])  # fmt: skip
def test_every_input_gives_the_same_documents(here, monkeypatch, line):
    texts = write_inputs()
    if line[0] == "-":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("lines.jsonl").read_bytes())))
    if "**" in line[0]:
        texts = [texts[0], texts[2], texts[1]]
    assert main([*line, "--name", "x", "--val-split", "last"]) == 0
    assert both("x") == documents(*texts)
    told = report("x")
    assert told["documents"]["all"] == 3 and told["tokens"]["all"] == len(documents(*texts))
    assert told["text_bytes"] == sum(len(text.encode()) for text in texts)
    if line == ["in"]:
        assert told["skipped"]["its name is none of a text file"] == {"count": 1, "first": ["in/picture.png"]}
        assert [source["name"] for source in told["sources"]] == ["in/a.txt", "in/b.md", "in/deep/c.txt"]


def test_what_else_a_folder_may_hold(here, monkeypatch):
    """A link to a file is one; a loop is not walked, a pipe not waited for, and what cannot be read is told."""
    texts = write_inputs()
    Path("in/deep/loop").symlink_to("..")
    Path("in/z.txt").symlink_to("a.txt")
    Path("in/gone.txt").symlink_to("nowhere")
    os.mkfifo("in/pipe.txt")
    Path("in/secret").mkdir()
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path=".": scandir("nowhere" if str(path).endswith("secret") else path))
    assert main(["in", "--name", "x", "--val-split", "last"]) == 0
    assert both("x") == documents(*texts, texts[0])
    assert report("x")["skipped"]["a folder that cannot be read"] == {"count": 1, "first": ["in/secret"]}
    with monkeypatch.context() as inside:
        inside.chdir("in")
        assert main([".", "--name", "y", "--out", "../data"]) == 0
    assert [source["name"] for source in report("y")["sources"]] == ["a.txt", "b.md", "deep/c.txt", "z.txt"]


def test_standard_input_read_twice(here, monkeypatch):
    for tokenizer in ("char", "byte"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(STORY.encode() * 20)))
        assert main(["-", "--tokenizer", tokenizer, "--name", tokenizer]) == 0
        assert Tokenizer.load(f"data/{tokenizer}/tokenizer.bin").decode(both(tokenizer)) == EOT + STORY * 20


def test_standard_input_that_is_closed(here, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    for tokenizer in ("gpt2", "char"):
        assert main(["-", "--tokenizer", tokenizer]) == 4
        refused(capsys, 4, "standard input is closed, expected text in it")


def test_what_a_text_may_hold(here, capsys):
    """A leading byte order mark goes; line ends, NUL and what looks like end-of-text stay as they are."""
    text = f"a\r\nb\0c{EOT}\r\ufeff"
    Path("t.txt").write_bytes(("\ufeff" + text).encode())
    assert main(["t.txt"]) == 0
    assert both("t") == documents(text) and both("t").count(50256) == 1


def test_what_is_no_utf8(here, capsys):
    Path("t.txt").write_bytes(b"x" * 3_000_000 + b"caf\xe9 \xff\xfe au lait" + "\ufffd".encode())
    assert main(["t.txt"]) == 4
    refused(capsys, 4, "t.txt: found byte 0xe9 at offset 3000003", "iconv", "--invalid replace")
    assert main(["t.txt", "--invalid", "replace", "--tokenizer", "byte"]) == 0
    assert bytes(both("t")[1:]) == b"x" * 3_000_000 + "caf\ufffd \ufffd\ufffd au lait\ufffd".encode()
    assert report("t")["replaced_bytes"] == 3 and "3 bytes that are no UTF-8" in capsys.readouterr().out
    Path("cut.txt").write_bytes(b"abc\xe2\x82")
    assert main(["cut.txt"]) == 4
    refused(capsys, 4, "byte 0xe2 at offset 3")


def test_lines_that_are_none(here, capsys):
    lines = [' {"text": "one"}\r', "", '{"text": "tw', "[1]", '{"txt": "x"}', '{"text": null}', '{"text": ""}', "7", '{"text": "a", "text": "two"}',
             '{"text": "\\ud800 \\ud83d\\ude00 three"}', "[" * 100_000, '{"n": ' + "9" * 5000 + "}", "   ", '{"text": "x"} y']  # fmt: skip
    Path("l.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"text": "caf\xe9"}\n{"text": "four"}')
    assert main(["l.jsonl", "--val-fraction", "0.5"]) == 0
    assert both("l") == documents("one", "two", "\ufffd \U0001f600 three", "four")
    assert {why: entry["count"] for why, entry in report("l")["skipped"].items()} == {
        "no JSON": 4, "no JSON object": 2, "no field 'text'": 1, "field 'text' is no text": 1, "not UTF-8": 1, "an empty document": 1,
    }  # fmt: skip
    assert report("l")["skipped"]["not UTF-8"]["first"] == ["l.jsonl:15"]
    assert report("l")["skipped"]["an empty document"]["first"] == ["l.jsonl, behind document 1"]
    assert "left out  4 x no JSON: l.jsonl:3, l.jsonl:11, l.jsonl:12 ..." in capsys.readouterr().out
    Path("none.jsonl").write_text('{"txt": 1}\n')
    assert main(["none.jsonl"]) == 4
    refused(capsys, 4, "none.jsonl: no text in it", "no field 'text', none.jsonl:1")


def test_a_line_that_is_too_long_to_hold(here, monkeypatch):
    monkeypatch.setattr("gpt2flat.data.documents.MAX_LINE", 1000)
    long = json.dumps({"text": "x" * 5000})
    Path("l.jsonl").write_text("\n".join(['{"text": "a"}', long, '{"text": "b"}', long]))
    assert main(["l.jsonl", "--tokenizer", "byte", "--val-fraction", "0.5"]) == 0
    assert both("l") == [256, 97, 256, 98] and report("l")["skipped"]["a line of more than 0 MiB"]["count"] == 2


@pytest.mark.parametrize("line, code, says", [
    ([], 2, "missing"), (["absent.txt"], 4, "absent.txt: no such file"), (["empty.txt"], 4, "empty.txt: no text in it"),
    (["latin"], 4, "latin/l.txt: found byte 0xe9"), (["bad.txt.gz"], 4, "bad.txt.gz: cannot be unpacked"), (["half.txt.gz"], 4, "half.txt.gz: cannot be unpacked"),
    (["t.txt", "--tokenizer", "bpe:100"], 2, "bpe:N with N from 257 to 65536"), (["t.txt", "--tokenizer", "x"], 2, "--tokenizer x"),
    (["t.txt", "--name", "a/b"], 2, "--name a/b"), (["t.txt", "--jobs", "0"], 2, "--jobs 0"), (["t.txt", "--split-on", ""], 2, "--split-on"),
    (["t.txt", "--split-on", "x", "--split-on-blank-lines"], 2, "leave one out"), (["t.txt", "--val-tokens", "999"], 4, "nothing is left"),
    (["t.txt", "--val-split", "documents", "--val-tokens", "9"], 2, "--val-fraction"), (["t.txt", "--from", "x"], 2, "--from is for"),
    (["hf:some/where"], 2, "pip install 'gpt2flat[datasets]'"), (["t.txt", "--out", "t.txt"], 5, "cannot be made"),
    (["wide.txt", "--tokenizer", "char"], 4, "different characters"), (["pic.png"], 4, "expected UTF-8"), (["folder"], 4, "no text files"),
    (["wikitext-2", "--split-on", "x"], 2, "--split-on does not go with wikitext-2"), (["wikitext-2", "t.txt"], 2, "t.txt does not go"),
    (["t.txt", "--val-data", "t.txt", "--val-fraction", "0.2"], 2, "--val-fraction is for a part of the text"),
    (["t.txt", "--val-data", "t.txt", "--val-split", "last"], 2, "--val-split is for"), (["-", "--val-data", "-"], 2, "- is there twice"),
    (["fineweb-edu", "--from", "https://example.org/x"], 2, "--from https://example.org/x: fineweb-edu"),
    (["tinystories", "--from", "gone"], 4, "--from gone: no such file or folder, expected TinyStories_all_data.tar.gz"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(here, capsys, monkeypatch, line, code, says):
    monkeypatch.setitem(sys.modules, "datasets", None)
    Path("t.txt").write_text("a b c")
    Path("empty.txt").touch()
    packed = gzip.compress(b"text " * 1000)
    Path("bad.txt.gz").write_bytes(b"no gzip")
    Path("half.txt.gz").write_bytes(packed[: len(packed) // 2])
    Path("wide.txt").write_text("".join(map(chr, range(0x10000, 0x21000))))
    Path("pic.png").write_bytes(b"\x89PNG")
    Path("folder").mkdir()
    Path("latin").mkdir()
    Path("latin/l.txt").write_bytes(b"\xe9")
    assert main(line) == code
    refused(capsys, code, says)
    assert not list(Path().glob("data/*")) or "--val-tokens" in line  # for another amount the segments serve again


# --- what comes out


def test_the_validation_is_documents_spread_evenly(here, monkeypatch):
    monkeypatch.setattr(spool, "SEGMENT", 300)
    texts = [f"document {i} {'x' * (i % 7)}" for i in range(200)]
    Path("l.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    assert main(["l.jsonl"]) == 0
    assert ids("data/l/l_val.bin") == documents(*texts[9::10])
    assert ids("data/l/l_train.bin") == documents(*[text for i, text in enumerate(texts) if i % 10 != 9])
    assert report("l")["documents"] == {"all": 200, "train": 180, "val": 20}
    assert main(["l.jsonl", "--val-fraction", "0", "--name", "none"]) == 0
    assert ids("data/none/none_train.bin") == documents(*texts) and not Path("data/none/none_val.bin").exists()
    assert main(["l.jsonl", "--max-documents", "7", "--name", "few", "--val-data", "l.jsonl"]) == 0
    assert ids("data/few/few_train.bin") == ids("data/few/few_val.bin") == documents(*texts[:7])


def test_shards(here, capsys, monkeypatch):
    monkeypatch.setattr("gpt2flat.data.shards.LEAST", 100)
    Path("t.txt").write_text(STORY * 150)
    whole = documents(STORY * 150)
    assert main(["t.txt", "--shard-size", "1000", "--val-split", "first", "--val-tokens", "1000"]) == 0
    found = sorted(path.name for path in Path("data/t").glob("t_*.bin"))
    assert found[0] == "t_train_000001.bin" and found[-1] == "t_val_000000.bin"
    shards = [ids(f"data/t/{name}") for name in [found[-1], *found[:-1]]]
    assert [token for shard in shards for token in shard] == whole
    assert {len(shard) for shard in shards[:-1]} == {1000} and 100 <= len(shards[-1]) < 1100
    assert train(["--dataset", "t", "--steps", "2", "-b", "2", "-s", "0", "--n-layer", "1"]) == 0
    assert f"{len(whole) - 1000:,} tokens to train on, 1,000 for validation" in capsys.readouterr().out


def test_the_report(here):
    Path("t.txt").write_text(STORY)
    assert main(["t.txt", "--tokenizer", "byte", "--val-fraction", "0.25"]) == 0
    import hashlib

    told, n = report("t"), len(STORY.encode())
    val = (n + 1) // 4
    assert told["tokens"] == {"all": n + 1, "train": n + 1 - val, "val": val} and told["bytes_per_token"] == 1.0
    assert told["unused_ids"] == 257 - len(set(STORY.encode())) - 1
    assert told["sources"] == [{"name": "t.txt", "bytes": n, "sha256": hashlib.sha256(STORY.encode()).hexdigest()}]
    assert told["split"] == {"how": "last", "amount": 0.25}
    for side in ("train", "val"):
        file = told["files"][side][0]
        data = Path("data/t", file["name"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(data).hexdigest() and len(data) == 1024 + 2 * file["tokens"]
    data = Path("data/t/tokenizer.bin").read_bytes()
    assert told["tokenizer"]["sha256"] == hashlib.sha256(data).hexdigest()


def test_what_is_there_is_not_overwritten(here, capsys, monkeypatch):
    monkeypatch.setattr("gpt2flat.data.shards.LEAST", 100)
    Path("t.txt").write_text(STORY)
    assert main(["t.txt"]) == 0
    before = contents("data")
    assert main(["t.txt"]) == 2
    refused(capsys, 2, "data/t/t.json is there already: --force")
    Path("data/t/.t.work").mkdir()  # of one that was killed before it had begun
    assert main(["t.txt"]) == 2
    capsys.readouterr()
    Path("t.txt").write_bytes(STORY.encode() + b"\xff")
    assert main(["t.txt", "--force"]) == 4  # what was there stays until there is something in its place
    refused(capsys, 4, "expected UTF-8")
    assert contents("data").items() >= before.items()
    Path("t.txt").write_text(STORY * 20)
    assert main(["t.txt", "--force", "--tokenizer", "byte", "--shard-size", "200"]) == 0
    assert not Path("data/t/t_train.bin").exists() and Path("data/t/t_train_000001.bin").exists()
    assert contents("data") != before
    Path("data/own").mkdir()
    Path("data/own/own_train.bin").write_bytes(b"mine")
    assert main(["t.txt", "--name", "own"]) == 2
    assert Path("data/own/own_train.bin").read_bytes() == b"mine"


def test_what_is_beside_it_belongs_together(here, capsys):
    Path("t.txt").write_text(STORY)
    Path("data/t").mkdir(parents=True)
    Tokenizer.byte().save("data/t/tokenizer.bin")
    assert main(["t.txt"]) == 2
    refused(capsys, 2, "data/t/tokenizer.bin is of another vocabulary")
    assert main(["t.txt", "--tokenizer", "byte"]) == 0
    with pytest.raises(DataError, match="changed by another"):
        shards.write(here, ["a.bin"], [5], iter([np.arange(3)]))
    assert not Path("a.bin").exists()


def test_progress_is_for_terminals(here, capsys, monkeypatch):
    Path("t.txt").write_text(STORY)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["t.txt"]) == 0
    drawn = capsys.readouterr().err
    assert drawn.startswith("\r") and drawn.endswith("\r\033[K") and "documents" in drawn


# --- processes, ends


def test_the_number_of_processes_changes_nothing(here, capsys, monkeypatch):
    monkeypatch.setattr(spool, "SEGMENT", 4000)
    with open("t.jsonl", "w") as file:
        for text in awkward(1500, seed=3):
            file.write(json.dumps({"text": text * 3}) + "\n")
    found = {}
    for jobs in "123":
        assert main(["t.jsonl", "--out", jobs, "--jobs", jobs]) == 0
        found[jobs] = contents(jobs)
        assert f" with {jobs} process" in capsys.readouterr().out
    assert main(["t.jsonl", "--out", "many", "--jobs", "1000", "--max-documents", "5"]) == 0
    assert "with 1 process\n" in capsys.readouterr().out
    assert found["1"] == found["2"] == found["3"] and len(found["1"]) == 4


def start(*line: str, **how) -> subprocess.Popen:
    """A prepare of its own, with small segments."""
    code = "import sys\nfrom gpt2flat.data import spool\nspool.SEGMENT = 20000\nfrom gpt2flat.prepare import main\nif __name__ == '__main__':\n    sys.exit(main())"
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *line],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def test_two_at_once(here, capsys, monkeypatch):
    """The second is told who is first; a name beside it is free, and nothing of the lock is left."""
    Path("t.txt").write_text(STORY)
    told = []

    def write(*args, write=shards.write):
        if not told:
            told.append(main(["t.txt"]))
            refused(capsys, 11, f"data/t: process {os.getpid()} on ", "is preparing it: wait for its end, or give this one another --name")
            told.append(main(["t.txt", "--name", "u"]))
        return write(*args)

    monkeypatch.setattr("gpt2flat.data.prepared.shards.write", write)
    assert main(["t.txt"]) == 0 and told == [11, 0]
    assert both("t") == both("u") == documents(STORY)
    assert sorted(path.name for path in Path("data/t").iterdir()) == ["t.json", "t_train.bin", "t_val.bin", "tokenizer.bin"]


def test_one_that_ends_while_another_starts(here, capsys, monkeypatch):
    """Its lock file is gone when the other has opened it, and its data set is there."""
    Path("t.txt").write_text(STORY)
    flock = fcntl.flock

    def late(fd, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        Path("data/t/.t.lock").rename("data/t/other")
        assert main(["t.txt"]) == 0
        return flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert main(["t.txt"]) == 2
    refused(capsys, 2, "data/t/t.json is there already")
    assert both("t") == documents(STORY) and not list(Path("data/t").glob(".*"))


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_goes_on(here, monkeypatch, stop):
    Path("t.txt").write_text("\n\n".join(awkward(60_000, seed=9)))
    line = ["t.txt", "--split-on-blank-lines"]
    process = start(*line)
    work = Path("data/t/.t.work")
    while len(list(work.glob("train-*.bin"))) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(stop)
    said = process.communicate()
    if stop == signal.SIGINT:
        assert process.returncode == 130 and said[1] == "gpt2flat prepare: interrupted\n"
    assert not list(Path("data/t").glob("*.bin")) and len(list(work.glob("train-*.bin"))) >= 5
    assert Path("data/t/.t.lock").exists() == (stop == signal.SIGKILL)  # what is left of it does not block
    victim = sorted(work.glob("train-*.bin"))[1]
    victim.write_bytes(victim.read_bytes()[:-1])  # as if the power had gone
    monkeypatch.setattr(spool, "SEGMENT", 20000)
    encoded, encode = [], spool.encode
    monkeypatch.setattr(spool, "encode", lambda *args: encoded.append(1) or encode(*args))
    assert main(line) == 0
    went_on = len(encoded)
    assert main([*line, "--out", "clean"]) == 0
    assert contents("data") == contents("clean") and len(encoded) - went_on > went_on + 3


@pytest.mark.parametrize("change", ["text", "documents", "tokenizer"])
def test_what_was_left_of_other_work_is_not_taken(here, monkeypatch, change):
    """A run that fails at its end leaves segments of the same sizes, of another text, other documents or another tokenizer."""
    monkeypatch.setattr(spool, "SEGMENT", 400)
    monkeypatch.setattr("gpt2flat.data.bpe.CUT", 300)
    count = 50 if change == "documents" else 2000  # one segment, of the same text
    texts = {False: "ab\n\n" * count, True: ("ac\n\n" if change == "text" else "ab\n\n") * count}
    line = ["t.txt", "--tokenizer", "byte"]
    Path("t.txt").write_text(texts[False])
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr("gpt2flat.data.prepared.shards.write", lambda *args: 1 / 0)
        main(line)
    assert len(list(Path("data/t/.t.work").glob("train-*.bin"))) >= (1 if change == "documents" else 10)
    Path("t.txt").write_text(texts[True])
    line = {"tokenizer": ["t.txt", "--tokenizer", "char"], "documents": [*line, "--split-on-blank-lines"]}.get(
        change, line
    )
    assert main(line) == 0 and main([*line, "--out", "clean"]) == 0
    assert contents("data") == contents("clean")
    if change != "documents":
        assert Tokenizer.load("data/t/tokenizer.bin").decode(both("t")) == EOT + texts[True]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("separator", ["\n\n", EOT, "aa", "x"])
def test_documents_are_told_apart_however_the_text_comes(separator, keep):
    rng = random.Random(1)
    for _ in range(300):
        text = "".join(rng.choices(["a", "aa", "\n", "\n\n", "b", EOT, EOT[:5], "x"], k=rng.randrange(30)))
        parts = text.split(separator)
        expected = [part + separator for part in parts[:-1]] + parts[-1:] if keep else parts
        cuts = sorted(rng.choices(range(len(text) + 1), k=6))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert ["".join(document) for document in split(pieces, separator, keep)] == expected


def test_lines_are_cut_however_the_bytes_come(monkeypatch):
    monkeypatch.setattr("gpt2flat.data.documents.MAX_LINE", 8)
    rng = random.Random(2)
    for _ in range(300):
        data = "".join(rng.choices(["a", "bcd", "\n", "\r\n", "0123456789"], k=rng.randrange(30))).encode()
        cuts = sorted(rng.choices(range(len(data) + 1), k=6))
        blocks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        lines, expected = list(cut_lines(blocks)), data.split(b"\n")
        assert [line[:9] for line in lines] == [line[:9] for line in expected[: len(expected) - (not expected[-1])]]
        assert max(map(len, lines), default=0) <= 9 + max(map(len, blocks))


def children(pid: int) -> list[int]:
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("victim", ["worker", "parent"])
def test_a_process_that_is_killed(here, victim):
    """A worker: one line. The parent: no worker is left behind."""
    Path("t.txt").write_text("\n\n".join(awkward(60_000, seed=9)))
    process = start("t.txt", "--split-on-blank-lines", "--jobs", "2")
    while len(list(Path("data/t/.t.work").glob("train-*.bin"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    workers = children(process.pid)
    assert len(workers) == 2
    os.kill(workers[0] if victim == "worker" else process.pid, signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    if victim == "worker":
        assert process.returncode == 4 and error.count("\n") == 1 and "fewer --jobs" in error
    until = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_work_for_a_process_that_is_gone(tmp_path, monkeypatch):
    """It may be noticed at what was given out, or at the next that is."""

    def broken(*_):
        raise BrokenProcessPool

    monkeypatch.setattr(spool.ProcessPoolExecutor, "submit", broken)
    with pytest.raises(DataError, match="with fewer --jobs"), spool._workers(tmp_path, 2) as submit:
        submit(tmp_path, None)


def test_a_full_disk_is_one_line(here):
    import resource

    Path("t.txt").write_text(STORY * 3000)
    process = start(
        "t.txt", "--tokenizer", "byte", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    )
    _, error = process.communicate(timeout=60)
    assert process.returncode == 5 and error.count("\n") == 1 and "cannot be written: file too large" in error
    assert main(["t.txt", "--tokenizer", "byte"]) == 0  # and it goes on


@pytest.mark.full
def test_memory_is_bounded(here):
    """200 MB of lines, and of one line: the peak is that of 20 MB, up to a few MB."""
    peaks = {}
    code = "import resource, sys\nfrom gpt2flat.prepare import main\nassert main(sys.argv[1:]) == 0\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    for kind, piece in (("lines", STORY), ("line", "word " * 20), ("one word", "x" * 100)):
        for size in (5, 40) if kind == "one word" else (20, 200):
            give = [
                sys.executable,
                "-c",
                f"import sys\nfor _ in range({size}): sys.stdout.write({piece!r} * ({1_000_000 // len(piece)}))",
            ]
            with subprocess.Popen(give, stdout=subprocess.PIPE) as giver:
                line = [sys.executable, "-c", code, "-", "--name", f"x{size}", "--out", kind, "--jobs", "1"]
                done = subprocess.run(
                    line,
                    stdin=giver.stdout,
                    env=os.environ | {"PYTHONPATH": str(ROOT)},
                    capture_output=True,
                    text=True,
                    check=True,
                )
            peaks[kind, size] = int(done.stdout.split()[-1])
        small, large = (peak for (of, _), peak in sorted(peaks.items()) if of == kind)
        assert large < 1.15 * small + 10_000, peaks
