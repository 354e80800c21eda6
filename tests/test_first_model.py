"""The README's way from a text to a model: its commands run, on a text of this test and with fewer updates, and say what is printed
there."""

import contextlib
import importlib
import io
import re
import shlex
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
TEXT = "".join(f"ROMEO:\nThe {i * i % 97} stars of night {i},\nshall fade: O, JULIET?\n\n" for i in range(600))
PROMPT = "$ python -m gpt2flat."


def transcript() -> list[tuple[list[str], list[str]]]:
    """(command, what it prints) of the README's section."""
    section = README.read_text().split("## Your own text\n")[1].split("\n## ")[0]
    block = re.search(r"```\n(.*?)```", section, re.S)[1]
    parts = [part.split("\n", 1) for part in block.split(PROMPT)[1:]]
    return [(shlex.split(command), printed.splitlines()) for command, printed in parts]


def kinds(lines) -> list[str]:
    """What a line tells, each kind once and in order: the word that it begins with."""
    words = [re.match(r"(step .*\| (?:val )?loss|[a-z]+(?: [a-z]+)?(?=  ))", line) for line in lines]
    return list(dict.fromkeys(re.sub(r" +\d+/\d+", "", word[0]) for word in words if word))


def printed_by(words: list[str]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert importlib.import_module(f"gpt2flat.{words[0]}").main(words[1:]) == 0, words
    return out.getvalue()


def test_the_commands_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT2FLAT_DATA", raising=False)
    Path("input.txt").write_text(TEXT)
    found = transcript()
    assert [words[0] for words, _ in found] == ["prepare", "train", "evaluate", "generate"]
    for words, told in found:
        if "--steps" in words:
            words[words.index("--steps") + 1] = "12"
        here = printed_by(words)
        assert kinds(here.splitlines()) == kinds(told), here
    assert here.startswith(words[words.index("--prompt") + 1]) and len(here) > 40


@pytest.mark.parametrize("what, least, most", [(r"in ([\d.]+) min", 0.1, 5), (r"-> ([\d.]+)", 1, 1.70)])
def test_what_is_promised_there(what, least, most):
    """At most five minutes on 2 cores, and a validation loss of at most 1.70."""
    done = next(line for _, told in transcript() for line in told if line.startswith("done"))
    assert least <= float(re.search(what, done)[1]) <= most
