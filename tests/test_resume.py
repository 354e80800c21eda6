"""Resuming: the same bits at steps of runs with many features; what changed is refused; damaged checkpoints are passed over;
control.toml; replay. All steps and features: python tests/faults.py."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import resuming
from gpt2flat.model import Model
from gpt2flat.replay import main as replay
from gpt2flat.train import main
from gpt2flat.training.saving import Saver
from gpt2flat.training import manifest
from gpt2flat.training.checkpoints import Checkpoint

ROOT = Path(__file__).resolve().parents[1]
STEPS = 14
FAST = ("plain", "accumulation", "dropout, accumulation, recompute", "skips outliers")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 14 updates with a checkpoint after each."""
    return resuming.whole(tmp_path_factory.mktemp("plain"), "plain", STEPS)


@pytest.fixture
def copy(whole, tmp_path, monkeypatch):
    """A copy of that run as a kill after update 6 left it, in the current directory, with its text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT2FLAT_DATA", raising=False)
    shutil.copy(whole.parent / "text.txt", tmp_path)
    return resuming.cut(whole, 6, tmp_path / "run").relative_to(tmp_path)


def fails(capsys, code: int, *says: str):
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in says), error
    return code


@pytest.mark.parametrize("name", FAST)
def test_a_resumed_run_is_the_uninterrupted_one(name, tmp_path):
    run = resuming.whole(tmp_path, name, STEPS)
    assert {step: why for step in (1, 9, STEPS) if (why := resuming.resumed_like(run, step, tmp_path))} == {}


def test_a_different_run_is_told_from_the_same(whole, copy):
    """The comparison that the matrix rests on can fail."""
    resuming.train("--resume", "run", "--lr", "1.01e-3")
    assert resuming.state(copy) != resuming.state(whole) and resuming.records(copy) != resuming.records(whole)


def test_records_of_steps_done_again_are_dropped_and_the_rest_stays(copy):
    before = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()[:-1]]
    resuming.train("--resume", "run")
    events = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    steps = [event["step"] for event in events if "loss" in event]
    assert steps == list(range(STEPS)) and events.count({"step": 6, "resumed": {}}) == 1
    saved = [event["saved"] for event in before if "saved" in event]
    assert [event["saved"] for event in events if "saved" in event][: len(saved)] == saved
    log = (copy / "main.log").read_text().splitlines()
    assert [line.split()[0] for line in log if "trl" in line] == [f"s:{step}" for step in range(STEPS)]


def test_a_damaged_checkpoint_is_passed_over_and_told(whole, copy, capsys):
    for name, damage in (
        ("model.bin", lambda b: b[:-1]),
        ("optimizer.bin", lambda b: b[:5000] + bytes([b[5000] ^ 1]) + b[5001:]),
    ):
        broken = sorted((copy / "checkpoints").iterdir())[-1] / name
        broken.write_bytes(damage(broken.read_bytes()))
        said = resuming.train("--resume", "run", "--max-time", "0s")
        assert f"passed over {broken.parent}" in said
        for later in sorted((copy / "checkpoints").iterdir()):
            if int(later.name[5:]) >= int(broken.parent.name[5:]):
                shutil.rmtree(later)
    resuming.train("--resume", "run")
    assert resuming.state(copy) == resuming.state(whole)


def test_nothing_whole_is_one_line(copy, capsys):
    for path in (copy / "checkpoints").glob("*/manifest.json"):
        path.unlink()
    assert main(["--resume", "run"]) == fails(capsys, 5, "no checkpoint that is whole", "passed over")
    (copy / "config.toml").write_text("lr = 'fast'\n")
    assert main(["--resume", "run"]) == fails(capsys, 5, "config.toml", "lr")


def edit_text(copy):
    Path("text.txt").write_text(resuming.TEXT.replace("bottles", "kettles"))


def edit_vocabulary(copy):
    """As if the run had had another tokenizer with as many tokens."""
    place = sorted((copy / "checkpoints").iterdir())[-1]
    was = manifest.read(place)
    was.facts["vocabulary"] = "0" * 16
    (place / manifest.NAME).write_bytes(manifest.encode(was))


def edit_config(copy):
    text = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(text.replace("lr = 0.001", "lr = 0.002"))


@pytest.mark.parametrize(
    "kind, edit", [("data", edit_text), ("vocabulary", edit_vocabulary), ("settings", edit_config), ("isa", None)]
)
def test_what_changed_is_refused_unless_named(copy, capsys, monkeypatch, kind, edit):
    if edit:
        edit(copy)
    else:
        monkeypatch.setenv("GPT2FLAT_ISA", "scalar")
    state = resuming.state(copy)
    assert main(["--resume", "run"]) == fails(capsys, 5, kind, f"--override {kind}")
    assert resuming.state(copy) == state
    assert main(["--resume", "run", "--override", "nonsense"]) == fails(
        capsys, 2, "--override nonsense: expected data, vocabulary, isa"
    )
    assert main(["--resume", "run", "--override", kind]) == 0
    assert resuming.state(copy) != state


@pytest.mark.parametrize(
    "typed, told", [(["--lr", "0.5"], "lr 0.001 -> 0.5"), (["-b", "2"], "a new epoch"), (["-x", "9"], "steps 14 -> 9")]
)
def test_a_typed_setting_counts_as_named(copy, typed, told):
    assert told in resuming.train("--resume", "run", *typed)
    assert "resumed" in resuming.train("--resume", "run", "-x", "16")  # and is no surprise the next time
    resumed = [
        json.loads(line)["resumed"] for line in (copy / "metrics.jsonl").read_text().splitlines() if "resumed" in line
    ]
    assert len(resumed) == 2 and list(resumed[0]) != []


def test_avx2_and_avx512_are_one(copy, whole, monkeypatch):
    from gpt2flat.kernels import available_isas

    for isa in available_isas()[1:]:
        monkeypatch.setenv("GPT2FLAT_ISA", isa)
        resuming.cut(whole, 6, copy)
        resuming.train("--resume", "run")
        assert resuming.state(copy) == resuming.state(whole), isa


@pytest.mark.parametrize("words, code, says", [
    (["--resume", "run", "--init", "d12"], 2, "--init d12: run goes on with tiny"), (["--resume", "run", "--n-layer", "3"], 2, "--n-layer"),
    (["--resume", "run", "--seq-len", "64"], 2, "block size"), (["-o", "elsewhere", "--resume"], 5, "elsewhere: no run to resume"),
])  # fmt: skip
def test_what_cannot_be_resumed(copy, capsys, words, code, says):
    assert main(words) == fails(capsys, code, says)


def test_y1_starts_where_nothing_is_and_goes_on_where_something_is(copy, capsys):
    line = [*resuming.BASE, "-x", "3", "-y", "1", "-o"]
    resuming.train(*line, "fresh")
    assert "after 3 updates from fresh/checkpoints/step_00000003: " not in resuming.train(
        *line, "fresh"
    )  # the very same line
    assert "after 6 updates" in resuming.train("-y", "1", "-o", "run")
    assert main([*resuming.BASE, "-x", "3", "-y", "0", "-o", "run"]) == fails(capsys, 2, "--resume")


def test_one_writer_at_a_time(copy, capsys):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; from gpt2flat.training.run import Run; Run('run').lock(); print(1, flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    holder.stdout.readline()
    assert main(["--resume", "run"]) == fails(capsys, 11, str(holder.pid))
    holder.kill()
    holder.wait()
    resuming.train("--resume", "run")


# --- control.toml ----------------------------------------------------------------------------------------------------


def test_control_is_obeyed_recorded_and_obeyed_again_by_a_resume(copy, tmp_path):
    (copy / "control.toml").write_text('lr = 0.25\nsample_prompt = "9 green"\nsave = true\n')
    assert "control.toml: lr 0.25" in resuming.train("--resume", "run", "--checkpoint-every", "0")
    assert [c.step for c in map(Checkpoint, sorted((copy / "checkpoints").iterdir()))][-2:] == [6, 14]
    rates = {
        e["step"]: e["lr"] for e in map(json.loads, (copy / "metrics.jsonl").read_text().splitlines()) if "lr" in e
    }
    assert rates[5] == 1e-3 and 0.2 < rates[6] <= 0.25 and rates[12] > 0.02
    end, records = resuming.state(copy), resuming.records(copy)
    shutil.rmtree(copy / "checkpoints/step_00000014")
    said = resuming.train("--resume", "run")  # from step 6, and the file is still there
    assert "control.toml" not in said and (resuming.state(copy), resuming.records(copy)) == (end, records)


@pytest.mark.parametrize("text", ["lr = 'x'", "lr = -1.0", "speed = 3", "lr = ", "save = 1", "[[[", "\0", "lr = nan"])
def test_a_wrong_control_file_is_told_and_left_alone(copy, whole, text):
    (copy / "control.toml").write_text(text)
    assert "control.toml is left alone" in resuming.train("--resume", "run")
    assert resuming.state(copy) == resuming.state(whole)


def test_stop_saves_and_stops_once(copy):
    (copy / "control.toml").write_text("stop = true\n")
    resuming.train("--resume", "run", "--lr", "0.002")
    assert len(list((copy / "checkpoints").iterdir())) == 6
    resuming.train("--resume", "run")
    assert (copy / "checkpoints/step_00000014").is_dir()


def test_the_best_stays_though_it_was_validated_after_it_was_saved(tmp_path, monkeypatch):
    """As when a signal saves before the validation of that step has ended."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(resuming.TEXT)
    line = [*resuming.BASE, "-v", "2", "-k", "constant", "--lr", "0.01", "-nk", "2", "-o", "run"]
    start = Saver.start
    with monkeypatch.context() as patch:
        patch.setattr(Saver, "start", lambda self, state, val_loss: start(self, state, None))
        resuming.train(*line, "-x", "6")
    resuming.train("--resume", "run", "-x", "12", "--lr", "10")
    kept = {int(path.name[5:]) for path in Path("run/checkpoints").iterdir()}
    assert kept == {6, 11, 12}, kept


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_is_the_uninterrupted_one(tmp_path, number):
    long = resuming.whole(tmp_path, "plain", 60)
    words = [*resuming.BASE, "-x", "60", "-o", "cut", "-n", "0", "--log-every", "1"]
    process = subprocess.Popen([sys.executable, "-m", "gpt2flat.train", *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    next(line for line in iter(process.stdout.readline, "") if "| loss" in line)
    process.send_signal(number)
    process.stdout.read()
    assert process.wait(30) == 128 + number
    os.chdir(tmp_path)
    resuming.train("--resume", "cut")
    assert resuming.records(tmp_path / "cut") == resuming.records(long)
    last = {name: hash for name, hash in resuming.state(tmp_path / "cut").items()}
    assert last == resuming.state(long)


# --- replay ----------------------------------------------------------------------------------------------------------


def test_replay_opens_a_past_step_to_the_bit(copy, whole, capsys):
    """Gradients and parameters of step 5 by replay from step 4, beside the model of the whole run's checkpoint of step 5."""
    names = ["grads.qkvw", "params.wte", "m.wpe", "acts.stream[1]", "dacts.stream"]
    for step in (1, 2, 3, 5):
        shutil.rmtree(copy / f"checkpoints/step_{step:08d}")
    assert replay(["run", "--step", "5", "--show", *names, "--save", "out"]) == 0
    said = capsys.readouterr().out
    assert "1 updates done again" in said and "differs" not in said
    model = Model.load(whole / "checkpoints/step_00000005/model.bin")
    assert (np.load("out/params.wte.npy") == model.params["wte"]).all()
    loss = next(
        e["loss"]
        for e in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())
        if e["step"] == 5 and "loss" in e
    )
    assert (
        f"loss {loss!r}" in said
        and np.load("out/grads.qkvw.npy").any()
        and set(os.listdir("out")) == {f"{name}.npy" for name in names}
    )


def test_replay_verifies_and_tells_what_differs(copy, capsys):
    assert replay(["run", "--verify"]) == 0
    assert capsys.readouterr().out.count("equal to the bit") == 5
    events = (copy / "metrics.jsonl").read_text().splitlines()[:-1]
    odd = [
        json.dumps(e | {"loss": 1.5}) if (e := json.loads(line))["step"] == 4 and "loss" in e else line
        for line in events
    ]
    (copy / "metrics.jsonl").write_text("\n".join(odd) + "\n")
    assert replay(["run", "--verify"]) == 1
    said = capsys.readouterr().out
    assert "differs" in said and "of update 4" in said and "recorded 1.5" in said


@pytest.mark.parametrize("words, code, says", [
    (["run", "--step", "0"], 5, "the first that is there and whole is of step 1"), (["run"], 2, "--step N"),
    (["run", "--step", "15"], 2, "the run has recorded 14 updates"),
    (["run", "--step", "3", "--show", "acts.no"], 2, "acts.no: no such tensor"), (["text.txt", "--step", "1"], 5, "is no run directory"),
    (["run", "--step", "3", "--show", "acts.stream[9]"], 2, "has 3 slots"), (["run", "--step", "3", "--save", "x"], 2, "--show"),
])  # fmt: skip
def test_replay_refuses_in_one_line(copy, capsys, words, code, says):
    assert replay(words) == fails(capsys, code, says)
