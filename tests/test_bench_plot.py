"""The roofline picture: a PNG of a sensible size with every point, roof and name; errors before anything is timed."""

import struct
import sys

import pytest

from gpt2flat import bench
from gpt2flat.benchmarks import machine, measure, plot

SMALL = [
    "--init",
    "tiny",
    "-b",
    "1",
    "-t",
    "4",
    "--threads",
    "1",
    "--repeats",
    "1",
    "--seconds",
    "0",
    "--isa",
    "scalar",
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(machine, "LEAST_STREAM", 1 << 20)
    monkeypatch.setattr(machine, "last_cache", lambda: 0)
    monkeypatch.setattr(machine, "WINDOW", 0.001)
    monkeypatch.setattr(measure, "TOLERANCE", 100.0)


def size_of(path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 20_000
    return struct.unpack(">II", data[16:24])


@pytest.fixture
def texts(monkeypatch):
    """Whatever is written into the picture."""
    from matplotlib.axes import Axes

    found, annotate = [], Axes.annotate

    def note(self, text, *args, **more):
        found.append(text)
        return annotate(self, text, *args, **more)

    monkeypatch.setattr(Axes, "annotate", note)
    return found


@pytest.mark.parametrize("argv", [["step"], ["step", "--profile"], ["linear", "gelu"]], ids=str)
def test_a_picture_is_drawn(argv, tmp_path, texts, capsys):
    assert bench.main([*SMALL, *argv, "--plot", str(tmp_path / "roof.png")]) == 0
    width, height = size_of(tmp_path / "roof.png")
    assert 1200 < width < 2000 and 800 < height < 1200
    assert f"plot      {tmp_path / 'roof.png'}" in capsys.readouterr().out
    assert any(text.startswith("scalar ") for text in texts) and any("GB/s" in text for text in texts)
    names = [text for text in texts if "\n" in text]
    if argv != ["step"]:
        assert len(names) == 1 and " 1 " in names[0] and "linear_backward N4 C128 OC384" in names[0]
        count = names[0].count("\n") + 1
        assert {str(i) for i in range(1, count + 1)} <= set(texts), "every point has its number"


def test_numbers_do_not_cover_each_other(tmp_path):
    """Twenty points in one place: their numbers lie apart."""
    from matplotlib.axes import Axes
    from matplotlib.text import Text

    points = [plot.Point(f"kernel {i}", "avx2", 1000, 10, 1e-9 * (1 + i / 1e3), False) for i in range(20)]
    placed, annotate = [], Axes.annotate
    Axes.annotate = lambda self, *args, **more: placed.append(annotate(self, *args, **more)) or placed[-1]
    try:
        plot.draw(str(tmp_path / "roof.png"), "title", points, {"avx2": 2e12}, {"memory": 5e10})
    finally:
        Axes.annotate = annotate
    numbers = [text for text in placed if text.get_text().isdigit()]
    boxes = [Text.get_window_extent(text) for text in numbers]  # without the lines that lead to them
    apart = [not a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert len(numbers) == 20 and all(apart)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert bench.main([*SMALL, "step", "--plot", str(tmp_path / "roof.png")]) == 2
    error = capsys.readouterr().err
    assert "pip install 'gpt2flat[plot]'" in error and error.count("\n") == 1
