"""The train command: llm.c's own numbers, the run directory, Ctrl-C, and what happens to wrong input."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

from gpt2flat import Model
from gpt2flat.benchmarks.machine import faster_precision
from gpt2flat.command import StopSignal
from gpt2flat.data.tokenizer import Tokenizer, escape_controls
from gpt2flat.errors import CheckpointError
from gpt2flat.evaluate import main as evaluate
from gpt2flat.formats import llmc
from gpt2flat.inspection import history
from gpt2flat.kernels import backend
from gpt2flat.train import main
from gpt2flat.training.metrics import Metrics

LLMC_TINY = Path(__file__).parent / "llmc_tiny"
FROM_LLMC = ["-e", f"{LLMC_TINY}/model.bin", "-i", f"{LLMC_TINY}/tokens_train.bin", "-j", f"{LLMC_TINY}/tokens_val.bin"]
SMALL = "--n-layer 1 --n-embd 16 --n-head 2 --block-size 16 -b 4 --val-batches 2 --sample-tokens 4 --threads 1".split()


def command(*words) -> list[str]:
    return [sys.executable, "-m", "gpt2flat.train", *map(str, words)]


def metrics(run: Path, key: str) -> dict[int, float]:
    """{step: value} of every line of metrics.jsonl that has `key`."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {event["step"]: event[key] for event in events if key in event}


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, with the bytes of files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# --- llm.c's numbers -------------------------------------------------------------------------------------------------


