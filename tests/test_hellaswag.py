"""Multiple-choice questions: acc and acc_norm as llm.c counts them, from its file and from JSON lines, for any batch."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import slow_gpt2

from gpt2flat import GPT2Config, Model
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.errors import DataError
from gpt2flat.evaluate import main
from gpt2flat.evaluation import choices
from gpt2flat.formats.choices import Example
from samples import choice_bytes

TEXTS = [
    ("A man is sitting on a roof. he", ["is using wrap to wrap a pair of skis.", "is ripping level tiles off.", "is holding a rubik's cube.", "starts pulling up roofing on a roof."], 3),
    ("A lady walks to a barbell. She", ["swings and lands in her arms.", "pulls the barbell forward.", "pulls a rope.", "stands and lifts the weight over her head."], 3),
    ("Two women in a child", ["are shown in a canoe while a man pulls the canoe.", "sit.", "is on fire", "paddle down a river."], 0),
    ("The boy lifts his body", ["above the height of a pole.", "to his feet.", "off the mats.", "up"], 2),
]  # fmt: skip


def example(context, completions, label=0) -> Example:
    return Example(np.array(context), tuple(np.array(c) for c in completions), label)


class Priced:
    """A model to which an id costs a tenth of its number, wherever it stands."""

    config = SimpleNamespace(block_size=64, vocab_size=100)

    def losses(self, tokens, targets, look):
        came = targets[targets >= 0]
        assert look is None
        return (came / 10).astype(np.float32)


@pytest.mark.parametrize(
    "completions, by_sum, by_mean",
    [
        ([[9], [5, 6], [3, 3, 3, 3], [90]], 0, 2),
        ([[40, 1], [8, 8, 8], [30], [50]], 1, 1),
        ([[7], [7], [7], [7]], 0, 0),  # of equals the first
        ([[9], [4, 4], [8], [2, 6]], 1, 1),
        ([[9, 9], [18], [3, 15], [10, 8]], 0, 0),
    ],
)
def test_the_answers_of_made_up_questions(completions, by_sum, by_mean):
    for label in range(4):
        found = choices.measure(Priced(), [example([1, 2], completions, label)], 3, "made up")
        assert found == {"acc": float(label == by_sum), "acc_norm": float(label == by_mean), "acc_stderr": None,
                         "acc_norm_stderr": None, "questions": 1}  # fmt: skip


def test_shares_and_standard_errors():
    """Labels 0: right by the sum whenever the first is cheapest, which are 6 of 8; by the mean in 2."""
    some = [example([1], [[30], [31, 31], [40], [50]])] * 2 + [example([1], [[30], [20, 20], [40], [50]])] * 4
    some += [example([1], [[50], [20, 20], [40], [60]])] * 2
    told = []
    found = choices.measure(Priced(), some, 5, "made up", told.append)
    assert (found["acc"], found["acc_norm"], found["questions"], told) == (0.75, 0.25, 8, [*range(1, 9)])
    labels = np.array([1, 1, 1, 1, 1, 1, 0, 0])
    assert found["acc_stderr"] == pytest.approx(labels.std(ddof=1) / math.sqrt(8))
    assert found["acc_norm_stderr"] == found["acc_stderr"]


@pytest.fixture(scope="module")
def model() -> Model:
    m = Model.init(GPT2Config(block_size=48, vocab_size=50257, n_layer=1, n_head=2, n_embd=12), threads=1)
    for name, view in m.params.items():
        if name != "wte":
            view *= 9
    return m


@pytest.fixture(scope="module")
def questions() -> list[Example]:
    encode = Tokenizer.gpt2().encode
    return [Example(encode(c), tuple(encode(" " + e) for e in endings), label) for c, endings, label in TEXTS]


def test_a_real_model_answers_as_a_slow_one(model, questions):
    """And its answers are not all one, so that a wrong row would be seen."""
    found = []
    for context, completions, _label in questions:
        losses = []
        for completion in completions:
            ids = np.concatenate([context, completion])
            log = slow_gpt2.log_probabilities(dict(model.params.items()), 2, 50257, ids[:-1])
            losses.append([-log[at - 1, ids[at]] for at in range(len(context), len(ids))])
        found.append((int(np.argmin([sum(x) for x in losses])), int(np.argmin([sum(x) / len(x) for x in losses]))))
    scored = list(choices.score(model, choices.rows(questions, 50257, "texts"), 5, 8, 2))
    assert [choices.answers(scored[i : i + 4]) for i in range(0, 16, 4)] == found
    assert len({a for a, _ in found}) > 1 and any(a != b for a, b in found)


def test_batches_and_threads_change_nothing(model, questions):
    scored = {
        b"".join(x.tobytes() for x in choices.score(m, choices.rows(questions, 50257, "texts"), B, grain, mix))
        for m in (model, same(model, 2))
        for B, grain, mix in ((1, 1, 1), (3, 8, 4), (16, 32, 16), (5, 1000, 1))
    }
    assert len(scored) == 1


def same(model: Model, threads: int) -> Model:
    other = Model(model.config, threads=threads)
    other.params.floats[:] = model.params.floats
    return other


def test_ids_of_another_vocabulary():
    with pytest.raises(DataError, match="made up: example 1: token 3 is id 100, expected 0 to 99"):
        choices.measure(Priced(), [example([1], [[2]] * 4), example([1], [[2], [3], [4, 5, 100], [6]])], 2, "made up")


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ask(capsys, tmp_path, monkeypatch, model, questions):
    """Two models of GPT-2's vocabulary and the questions in both formats; (exit code, output, stderr)."""
    monkeypatch.chdir(tmp_path)
    model.save("one.bin")
    Model.init(model.config, seed=1).save("two.bin")
    lines = [json.dumps({"ind": i, "ctx": c, "endings": e, "label": label}) for i, (c, e, label) in enumerate(TEXTS)]
    (tmp_path / "h.jsonl").write_text("\n".join(lines) + "\n")
    data = choice_bytes(*(dict(context=q.context, completions=q.completions, label=q.label) for q in questions))
    (tmp_path / "h.bin").write_bytes(data)

    def asked(*words) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*map(str, words), "--threads", "1"])
        return code, *capsys.readouterr()

    return asked


