"""What a run tells while it goes on: metrics.jsonl, llm.c's main.log, what a resume drops, trackers that may not end a run."""

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest

from gpt2flat.errors import CheckpointError, UsageError
from gpt2flat.training import metrics, trackers
from gpt2flat.training.metrics import Metrics, keep

UPDATE = {"step": 3, "loss": 1.23456789, "lr": 6e-4, "grad_norm": 0.456, "ms": 14.0, "tokens_per_s": 54000.0}
OTHERS = [
    {"step": 3, "saved": "checkpoints/step_00000003", "seconds": 0.5, "stalled": 0.0}, {"step": 3, "control": {"lr": 1e-5}},
    {"step": 3, "resumed": 2}, {"step": 3, "rollback": 1}, {"step": 3, "stopped": "SIGTERM"},
]  # fmt: skip


def parse_logfile(text: str) -> dict[str, dict[int, float]]:
    """What dev/vislog.ipynb of llm.c does with main.log: a later line of a step wins, anything unexpected is an error."""
    streams = {}
    for line in text.splitlines(keepends=True):
        step, value = line.split()[:2]
        name, number = value.split(":")
        assert len(line.split()) == (4 if name == "trl" else 2) and line.endswith("\n")
        streams.setdefault(name, {})[int(step.removeprefix("s:"))] = float(number)
    return streams


def records(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]


def write(run, events, step=0, **options) -> None:
    with Metrics(run, step, **options) as open_metrics:
        for event in events:
            open_metrics.write(**event)


def a_run(updates: range) -> list[dict]:
    """Events of a run that validates and samples every two updates and saves every four."""
    found = []
    for step in updates:
        found += [{"step": step, "val_loss": 5.0 - step / 10}, {"step": step, "sample": f"text\n\u2028 {step}"}] * (
            step % 2 == 0
        )
        found += [{"step": step, "saved": f"checkpoints/step_{step:08d}"}] * (step % 4 == 0)
        found.append(UPDATE | {"step": step, "loss": 6.0 - step / 10})
    return found


def test_updates_are_written_together_and_wait_for_no_other_event(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "PACE", 999)
    with Metrics(tmp_path) as open_metrics:
        for wait, event in [(1, UPDATE), (1, UPDATE), (1, UPDATE), (4, {"step": 4, "val_loss": 1.0}), (4, UPDATE)]:
            open_metrics.write(**event)
            assert len(records(tmp_path)) == wait
        open_metrics.sync()
        assert len(records(tmp_path)) == 5
        open_metrics.write(**UPDATE)
    assert len(records(tmp_path)) == 6


def test_main_log_is_llmc_s(tmp_path):
    write(tmp_path, [{"step": 3, "val_loss": 4.00006}, UPDATE, *OTHERS, {"step": 3, "sample": "s:9 trl:1"}])
    assert (tmp_path / "main.log").read_text() == "s:3 tel:4.0001\ns:3 trl:1.2346 lr:0.000600 norm:0.46\n"
    assert records(tmp_path)[1] == UPDATE and records(tmp_path)[2:7] == OTHERS


def test_a_number_that_is_not_finite_is_null_and_no_line_for_llmc(tmp_path):
    write(tmp_path, [UPDATE | {"loss": math.nan, "grad_norm": math.inf, "skipped": "loss"}])
    assert records(tmp_path) == [UPDATE | {"loss": None, "grad_norm": None, "skipped": "loss"}]
    assert (tmp_path / "main.log").read_text() == ""


@pytest.mark.parametrize("at", range(0, 11))
def test_a_resumed_run_leaves_the_records_of_one_that_went_through(tmp_path, at):
    for name, events in {"whole": [a_run(range(10))], "resumed": [a_run(range(10)), a_run(range(at, 10))]}.items():
        (tmp_path / name).mkdir()
        for number, part in enumerate(events):
            if number:
                with open(tmp_path / name / "metrics.jsonl", "a") as file:
                    file.write('{"step": 9, "lo')  # torn by a power cut
                with open(tmp_path / name / "main.log", "a") as file:
                    file.write("s:9 trl:1.")
                keep(tmp_path / name, at)
            write(tmp_path / name, part, at if number else 0)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    again = [record for record in records(resumed) if "saved" not in record]
    assert again == [record for record in records(whole) if "saved" not in record]
    assert (whole / "main.log").read_text() == (resumed / "main.log").read_text()
    assert parse_logfile((resumed / "main.log").read_text())["tel"] == {
        step: 5.0 - step / 10 for step in range(0, 10, 2)
    }


def test_what_happened_stays_and_what_is_no_record_goes(tmp_path):
    write(tmp_path, [UPDATE, *OTHERS, {"step": 3, "skipped": "loss"}])
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'\xff\n[1]\n{"step": "1"}\n{"step": -1}\n{"step": true}\n\n' + b"[" * 100_000 + b"\n" + b"9" * 9999)
    keep(tmp_path, 3)
    assert records(tmp_path) == OTHERS
    keep(tmp_path / "absent", 3)