def test_the_command_line_reproduces_llmc(here):
    expected = json.loads((LLMC_TINY / "losses.json").read_text())
    done = subprocess.run(command(*FROM_LLMC), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    run = here / "runs" / "model-tokens-001"
    losses, val = metrics(run, "loss"), metrics(run, "val_loss")
    assert list(losses) == list(range(41)) and list(val) == [0, 10, 20, 30, 40, 41]
    assert np.abs(np.array(list(losses.values())) - expected["train"]).max() < 2e-5
    assert np.abs(np.array([val[i] for i in range(0, 50, 10)]) - expected["val"]).max() < 2e-5
    assert "step 40/41 | loss 4.51977" in done.stdout
    assert list(metrics(run, "sample")) == [20, 40, 41]
    assert Model.load(run / "checkpoints/step_00000041/model.bin").config.vocab_size == 97


# --- a run from scratch, and what it leaves --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """(folder, output) of a short run of the built-in default, on a terminal's command line."""
    folder = tmp_path_factory.mktemp("run")
    flags = "--steps 40 --warmup 0.1 --log-every 10 --val-every 20 --sample-every 30 --val-batches 3".split()
    environ = {name: value for name, value in os.environ.items() if name != "GPT2FLAT_DATA"}
    done = subprocess.run(command(*flags), cwd=folder, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


def test_the_default_learns(small_run):
    run = small_run[0] / "runs" / "tiny-pydoc-001"
    losses, val = metrics(run, "loss"), metrics(run, "val_loss")
    assert list(losses) == list(range(40)) and list(val) == [0, 20, 40] and list(metrics(run, "sample")) == [30, 40]
    assert math.isclose(losses[0], math.log(257), rel_tol=0.05)
    assert val[40] < 3.4 < 5 < val[0]


def test_the_run_directory(small_run):
    run = small_run[0] / "runs" / "tiny-pydoc-001"
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    model = "checkpoints/step_00000040/model.bin"
    parts = {f"checkpoints/step_00000040/{name}" for name in ("model.bin", "optimizer.bin", "state.json", "manifest.json")}
    assert found == {"config.toml", "env.json", "metrics.jsonl", "main.log", "tokenizer.bin", "lock", *parts}
    config = tomllib.loads((run / "config.toml").read_text())
    assert (config["steps"], config["warmup"], config["n_embd"], config["vocab_size"]) == (40, 0.1, 128, 257)
    assert (config["init"], config["seq_len"], config["beta2"], config["decay_all"]) == ("tiny", 64, 0.99, False)
    environment = json.loads((run / "env.json").read_text())
    assert environment.keys() >= {"started", "versions", "backend", "isa", "threads", "cpu", "command"}
    assert Tokenizer.load(run / "tokenizer.bin") == Tokenizer.byte()
    assert Model.load(run / model).config.block_size == 64
    update = next(event for line in (run / "metrics.jsonl").read_text().splitlines() if "loss" in (event := json.loads(line)))
    assert update.keys() == {"step", "loss", "lr", "grad_norm", "ms", "tokens_per_s"}
    assert update["lr"] == 1e-3 / 4 and update["tokens_per_s"] == pytest.approx(768e3 / update["ms"])


def test_the_screen(small_run):
    lines = small_run[1].splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["machine", "data", "model", "memory", "run"]
    for line, words in zip(
        lines, ("GFLOP/s thread", "sha256 byte", "850,688", "params", "updates about"), strict=False
    ):
        assert all(word in line for word in words.split()), line
    steps = [line for line in lines if "| loss" in line]
    assert [line.split("/")[0] for line in steps] == ["step  0", "step 10", "step 20", "step 30", "step 39"]
    assert all(word in steps[0] for word in ("lr ", "norm ", " ms", "tok/s", "% of peak"))
    assert sum("val loss" in line for line in lines) == 3 and sum("| sample" in line for line in lines) == 2
    assert "\x1b" not in small_run[1] and "\r" not in small_run[1]


def test_the_three_commands_to_try_next_work(small_run):
    folder, output = small_run
    lines = output.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("try next"))
    commands = [line.removeprefix("try next").strip() for line in lines[first:]]
    assert [shlex.split(line)[2] for line in commands] == ["gpt2flat.generate", "gpt2flat.train", "gpt2flat.info"]
    for line in commands:
        done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0 and len(done.stdout) > 20, (line, done.stderr)
    assert (folder / "runs/model-pydoc-001/checkpoints/step_00000041/model.bin").is_file()
    assert not metrics(folder / "runs/model-pydoc-001", "loss")[0] > 3.6


def test_recompute_changes_memory_and_nothing_else(here, capsys):
    said = {}
    for level in "03":
        assert main([*SMALL, "--n-layer", "4", "--steps", "3", "-r", level, "--out", level]) == 0
        said[level] = re.search(r", acts ([0-9.]+) ([kM]B)", capsys.readouterr().out)
        assert tomllib.loads((here / level / "config.toml").read_text())["recompute"] == int(level)
    assert metrics(here / "0", "loss") == metrics(here / "3", "loss")
    assert float(said["0"][1]) > 1.5 * float(said["3"][1]) and said["0"][2] == said["3"][2]


def test_samples_go_on_from_a_prompt_and_are_those_of_generate(here, capsys):
    flags = ["--steps", "3", "--sample-every", "2", "--sample-tokens", "9", "--sample-prompt", "Th\x07e", "--seed", "5"]
    assert main([*SMALL, *flags, "--out", "run"]) == 0
    found = [e for e in map(json.loads, (here / "run/metrics.jsonl").read_text().splitlines()) if "sample" in e]
    assert [(e["step"], e["prompt"]) for e in found] == [(2, "Th\\x07e"), (3, "Th\\x07e")]
    assert f"sample\n{found[1]['prompt']}{found[1]['sample']}\n---" in capsys.readouterr().out
    assert history.read(here / "run").samples[1] == (3, found[1]["prompt"] + found[1]["sample"])
    model = Model.load(here / "run/checkpoints/step_00000003/model.bin")
    ids = model.generate(list(b"Th\x07e"), 9, seed=5 + 3)[4:]
    assert found[1]["sample"] == escape_controls(Tokenizer.byte().decode(ids))


def test_the_same_run_gives_the_same_bits_and_the_next_number(here):
    for _ in range(2):
        assert main([*SMALL, "--steps", "3"]) == 0
    first, second = (here / f"runs/tiny-pydoc-00{i}" for i in (1, 2))
    assert metrics(first, "loss") == metrics(second, "loss") and metrics(first, "sample") == metrics(second, "sample")
    model = "checkpoints/step_00000003/model.bin"
    assert (first / model).read_bytes() == (second / model).read_bytes()


# --- the regime ------------------------------------------------------------------------------------------------------


def settings(run: Path) -> dict:
    return tomllib.loads((run / "config.toml").read_text())


def test_a_config_file_lies_between_the_defaults_and_the_flags(here, capsys):
    Path("mine.toml").write_text("lr = 1\nsteps = 3\nschedule = 'linear'\ndecay_all = true\n")
    assert main([*SMALL, "--config", "mine.toml", "-x", "2", "-o", "run"]) == 0
    stored = settings(here / "run")
    assert [stored[name] for name in ("lr", "steps", "schedule", "decay_all")] == [1.0, 2, "linear", True]
    assert "config" not in stored and "max_time" not in stored
    assert main(["--config", "run/config.toml", "-o", "again", "-s", "0"]) == 0  # what a run wrote is one
    assert metrics(here / "again", "loss") == metrics(here / "run", "loss")
    for text, says in {
        "max_iters = 5": "--steps",
        "lr = 'x'": "lr = 'x': expected a finite number",
        "steps = 1.5": "steps",
        "resume = '1'": "belongs on the command line",
        "[a]\nlr = 1": "a is not a flag",
    }.items():
        Path("bad.toml").write_text(text)
        capsys.readouterr()
        assert main(["--config", "bad.toml"]) == 2
        error = capsys.readouterr().err
        assert "bad.toml" in error and says in error and error.count("\n") == 1


def test_accumulation_is_the_larger_batch(here):
    """Gradients of 3 batches of 4 rows are those of one of 12, and so are the losses, in another order of sums."""
    common = [*SMALL, "--steps", "4", "--overfit", "-s", "0", "-v", "0"]
    assert main([*common, "-b", "12", "-o", "large"]) == 0
    assert main([*common, "-b", "4", "-d", "192", "-o", "small"]) == 0
    large, small = (metrics(here / name, "loss") for name in ("large", "small"))
    assert list(large.values()) == pytest.approx(list(small.values()), rel=1e-5)


def test_epochs_and_time_say_how_long(here):
    (here / "odd.txt").write_text(text_of(700))
    line = [*SMALL, "-i", "odd.txt", "--tokenizer", "byte", "-s", "0", "-v", "0"]
    assert main([*line, "--steps", "-1", "-o", "one"]) == 0
    assert main([*line, "--epochs", "0.5", "-o", "half"]) == 0
    assert settings(here / "half")["steps"] == round(settings(here / "one")["steps"] / 2) > 10
    assert main([*line, "--steps", "1000000", "--max-time", "0.5s", "-o", "short"]) == 0
    steps = [int(path.name[5:]) for path in Path("short/checkpoints").iterdir()]
    assert len(steps) == 1 and 0 <= steps[0] < 1000000


def test_what_is_kept(here):
    line = [*SMALL, "--steps", "12", "-s", "0", "-v", "2", "-n", "1", "-nk", "2", "-nm", "5", "--lr", "0.1", "-k", "constant"]
    assert main([*line, "-o", "run"]) == 0
    losses = {step: loss for step, loss in metrics(here / "run", "val_loss").items() if step}
    best = min(losses, key=losses.get)
    kept = {int(path.name[5:]) for path in Path("run/checkpoints").iterdir()}
    assert kept == {11, 12, 5, 10, best}


# --- data of the user's own ------------------------------------------------------------------------------------------


def text_of(n: int) -> str:
    return " ".join(f"{i} is{' not' * (i % 3 == 0)} odd." for i in range(n))


@pytest.mark.parametrize("kind, V", [("byte", 257), ("char", 19), ("gpt2", 50257)])
def test_a_text_file_needs_no_preparation(here, kind, V):
    (here / "odd.txt").write_text(text_of(700))
    assert main([*SMALL, "--steps", "2", "--train-data", "odd.txt", "--tokenizer", kind, "-o", "run"]) == 0
    assert Tokenizer.load("run/tokenizer.bin").vocab_size == V
    model = Model.load("run/checkpoints/step_00000002/model.bin")
    assert model.config.vocab_size == V and model.config.n_embd == 16
    # a run goes on with its own tokenizer
    assert main(["-e", "run/checkpoints/step_00000002/model.bin", "-i", "odd.txt", "-x", "1", "-o", "more"]) == 0
    assert Path("more/tokenizer.bin").read_bytes() == Path("run/tokenizer.bin").read_bytes()


def dataset(folder: Path, name: str, tokens: int = 2000) -> None:
    folder.mkdir(exist_ok=True)
    ids = np.random.default_rng(0).integers(0, 97, tokens)
    llmc.write_tokens(folder / f"{name}_train.bin", ids)
    llmc.write_tokens(folder / f"{name}_val.bin", ids[:500])


def test_a_pair_of_token_files_under_data_is_found(here, monkeypatch, capsys):
    dataset(here / "data", "noise")
    Path("data/tokenizer.bin").write_bytes((LLMC_TINY / "tokenizer.bin").read_bytes())
    assert main([*SMALL, "--steps", "1"]) == 0
    assert tomllib.loads(Path("runs/tiny-noise-001/config.toml").read_text())["vocab_size"] == 97
    dataset(here / "elsewhere", "hum")
    monkeypatch.setenv("GPT2FLAT_DATA", "elsewhere")
    assert main([*SMALL, "--steps", "1"]) == 2
    assert "--dataset NAME, one of hum, noise" in capsys.readouterr().err
    assert main([*SMALL, "--steps", "-1", "--dataset", "noise", "--val-every", "0"]) == 0
    assert len(metrics(here / "runs/tiny-noise-002", "loss")) == 1999 // 64


def test_a_run_keeps_to_its_data_when_others_come_beside_it(here, capsys):
    """What was taken because nothing else was there is evaluated and resumed by its name."""
    assert main([*SMALL, "--steps", "1", "-s", "0"]) == 0
    dataset(here / "data", "noise")
    Path("data/tokenizer.bin").write_bytes((LLMC_TINY / "tokenizer.bin").read_bytes())
    assert main([*SMALL, "--steps", "1", "-s", "0"]) == 0
    dataset(here / "data", "hum")
    for run, data in (("runs/tiny-pydoc-001", "pydoc"), ("runs/tiny-noise-001", "noise")):
        assert tomllib.loads(Path(run, "config.toml").read_text())["dataset"] == data
        capsys.readouterr()
        assert evaluate([run, "--max-tokens", "20"]) == 0 and f"{data} (validation)" in capsys.readouterr().out
        assert main(["--resume", run, "--steps", "2"]) == 0
    Path("mine.txt").write_text("the sea " * 400)
    assert main(["--resume", "runs/tiny-pydoc-001", "--steps", "3", "-i", "mine.txt"]) == 0
    config = ["--config", "runs/tiny-noise-001/config.toml"]
    assert main([*config, "-i", "mine.txt", "--vocab-size", "257", "--out", "on-mine"]) == 0
    assert main([*SMALL, "--steps", "1", "-s", "0", "--dataset", "pydoc", "--tokenizer", "char", "--out", "chars"]) == 0


def test_a_checkpoint_named_gpt2_124M_under_data_is_the_default(here):
    (here / "data").mkdir()
    names = {"gpt2_124M": "model", "t_train": "tokens_train", "t_val": "tokens_val", "tokenizer": "tokenizer"}
    for name, source in names.items():
        (here / f"data/{name}.bin").write_bytes((LLMC_TINY / f"{source}.bin").read_bytes())
    assert main(["-x", "1"]) == 0
    loss = metrics(here / "runs/gpt2_124M-t-001", "loss")[0]
    assert loss == pytest.approx(4.574919, abs=2e-5)


def test_a_preset_is_a_preset_whatever_lies_around(here):
    (here / "tiny").mkdir()
    assert main([*SMALL, "-e", "tiny", "-x", "1"]) == 0


def test_a_smaller_block_size_crops_a_checkpoint(here):
    assert main([*FROM_LLMC, "-x", "0", "--block-size", "32", "-o", "run"]) == 0
    cropped, whole = Model.load("run/checkpoints/step_00000000/model.bin"), Model.load(LLMC_TINY / "model.bin")
    assert (cropped.params["wpe"] == whole.params["wpe"][:32]).all() and cropped.config.block_size == 32


def test_a_second_text_is_the_validation(here, capsys):
    (here / "odd.txt").write_text(text_of(300))
    (here / "even.txt").write_text("even\n" * 200)
    data = ["-i", "odd.txt", "-j", "even.txt", "--tokenizer", "byte"]
    assert main([*SMALL, *data, "-x", "1", "-s", "0", "-o", "run"]) == 0
    # every character a token, and one for the start of a document
    assert f"{len(text_of(300)) + 1:,} tokens to train on, 1,001 of even.txt for validation" in capsys.readouterr().out


def test_token_files_alone_hold_gpt2s_tokens(here, capsys):
    llmc.write_tokens("a_train.bin", Tokenizer.gpt2().encode(text_of(300)))
    assert main([*SMALL, "-x", "1", "-i", "a_train.bin", "-v", "0", "-s", "0", "-o", "run"]) == 0
    assert "(gpt2 tokenizer, V 50257)" in capsys.readouterr().out
    assert Model.load("run/checkpoints/step_00000001/model.bin").config.vocab_size == 50257


def test_samples_without_a_tokenizer_are_ids(here, capsys):
    for name in ("model.bin", "tokens_train.bin"):
        (here / name).write_bytes((LLMC_TINY / name).read_bytes())
    line = "-e model.bin -i tokens_train.bin -b 1 -t 8 -v 0 -x 1 -s 1 -g 3 -o run"
    assert main(line.split()) == 0
    out = capsys.readouterr().out
    assert "no tokenizer, V 97: samples are ids" in out
    sample = out.split("| sample\n")[1].splitlines()[0].split()
    assert len(sample) == 3 and all(0 <= int(word) < 97 for word in sample)


def test_ids_of_data_too_large_to_look_through_are_checked_batch_by_batch(here, capsys, monkeypatch):
    monkeypatch.setattr("gpt2flat.training.inputs.CHECKED_TOKENS", 100)
    ids = np.zeros(2000, int)
    ids[1000] = 97
    llmc.write_tokens("a_train.bin", ids)
    assert main(["-e", f"{LLMC_TINY}/model.bin", "-i", "a_train.bin", *"-v 0 -x 9 -s 0 -o run".split()]) == 4
    assert "token 1000 is id 97, expected 0 to 96" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_a_cry_for_help_is_heard(flag, capsys):
    with pytest.raises(SystemExit) as end:
        main([flag])
    assert not end.value.code and "--weight-decay" in capsys.readouterr().out


# --- stopping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_run_that_can_be_read_and_generated_from(here, number):
    words = command(*SMALL, "--steps", 10**6, "--sample-every", 0, "-o", "run")
    # a shell's background job ignores Ctrl-C; this one must not
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    lines = iter(process.stdout.readline, "")
    assert any("| loss" in line and not line.startswith("step       0") for line in lines)
    process.send_signal(number)
    rest = process.stdout.read()
    assert process.wait(20) == 128 + number
    assert "stopped" in rest and "gpt2flat.generate run" in rest
    losses = metrics(here / "run", "loss")
    assert list(losses) == list(range(len(losses)))
    (checkpoint,) = Path("run/checkpoints").iterdir()
    assert checkpoint.name == f"step_{len(losses):08d}"
    asked = [sys.executable, "-m", "gpt2flat.generate", "run", "--max-tokens", "3"]
    assert subprocess.run(asked, capture_output=True).returncode == 0


def test_a_second_signal_aborts():
    with pytest.raises(KeyboardInterrupt), StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop and stop.number == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)  # not SIGINT: a background job ignores it
        time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) != stop._ask


