"""Runs that were changed on the way, by flags, by config.toml, by control.toml: whatever came between, another resume and a replay
find what held at each step."""

import json
import math
import shutil
from pathlib import Path

import pytest

import resuming
from gpt2flat.replay import main as replay
from gpt2flat.train import main
from gpt2flat.training.checkpoints import Checkpoint
from gpt2flat.training.trainer import Trainer

STEPS = 12


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of 12 updates with a checkpoint after each, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT2FLAT_DATA", raising=False)
    return resuming.whole(tmp_path, "plain", STEPS).relative_to(tmp_path)


def goes_on_as_recorded(run: Path, step: int) -> bool:
    """Whether a kill that left nothing after the checkpoint of `step`, and a resume without a word, end with the same bits."""
    return resuming.resumed_like(run.absolute(), step, Path.cwd()) is None


def verifies(run: Path, capsys) -> bool:
    capsys.readouterr()
    return replay([str(run), "--verify"]) == 0


def rates(run: Path) -> dict[int, float]:
    return {e["step"]: e["lr"] for e in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "lr" in e}


@pytest.mark.parametrize("typed", [["--lr", "0.01"], ["-k", "linear"], ["--grad-clip", "0.5"]])
def test_a_replay_of_what_was_before_a_change(run, capsys, typed):
    resuming.train("--resume", "whole", "-x", "16", *typed)
    for step in (7, 8, 9, 10, 11):
        shutil.rmtree(run / f"checkpoints/step_{step:08d}")
    assert verifies(run, capsys)


@pytest.mark.parametrize("typed", [["--lr", "0.01"], ["-b", "2"], ["--data-seed", "3"], ["--sample-prompt", "9 green"]])
def test_what_was_typed_holds_after_a_kill_before_the_next_checkpoint(run, capsys, typed):
    resuming.train("--resume", "whole", "-x", "18", *typed)
    assert goes_on_as_recorded(run, STEPS) and verifies(run, capsys)


@pytest.mark.parametrize("edit", [("lr = 0.001", "lr = 0.01"), ("batch_size = 4", "batch_size = 2")])
def test_an_override_of_settings_is_recorded(run, capsys, edit):
    resuming.train("--resume", "whole", "-x", "13")
    (run / "config.toml").write_text((run / "config.toml").read_text().replace(*edit))
    said = resuming.train("--resume", "whole", "-x", "18", "--override", "settings")
    assert f"{edit[0].split()[0]} {edit[0].split()[2]} -> {edit[1].split()[2]}" in said
    assert goes_on_as_recorded(run, 13) and verifies(run, capsys)


def test_steps_in_place_of_epochs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(resuming.TEXT)
    resuming.train(*resuming.BASE, "--epochs", "0.2", "-o", "run")
    last = max(rates(Path("run"))) + 1
    resuming.train("--resume", "run", "-x", str(last + 4))
    assert goes_on_as_recorded(Path("run"), last) and verifies(Path("run"), capsys)
    resuming.train(*resuming.BASE, "--config", "run/config.toml", "-o", "again", "--epochs", "0.1")
    assert max(rates(Path("again"))) < last


def test_a_config_of_a_run_of_epochs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(resuming.TEXT)
    resuming.train(*resuming.BASE, "--epochs", "0.1", "-o", "run")
    resuming.train("--config", "run/config.toml", "-o", "again")
    assert resuming.records(Path("again")) == resuming.records(Path("run"))


def test_a_rate_that_is_typed_goes_before_an_older_control(run, capsys):
    (run / "control.toml").write_text("lr = 0.1\n")
    resuming.train("--resume", "whole", "-x", "16", "-k", "constant")
    (run / "control.toml").write_text("lr = 0.1\nstop = true\n")
    resuming.train("--resume", "whole", "-x", "20")
    resuming.train("--resume", "whole", "--lr", "0.003")
    assert (rates(run)[15], rates(run)[16], rates(run)[19]) == (0.1, 0.003, 0.003)
    assert goes_on_as_recorded(run, 16) and verifies(run, capsys)


def test_a_fall_back_behind_a_change_keeps_it(run, capsys):
    """Damage sends the run back to before the step where --lr was typed: what was typed then holds from there."""
    resuming.train("--resume", "whole", "-x", "16", "--lr", "0.01", "-k", "constant")
    for step in range(8, 17):
        (run / f"checkpoints/step_{step:08d}/model.bin").write_bytes(b"")
    resuming.train("--resume", "whole")
    assert rates(run)[7] == 0.01
    resuming.train("--resume", "whole", "-x", "18", "--lr", "0.02")
    assert goes_on_as_recorded(run, 16) and verifies(run, capsys)


