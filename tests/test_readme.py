"""The README keeps its word: generated parts are up to date, its Python runs, its commands and files exist.

python tests/test_readme.py writes the generated parts anew."""

import os
import re
import sys
from pathlib import Path

import pytest

from gpt2flat.arch import gpt2
from gpt2flat.info import main as info
from gpt2flat.inspection import presets
from gpt2flat.kernels.ops import OPS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PICTURE = ROOT / "gpt2flat/memory/arena.svg"
MAP = ["d12", "-b", "4", "-t", "64", "--map"]


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tensors():
    rows = [
        [f"`{r.name}`", r.label(), "yes" if r.decay else "no", r.init, r.src.replace("^T", ", transposed")]
        for r in gpt2.PARAMS
    ]
    return table(["tensor", "shape", "decayed", "init", "Hugging Face's name"], rows)


def ops():
    def names(args):
        return ", ".join(f"`{a.name}` ({a.axes})" for a in args)

    rows = [
        [
            f"`{op.name}`",
            names(op.args("written", "saved")),
            names(op.args("read", "index", "weight")),
            op.flops.replace("*", " "),
        ]
        for op in OPS.values()
    ]
    return table(["op", "writes", "reads", "flops of forward"], rows)


def shapes():
    rows = [(row["names"], presets.words(row)) for row in presets.presets()]
    return table(list(presets.HEAD), [[", ".join(f"`{name}`" for name in names), *words[1:]] for names, words in rows])


GENERATED = {"tensors": tensors, "ops": ops, "presets": shapes}


def section(name):
    return re.compile(f"(<!-- {name} -->\n)(.*?)(<!-- end -->)", re.S)


@pytest.mark.parametrize("name", GENERATED)
def test_generated_parts_are_up_to_date(name):
    assert section(name).search(README.read_text())[2] == GENERATED[name]() + "\n", (
        "python tests/test_readme.py writes it anew"
    )


def test_picture_is_up_to_date(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert info([*MAP, str(tmp_path / "arena.svg")]) == 0
    words = [re.findall(r">([^<>\n]+)<", path.read_text()) for path in (tmp_path / "arena.svg", PICTURE)]
    assert words[0] == words[1], "python tests/test_readme.py draws it anew"


def test_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = {}
    for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S):
        exec(compile(code, "README.md", "exec"), space)  # the README's own examples
    assert space["same"] and space["text"].shape == (1, 40)


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"@[A-Z]+@", README.read_text())


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)]+)\)", README.read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target


if __name__ == "__main__":
    text = README.read_text()
    for name, make in GENERATED.items():
        text = section(name).sub(lambda found, make=make: found[1] + make() + "\n" + found[3], text)
    README.write_text(text)
    os.environ["OMP_NUM_THREADS"] = "2"  # what scratch is goes by them
    sys.exit(info([*MAP, str(PICTURE)]))