def test_numbers_that_are_not_finite_stop_a_run_and_are_not_saved(here, capsys):
    assert main([*SMALL, "--steps", "50", "--lr", "999999", "-k", "constant", "--grad-clip", "0", "-o", "run"]) == 6
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "try a smaller --lr" in error
    assert not list(Path("run/checkpoints").iterdir())
    assert all(map(math.isfinite, metrics(here / "run", "loss").values()))


def test_metrics_can_be_read_while_a_run_goes_on(tmp_path):
    with Metrics(tmp_path) as metrics_file:
        metrics_file.write(step=1, loss=1 / 3)
        assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 1 / 3}
    with pytest.raises(CheckpointError, match="cannot be written"):
        Metrics(tmp_path / "absent")


# --- wrong input -----------------------------------------------------------------------------------------------------


def wrong_files(folder: Path) -> None:
    model = (LLMC_TINY / "model.bin").read_bytes()
    (folder / "folder").mkdir()
    (folder / "taken").mkdir()
    (folder / "taken" / "file").write_text("mine")
    contents = {
        "model.bin": model, "short.bin": model[:-4], "noise.bin": os.urandom(4096), "text.txt": text_of(800).encode(),
        "few.txt": b"few", "empty.txt": b"", "latin.txt": "\xe9t\xe9".encode("latin-1") * 999,
    } | {name: (LLMC_TINY / name).read_bytes() for name in ("tokens_train.bin", "tokenizer.bin")}  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    damaged = np.frombuffer(model, np.float32).copy()
    damaged[300] = np.nan
    (folder / "nan.bin").write_bytes(damaged.tobytes())
    (folder / "lonely").mkdir()
    llmc.write_tokens(folder / "lonely/a_train.bin", np.arange(3000) % 300)
    llmc.write_tokens(folder / "lonely/a_val.bin", np.arange(3000) % 300)
    llmc.write_tokens(folder / "lonely/b.bin", np.arange(3000) % 300)