def test_both_formats_in_one_table(ask):
    code, out, error = ask("one.bin", "two.bin", "h.bin", "h.jsonl")
    assert (code, error) == (0, "")
    facts, _more, titles, head, one, two = out.splitlines()
    assert facts == "data      h.bin: 4 questions of 4 completions, so 0.25 is chance"
    assert titles.split() == ["h.bin", "h.jsonl"] and head.split() == ["acc", "acc_norm"] * 2
    for row in (one, two):
        cells = row.split()
        assert cells[1:7] == cells[7:] and cells[2] == "±" and len(cells) == 13


def test_a_prepared_folder(ask, tmp_path):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "h.bin").rename(tmp_path / "prepared" / "hellaswag_val.bin")
    code, out, _ = ask("one.bin", "prepared")
    assert code == 0 and out.startswith("data      prepared/hellaswag_val.bin: 4 questions")


def test_limit_and_json(ask, model, questions):
    found = json.loads(ask("one.bin", "h.jsonl", "--limit", 3, "--json")[1])["results"]
    assert found == [{"model": "one.bin", "set": "h.jsonl"} | choices.measure(model, questions[:3], 2, "h")]
    assert json.loads(ask("one.bin", "h.bin", "--limit", 1, "--json", "-b", 1)[1])["results"][0]["acc_stderr"] is None
    assert "±" not in ask("one.bin", "h.bin", "--limit", 1)[1]


def test_what_does_not_fit_is_one_line(ask, tmp_path):
    config = dict(n_layer=1, n_head=1, n_embd=4)
    (tmp_path / "b").mkdir()
    Tokenizer.byte().save(tmp_path / "b" / "tokenizer.bin")
    Model.init(GPT2Config(vocab_size=257, block_size=300, **config)).save("b/m.bin")
    Model.init(GPT2Config(vocab_size=50257, block_size=8, **config)).save("short.bin")
    Model.init(GPT2Config(vocab_size=9, block_size=48, **config)).save("bare.bin")
    (tmp_path / "empty.jsonl").write_text("")
    wrong = {
        "b/m.bin h.bin": (
            2,
            "h.bin holds tokens of a vocabulary of 50257, b/m.bin has a vocabulary of 257: take the",
        ),
        "short.bin h.bin": (
            3,
            "expected fewer than 80 for rows of 8 tokens: it needs a model with a longer block size",
        ),
        "short.bin h.jsonl": (3, "line 1: context and completion have"),
        "bare.bin h.jsonl": (2, "h.jsonl is text, and no tokenizer is beside"),
        "bare.bin h.bin": (4, "h.bin: example 0: token"),
        "one.bin empty.jsonl": (4, "holds no line"),
        "one.bin h.bin --limit 0": (2, "--limit"),
    }
    for words, (code, says) in wrong.items():
        found, out, error = ask(*words.split())
        assert (found, out, error.count("\n")) == (code, "", 1) and says in error, words
    code, out, _ = ask("b/m.bin", "h.jsonl")
    assert code == 0 and out.splitlines()[-1].startswith("b/m.bin   ")
