"""The generate command: where models and prompts come from, what it prints, and input that would hurt."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import harness
from made_runs import make_run, peaked_model
from gpt2flat import GPT2Config, Model
from gpt2flat.command import Parser
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.errors import DataError, UsageError
from gpt2flat.generate import line_history, main
from gpt2flat.generation import beams, stream
from gpt2flat.generation.stream import Token
from gpt2flat.training.run import find_checkpoint

LLMC_TINY = Path(__file__).parent / "llmc_tiny"


@pytest.fixture(scope="module")
def model() -> Model:
    return peaked_model()


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_newest_run_and_its_highest_step(here, model):
    make_run(model, here / "runs/a-002", "2026-01-02", steps=(9, 100000000, 99999999))
    make_run(model, here / "runs/a-003", "2026-01-01")
    make_run(model, here / "runs/a-004", "2026-01-03", steps=(1,))
    os.remove("runs/a-004/checkpoints/step_00000001/model.bin")  # newest, but stopped before it could save
    for path in here.rglob("*"):
        os.utime(path, (0, 0))
    assert find_checkpoint(None) == Path("runs/a-002/checkpoints/step_100000000/model.bin")
    Path("runs/a-002/env.json").write_text("{")
    assert find_checkpoint(None) == Path("runs/a-003/checkpoints/step_00000001/model.bin")
    Path("runs/a-003/env.json").unlink()
    assert find_checkpoint(None).parts[1] == "a-003"  # no times at all: by name


def test_flags_may_stand_between_words():
    p = Parser("command")
    p.add_argument("words", nargs="*")
    p.add_argument("-n", type=int)
    assert vars(p.parse(["a", "-n", "3", "b"])) == {"words": ["a", "b"], "n": 3}
    for wrong in ("--no", "-x"):
        with pytest.raises(UsageError, match=f"{wrong} is no flag"):
            p.parse(["a", "-n", "3", "b", wrong])


def test_a_vocabulary_that_only_decodes_still_writes(here, capsys):
    Path("model.bin").write_bytes((LLMC_TINY / "model.bin").read_bytes())
    Path("tokenizer.bin").write_bytes((LLMC_TINY / "tokenizer.bin").read_bytes())
    assert main(["model.bin", "-n", "3", "--json"]) == 0
    found, tokenizer = json.loads(capsys.readouterr().out), Tokenizer.load("tokenizer.bin")
    assert found["text"] == tokenizer.decode(found["ids"]) and tokenizer.kind == "table"
    assert main(["model.bin", "-p", "a"]) == 4 and "can only decode" in capsys.readouterr().err


def test_a_history_that_cannot_be_kept_is_told_first(here):
    pytest.importorskip("readline")
    (here / "folder").mkdir()
    for path in ("no/where", "folder"):
        with pytest.raises(DataError, match=f"--history {path}"), line_history(path):
            raise AssertionError("nothing may have been typed")
    with line_history("kept"):
        assert Path("kept").read_bytes() == b""  # and an empty file is a history


STARTED = "import sys, gpt2flat.training.run as r; print(repr(r.Run(sys.argv[1]).started))"


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device", "larger than memory", "deep"])
def test_what_a_run_says_of_itself_cannot_hurt(here, kind):
    environment = here / "env.json"
    if kind == "a pipe":
        os.mkfifo(environment)  # whoever opens it would wait
    elif kind == "a folder":
        environment.mkdir()
    elif kind == "a device":
        environment.symlink_to("/dev/zero")
    else:
        environment.write_text("[" * 100_000)
        os.truncate(environment, 1 << 40 if kind == "larger than memory" else 100_000)  # sparse
    done = harness.python("-c", STARTED, str(here))
    assert (done.returncode, done.stdout) == (0, "''\n"), done.stderr


def test_text_from_a_run_a_checkpoint_and_a_file(here, model, capsys):
    make_run(model, here / "runs/a-001", "2026-01-01")
    flags = ["--prompt", "ab", "--max-tokens", "5", "--seed", "3", "--threads", "1"]
    texts = []
    step = "runs/a-001/checkpoints/step_00000001"
    for where in ([], ["runs/a-001"], [step], [f"{step}/model.bin"]):
        assert main(where + flags) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1 and texts[0].startswith("ab")
    new = model.generate([97, 98], 5, seed=3)
    assert texts[0] == "ab" + Tokenizer.byte().decode(new[2:]) + "\n"


def test_a_file_without_a_tokenizer_gives_ids(here, capsys):
    (here / "model.bin").write_bytes((LLMC_TINY / "model.bin").read_bytes())
    assert main(["model.bin", "--max-tokens", "4", "--temperature", "0"]) == 0
    ids = [int(word) for word in capsys.readouterr().out.split()]
    assert ids == Model.load("model.bin").generate([0], 4, temperature=0)[1:].tolist()


def says(monkeypatch, *sequences: list[int]) -> None:
    """From here on models write these ids, the sequences in turn."""

    def tokens(*args, **options):
        ends, ended = args[6], set()
        for step in range(max(map(len, sequences))):
            for i, ids in enumerate(sequences):
                if i not in ended:
                    end = ends(i, ids[step]) or ("length" if step == len(ids) - 1 else None)
                    ended |= {i} if end else set()
                    yield Token(i, ids[step], -0.5, end)

    monkeypatch.setattr(stream, "stream", tokens)


@pytest.fixture
def run(here, model) -> str:
    return str(make_run(model, here / "runs/a-001", "2026-01-01").path)


def test_text_ends_with_the_text(run, monkeypatch, capsys):
    says(monkeypatch, [98, 256])
    assert main([run, "-p", "a\n"]) == 0
    assert capsys.readouterr().out == "a\nb\n"


def test_control_bytes_are_escaped_on_a_terminal_only(run, monkeypatch, capsys):
    says(monkeypatch, [*b"x\x1b]0;evil\x07\n\xc2\x9b1m\xe2\x82", 0])
    raw = "\x1bx\x1b]0;evil\x07\n\x9b1m\ufffd\x00\n"
    for terminal, expected in ((True, "\\x1bx\\x1b]0;evil\\x07\n\\x9b1m\ufffd\\x00\n"), (False, raw)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal, raising=False)
        assert main([run, "-p", "\x1b"]) == 0
        assert capsys.readouterr().out == expected


def test_samples_without_end_begin_at_once(run, monkeypatch, capsys):
    """Nothing is as long as their number."""

    def enough(text: str) -> None:
        print(text, end="")
        if "---" in text:
            raise KeyboardInterrupt

    monkeypatch.setattr("gpt2flat.generate.writer", lambda: enough)
    assert main([run, "-p", "ab", "-n", "2", "--num-samples", str(1 << 31)]) == 130
    assert capsys.readouterr().out.count("ab") == 2


def test_sequences_come_in_order_and_the_first_at_once(run, monkeypatch, capsys):
    written = []
    monkeypatch.setattr("gpt2flat.generate.writer", lambda: written.append)
    says(monkeypatch, [*b"abc"], [*b"x"], [*b"yz"])
    assert main([run, "-p", "1", "-p", "2", "-p", "3"]) == 0
    assert written == ["1a", "b", "c\n", "---\n2x\n", "---\n3yz\n"]


def test_prompts_from_files_and_standard_input(run, here, monkeypatch, capsys):
    Path("lines.txt").write_bytes(b"\xef\xbb\xbfone\r\n\n  two\x85\xff\n")
    Path("many.jsonl").write_text('{"prompt": "a\\nb", "id": 3}\n"c\\u2028"\n')
    say = "import sys; from gpt2flat.generate import main; sys.exit(main(sys.argv[1:]))"
    for flags, stdin, prompts in (
        (["--file", "lines.txt"], b"", ["one", "  two\ufffd\ufffd"]), (["--file", "many.jsonl"], b"", ["a\nb", "c\u2028"]),
        (["--file", "-"], b"x\n\ny", ["x", "y"]), (["-p", "-"], b"x\n\ny\n", ["x\n\ny\n"]), (["--file", "-", "--jsonl"], b'"q"', ["q"]),
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", say, run, "-n", "1", "--json", *flags], input=stdin, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        assert [json.loads(line)["prompt"] for line in done.stdout.decode().splitlines()] == prompts


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_tells_all(run, model, capsys):
    flags = [
        run,
        "-p",
        "ab",
        "-p",
        "",
        "--num-samples",
        "2",
        "-n",
        "9",
        "--seed",
        "5",
        "--top-p",
        "0.9",
        "--threads",
        "1",
    ]
    assert main([*flags, "--json"]) == 0
    found = lines(capsys)
    assert [one["sequence"] for one in found] == [0, 1, 2, 3] and [one["prompt"] for one in found] == [
        "ab",
        "ab",
        "",
        "",
    ]
    for one in found:
        start = [97, 98] if one["prompt"] else [10]
        ids = model.generate(start, 9, top_p=0.9, seed=5 + one["sequence"], stop=256)[len(start) :].tolist()
        assert one["ids"] == ids and one["end"] == ("eot" if ids[-1] == 256 else "length")
        assert one["text"] == Tokenizer.byte().decode([i for i in ids if i != 256])
        logits = model.logits([start + ids[:-1]]).astype(np.float64)[0, len(start) - 1 :]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert one["log_probs"] == pytest.approx([row[i] for row, i in zip(log_probs, ids, strict=True)], abs=1e-4)
    assert main([*flags, "--batch", "1"]) == 0
    assert capsys.readouterr().out == "---\n".join(one["prompt"] + one["text"] + "\n" for one in found)


def test_stop_strings_end_a_text(run, monkeypatch, capsys):
    says(monkeypatch, [*b"a. User: b"], [*b"no end"])
    flags = [run, "-p", "1", "-p", "2", "--stop", "User:", "--stop", "zz"]
    assert main(flags) == 0
    assert capsys.readouterr().out == "1a. \n---\n2no end\n"
    assert main([*flags, "--json"]) == 0
    found = lines(capsys)
    assert [(one["text"], one["end"]) for one in found] == [("a. ", "stop"), ("no end", "length")]


def test_beams(run, model, capsys):
    flags = [run, "-p", "ab", "--beams", "4", "--n-best", "2", "-n", "6", "--length-penalty", "0.5"]
    assert main([*flags, "--json"]) == 0
    found = lines(capsys)
    tokens = [*beams.stream(model, [[97, 98]], 6, 4, 2, 0.5, (256,))]
    assert [i for one in found for i in one["ids"]] == [token.id for token in tokens]
    assert found[0]["score"] >= found[1]["score"] == tokens[-1].score
    assert main(flags) == 0
    assert capsys.readouterr().out == "".join(f"ab{one['text']}\n---\n" for one in found)[: -len("---\n")]


def test_greedy_is_temperature_0(run, capsys):
    texts = []
    for flags in (["--greedy"], ["--temperature", "0", "--seed", "9"]):
        assert main([run, "-n", "9", *flags]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "flags", [["--weights", "int8"], ["--beams", "2"], ["--batch", "2", "--num-samples", "3"]], ids=str
)
def test_verbose_tells_how_fast_it_was(run, capsys, flags):
    assert main([run, "-p", "abc", "-n", "5", "-v", *flags]) == 0
    told = capsys.readouterr().err
    assert re.fullmatch(
        r"3 tokens of prompts, \d+ written: the first [\d.]+ s after loading(, then [\d.]+ tokens/s)?(; int8 .*)?\n", told
    )
    assert (", then" in told) != ("--beams" in flags)
    assert ("int8 weights are 0." in told) == ("int8" in flags)


HOSTILE = {
    "lone surrogates": "a\ud800b\udc80", "NUL": "a\0b", "a megabyte of one character": "a" * 1_000_000, "a megabyte of spaces": " " * 1_000_000,
    "marks": "e" + "\u0301" * 1_000_000, "end of text": "<|endoftext|>", "escapes": "\x1b[2J\x1b]0;evil\x07\x9b1m", "longer than the context": "ab" * 100,
    "right to left": "\u202eabc\u200f", "empty": "", "a byte order mark": "\ufeffa", "emoji": "\U0001f468\u200d\U0001f469", "newlines": "\r\n\r",
}  # fmt: skip


@pytest.mark.parametrize("tokenizer", [Tokenizer.byte(), Tokenizer.gpt2()], ids=["byte", "gpt2"])
def test_hostile_prompts(here, capsys, tokenizer):
    shape = GPT2Config(block_size=24, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=8)
    path = make_run(Model.init(shape, threads=1), here / "runs/a-001", "2026-01-01", tokenizer).path
    Path("prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in HOSTILE.values()))
    assert main([str(path), "--file", "prompts.jsonl", "--json", "-n", "3"]) == 0
    for one, prompt in zip(lines(capsys), HOSTILE.values(), strict=True):
        assert one["prompt"] == prompt.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        assert max(one["ids"]) < tokenizer.vocab_size and 1 <= len(one["ids"]) <= 3
    assert tokenizer.eot not in tokenizer.encode(HOSTILE["end of text"])
    assert main([str(path), "-p", HOSTILE["lone surrogates"], "-n", "1"]) == 0
    assert capsys.readouterr().out.startswith("a\ufffdb\ufffd")


@pytest.mark.parametrize(
    "shell, code", [("{} | head -c 4", 0), ("{} >&-", 0), ("{} > /dev/full", 5), ("{} <&- 2>&-", 0), ("{} -p - <&-", 4)]
)
def test_outputs_and_inputs_that_are_gone(run, shell, code):
    if "full" in shell and not os.path.exists("/dev/full"):
        shell, code = "{}", 0
    command = f"{sys.executable} -m gpt2flat.generate {run} -n 40"
    done = subprocess.run(["bash", "-c", shell.format(command)], capture_output=True, errors="replace", timeout=60)
    assert done.returncode == code and "Traceback" not in done.stderr and done.stderr.count("\n") <= 1, done.stderr


WRONG = """
                            | 5 | train one first
