"""The evaluate command: what it takes, what it prints, what it refuses; several models in one table."""

import json
import math
import os
import re
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from made_runs import train
from samples import debug_state_bytes, token_bytes

from gpt2flat import GPT2Config, Model
from gpt2flat.data.documents import Tally
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.evaluate import Progress, main
from gpt2flat.prepare import Progress as Preparing
from gpt2flat.training.metrics import read_events

LLMC_TINY = Path(__file__).parent / "llmc_tiny"
TEXT = "It was the best of times, it was the worst of times.\n" * 40


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on a text of characters, one of bytes, and a folder of token files of the first's characters."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "t.txt").write_text(TEXT)
    data = ("--train-data", str(folder / "t.txt"), "--val-fraction", "0.2", "--val-batches", "-1", "--steps", "4")
    for name, tokenizer, lr in (("a", "char", "0.01"), ("b", "char", "0.0001"), ("c", "byte", "0.01")):
        train(folder / name, *data, "--tokenizer", tokenizer, "--lr", lr)
    train(folder / "short", *data, "--tokenizer", "char", "--block-size", "8", "-t", "8")
    tokenizer = Tokenizer.load(folder / "a" / "tokenizer.bin")
    (folder / "tokens").mkdir()
    tokenizer.save(folder / "tokens" / "tokenizer.bin")
    for i, part in enumerate((TEXT[:100], TEXT[100:300])):
        ids = [tokenizer.eot, *tokenizer.encode(part)]
        (folder / "tokens" / f"t_val_{i}.bin").write_bytes(token_bytes(ids))
    return folder


@pytest.fixture
def ask(capsys, runs, monkeypatch):
    """(exit code, output, stderr) of the command, in the folder of the runs."""
    monkeypatch.chdir(runs)
    monkeypatch.delenv("GPT2FLAT_DATA", raising=False)

    def asked(*words) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*map(str, words), "--threads", "1"])
        return code, *capsys.readouterr()

    return asked


def results(asked) -> list[dict]:
    code, out, error = asked
    assert (code, error) == (0, "")
    return json.loads(out)["results"]


