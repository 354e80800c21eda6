"""gpt2flat runs: tables of runs, models and presets, runs side by side; what runs say cannot reach the terminal raw."""

import json
import re
import shutil

import pytest
from made_runs import HOSTILE, make, train, update

from gpt2flat.arch import gpt2
from gpt2flat.inspection import tables
from gpt2flat.model import Model
from gpt2flat.runs import main


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with two runs."""
    folder = tmp_path_factory.mktemp("two")
    train(folder / "one", "--checkpoint-every", "4")
    train(folder / "two", "--lr", "0.002", "--steps", "6", "--threads", "2")
    return folder


@pytest.fixture
def ask(capsys, tmp_path, monkeypatch):
    """(exit code, lines of output, lines on stderr) of the command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT2FLAT_DATA", raising=False)

    def asked(*words) -> tuple[int, list[str], list[str]]:
        code = main([str(word) for word in words])
        out, error = capsys.readouterr()
        return code, out.splitlines(), error.splitlines()

    return asked


def test_a_table_of_runs(ask, two):
    code, lines, error = ask(two)
    assert (code, error, len(lines)) == (0, [], 3) and lines[
        0
    ].split() == "run state best val loss updates tokens time size started (UTC)".split()
    assert re.fullmatch(r"one  finished +5\.\d{4} +8 +512 +0\.\d s +[\d.]+ kB  20\d\d-\d\d-\d\d \d\d:\d\d", lines[1])
    assert re.match(r"two  finished +5\.\d{4} +6 +384 ", lines[2])
    assert ask(two / "two")[1] == [lines[0], lines[2]]


def test_json(ask, two):
    rows = json.loads("\n".join(ask(two, "--json")[1]))["runs"]
    assert [(row["run"], row["updates"], row["state"]) for row in rows] == [
        ("one", 8, "finished"),
        ("two", 6, "finished"),
    ]
    assert rows[0]["best_step"] in (0, 4, 8) and rows[0]["bytes"] > 10_000 and rows[0]["started"] < rows[1]["started"]


def test_nothing_there(ask, tmp_path):
    assert ask() == (0, ["no run yet: python -m gpt2flat.train makes one"], [])
    assert ask("--models")[1] == ["no model file: ./downloaddataset.sh fetches GPT-2 124M"]
    code, lines, error = ask(tmp_path / "absent")
    assert (code, lines, len(error)) == (5, [], 1) and "absent: is no directory" in error[0]


def test_runs_side_by_side(ask, two):
    code, lines, _ = ask(two / "one", two / "two")
    told = {line.split("  ")[0]: line.split("  ")[1:] for line in lines}
    words = {name: [value.strip() for value in values if value.strip()] for name, values in told.items()}
    assert code == 0 and words["settings"] == words["numbers"] == ["one", "two"] and words["lr"] == ["0.001", "0.002"]
    assert words["steps"] == words["updates"] == ["8", "6"] and words["threads"] == ["1", "2"]
    assert "seq len" not in words and "out" not in words and float(words["best val loss"][0]) < 6
    told = json.loads("\n".join(ask(two / "one", two / "two", two / "one", "--json")[1]))
    assert told["settings"]["lr"] == [0.001, 0.002, 0.001] and told["numbers"]["updates"] == [8, 6, 8]


def test_equal_runs_differ_in_nothing(ask, two):
    _, lines, _ = ask(two / "one", two / "one")
    assert "settings: no difference" in lines and "machine: no difference" in lines


def test_models(ask, two, tmp_path):
    (tmp_path / "data").mkdir()
    Model.init(gpt2.GPT2Config(16, 97, 1, 2, 16)).save(tmp_path / "data/a.bin", dtype="bf16")
    (tmp_path / "data/b.bin").write_bytes((tmp_path / "data/a.bin").read_bytes()[:-2])
    (tmp_path / "data/noise.bin").write_bytes(b"x" * 99)
    code, lines, _ = ask("--models", two)
    assert code == 0 and len(lines) == 5
    assert re.match(r"data/a.bin +bf16, version 5 +1 +2 +16 +16 +97 +5,", lines[1]) and re.match(
        r"data/b.bin  +data/b.bin: .*expected", lines[2]
    )
    assert (
        "one/checkpoints/step_00000008/model.bin" in lines[3] and "two/checkpoints/step_00000006/model.bin" in lines[4]
    )


def test_presets(ask):
    code, lines, _ = ask("--presets")
    assert code == 0 and re.match(r"tiny +4 +4 +128 +64 +257 +850,688 +3.4 MB +13.6 MB", lines[1])
    assert sum(len(line.split("  ")[0].split(", ")) for line in lines[1:]) == len(gpt2.PRESETS)
    assert any(re.match("d12, gpt2 +12 +12 +768 +1,024 +50,257 +124,475,904 +497.9 MB", line) for line in lines)
    rows = {
        name: row for row in json.loads("\n".join(ask("--presets", "--json")[1]))["presets"] for name in row["names"]
    }
    assert (
        rows["gpt2-xl"]["parameters"] == gpt2.config_of("d48").num_parameters
        and rows["mini"]["training_bytes"] == 16 * 3_290_624
    )


def test_names_of_openai_are_descriptors_of_llmc():
    for name, other in {"gpt2": "d12", "gpt2-medium": "d24", "gpt2-large": "d36", "gpt2-xl": "gpt2:d48"}.items():
        assert gpt2.config_of(name) == gpt2.config_of(other)


def test_broken_runs_are_told_beside_the_others(ask, tmp_path):
    make(tmp_path / "runs/broken", config="= = =")
    make(tmp_path / "runs/empty", config="")
    make(tmp_path / "runs/wrong", ["{", update(0)], config='steps = "many"\nlr = nan\nwhen = 1979-05-27\n', env=3)
    code, lines, error = ask()
    assert code == 0 and [line.split()[:2] for line in lines[1:]] == [["empty", "failed"], ["wrong", "failed"]]
    assert len(error) == 1 and "runs/broken: is no run directory" in error[0]
    assert ask("runs/wrong", "runs/empty")[0] == 0 and ask("runs/wrong", "runs/empty", "--json")[0] == 0


def test_what_runs_say_cannot_reach_the_terminal_raw(ask, tmp_path):
    name = "a\x1b[2J\nb"
    make(
        tmp_path / "runs" / name,
        [update(0)],
        config=f"init = {json.dumps(HOSTILE)}\n",
        env={"started": "\x1b[31m", "cpu": HOSTILE},
    )
    make(tmp_path / "runs/b")
    shutil.copytree(tmp_path / "runs" / name, tmp_path / "runs/c\x07")
    for words in ((), ("--models",), ("runs/b", f"runs/{name}"), ("runs/c\x07", "runs/b")):
        code, lines, error = ask(*words)
        assert code == 0 and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "".join(lines + error))
    assert any(line.startswith("a\\x1b[2J\\nb") for line in ask()[1])


@pytest.mark.parametrize(
    "words",
    [("--presets", "--models"), ("--presets", "runs"), ("--models", "a", "b"), ("--presets", "--plot"), ("--wide",)],
)
def test_questions_that_do_not_go_together(ask, words):
    code, lines, error = ask(*words)
    assert (code, lines, len(error)) == (2, [], 1)


def test_columns():
    rows = [["aa", "b", "1"], ["a", "says something much longer"], ["c", "d", "1,000"]]
    expected = ["x   y      z", "aa  b      1", "a   says something much longer", "c   d  1,000"]
    assert tables.as_text(["x", "y", "z"], rows, 2).splitlines() == expected