def test_a_rollback_obeys_control_again(run, monkeypatch, capsys):
    gradients = Trainer.gradients

    def poisoned(self, batch):
        if self.step == 3:
            Path("run/control.toml").write_text('lr = 0.05\nsample_prompt = "9"\n')
        return float("nan") if self.drawn - 1 == 6 else gradients(self, batch)

    monkeypatch.setattr(Trainer, "gradients", poisoned)
    resuming.train(*resuming.BASE, "-x", "10", "-k", "constant", "-n", "0", "--on-nonfinite", "rollback:2", "-o", "run")
    assert [rates(Path("run"))[step] for step in (3, 4, 9)] == [1e-3, 0.05, 0.05]
    assert goes_on_as_recorded(Path("run"), 0) and verifies(Path("run"), capsys)


# --- killed before there is anything to resume -----------------------------------------------------------------------


@pytest.mark.parametrize("left", [["checkpoints"], ["checkpoints", "env.json"], ["checkpoints", "env.json", "tokenizer.bin"],
                                  ["checkpoints", "env.json", "tokenizer.bin", "config.toml", "metrics.jsonl"]])  # fmt: skip
def test_a_start_that_was_killed_is_started_again_by_y1(run, left):
    Path("killed").mkdir()
    (Path("killed") / "lock").touch()
    if "config.toml" in left:
        (Path("killed") / "checkpoints/.tmp-00000001-0123456789abcdef").mkdir(parents=True)  # in its first save
    for name in left:
        (Path("killed") / name).mkdir(exist_ok=True) if name == "checkpoints" else shutil.copy(
            run / name, Path("killed") / name
        )
    resuming.train(*resuming.BASE, "-x", str(STEPS), "-o", "killed", "-y", "1")
    assert resuming.state(Path("killed")) == resuming.state(run)
    assert resuming.records(Path("killed")) == resuming.records(run)


def test_only_leftovers_of_a_start_count_as_empty(run, capsys):
    Path("mine").mkdir()
    shutil.copy(run / "tokenizer.bin", "mine/tokenizer.bin")
    assert main([*resuming.BASE, "-o", "mine"]) == 2
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    assert main(["--resume", "whole"]) == 5 and "--resume 1 starts it again" in capsys.readouterr().err
    (run / "checkpoints/step_00000003").mkdir()
    assert main(["-y", "1", "-o", "whole"]) == 5  # damage is no leftover


def test_other_batches_are_saved_at_once(run):
    """What follows a resume with other batches is no longer what its checkpoint says: a rollback or kill must find the new one."""
    at = STEPS
    resuming.train("--resume", "whole", "-b", "2", "-x", str(at + 3), "-n", "0")
    assert Checkpoint(Path(f"whole/checkpoints/step_{at:08d}")).facts["settings"]["batch_size"] == 2
    end = resuming.state(Path("whole"))
    shutil.rmtree(f"whole/checkpoints/step_{at + 3:08d}")
    resuming.train("--resume", "whole")
    assert resuming.state(Path("whole")) == end


def test_a_nan_of_a_passing_fault_is_left_out_again(tmp_path, monkeypatch):
    """The batch that a rollback left out stays out of a resume from before it, though the NaN does not come again."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(resuming.TEXT)
    gradients, met = Trainer.gradients, []

    def once(self, batch):
        loss = gradients(self, batch)
        if self.step == 5 and not met:
            met.append(1)
            return math.nan
        return loss

    monkeypatch.setattr(Trainer, "gradients", once)
    resuming.train(*resuming.BASE, "-x", "9", "-n", "3", "-nk", "0", "--on-nonfinite", "rollback:2", "-o", "run")
    end = resuming.state(Path("run"))
    assert met
    for step in (6, 9):
        shutil.rmtree(f"run/checkpoints/step_{step:08d}")
    resuming.train("--resume", "run")
    assert resuming.state(Path("run")) == end


def test_fewer_steps_than_are_done_leave_nothing_to_do(run, capsys):
    assert main(["--resume", "whole", "-x", "1"]) == 2
    assert "leaves nothing to do" in capsys.readouterr().err
