"""What happens around a run: readers that go away, full disks, two starts at once, vocabularies that only look alike."""

import importlib.metadata
import importlib.util
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2flat import command
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.errors import CheckpointError, RunLockedError, UsageError
from gpt2flat.formats import llmc
from gpt2flat.train import main
from gpt2flat.training.metrics import Metrics
from gpt2flat.training.run import Run, new_run

ROOT = Path(__file__).resolve().parents[1]
SMALL = "--n-layer 1 --n-embd 16 --n-head 2 --block-size 16 -b 4 --val-batches 2 --sample-tokens 4 --threads 1".split()
TRAIN = [sys.executable, "-m", "gpt2flat.train", *SMALL]


@pytest.fixture
def here(here, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return here


def one_line(capsys, code, *says):
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in says), error
    return code


def test_a_reader_that_goes_away_costs_nothing(here):
    """`train | head`: the pipe breaks at some line; what was learned is saved all the same."""
    process = subprocess.Popen(
        [*TRAIN, "--steps", "100000", "--log-every", "1", "-s", "0", "-o", "run"], stdout=subprocess.PIPE
    )
    for _ in range(12):
        process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 141
    assert Run("run").checkpoint() is not None


def test_a_closed_terminal_stops_and_saves(here):
    heed = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(
        [*TRAIN, "--steps", "100000", "--log-every", "1", "-o", "run"], stdout=subprocess.PIPE, preexec_fn=heed
    )
    for _ in range(12):
        process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    process.stdout.read()
    assert process.wait(60) == 128 + signal.SIGHUP and Run("run").checkpoint() is not None


def test_the_progress_bar_is_for_terminals(here):
    leader, follower = pty.openpty()
    process = subprocess.Popen([*TRAIN, "--steps", "30", "-o", "run"], stdout=follower)
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 65536):
            shown += part
    except OSError:  # the other end is closed
        pass
    assert process.wait(60) == 0 and b"[#" in shown and b"\x1b[K" in shown
    plain = subprocess.run([*TRAIN, "--steps", "30", "-o", "other"], capture_output=True)
    assert b"[#" not in plain.stdout and b"\x1b" not in plain.stdout


def test_a_full_disk_under_metrics_is_one_error_with_the_file(here):
    Path("metrics.jsonl").symlink_to("/dev/full")
    with (
        pytest.raises(CheckpointError, match="metrics.jsonl: cannot be written: no space left"),
        Metrics(here) as metrics,
    ):
        metrics.write(step=0)


def test_two_starts_get_two_names(here):
    first, second = new_run(None, "tiny", "text"), new_run(None, "tiny", "text")
    assert first.path == second.path
    first.reserve()
    second.reserve()
    assert [run.path.name for run in (first, second)] == ["tiny-text-001", "tiny-text-002"]


def test_two_starts_in_one_directory_have_one_winner(here, capsys):
    first, second = new_run("out", "tiny", "text"), new_run("out", "tiny", "text")
    first.reserve()
    with pytest.raises(RunLockedError, match=f"process {os.getpid()} on .* is training in it"):
        second.reserve()
    first.create({}, None)
    (first.checkpoints / "step_00000001").mkdir()
    first.release()
    second.lock()  # in the moment between
    with pytest.raises(UsageError, match="is not empty.*name another, such as --out out-2"):
        second.create({}, None)


def test_a_char_checkpoint_keeps_its_characters(here, capsys):
    Path("a.txt").write_text("abcdef\n" * 300)
    Path("b.txt").write_text("uvwxyz\n" * 300)  # as many characters, but others
    quick = [*SMALL, "--steps", "1", "-v", "0", "-s", "0"]
    assert main([*quick, "-i", "a.txt", "--tokenizer", "char", "-o", "a"]) == 0
    capsys.readouterr()
    checkpoint = str(Run("a").checkpoint())
    again = ["-b", "4", "-t", "16", "--steps", "1", "-v", "0", "-s", "0", "--threads", "1", "-e", checkpoint]
    assert main([*again, "-i", "b.txt", "--tokenizer", "char", "-o", "b"]) == one_line(capsys, 4, "'u'", "tokenizer")
    assert not Path("b").exists()


def test_token_files_without_a_tokenizer_use_the_checkpoints_own(here, capsys):
    Path("a.txt").write_text("abcdef\n" * 300)
    assert main([*SMALL, "--steps", "1", "-v", "0", "-s", "0", "-i", "a.txt", "--tokenizer", "char", "-o", "a"]) == 0
    os.mkdir("tokens")
    llmc.write_tokens("tokens/q_train.bin", Tokenizer.load("a/tokenizer.bin").encode("fedcba\n" * 300))
    line = [
        "-e",
        str(Run("a").checkpoint()),
        "-i",
        "tokens/q_train.bin",
        "-t",
        "16",
        "-v",
        "0",
        "--steps",
        "1",
        "--threads",
        "1",
        "-o",
        "b",
    ]
    assert main(line) == 0
    assert "char tokenizer, V 8" in capsys.readouterr().out and Path("b/tokenizer.bin").exists()


