"""Sampling and the generate command."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import harness
from gpt2flat import GPT2Config, Model
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.errors import DataError, KernelArgError, NonFiniteError, UsageError
from gpt2flat.generate import main, write
from gpt2flat.generation.sample import generate, next_logits, pick
from gpt2flat.training.run import Run, find_checkpoint

LLMC_TINY = Path(__file__).parent / "llmc_tiny"


@pytest.fixture(scope="module")
def model() -> Model:
    m = Model.init(GPT2Config(block_size=24, vocab_size=257, n_layer=2, n_head=2, n_embd=16), threads=1)
    for _name, view in m.params.items():
        view *= 8  # far from uniform
    return m


class FakeModel:
    """Logits that depend on the last token only: the next id is likeliest, then the one after it."""

    def __init__(self, V: int = 10):
        self.V, self.seen, self.config = V, [], SimpleNamespace(block_size=8, vocab_size=V)

    def logits(self, tokens, at):
        self.seen.append(tokens.copy())
        out = np.full((*tokens.shape, self.V), -5.0, np.float32)
        for shift, value in ((1, 3.0), (2, 2.0), (3, 1.0)):
            np.put_along_axis(out, (tokens[..., None] + shift) % self.V, value, axis=-1)
        return out[:, at]


def test_greedy_counts_up():
    assert generate(FakeModel(), [4], 8, temperature=0).tolist() == [4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert generate(FakeModel(), [[4], [7]], 3, temperature=0).tolist() == [[4, 5, 6, 7], [7, 8, 9, 0]]
    assert generate(FakeModel(), [4], 0).tolist() == [4]


def test_a_seed_decides_and_rows_are_runs_of_their_own():
    runs = [generate(FakeModel(), [0], 40, seed=seed).tolist() for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert generate(FakeModel(), [[0], [0]], 40, seed=0).tolist() == [runs[0], runs[2]]
    assert generate(FakeModel(), [0], 40).dtype == np.int32


def test_top_k_and_temperature_choose_as_they_should():
    steps = np.diff(generate(FakeModel(), [0], 400, top_k=2)) % 10
    assert set(steps) == {1, 2}
    assert set(np.diff(generate(FakeModel(), [0], 50, top_k=1)) % 10) == {1}
    cold, hot = (np.diff(generate(FakeModel(), [0], 400, temperature=t)) % 10 for t in (0.2, 50.0))
    assert (cold == 1).mean() > 0.95 and len(set(hot)) == 10
    share = (np.diff(generate(FakeModel(), [0], 2000, top_k=2)) % 10 == 1).mean()
    assert share == pytest.approx(1 / (1 + np.exp(-1)), abs=0.04)  # softmax of 3 and 2


def test_stop_ends_a_row_and_then_the_whole():
    assert generate(FakeModel(), [4], 8, temperature=0, stop=7).tolist() == [4, 5, 6, 7]
    assert generate(FakeModel(), [[4], [6]], 8, temperature=0, stop=8).tolist() == [[4, 5, 6, 7, 8], [6, 7, 8, 8, 8]]


def test_the_context_is_the_last_block():
    fake = FakeModel()
    generate(fake, list(range(10)), 3, temperature=0)
    assert [seen.shape for seen in fake.seen] == [(1, 8)] * 3
    assert fake.seen[-1][0].tolist() == [4, 5, 6, 7, 8, 9, 0, 1]


def test_pick_never_takes_what_cannot_be():
    logits = np.array([-1e30, 0.0, -np.float32(3e38)], np.float32)

    class One:
        def random(self):
            return 1.0 - 2.0**-53

    assert pick(logits, 1.0, None, One()) == 1
    assert pick(np.zeros(4, np.float32), 0, None, One()) == 0
    assert pick(np.zeros(4, np.float32), 1e-300, None, One()) == 3


@pytest.mark.parametrize("wrong, error", [
    (dict(tokens=[]), KernelArgError), (dict(tokens=[0.5]), KernelArgError), (dict(tokens=[[[1]]]), KernelArgError),
    (dict(max_new_tokens=-1), UsageError), (dict(temperature=-1.0), UsageError), (dict(temperature=np.nan), UsageError),
    (dict(temperature=np.inf), UsageError), (dict(top_k=0), UsageError), (dict(top_p=0.9), UsageError),
    (dict(seed=-1), UsageError),
])  # fmt: skip
def test_wrong_arguments(wrong, error):
    with pytest.raises(error):
        generate(FakeModel(), **({"tokens": [1]} | wrong))


def test_padding_changes_no_bit(model):
    rows = np.arange(2 * 21).reshape(2, 21) * 7 % 257
    for n in (1, 5, 16, 21):
        exact = model.logits(rows[:, :n], last=True)
        assert (next_logits(model, rows[:, :n]) == exact).all()
        assert not (next_logits(model, (rows[:, :n] + 1) % 257) == exact).any()


def test_longer_than_the_block(model):
    ids = generate(model, np.arange(20), 30, seed=3)
    assert ids.shape == (50,) and ids.max() < 257 and (ids[:20] == np.arange(20)).all()
    whole, end = (generate(model, ids[start:45], 1, temperature=0) for start in (0, 21))
    assert whole[-1] == end[-1]


def test_ids_outside_the_vocabulary(model):
    with pytest.raises(DataError):
        generate(model, [257], 1)


def test_damaged_weights(model):
    with pytest.raises(NonFiniteError):
        pick(np.array([0.0, np.nan], np.float32), 1.0, None, np.random.default_rng())


# --- the command -----------------------------------------------------------------------------------------------------


def make_run(model: Model, path: Path, started: str, steps=(1,)) -> Run:
    run = Run(path)
    run.reserve()
    run.create({"started": started}, Tokenizer.byte())
    for step in steps:
        place = run.checkpoints / f"step_{step:08d}"
        place.mkdir()
        model.save(place / "model.bin")
    return run


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
    new = generate(model, [97, 98], 5, seed=3)
    assert texts[0] == "ab" + Tokenizer.byte().decode(new[2:]) + "\n"


def test_a_file_without_a_tokenizer_gives_ids(here, capsys):
    (here / "model.bin").write_bytes((LLMC_TINY / "model.bin").read_bytes())
    assert main(["model.bin", "--max-tokens", "4", "--temperature", "0"]) == 0
    ids = [int(word) for word in capsys.readouterr().out.split()]
    assert ids == generate(Model.load("model.bin"), [0], 4, temperature=0)[1:].tolist()


def test_text_ends_with_the_text(capsys):
    write("a\n", iter([98, 256, 99]), Tokenizer.byte())
    assert capsys.readouterr().out == "a\nb\n"


def test_control_bytes_are_escaped_on_a_terminal_only(monkeypatch, capsys):
    ids = [*b"x\x1b]0;evil\x07\n\xc2\x9b1m\xe2\x82", 0]
    raw = "\x1b]0;evil\x07\n\x9b1m\ufffd\x00\n"
    for terminal, expected in ((True, "\\x1b]0;evil\\x07\n\\x9b1m\ufffd\\x00\n"), (False, raw)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal, raising=False)
        write("\x1b" if terminal else "", iter(ids), Tokenizer.byte())
        out = capsys.readouterr().out
        assert out == ("\\x1bx" if terminal else "x") + expected


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
model.bin --seed -1         | 2 | --seed
model.bin more              | 2 | more
model.bin --top_p 0.5       | 2 | --top-p
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