def test_a_run_on_its_validation_data(ask, runs):
    """The windows are those of the trainer's validation, but for the tail that fills no batch."""
    code, out, error = ask("a")
    assert (code, error) == (0, "")
    facts, titles, head, row = out.splitlines()
    n = int(len(TEXT) * 0.2)
    assert facts == f"data      t (validation): {n - 1} tokens predicted, {n - 1} bytes, in windows of 16, stride 16"
    assert titles.strip() == "t (validation)" and head.split() == ["loss", "perplexity", "bits/byte"]
    assert re.fullmatch(r"a +\d\.\d{6} +\d+\.\d+ +\d\.\d{4}", row)
    found = results(ask("a", "--json", "--max-tokens", (n - 1) // 64 * 64))[0]
    last = [event["val_loss"] for event in read_events(runs / "a", "val_loss")][-1]
    assert found["loss"] == pytest.approx(last, rel=1e-12)


def test_several_models_and_sets_in_one_table(ask):
    code, out, error = ask("a", "b", "t.txt", "tokens/*_val_?.bin", "--max-tokens", 150)
    assert (code, error) == (0, "")
    facts, more, titles, head, *rows = out.splitlines()
    assert (
        facts.startswith("data      t.txt: 150 tokens predicted, 150 bytes")
        and "tokens/*_val_?.bin: 150 tokens" in more
    )
    assert titles.split() == ["t.txt", "tokens/*_val_?.bin"] and head.split() == 2 * ["loss", "perplexity", "bits/byte"]
    assert [row.split()[0] for row in rows] == ["a", "b"] and all(len(row.split()) == 7 for row in rows)
    assert rows[0].split()[1] < rows[1].split()[1]  # the one with the higher rate has learned more
    assert len({len(line) for line in (titles, head, *rows)}) == 1


def test_bits_per_byte_compare_tokenizers(ask):
    """A text that each model cuts with its own tokenizer; of characters and bytes alike, so here both count the same bytes."""
    a, c = results(ask("a", "c", "t.txt", "--json"))
    assert a["bytes"] == c["bytes"] == len(TEXT) and a["tokens"] == c["tokens"] == len(TEXT)
    assert a["bits_per_byte"] == pytest.approx(a["loss"] / math.log(2), rel=1e-9)


def test_what_differs_between_models_is_told(ask):
    """The validation data of one text: the last fifth of its tokens, which is another text for another tokenizer."""
    code, out, _ = ask("a", "c", "--max-tokens", 5)
    assert code == 0 and [line for line in out.splitlines() if line.startswith("data")] == [
        "data      t (validation): 5 tokens predicted, 5 bytes, in windows of 16, stride 16"
    ]
    code, out, _ = ask("a", "short", "t.txt")
    assert code == 0 and "in windows of 16, stride 16 (a)\n" in out and "in windows of 8, stride 8 (short)\n" in out


def test_token_files_are_texts_of_their_own(ask):
    """Two files of 101 and 201 tokens, end-of-text first: 100 and 200 are predicted; a folder is its validation files."""
    whole, folder = (results(ask("a", name, "--json"))[0] for name in ("tokens/t_val_*.bin", "tokens"))
    assert whole["tokens"] == whole["bytes"] == 300
    assert {**folder, "set": whole["set"]} == whole
    parts = [results(ask("a", f"tokens/t_val_{i}.bin", "--json"))[0] for i in (0, 1)]
    assert whole["loss"] == pytest.approx((100 * parts[0]["loss"] + 200 * parts[1]["loss"]) / 300, rel=1e-12)


def test_the_settings_of_windows(ask):
    side, slide = (
        results(ask("a", "t.txt", "--json", "--seq-len", 12))[0],
        results(ask("a", "t.txt", "--json", "-t", 12, "--stride", 3))[0],
    )
    assert (side["window"], side["stride"], slide["window"], slide["stride"]) == (12, 12, 12, 3)
    assert side["tokens"] == slide["tokens"] == len(TEXT) and side["loss"] != slide["loss"]
    batches = [results(ask("a", "t.txt", "--json", "-t", 12, "--stride", 3, "-b", B)) for B in (1, 7, 1000)]
    assert batches == [[slide]] * 3


def test_a_checkpoint_without_tokenizer_has_no_bytes(ask, runs):
    Model.init(GPT2Config(block_size=8, vocab_size=9, n_layer=1, n_head=1, n_embd=4)).save(runs / "plain.bin")
    (runs / "bare").mkdir(exist_ok=True)
    (runs / "bare" / "ids.bin").write_bytes(token_bytes([1, 2, 3, 4, 8]))
    code, out, error = ask("plain.bin", "bare/ids.bin")
    assert (
        (code, error) == (0, "")
        and "4 tokens predicted, in windows of 8" in out
        and out.splitlines()[-1].split()[-1] == "-"
    )
    (runs / "bare" / "old.bin").write_bytes(np.array([1, 2, 3], "<i4").tobytes())
    assert results(ask("plain.bin", "bare/old.bin", "--json"))[0]["bytes"] is None


def test_bf16_products_are_near(ask):
    full, half = (results(ask("a", "t.txt", "--json", "--precision", p))[0]["loss"] for p in ("fp32", "bf16"))
    assert full != half and full == pytest.approx(half, rel=1e-2)


def test_weights_in_fewer_bits_are_rows_of_the_table(ask):
    code, out, error = ask("a", "t.txt", "--weights", "fp32,bf16,int8", "--max-tokens", 40)
    assert (code, error) == (0, "") and [line.split("  ")[0] for line in out.splitlines()[-3:]] == ["a", "a bf16", "a int8"]
    found = [results(ask("a", "t.txt", "--json", "--weights", "int8,fp32", "--max-tokens", 40, *b)) for b in ((), ("-b", 1))]
    assert found[0] == found[1] and [row["model"] for row in found[0]] == ["a int8", "a"]
    int8, fp32 = (row["loss"] for row in found[0])
    assert int8 != fp32 and int8 == pytest.approx(fp32, rel=5e-3)


# --- what is refused -------------------------------------------------------------------------------------------------

WRONG = """
nothere                     | 5 | nothere: no such file
a nothere.txt               | 5 | nothere.txt: no such file
a no*.bin                   | 4 | no such file
a debug.bin                 | 2 | is a debug state, expected
a empty.txt                 | 4 | is empty
a latin.txt                 | 4 | expected UTF-8
a strange.txt               | 4 | character '€'
a cut.bin                   | 3 | cut.bin: found
a emptyfolder               | 4 | neither a model's folder nor
a tokens --seq-len 17       | 2 | --seq-len 17: the model takes 16
a tokens --stride 17        | 2 | --stride 17: expected at most the window of 16
a t.txt --stride 0          | 2 | --stride 0
a t.txt -b 0                | 2 | --batch-size
a t.txt --precision fp8     | 2 | precision 'fp8'
a t.txt --bits              | 2 | --bits
a t.txt --weights fp32,int4 | 2 | --weights fp32,int4: found 'int4', expected some of fp32, bf16, int8
a --weights int8 --tasks x  | 2 | --weights does not go with --tasks
c tokens                    | 2 | the vocabularies clash: tokens/*_val*.bin was made with the tokenizer in tokens/ (18 tokens), c has a vocabulary of 257
other.bin other             | 2 | other.bin was trained with another of 18 tokens
a one.bin                   | 4 | holds fewer than two tokens
plain.bin                   | 2 | plain.bin is not the model of a run
plain.bin t.txt             | 2 | t.txt is text, and no tokenizer is beside
plain.bin far/far.bin       | 4 | token 1 is id 9, expected 0 to 8
broken.bin t.txt            | 3 | broken.bin
x.ckpt t.txt                | 3 | x.ckpt: 
a t.txt --heat-tokens 9     | 2 | --heat-tokens is for --heat
a t.txt --num-fewshot 0     | 2 | --num-fewshot is for --tasks
a t.txt --task-folder .     | 2 | --task-folder is for --tasks
a t.txt --limit 5           | 2 | --limit 5: counts questions
a --limit 5                 | 2 | --limit 5: counts questions
a t.txt --heat nodir/x.html | 2 | --heat nodir/x.html: there is no directory nodir
"""
CASES = [[part.strip() for part in line.split("|")] for line in WRONG.split("\n") if line]


@pytest.fixture(scope="module")
def damaged(runs):
    tokenizer = Tokenizer.load(runs / "a" / "tokenizer.bin")
    other = Tokenizer("char", (*tokenizer.tokens[1:-1], "é".encode(), tokenizer.tokens[-1]), tokenizer.eot)
    (runs / "other").mkdir()
    (runs / "emptyfolder").mkdir()
    (runs / "far").mkdir()
    other.save(runs / "other" / "tokenizer.bin")
    files = {
        "debug.bin": debug_state_bytes(), "empty.txt": b"", "latin.txt": b"caf\xe9", "strange.txt": "€".encode(),
        "cut.bin": token_bytes([1, 2, 3])[:-1], "one.bin": token_bytes([1]), "other/x_val.bin": token_bytes([1, 2]),
        "x.ckpt": b"\x80", "far/far.bin": token_bytes([1, 9]), "broken.bin": (LLMC_TINY / "model.bin").read_bytes()[:-1],
    }  # fmt: skip
    for name, content in files.items():
        (runs / name).write_bytes(content)
    config = dict(block_size=8, n_layer=1, n_head=1, n_embd=4)
    Model.init(GPT2Config(vocab_size=9, **config)).save(runs / "plain.bin")

    tokenizer.save(runs / "tokenizer.bin")
    Model.init(GPT2Config(vocab_size=tokenizer.vocab_size, **config)).save(runs / "other.bin")


@pytest.mark.parametrize("words, code, says", CASES, ids=[case[0] for case in CASES])
def test_wrong_input_is_one_line(ask, damaged, words, code, says):
    found, out, error = ask(*words.split())
    assert (found, out) == (int(code), "") and error.startswith("gpt2flat evaluate: ")
    assert says in error and error.count("\n") == 1


MISTAKES = ["a nothere.txt", "a broken.bin t.txt", "a x.ckpt t.txt", "a t.txt --heat nodir/x.html"]


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_told_before_anything_is_measured(ask, damaged, monkeypatch, words):
    monkeypatch.setattr("gpt2flat.evaluate.open_model", None)
    assert ask(*words.split())[2].startswith("gpt2flat evaluate: ")


def test_no_run_and_no_validation(ask, runs, tmp_path, monkeypatch):
    train(tmp_path / "silent", "--val-every", "0", "--steps", "2")
    assert "was trained without validation data" in ask(tmp_path / "silent")[2]
    monkeypatch.chdir(tmp_path)
    assert main([]) == 5
    (tmp_path / "t.txt").write_text(TEXT)
    train(tmp_path / "gone", "--train-data", "t.txt", "--tokenizer", "char", "--steps", "2")
    (tmp_path / "t.txt").unlink()
    assert "start from the same folder" in ask(tmp_path / "gone")[2]


def test_the_newest_run_is_the_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(Path("runs") / "x", "--steps", "2")
    capsys.readouterr()
    assert main(["--max-tokens", "40", "--threads", "1"]) == 0
    assert "x" in capsys.readouterr().out.splitlines()[-1]


# --- on a terminal ---------------------------------------------------------------------------------------------------


def test_progress_is_for_terminals(monkeypatch, capsys):
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        with Progress("a on b") as told:
            told(1, 4000)
            told(2, 4000)
        error = capsys.readouterr().err
        assert error == "" if not terminal else re.fullmatch(
            r"\r\x1b\[Ka on b: 1 of 4,000, [\d.]+ \w+ left\r\x1b\[K", error)  # fmt: skip


@pytest.mark.parametrize("draw", [lambda: Progress("a on " + "b" * 40)(1, 9), lambda: Preparing()("encoding", Tally(5, 10**9))])
def test_progress_fits_into_a_narrow_terminal(monkeypatch, draw):
    end, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 20))
    with open(terminal, "w") as screen, open(end, "rb", buffering=0) as shown:
        monkeypatch.setattr(sys, "stderr", screen)
        draw()
        assert len(shown.read(999).decode().replace("\x1b[K", "").strip("\r")) == 19


def test_ctrl_c_is_one_line(runs):
    """An interrupt while windows are scored."""
    code = f"""
import os, signal, sys
from gpt2flat import Model
from gpt2flat.evaluate import main
losses = Model.losses
def interrupted(self, *batch):
    os.kill(os.getpid(), signal.SIGINT)
    return losses(self, *batch)
Model.losses = interrupted
sys.exit(main([{str(runs / "a")!r}, {str(runs / "t.txt")!r}, "--threads", "1"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "gpt2flat evaluate: interrupted\n")
