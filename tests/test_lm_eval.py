"""The adapter to lm-evaluation-harness, on small tasks that are defined here; nothing is downloaded."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import slow_gpt2
from lm_eval.api.instance import Instance

from gpt2flat import GPT2Config, Model
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.errors import DataError, UsageError
from gpt2flat.evaluate import main
from gpt2flat.evaluation.harness import Adapter
from gpt2flat.generation.sampling import Sampling
from gpt2flat.generation.stream import stream

TOKENIZER = Tokenizer.byte()
T = 24
COLOURS = [("Grass is", "green", 0), ("The sea is", "blue", 2), ("Blood is", "red", 1), ("Snow is", "white", 3)]
TASK = """
task: small_{kind}
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {data}
validation_split: validation
output_type: {kind}
"""
TASKS = {
    "multiple_choice": "doc_to_text: '{{q}}'\ndoc_to_choice: [green, red, blue, white]\ndoc_to_target: label\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n",
    "loglikelihood_rolling": "doc_to_text: ''\ndoc_to_target: '{{q}} {{a}}'\nmetric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}]\n",
    "generate_until": "doc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\ngeneration_kwargs: {until: ['\\n'], max_gen_toks: 5}\nmetric_list: [{metric: exact_match}]\n",
}


@pytest.fixture(scope="module")
def model() -> Model:
    m = Model.init(GPT2Config(block_size=T, vocab_size=257, n_layer=2, n_head=2, n_embd=16), threads=1)
    for _name, view in m.params.items():
        view *= 6
    return m


@pytest.fixture(scope="module")
def adapter(model) -> Adapter:
    return Adapter(model, TOKENIZER, 3)


def asked(kind: str, *arguments) -> list[Instance]:
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def log_probabilities(model, ids) -> np.ndarray:
    return slow_gpt2.log_probabilities(dict(model.params.items()), 2, 257, ids)


# --- the three questions of the harness ------------------------------------------------------------------------------


def test_log_likelihoods_are_those_of_a_slow_forward(model, adapter):
    """An empty context is end-of-text, spaces at its end belong to the continuation, of a long one the last ids count."""
    pairs = [
        ("Grass is", " green"),
        ("", "green"),
        ("Grass is  ", "red"),
        ("x" * 40, " blue"),
        ("a", ""),
        ("q", "z" * T),
    ]
    wanted = [
        (b"Grass is", b" green"),
        (None, b"green"),
        (b"Grass is", b"  red"),
        (b"x" * (T + 1 - 5), b" blue"),
        (b"a", b""),
        (b"q", b"z" * T),
    ]
    found = adapter.loglikelihood(asked("loglikelihood", *pairs))
    for (context, continuation), (total, greedy) in zip(wanted, found, strict=True):
        first = [256] if context is None else list(context)
        ids = np.array(first + list(continuation))
        log = log_probabilities(model, ids[:-1]) if continuation else None
        places = range(len(first) - 1, len(ids) - 1)
        assert total == pytest.approx(sum(log[at, ids[at + 1]] for at in places), rel=1e-5, abs=1e-12)
        assert greedy == all(log[at].argmax() == ids[at + 1] for at in places)


def test_what_the_model_would_say_is_greedy(model, adapter):
    ids = [*b"Grass is"]
    for _ in range(3):
        ids.append(int(log_probabilities(model, ids)[-1].argmax()))
    context, said = bytes(ids[:8]).decode(), TOKENIZER.decode(ids[8:])
    if said.encode() != bytes(i for i in ids[8:] if i < 256):
        pytest.fail(f"the made-up model says {ids[8:]}, which is no text: seed it otherwise")
    (_, whole), (_, half) = adapter.loglikelihood(
        asked("loglikelihood", (context, said), (context, said[:-1] + "\x00"))
    )
    assert whole and not half


def test_a_continuation_that_does_not_fit(adapter):
    with pytest.raises(DataError, match=f"has {T + 1} tokens, and the model takes {T}"):
        adapter.loglikelihood(asked("loglikelihood", ("a", "b" * (T + 1))))


def test_rolling_log_likelihoods(model, adapter):
    """The windows of the harness: whole ones side by side, and the last as long as the model takes."""
    texts = ["abc", "It was the best of times, it was the worst of times.", ""]
    found = adapter.loglikelihood_rolling(asked("loglikelihood_rolling", *((text,) for text in texts)))
    for text, total in zip(texts, found, strict=True):
        ids, wanted = np.array([256, *text.encode()]), 0.0
        for j in range(1, len(ids)):
            end = min((j - 1) // T * T + T + 1, len(ids))
            begin = max(0, end - 1 - T) if end == len(ids) else end - 1 - T
            wanted += log_probabilities(model, ids[begin:j])[-1, ids[j]]
        assert total == pytest.approx(wanted, rel=1e-5, abs=1e-12)


def test_answers_are_what_generation_makes(model, adapter):
    greedy = {"until": ["zz", "\n\n"], "max_gen_toks": 9}
    prompts = ["Grass is", "a", "", "x" * 40]
    found = adapter.generate_until(asked("generate_until", *((prompt, greedy) for prompt in prompts)))
    rows = [np.frombuffer(p.encode(), np.uint8).astype(np.int32) if p else np.array([256]) for p in prompts]
    made: dict[int, list[int]] = {i: [] for i in range(4)}
    for token in stream(model, rows, 9, Sampling(temperature=0)):
        made[token.sequence].append(token.id)
    for i, text in enumerate(found):
        whole = TOKENIZER.decode(made[i][: made[i].index(256)] if 256 in made[i] else made[i])
        assert text == whole.split("zz")[0].split("\n\n")[0]


def test_answers_stop_and_settings_may_differ(adapter):
    (full,) = adapter.generate_until(asked("generate_until", ("Grass is", {"max_gen_toks": 8})))
    assert 2 < len(full) <= 8
    stop = full[2]
    requests = [
        ("Grass is", {"max_gen_toks": 8, "until": stop}),
        ("Grass is", {"max_gen_toks": 3}),
        ("Grass is", {"max_gen_toks": 8, "until": [stop]}),
    ]
    a, b, c = adapter.generate_until(asked("generate_until", *requests))
    assert a == c == full.split(stop)[0] and b == full[:3]
    hot = {"max_gen_toks": 8, "do_sample": True, "temperature": 5.0, "top_k": 50, "top_p": 0.9}
    assert adapter.generate_until(asked("generate_until", ("Grass is", hot))) != [full]
    cold = {"max_gen_toks": 8, "do_sample": False, "temperature": 5.0}
    assert adapter.generate_until(asked("generate_until", ("Grass is", cold))) == [full]
    with pytest.raises(UsageError, match="num_beams"):
        adapter.generate_until(asked("generate_until", ("a", {"num_beams": 4})))


def test_batches_change_nothing(model):
    pairs = [("Grass is" * (i % 4), " green" * (1 + i % 3)) for i in range(11)]
    found = {tuple(Adapter(model, TOKENIZER, B).loglikelihood(asked("loglikelihood", *pairs))) for B in (1, 4, 100)}
    assert len(found) == 1


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch, model):
    """A model, its tokenizer and the three tasks; no network, no cache of another test."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "colours.json"
    data.write_text("\n".join(json.dumps({"q": q, "a": a, "label": label}) for q, a, label in COLOURS))
    (tmp_path / "tasks").mkdir()
    for kind, rest in TASKS.items():
        (tmp_path / "tasks" / f"{kind}.yaml").write_text(TASK.format(kind=kind, data=data) + rest)
    TOKENIZER.save(tmp_path / "tokenizer.bin")
    model.save("m.bin")
    return tmp_path


