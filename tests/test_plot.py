"""gpt2flat plot: pictures of the asked kind with every run, quantity and name; odd runs and numbers do not stop it."""

import struct
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from made_runs import HOSTILE, make, update

from gpt2flat.inspection import curves
from gpt2flat.plot import main
from gpt2flat.runs import main as runs


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in {"a": 100, "b": 3000}.items():
        records = [
            r for i in range(count) for r in [update(i), *[{"step": i, "val_loss": 4 - i / 1e4}] * (i % 20 == 0)]
        ]
        make(tmp_path / name, records)
    return tmp_path


def words(path) -> list[str]:
    return [text.text for text in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_a_png_of_two_runs(here, capsys):
    assert main(["a", "b"]) == 0 and capsys.readouterr().out == "a-b.png\n"
    data = (here / "a-b.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 30_000 and 1200 < width < 2000 and 700 < height < 1200


def test_an_svg_names_all(here):
    assert main(["a", "b", "--out", "x.svg", "--x", "tokens"]) == 0
    found = words("x.svg")
    assert {"a", "b", "training", "validation", "tokens", *(panel.title for panel in curves.PANELS)} <= set(found)


@pytest.mark.parametrize("x", curves.AXES)
def test_the_same_runs_give_the_same_bytes(here, x):
    for name in ("x.svg", "y.svg"):
        assert main(["a", "--out", name, "--x", x, "--keys", "loss"]) == 0
    assert (here / "x.svg").read_bytes() == (here / "y.svg").read_bytes() and curves.AXES[x] in words("x.svg")


def test_keys_choose_the_panels(here):
    assert main(["a", "--out", "x.svg", "--keys", "lr, val_loss", "--smooth", "9"]) == 0
    assert {"loss", "learning rate"} <= set(words("x.svg")) and not {"gradient norm", "tokens per second"} & set(
        words("x.svg")
    )


def test_runs_draws_too(here, capsys):
    assert (
        runs(["--plot", "x.svg", "."]) == 0
        and {"a", "b"} <= set(words("x.svg"))
        and capsys.readouterr().out.endswith("x.svg\n")
    )
    make(here / "none/of them")
    (here / "none/of them/config.toml").unlink()
    assert runs(["none", "--plot"]) == 2 and "no run to draw" in capsys.readouterr().err


ODD = {
    "empty": [],
    "one": [update(0)],
    "zeros": [update(i, loss=0, lr=0, grad_norm=0, tokens_per_s=0) for i in range(3)],
    "negative": [update(i, loss=-1.0, grad_norm=-1.0, tokens_per_s=-9) for i in range(3)],
    "large": [update(i, loss=9e99, grad_norm=9e99, tokens_per_s=9e99, lr=1e-99) for i in range(200)],
    "small": [update(i, loss=1e-320, grad_norm=1e-320, lr=1e-320) for i in range(200)],
    "same": [update(i, loss=1e16) for i in range(200)],
    "far": [update(i * 10**12) for i in range(200)],
    "$\\frac{$": [update(0)],
    HOSTILE.replace("/", ""): [update(0), {"step": 0, "val_loss": 1}],
    "_hidden": [update(0)],
}


@pytest.mark.parametrize(
    "name", ["empty", "all", *(pytest.param(name, marks=pytest.mark.full) for name in ODD if name != "empty")]
)
def test_odd_runs(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    names = list(ODD) if name == "all" else [name]
    for each in names:
        make(tmp_path / "runs" / each, ODD[each])
    assert main([*(f"runs/{each}" for each in names), "--out", "x.svg"]) == 0
    assert ("no numbers" in words("x.svg")) == (name == "empty")
    assert any("hidden" in (word or "") for word in words("x.svg")) == (name in ("_hidden", "all"))


def test_runs_of_one_name_are_told_apart_by_path(here):
    make(here / "other/a", [update(0)])
    assert main(["a", "other/a", "-o", "x.svg", "--keys", "lr"]) == 0 and {"a", "other/a"} <= set(words("x.svg"))


@pytest.mark.parametrize("argv, says", [
    (["a", "--out", "x.pdf"], "a PNG or SVG file"),
    (["a", "--out", "no/x.png"], "there is no directory no"),
    (["a", "--keys", "loss,speed"], "expected some of loss, val_loss, lr"),
    (["a", "--keys", ","], "expected some of"),
    (["absent"], "absent: is no run directory"),
    (["a", "--smooth", "0"], "--smooth 0"),
    ([], "RUN"),
])  # fmt: skip
def test_what_is_wrong_is_one_line(here, capsys, argv, says):
    assert main(argv) in (2, 5)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error and not list(here.glob("*.png"))


def test_a_full_disk_is_one_line(here, capsys):
    (here / "x.svg").symlink_to("/dev/full")
    assert main(["a", "--out", "x.svg"]) == 5 and "x.svg: cannot be written: no space left" in capsys.readouterr().err


def test_without_matplotlib_the_error_names_the_extra(here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["a"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'gpt2flat[plot]'" in error and error.count("\n") == 1


def test_averages():
    values = np.arange(10.0)
    assert curves.average(values, 1).tolist() == values.tolist()
    assert curves.average(values, 3).tolist() == [0, 0.5, *range(1, 9)]
    xs, ys = curves.thin(np.arange(10), values, 3)
    assert xs.tolist() == ys.tolist() == [1, 4, 7.5] and curves.thin(values, values, 10)[0] is values