def test_a_long_file_is_dropped_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "PIECE", 100)
    monkeypatch.setattr(metrics, "LONGEST", 300)
    write(tmp_path, [*a_run(range(40)), {"step": 0, "sample": "x" * 1000}, UPDATE])
    keep(tmp_path, 20)
    assert records(tmp_path)[: len(a_run(range(20)))] == a_run(range(20))


def test_going_back_within_a_run(tmp_path):
    with Metrics(tmp_path) as open_metrics:
        for event in a_run(range(10)):
            open_metrics.write(**event)
        open_metrics.rewind(4)
        open_metrics.write(step=4, rollback=1)
        open_metrics.sync()
        assert [r["step"] for r in records(tmp_path) if "loss" in r] == [0, 1, 2, 3] and records(tmp_path)[-1][
            "rollback"
        ] == 1


def test_a_file_that_cannot_be_replaced_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(CheckpointError, match="metrics.jsonl: found a directory"):
        keep(tmp_path, 0)


# --- trackers --------------------------------------------------------------------------------------------------------


class FakeWandb(ModuleType):
    """Stands in for wandb: keeps what it is told, and never has a key."""

    def __init__(self):
        super().__init__("wandb")
        self.logged, self.options, self.finished = [], {}, False
        self.Settings = SimpleNamespace

    def init(self, **options):
        self.options = options
        return self

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return fake


def test_wandb_is_told_the_numbers(wandb, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "PACE", 0)
    write(tmp_path, [*a_run(range(3)), *OTHERS], 2, report_to=["wandb"], settings={"lr": 0.1})
    assert wandb.options["config"] == {"lr": 0.1} and wandb.options["dir"] == str(tmp_path) and wandb.finished
    assert wandb.options["group"] == tmp_path.name and wandb.options["name"] == f"{tmp_path.name} from 2"
    assert wandb.logged[0] == {"step": 0, "val/loss": 5.0} and wandb.logged[1]["sample"].startswith("text")
    assert wandb.logged[2] == {
        "step": 0,
        "train/loss": 6.0,
        "train/lr": 6e-4,
        "train/grad_norm": 0.456,
        "train/tokens_per_s": 54e3,
    }
    assert len(wandb.logged) == 7


def test_wandb_is_not_told_every_update_of_a_fast_run_but_the_last(wandb, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "PACE", 999)
    write(tmp_path, [UPDATE | {"step": step} for step in range(100)], report_to=["wandb"])
    assert [values["step"] for values in wandb.logged] == [0, 99]


@pytest.mark.parametrize("environ, entry, mode", [
    ({}, "", "offline"),
    ({"WANDB_MODE": "online"}, "", "offline"),
    ({"WANDB_MODE": "disabled"}, "", "disabled"),
    ({"WANDB_API_KEY": "0" * 40}, "", "online"),
    ({"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}, "", "offline"),
    ({}, "machine api.wandb.ai login user password 0", "online"),
    ({}, "machine elsewhere.org login user password 0", "offline"),
    ({"WANDB_BASE_URL": "https://elsewhere.org"}, "machine elsewhere.org login user password 0", "online"),
    ({}, "machine", "offline"),
])  # fmt: skip
def test_wandb_never_asks_for_a_login(wandb, tmp_path, monkeypatch, environ, entry, mode):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    if entry:
        (tmp_path / "netrc").write_text(entry)
    write(tmp_path, [], report_to=["wandb"])
    assert wandb.options["mode"] == mode


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_tracker_that_fails_ends_nothing(wandb, tmp_path, where):
    def fail(*_, **__):
        raise RuntimeError("no route to host")

    setattr(wandb, where, fail)
    said = []
    write(tmp_path, a_run(range(9)), report_to=["wandb"], announce=said.append)
    assert said == ["--report-to wandb: RuntimeError: no route to host: nothing more is reported there"]
    assert records(tmp_path) == a_run(range(9))


@pytest.mark.parametrize("text", ["", "none", "none,", " "])
def test_no_tracker_is_the_default(text):
    assert trackers.wanted(text) == []


def test_a_tracker_that_is_not_there_is_one_line_before_the_run(monkeypatch, wandb):
    assert trackers.wanted("wandb, wandb") == ["wandb"]
    with pytest.raises(UsageError, match="--report-to mlflow: expected tensorboard, wandb"):
        trackers.wanted("wandb,mlflow")
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in list(sys.modules):
        if name.startswith("tensorboard."):
            monkeypatch.delitem(sys.modules, name)
    for name in trackers.TRACKERS:
        with pytest.raises(UsageError, match=rf"needs the package {name}, .*pip install 'gpt2flat\[{name}\]'"):
            trackers.wanted(name)