@pytest.mark.parametrize(
    "line, code, says",
    [
        ("-e model.bin -l 6e-4 -u 5", 2, "add --schedule cosine"),
        ("-e model.bin -q 0", 2, "add --schedule cosine"),
        ("-i a.txt -j tokens.bin", 2, "--val-data tokens.bin: expected a text file"),
    ],
)
def test_settings_that_would_do_nothing(here, capsys, line, code, says):
    shutil.copytree(ROOT / "tests/llmc_tiny", here, dirs_exist_ok=True)
    Path("a.txt").write_text("abcdef\n" * 300)
    shutil.copy("tokens_train.bin", "tokens.bin")
    assert main([*line.split(), "-o", "run"]) == one_line(capsys, code, says)
    assert not Path("run").exists()


def test_a_data_folder_that_is_not_there(here, capsys, monkeypatch):
    monkeypatch.setenv("GPT2FLAT_DATA", "/nonexistent")
    assert main([*SMALL, "--steps", "1"]) == one_line(capsys, 4, "GPT2FLAT_DATA=/nonexistent: is not a directory")


def test_escapes_in_names_do_not_reach_the_terminal(here, capsys):
    assert main(["-i", "a\x1b[2Jb.txt"]) == one_line(capsys, 4, "\\x1b[2J")


@pytest.mark.parametrize("numba", [True, False])
def test_a_source_tree_without_kernels_says_what_to_type(here, numba):
    """As after `pip install .` and a run in the clone's root, where the tree shadows the installed copy: the twins serve and the
    first line says why, or without Numba one line says what to type."""
    shutil.copytree(
        ROOT / "gpt2flat", "clone/gpt2flat", ignore=shutil.ignore_patterns("*.so", "build.json", "__pycache__", "twins-*")
    )
    shutil.copytree(ROOT / "csrc", "clone/csrc")
    if not numba:
        Path("clone/numba.py").write_text("raise ImportError('not here')")
    elif importlib.util.find_spec("numba") is None:
        return  # the other case is all there is
    label = [
        sys.executable,
        "-c",
        "from gpt2flat.kernels import backend; print(backend().label)",
    ]  # of a run's first line
    done = subprocess.run(
        label if numba else TRAIN, cwd="clone", capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."}
    )
    assert done.returncode == (0 if numba else 9)
    said = done.stdout if numba else done.stderr
    assert said.count("\n") == 1 and f"pip install -e {Path('clone').resolve()}" in said and "no C kernels are built" in said


def test_metrics_hold_every_digit(here):
    assert main([*SMALL, "--steps", "3", "-s", "0", "-o", "run"]) == 0
    events = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if "loss" in event]
    assert len(losses) == 3 and all(len(repr(loss)) > 12 for loss in losses)


def test_data_that_vanishes_keeps_what_was_learned(here, capsys):
    """A token file cut short underneath ends the run with one line; the weights of the last update are saved."""
    shutil.copytree(ROOT / "tests/llmc_tiny", here, dirs_exist_ok=True)
    line = [
        sys.executable,
        "-m",
        "gpt2flat.train",
        "-e",
        "model.bin",
        "-i",
        "tokens_train.bin",
        "-j",
        "tokens_val.bin",
        "-s",
        "0",
    ]
    process = subprocess.Popen(
        [*line, "-x", "100000", "-v", "0", "-o", "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(8):
        process.stdout.readline()
    os.truncate("tokens_train.bin", 2000)
    process.stdout.read()
    error = process.stderr.read()
    assert process.wait(60) == 4 and error.count("\n") == 1 and "tokens_train.bin" in error
    assert Run("run").checkpoint() is not None


def test_too_big_a_model_fails_before_a_weight_is_drawn(here, capsys):
    assert main(["--init", "d84", "-x", "1", "-b", "1"]) == one_line(capsys, 7, "available", "grads")
    assert not Path("runs").exists()


def test_a_disk_too_full_for_a_checkpoint_is_said_first(here, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1000))
    assert main([*SMALL, "--steps", "1", "-o", "run"]) == one_line(capsys, 5, "1.0 kB are free, a checkpoint takes")


def test_closed_streams_are_no_traceback(here):
    done = subprocess.run(["sh", "-c", f"{sys.executable} -m gpt2flat.info tiny >&-"], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_text_values_are_left_alone():
    from gpt2flat.train import read_flags

    assert read_flags(["--sample-prompt", "--a_b c", "--log_every=3"]) == {"sample_prompt": "--a_b c", "log_every": 3}


# --- how a command ends


@pytest.mark.parametrize(
    "raised, code, says",
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "a.txt"), 5, "a.txt: no space left on device"),
        (OSError(28, "No space left on device"), 5, "standard output: no space left on device"),
        (CheckpointError("two\nlines \x1b[2J"), 5, "two; lines \\x1b[2J"),
    ],
)
def test_how_a_command_ends(capsys, raised, code, says):
    def body(argv):
        raise raised

    assert command.run("x", body, []) == one_line(capsys, code, f"gpt2flat x: {says}")


def test_what_is_not_installed_is_said_so(here, monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    monkeypatch.setattr(command.shutil, "which", lambda name: None)  # nor is git
    assert main([*SMALL, "--steps", "1", "-s", "0", "-o", "run"]) == 0
    environment = json.loads(Path("run/env.json").read_text())
    assert environment["versions"]["cffi"] == "not installed" and environment["commit"] is None


def test_a_file_that_takes_the_name_meanwhile_is_left_alone(here):
    run = new_run("out", "tiny", "text")
    Path("out").write_text("mine")
    with pytest.raises(UsageError, match="--out out: is not empty"):
        run.reserve()
    assert Path("out").read_text() == "mine"
