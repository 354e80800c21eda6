"""A text coloured by what each token cost: the numbers, the terminal's colours, the page; golden outputs of a made-up model.

python tests/test_heat.py writes the golden files anew."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import slow_gpt2
import test_report

from gpt2flat import GPT2Config, Model
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.data.tokens import ArrayShard
from gpt2flat.evaluate import main
from gpt2flat.evaluation import heat, heatpage
from gpt2flat.evaluation.scoring import score
from gpt2flat.evaluation.text import Windows

HERE = Path(__file__).parent
PIECES = (
    b"a",
    b"b",
    b"\n",
    b"\xc3",
    b"\xa9",
    b"\x1b[2J",
    b"<b>&\"'",
    b" \xe2\x80\xae",
    b"\t",
    b"<|endoftext|>",
    b"\n\n",
    b"c\nd",
)
TOKENIZER = Tokenizer("table", PIECES, 9)
TEXT = [9, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 0, 1, 0, 3]


class MadeUp:
    """The logit of an id behind another: the further it is behind, the less likely, by steps of 0.7."""

    config = SimpleNamespace(vocab_size=12, block_size=32)

    def logits(self, tokens):
        return (-0.7 * ((np.arange(12) - tokens[..., None] - 1) % 12)).astype(np.float32)

    def losses(self, tokens, targets, look):
        seen = self.logits(tokens)[targets >= 0]
        look(seen[:3])
        if len(seen) > 3:
            look(seen[3:])
        logits = self.logits(tokens).astype(np.float64)
        lse = np.log(np.exp(logits).sum(-1))
        found = lse - np.take_along_axis(logits, np.maximum(targets, 0)[..., None], -1)[..., 0]
        return found[targets >= 0].astype(np.float32)


def told(windows=Windows(32, 32), *texts) -> list[heat.Told]:
    return list(heat.tell(MadeUp(), [ArrayShard(np.array(ids)) for ids in texts or [TEXT]], windows))


def terminal() -> str:
    return "".join(heat.coloured(heat.pieces(told(), TOKENIZER))) + f"\n{heat.legend()}\n"


def page() -> str:
    found = heatpage.Heat(
        "a <model>", "a & b\x1b, all 16 tokens", list(heat.pieces(told(), TOKENIZER)), [("1.5", "loss")], TOKENIZER
    )
    return heatpage.page([found])


GOLDEN = {"golden_heat.txt": terminal, "golden_heat.html": page}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_output(name):
    """The terminal's text is kept with its escape characters spelled out, as git shows them."""
    assert (HERE / name).read_text() == GOLDEN[name]().replace("\x1b", "\\e"), (
        "python tests/test_heat.py writes it anew"
    )


def test_tokens_are_told_once():
    whole = told()
    assert (
        [token.id for token in whole] == TEXT
        and whole[0] == heat.Told(9)
        and None not in [token.loss for token in whole[1:]]
    )
    assert [token.id for token in told(Windows(4, 2))] == TEXT  # windows share tokens
    assert [token.id for token in told(Windows(5, 5, 8))] == TEXT[:9]
    two = told(Windows(4, 4, 5), [9, 1, 2], [9, 3, 4, 5, 6], [9, 1])
    assert [token.id for token in two] == [9, 1, 2, 9, 3, 4, 5] and [
        i for i, token in enumerate(two) if token.loss is None
    ] == [0, 3]
    assert [token.id for token in told(Windows(4, 4, 2), [9, 1, 2], [9, 3])] == [9, 1, 2]