missing                     | 5 | missing
folder                      | 5 | no checkpoint
broken.bin                  | 3 | broken.bin
tokens.bin                  | 3 | is a token file
model.bin --prompt hi       | 2 | tokenizer
coded/model.bin --prompt hi | 4 | decode
model.bin --temperature -1  | 2 | --temperature
model.bin --temperature nan | 2 | --temperature
model.bin --top-k 0         | 2 | --top-k
model.bin --max-tokens x    | 2 | whole number
model.bin --seed -1         | 2 | from 0 to 999,999,999,999,999,999
model.bin --seed 9223372036854775807 | 2 | from 0 to 999,999,999,999,999,999
model.bin --num-samples 0   | 2 | from 1 to 2,147,483,648
model.bin more              | 2 | more
model.bin --top_p 1.5       | 2 | --top-p
model.bin --temp 2          | 2 | is called --temperature
model.bin --min-p x         | 2 | --min-p
model.bin --stop a          | 2 | tokenizer
model.bin -i                | 2 | tokenizer
model.bin --greedy --temperature 1 | 2 | --greedy
model.bin --beams 2 --top-k 3      | 2 | --beams
model.bin --beams 2 --top-p 0      | 2 | --beams
model.bin --beams 2 --n-best 3     | 2 | 3 best
model.bin -p - -p -         | 2 | can be read once only
model.bin --length-penalty 0       | 2 | --beams
model.bin --n-best 3        | 2 | --beams
model.bin --jsonl           | 2 | --file
model.bin -p a --file b     | 2 | --file
model.bin -i --json         | 2 | --interactive
model.bin --history h       | 2 | --interactive
model.bin --weights int4    | 2 | --weights
model.bin --file missing    | 4 | missing
model.bin --file broken.txt | 4 | no prompt
model.bin --file bad.jsonl  | 4 | line 2
model.bin --max             | 2 | --max
"""
CASES = [[part.strip() for part in line.split("|")] for line in WRONG.split("\n") if line]


@pytest.mark.parametrize("argv, code, says", CASES, ids=[case[0] for case in CASES])
def test_wrong_input_is_one_line(here, capsys, argv, code, says):
    Path("folder").mkdir()
    Path("coded").mkdir()
    tiny = {name: (LLMC_TINY / f"{name}.bin").read_bytes() for name in ("model", "tokenizer", "tokens_val")}
    contents = {"model": tiny["model"], "broken": tiny["model"][:-1], "tokens": tiny["tokens_val"]}
    contents |= {"coded/model": tiny["model"], "coded/tokenizer": tiny["tokenizer"]}
    for name, content in contents.items():
        Path(f"{name}.bin").write_bytes(content)
    Path("bad.jsonl").write_text('"a"\n{"prompts": 1}\n')
    Path("broken.txt").write_text("\n \n")
    assert main(argv.split()) == int(code)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("gpt2flat generate: ") and says in captured.err


def test_a_name_for_all_commands(here):
    def ask(*words):
        return subprocess.run([sys.executable, "-m", "gpt2flat", *words], capture_output=True, text=True)

    assert "generate" in ask().stdout and ask("--help").returncode == 0
    wrong = ask("dance")
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "train" in wrong.stderr
    assert ask("generate").returncode == 5
    assert json.loads(json.dumps(ask("train", "--help").stdout)).startswith("usage: gpt2flat train")
