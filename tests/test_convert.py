"""Runs of llm.c's: its files out of a run, and a run out of its files, with the bits of the uninterrupted one."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import resuming
from gpt2flat.convert import main as convert
from gpt2flat.train import main

LLMC_TINY = Path(__file__).parent / "llmc_tiny"
LINE = (
    "-i tokens_train.bin -j tokens_val.bin -b 2 -t 16 -x 12 -v 4 -m 2 -s 0 -k cosine -l 3e-4 -u 3 -q 0.1 -c 0.1".split()
)


@pytest.fixture
def here(here):
    """A run of 12 updates with a checkpoint after each, in a folder with its data."""
    for name in ("model.bin", "tokens_train.bin", "tokens_val.bin", "tokenizer.bin"):
        shutil.copy(LLMC_TINY / name, here)
    resuming.train(*LINE, "-e", "model.bin", "-n", "1", "-nk", "0", "-o", "run")
    return here


def test_a_run_becomes_llmcs_and_goes_on_from_there(here, capsys):
    assert convert(["run", "log", "--step", "7"]) == 0
    assert {path.name for path in Path("log").iterdir()} == {
        "model_00000007.bin",
        "state_00000007_00000.bin",
        "DONE_00000007",
    }
    assert Path("log/model_00000007.bin").read_bytes() == Path("run/checkpoints/step_00000007/model.bin").read_bytes()
    Path("log/main.log").write_text("s:6 trl:4.0000 lr:0.000300 norm:1.00\ns:7 trl:9.0000 lr:0.000300 norm:1.00\n")
    said = resuming.train(*LINE, "-e", "model.bin", "-y", "1", "-o", "log")  # llm.c's own line
    assert "after 7 updates from log/model_00000007.bin" in said
    end, whole = (resuming.state(Path(name)) for name in ("log", "run"))
    assert (end["model.bin"], end["optimizer.bin"]) == (whole["model.bin"], whole["optimizer.bin"])
    assert resuming.records(Path("log")) == [e for e in resuming.records(Path("run")) if e["step"] >= 7]
    log = Path("log/main.log").read_text().splitlines()
    assert (
        log[0] == "s:6 trl:4.0000 lr:0.000300 norm:1.00" and not any("trl:9.0" in line for line in log) and len(log) > 5
    )
    resuming.train("--resume", "log", "-x", "14")  # from now on it is a run like any other
    assert (Path("log") / "checkpoints/step_00000014").is_dir()


@pytest.mark.parametrize("flags, code, says", [
    (["-b", "4"], 5, "-b and -t"), (["-i", "tokens_val.bin"], 5, "its shard has"), (["-t", "8"], 5, "-b and -t"),
])  # fmt: skip
def test_other_data_than_llmcs_is_refused(here, capsys, flags, code, says):
    assert convert(["run", "log"]) == 0
    before = {path.name: path.read_bytes() for path in Path("log").iterdir()}
    capsys.readouterr()
    assert main([*LINE, *flags, "-x", "20", "-y", "1", "-o", "log"]) == code
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in Path("log").iterdir() if path.name != "lock"} == before


def test_damage_is_one_line(here, capsys):
    assert convert(["run", "log"]) == 0
    state = Path("log/state_00000012_00000.bin")
    data = bytearray(state.read_bytes())
    data[1024 + 8 * 4 * 100 : 1024 + 8 * 4 * 100 + 4] = np.float32(np.nan).tobytes()
    state.write_bytes(data)
    capsys.readouterr()
    assert main([*LINE, "-x", "20", "-y", "1", "-o", "log"]) == 6
    state.unlink()
    assert main([*LINE, "-x", "20", "-y", "1", "-o", "log"]) == 5
    assert capsys.readouterr().err.count("\n") == 2
    assert convert(["log", "out"]) == 5 and convert(["run", "out", "--step", "0"]) == 5