def test_tasks_in_the_table(folder, model, adapter, capsys):
    names = ",".join(f"small_{kind}" for kind in TASKS)
    assert main(["m.bin", "--tasks", names, "--task-folder", "tasks", "--threads", "1", "--json"]) == 0
    choice, rolling, answer = json.loads(capsys.readouterr().out)["results"]
    right = 0
    for q, _a, label in COLOURS:
        found = adapter.loglikelihood(
            asked("loglikelihood", *((q, f" {c}") for c in ("green", "red", "blue", "white")))
        )
        right += int(np.argmax([total for total, _ in found]) == label)
    assert (choice["set"], choice["acc"], choice["questions"]) == ("small_multiple_choice", right / 4, 4)
    texts = [(f"{q} {a}",) for q, a, _ in COLOURS]
    total = sum(adapter.loglikelihood_rolling(asked("loglikelihood_rolling", *texts)))
    size = sum(len(text) for (text,) in texts)
    assert rolling["bits_per_byte"] == pytest.approx(-total / size / math.log(2))
    assert answer["exact_match"] == 0.0
    assert (
        main(["m.bin", "--tasks", "small_multiple_choice", "--task-folder", "tasks", "--threads", "1", "--limit", "2"])
        == 0
    )
    facts, title, head, row = capsys.readouterr().out.splitlines()
    assert facts.startswith("data      small_multiple_choice: lm-evaluation-harness ") and facts.endswith(
        ", 2 questions"
    )
    assert title.strip() == "small_multiple_choice" and head.split() == ["acc", "acc_norm"] and row.count("±") == 2