def test_ranks_and_probabilities_of_a_real_model():
    m = Model.init(GPT2Config(block_size=16, vocab_size=31, n_layer=1, n_head=2, n_embd=8), threads=1)
    for _name, view in m.params.items():
        view *= 8
    ids = np.random.default_rng(0).integers(0, 31, 40)
    windows = Windows(16, 5)
    found = list(heat.tell(m, [ArrayShard(ids)], windows))
    losses = np.concatenate(list(score(m, windows.rows([ArrayShard(ids)], 31), 3, 16)))
    assert [token.loss for token in found[1:]] == losses.tolist()
    for j, token in enumerate(found[1:], 1):
        begin = 5 * max(0, -(-(j - 16) // 5))
        log = slow_gpt2.log_probabilities(dict(m.params.items()), 2, 31, ids[begin:j])[-1]
        assert token.before == np.count_nonzero(log > log[ids[j]]) and token.best == log.argmax()
        assert token.best_probability == pytest.approx(math.exp(log.max()), rel=1e-4)


def test_equals_are_counted_by_their_ids():
    class Even(MadeUp):
        def logits(self, tokens):
            return np.zeros((*tokens.shape, 12), np.float32)

    found = list(heat.tell(Even(), [ArrayShard(np.array([9, 0, 5, 11]))], Windows(8, 8)))
    assert [(token.before, token.best) for token in found[1:]] == [(0, 0), (5, 0), (11, 0)]
    assert found[1].best_probability == pytest.approx(1 / 12)


def test_a_character_of_several_tokens_is_one_piece():
    pieces = list(heat.pieces(told(), TOKENIZER))
    assert "".join(piece.text for piece in pieces) == b"".join(PIECES[i] for i in TEXT).decode("utf-8", "replace")
    cut = next(piece for piece in pieces if piece.text == "é")
    assert [token.id for token in cut.tokens] == [3, 4] and cut.loss == math.fsum(token.loss for token in cut.tokens)
    assert pieces[-1].text == "\ufffd" and pieces[0].loss is None


@pytest.mark.parametrize(
    "loss, place", [(-1e-7, 0), (0.0, 0), (0.2499, 0), (0.25, 1), (1.5, 3), (6.4, 6), (6.5, 7), (99.0, 7)]
)
def test_bins(loss, place):
    assert heat.bin_of(loss) == place
    assert len(heat.COLOURS) == len(heat.bins()) == len(heatpage.LIGHT) == len(heatpage.DARK) == len(heat.EDGES) + 1


def test_a_terminal_sees_no_control_character():
    """But the colours' own, and none of them is on at the end of a line."""
    plain = terminal()
    for place in range(256):
        plain = plain.replace(heat.INK.format(place), "")
    lines = terminal().split("\n")
    assert all(line.count("\x1b[38") == line.count(heat.RESET) for line in lines)
    assert "\x1b" not in plain.replace(heat.RESET, "") and "\\x1b[2J" in plain


def test_the_page_is_safe(monkeypatch):
    monkeypatch.setattr(test_report, "ATTRIBUTES", test_report.ATTRIBUTES | {"data-i"})
    found = test_report.read(page())
    assert "a <model>" in " ".join(found.words) and "\x1b" not in page() and "\u202e" not in page()
    assert "prefers-color-scheme: dark" in page() and found.tags.count("pre") == 1


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ask(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    Tokenizer.byte().save(tmp_path / "tokenizer.bin")
    Model.init(GPT2Config(block_size=16, vocab_size=257, n_layer=1, n_head=1, n_embd=4), threads=1).save("m.bin")
    (tmp_path / "t.txt").write_text("Ab\ncd" * 9)

    def asked(*words) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*words, "--threads", "1"])
        return code, *capsys.readouterr()

    return asked


def test_heat_on_a_terminal(ask, monkeypatch):
    code, out, error = ask("m.bin", "t.txt", "--heat", "--color", "always", "--heat-tokens", "7")
    assert (code, error) == (0, "") and out.startswith(
        "m.bin     t.txt, the first 7 tokens\n<|endoftext|>\x1b[38;5;16;48;5;203mA\x1b[0m"
    )
    assert "45 tokens predicted" in out and out.count("\x1b[0m") == 7 + 8
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert "m.bin     t.txt, all 45 tokens\n" in ask("m.bin", "t.txt", "--heat")[1]
    for words in (("--color", "never"), ("--json",)):
        assert ask("m.bin", "t.txt", "--heat", *words)[0] == 2
    monkeypatch.setenv("NO_COLOR", "1")
    assert ask("m.bin", "t.txt", "--heat")[0] == 2


def test_heat_as_a_page(ask, tmp_path):
    code, out, _ = ask("m.bin", "t.txt", "--heat", "h.html", "--max-tokens", "9")
    assert code == 0 and out.startswith("h.html\n") and "t.txt, all 9 tokens" in (tmp_path / "h.html").read_text()
    code, out, error = ask("m.bin", "t.txt", "--json", "--heat", "h.html")
    assert code == 0 and error == "h.html\n" and out.startswith("{")


@pytest.mark.parametrize(
    "words, says",
    [
        ("m.bin --heat t.txt", "ends in .html"),
        ("m.bin t.txt --heat", "--color always"),
        ("m.bin t.txt --heat --color maybe", "--color maybe: expected auto"),
        ("m.bin t.txt --heat x.html --heat-tokens 0", "--heat-tokens"),
        ("bare/n.bin bare/ids.bin --heat x.html", "--heat shows text, and no tokenizer is beside"),
        ("m.bin q.jsonl --heat x.html", "no text is among"),
    ],
)
def test_wrong_input_is_one_line(ask, tmp_path, words, says):
    (tmp_path / "bare").mkdir()
    (tmp_path / "q.jsonl").write_text('{"ctx": "a", "endings": ["b", "c", "d", "e"], "label": 0}')
    Model.init(GPT2Config(block_size=8, vocab_size=9, n_layer=1, n_head=1, n_embd=4)).save("bare/n.bin")
    (tmp_path / "bare" / "ids.bin").write_bytes(np.array([1, 2, 3], "<i4").tobytes())
    code, out, error = ask(*words.split())
    assert (code, out, error.count("\n")) == (2, "", 1) and says in error and not (tmp_path / "x.html").exists()


if __name__ == "__main__":
    for name, make in GOLDEN.items():
        (HERE / name).write_text(make().replace("\x1b", "\\e"))