WRONG = """
-e missing.bin                          | 5 | missing.bin
-e folder                               | 5 | holds no checkpoint
-e short.bin                            | 3 | found
-e tokens_train.bin                     | 3 | is a token file
-e noise.bin                            | 3 | noise.bin
-e text.txt                             | 3 | text.txt
-e nan.bin -i tokens_train.bin --val-every 0 | 6 | nan
-e d13                                  | 2 | d12
-e tiny --n-head 3                      | 2 | n_head
-e tiny --n-embd 65536 --n-layer 1024   | 7 | smaller model
-e model.bin --n-layer 3                | 2 | --n-layer 3
-e model.bin --block-size 128           | 2 | --block-size 128
-e model.bin -t 65                      | 2 | --seq-len 65
-e model.bin -i text.txt --tokenizer byte | 2 | vocabularies clash
-e model.bin -i lonely/a_train.bin      | 4 | id 299
-e tiny --vocab-size 100                | 2 | vocabularies clash
-i missing.bin                          | 4 | missing.bin
-i missing.txt                          | 4 | missing.txt
-i none_*.bin                           | 4 | none_*.bin
-i folder                               | 4 | a directory
-i model.bin                            | 3 | is a model checkpoint
-i few.txt                              | 4 | few.txt
-i empty.txt                            | 4 | is empty
-i latin.txt                            | 4 | UTF-8
-i text.txt -j missing.txt              | 4 | missing.txt
-i text.txt -b 1000                     | 4 | --batch-size
-i text.txt --val-fraction 0.001        | 4 | text.txt
-i text.txt --vocab-size 300 --tokenizer char | 2 | vocabularies clash
-i tokens_train.bin --tokenizer byte    | 2 | --tokenizer byte
-i lonely/b.bin                         | 2 | --val-data
-i lonely/a_train.bin --vocab-size 200  | 4 | expected 0 to 199
-j text.txt                             | 2 | --train-data
--dataset none                          | 4 | --dataset none
--dataset a -i text.txt                 | 2 | --dataset
--sample-prompt Z -i text.txt --tokenizer char | 4 | 'Z'
--sample-prompt Z -e model.bin -i tokens_train.bin -v 0 | 4 | decode
-o taken                                | 2 | taken-2
-o text.txt                             | 5 | not a directory
-o text.txt/run                         | 5 | not a directory
-o /proc/nothing/run                    | 5 | /proc/nothing
--max_iters 5                           | 2 | --steps
--steps many                            | 2 | whole number
--resume                                | 5 | no run to resume
--resume taken                          | 5 | no run to resume
--resume taken -o other                 | 2 | name two runs
--config missing.toml                   | 5 | missing.toml
--config text.txt                       | 2 | is no TOML file
--schedule squared                      | 2 | cosine, linear, constant, wsd
--steps 5 --epochs 2                    | 2 | give one of them
-d 1000                                 | 2 | a multiple of
--on-nonfinite ignore                   | 2 | rollback:K
--report-to mlflow                      | 2 | of tensorboard and wandb
"""
CASES = [[part.strip() for part in line.split(" | ")] for line in WRONG.strip().splitlines()]