@pytest.mark.full
def test_the_command_line_of_the_harness(folder):
    command = ["run", "--model", "gpt2flat", "--model_args", "path=m.bin,threads=1", "--tasks", "small_multiple_choice"]
    done = subprocess.run([sys.executable, "-m", "gpt2flat.evaluation.harness", *command, "--include_path", "tasks"],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 and "|small_multiple_choice|" in done.stdout.replace(" ", ""), done.stderr


@pytest.mark.parametrize(
    "words, code, says",
    [
        pytest.param(
            "m.bin --tasks nosuchtask",
            2,
            "--tasks nosuchtask: the harness has no such task",
            marks=pytest.mark.full,
        ),
        pytest.param("m.bin --tasks hellaswag", 4, "task hellaswag: ", marks=pytest.mark.full),
        ("m.bin --tasks broken --task-folder tasks", 4, "task broken: "),
        ("bare/m.bin --tasks small_multiple_choice --task-folder tasks", 2, "no tokenizer is beside the model"),
        ("m.bin --tasks small_multiple_choice --num-fewshot -1", 2, "--num-fewshot"),
    ],
)
def test_wrong_input_is_one_line(folder, capsys, words, code, says):
    (folder / "bare").mkdir()
    broken = TASK.format(kind="multiple_choice", data=folder / "colours.json").replace(
        "small_multiple_choice", "broken"
    )
    (folder / "tasks" / "broken.yaml").write_text(
        broken.replace("validation_split: validation", "validation_split: test") + TASKS["multiple_choice"]
    )
    Model.init(GPT2Config(block_size=8, vocab_size=9, n_layer=1, n_head=1, n_embd=4)).save("bare/m.bin")
    assert main([*words.split(), "--threads", "1"]) == code
    out, error = capsys.readouterr()
    lines = [line for line in error.splitlines() if line.startswith("gpt2flat")]
    assert out == "" and len(lines) == 1 and says in lines[0]


def test_arguments_of_a_model(folder, model):
    one = Adapter.create_from_arg_string("path=m.bin,threads=1,precision=bf16", {"batch_size": 4, "device": None})
    assert one.model.precision == "bf16" and one.tok_encode("a") == [97] and one.max_length == T
    with pytest.raises(UsageError, match="pretrained: expected path"):
        Adapter.create_from_arg_string("pretrained=m.bin")
