"""The reader of runs: series by step out of whatever a metrics.jsonl holds, states, checkpoints by their manifests."""

import fcntl
import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from made_runs import make, train, update

from gpt2flat.errors import CheckpointError
from gpt2flat.inspection import history, runs
from gpt2flat.inspection.runs import FAILED, FINISHED, RUNNING, STOPPED, find_runs, open_run
from gpt2flat.formats.lock import FolderLock

WRONG = [
    '{"step": 3, "lo', "[1]", "", "null", '"text"', "[" * 100_000, "{" * 50_000, '{"loss": 1}', '{"step": "3", "loss": 1}', '{"step": true}',
    '{"step": -1, "loss": 1}', '{"step": 1e3, "loss": 1}', "9" * 10_000, '{"step": 9007199254740993, "loss": 1}', "\udcff", "{}, {}", "\x00",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "one", "--checkpoint-every", "4")


def test_a_real_run(run):
    found = open_run(run)
    losses = found.history.series["loss"]
    assert losses.steps.tolist() == list(range(8)) and 5 < losses.values[0] < 6
    assert found.history.series["val_loss"].steps.tolist() == [0, 4, 8] and [
        step for step, _ in found.history.samples
    ] == [4, 8]
    assert (found.state, found.updates, found.tokens) == (FINISHED, 8, 8 * 4 * 16) and found.history.broken == 0
    assert found.seconds == pytest.approx(found.history.series["ms"].values.sum() / 1e3)
    assert found.size == sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    assert [(c.step, c.problem) for c in found.checkpoints] == [(4, ""), (8, "")] and found.env["threads"] == 1
    assert found.history.events[-1] == {"step": 8, "stopped": "finished"}


def test_the_last_record_of_a_step_holds(tmp_path):
    records = [
        update(0),
        update(1),
        update(2),
        {"step": 2, "resumed": {}},
        update(1, loss=9.0),
        update(2, loss=8.0),
        update(3, loss=7),
    ]
    found = history.read(make(tmp_path / "run", records))
    assert found.series["loss"].steps.tolist() == [0, 1, 2, 3] and found.series["loss"].values.tolist() == [
        4.0,
        9.0,
        8.0,
        7.0,
    ]
    assert found.total("tokens") == 48 and found.total("time") == pytest.approx(0.04)
    assert found.events == [{"step": 2, "resumed": {}}]


def test_the_last_of_many_records_of_a_step_holds(tmp_path):
    records = [update(step, loss=float(i)) for i in range(50) for step in (2, 1, 0)]
    assert history.read(make(tmp_path / "run", records)).series["loss"].values.tolist() == [49.0] * 3


@pytest.mark.parametrize("block", [1, 3, 4096])
def test_lines_that_are_no_records_are_counted(tmp_path, monkeypatch, block):
    monkeypatch.setattr(history, "LINES", block)
    records = [line for i, wrong in enumerate(WRONG) for line in (update(i), wrong)]
    found = history.read(make(tmp_path / "run", records))
    assert found.broken == len(WRONG) and found.series["loss"].steps.tolist() == list(range(len(WRONG)))


@pytest.mark.parametrize("value", ["x", None, True, [1], {}, 10**400, "NaN", "1e999", -(10**400)])
def test_values_that_are_no_numbers_are_left_out(tmp_path, value):
    line = json.dumps(update(1)).replace("3.9", value if value in ("NaN", "1e999") else json.dumps(value))
    found = history.read(make(tmp_path / "run", [update(0), line, update(2)]))
    assert (
        found.series["loss"].steps.tolist() == [0, 2]
        and found.series["lr"].steps.tolist() == [0, 1, 2]
        and not found.broken
    )


def test_large_numbers_do_not_overflow(tmp_path):
    found = open_run(make(tmp_path / "run", [update(i, ms=9e99, tokens_per_s=9e99, loss=9e99) for i in range(3)]))
    assert found.tokens == 3 * 10**21 and found.seconds == 3e9


def test_what_was_spent_before_a_step(tmp_path):
    found = history.read(make(tmp_path / "run", [update(1), update(2), update(5, tokens_per_s=None)]))
    assert found.totals("tokens", np.array([0, 1, 2, 3, 5, 6])).tolist() == [0, 0, 12, 24, 24, 24]
    assert found.totals("time", np.array([0, 2, 9])) == pytest.approx([0, 0.01, 0.03])


@pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=pytest.mark.full)])
def test_many_lines(tmp_path, count):
    run, rest = make(tmp_path / "run"), json.dumps(update(0)).removeprefix('{"step": 0')
    with open(run / "metrics.jsonl", "w") as file:
        file.writelines(f'{{"step": {i}{rest}\n' for i in range(count))
        file.write('{"step": 9')
    found = history.read(run)
    assert all(found.series[key].steps.tolist() == list(range(count)) for key in ("loss", "ms")) and found.broken == 1
    assert found.total("tokens") == 12 * count


def test_nothing_to_read(tmp_path):
    found = open_run(make(tmp_path / "run"))
    (tmp_path / "run" / "metrics.jsonl").unlink()
    again = open_run(tmp_path / "run")
    for run in (found, again):
        assert (run.state, run.updates, run.tokens, run.seconds, run.history.best(), run.checkpoints) == (
            FAILED,
            0,
            0,
            0.0,
            None,
            [],
        )
    (tmp_path / "run" / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match="metrics.jsonl: found a directory"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize("events, state", [
    ([], FAILED),
    ([update(i) for i in range(4)], FINISHED),  # as runs were before they said so
    ([{"step": 4, "stopped": "finished"}], FINISHED),
    ([{"step": 2, "stopped": "early"}], STOPPED),
    ([{"step": 2, "stopped": "early"}, {"step": 2, "resumed": {}}], FAILED),
    ([{"step": 2, "stopped": "early"}, {"step": 2, "resumed": {}}, {"step": 4, "stopped": "finished"}], FINISHED),
    ([update(i) for i in range(4)] + [{"step": 4, "stopped": "finished"}, {"step": 4, "resumed": {"steps": 9}}], FAILED),
])  # fmt: skip
def test_states(tmp_path, events, state):
    run = make(tmp_path / "run", events)
    assert open_run(run).state == state
    with FolderLock(run / "lock"):
        assert open_run(run).state == RUNNING
    assert open_run(run).state == state


def test_a_lock_of_another_process_counts_until_it_is_killed(tmp_path):
    run = make(tmp_path / "run")
    code = "import sys, time; from gpt2flat.formats.lock import FolderLock; lock = FolderLock(sys.argv[1]); print(1, flush=True); time.sleep(99)"
    process = subprocess.Popen([sys.executable, "-c", code, str(run / "lock")], stdout=subprocess.PIPE)
    process.stdout.readline()
    assert open_run(run).state == RUNNING
    process.kill()
    process.wait()
    process.stdout.close()
    assert open_run(run).state == FAILED


def test_looking_keeps_no_writer_out(tmp_path):
    path = make(tmp_path / "run") / "lock"
    with open(path, "w") as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        threading.Timer(0.05, lambda: fcntl.flock(looked_at, fcntl.LOCK_UN)).start()
        FolderLock(path).release()


def test_without_locks_nothing_runs(tmp_path, monkeypatch):
    run = make(tmp_path / "run")
    with FolderLock(run / "lock"):
        monkeypatch.setattr(runs, "fcntl", None)
        assert open_run(run).state == FAILED


def test_checkpoints_by_their_manifests(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    folder = copy / "checkpoints"
    shutil.copytree(folder / "step_00000008", folder / "step_100000000")
    (folder / "step_100000000" / "manifest.json").unlink()
    (folder / ".tmp-00000009-0123456789abcdef").mkdir()
    with open(folder / "step_00000004" / "model.bin", "ab") as file:
        file.write(b"x")
    found = open_run(copy).checkpoints
    assert [c.step for c in found] == [4, 8, 100_000_000] and found[1].problem == ""
    assert "model.bin: found " in found[0].problem and "manifest.json: cannot be opened" in found[2].problem


def test_runs_of_a_folder(tmp_path, run):
    make(tmp_path / "b", env={"started": "2026-01-02"})
    make(tmp_path / "a", env={"started": "2026-01-03"})
    make(tmp_path / "c", env=["no object"])
    make(tmp_path / "broken", config="steps = [")
    (tmp_path / "no run").mkdir()
    found, problems = find_runs(tmp_path)
    assert [r.name for r in found] == ["c", "b", "a"]
    assert len(problems) == 1 and "broken: is no run directory, its config.toml cannot be read" in problems[0]
    with pytest.raises(CheckpointError, match="is no directory"):
        find_runs(tmp_path / "absent")