@pytest.mark.parametrize("line, code, says", CASES, ids=[case[0] for case in CASES])
def test_wrong_input_is_one_line_and_changes_nothing(here, capfd, line, code, says):
    wrong_files(here)
    before = files(here)
    assert main(shlex.split(line)) == int(code)
    out, error = capfd.readouterr()
    assert error.startswith("gpt2flat train: ") and error.count("\n") == 1 and says in error
    assert files(here) == before and (out == "" or "/proc" in line)  # only the system can say that about /proc


def test_kernels_that_are_not_there_are_one_line(here):
    done = subprocess.run(command(), env=os.environ | {"GPT2FLAT_ISA": "avx9"}, capture_output=True, text=True)
    assert done.returncode == 9 and done.stderr.count("\n") == 1 and not list(here.iterdir())


def test_a_reader_that_goes_away_is_no_error(here):
    line = shlex.join(command(*SMALL, "--steps", 2000, "--log-every", 1)) + " | head -n 1"
    done = subprocess.run(line, shell=True, capture_output=True)
    assert done.stderr == b"" and done.stdout.startswith(b"machine")


def test_precision_is_used_said_and_kept(here, capsys, monkeypatch):
    runs = {}
    for precision in ("fp32", "bf16"):
        assert main([*SMALL, "--steps", "2", "--precision", precision, "--out", precision]) == 0
        said = capsys.readouterr().out
        assert ("bf16 products" in said) == ("of fp32 peak" in said) == (precision == "bf16")
        assert json.loads((here / precision / "env.json").read_text())["precision"] == precision
        runs[precision] = metrics(here / precision, "loss")[0]
    assert 0 < abs(runs["fp32"] - runs["bf16"]) < 1e-2
    monkeypatch.setattr("gpt2flat.training.start.faster_precision", lambda kernels, threads: "bf16")
    assert main([*SMALL, "--steps", "1", "--precision", "auto", "--out", "auto"]) == 0
    assert metrics(here / "auto", "loss")[0] == runs["bf16"]
    assert tomllib.loads((here / "auto" / "config.toml").read_text())["precision"] == "bf16"


def test_the_faster_precision_is_one_of_the_two():
    assert faster_precision(backend(), 1) in ("fp32", "bf16")
    assert faster_precision(backend("c", "scalar"), 1) == "fp32"  # rounds, and is no faster for it
