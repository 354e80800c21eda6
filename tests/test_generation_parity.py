"""Sampling and beams against transformers, which runs in another process."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import parity
import pytest
from test_sampling import ALONE, TOGETHER

from gpt2flat import GPT2Config, Model
from gpt2flat.generation import beams
from gpt2flat.generation.sampling import Sampling

V, ROWS = 50257, 4
SAMPLING = [s for s in ALONE + TOGETHER if s.get("temperature") != 0 and "repetition_window" not in s]
SAMPLING = [*SAMPLING, dict(top_k=100), dict(top_p=0.99), dict(top_p=0.01), dict(top_k=V), TOGETHER[-3]]
EOT = 36
BEAMS = [
    dict(prompt=prompt, beams=width, n_best=width, n=n, length_penalty=penalty, eot=EOT)
    for prompt, width, n, penalty in [([1, 2], 2, 6, 1.0), ([3], 4, 8, 1.0), ([EOT, 5, 9], 5, 9, 0.0), ([7], 3, 9, 2.0), ([8, 8], 6, 5, -1.0)]
] + [dict(prompt=[4, 4], beams=3, n_best=2, n=7, length_penalty=1.0, eot=EOT, repetition_penalty=1.3)]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """(model, rows of logits, ids that are there already, their scores, their beams)."""
    folder = tmp_path_factory.mktemp("generation")
    model = Model.init(GPT2Config(block_size=16, vocab_size=37, n_layer=2, n_head=2, n_embd=24), threads=1)
    parity.fill(model.params, 37, 0.3)
    model.save(folder / "model.bin")
    stream = np.random.RandomState(0)
    logits = (stream.standard_normal((ROWS, V)) * [[0.3], [2.5], [2.5], [6.0]]).astype(np.float32)
    seen = stream.randint(0, V, (ROWS, 50))
    np.savez(folder / "rows.npz", logits=logits, seen=seen)
    (folder / "cases.json").write_text(json.dumps({"sampling": SAMPLING, "beams": BEAMS}))
    script = Path(__file__).with_name("reference_generation.py")
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "scores.npz", allow_pickle=False) as file:
        scores = [file[str(i)] for i in range(len(SAMPLING))]
    return model, logits, seen, scores, json.loads((folder / "beams.json").read_text())


@pytest.mark.parametrize("i", range(len(SAMPLING)), ids=[str(s) for s in SAMPLING])
def test_what_may_be_drawn_and_how_likely_it_is(theirs, i):
    _model, logits, seen, scores, _found = theirs
    for row in range(ROWS):
        ours = Sampling(**SAMPLING[i]).probabilities(logits[row], seen[row])
        x = scores[i][row].astype(np.float64)
        p = np.exp(x - x.max())
        differ = np.flatnonzero((ours > 0) != (p > 0))
        # their cumulated sums are of float32: at its edge an id may fall to the other side
        assert len(differ) <= (1 + 2e-6 * V if "top_p" in SAMPLING[i] else 0), f"{len(differ)} of {(p > 0).sum()} ids"
        np.testing.assert_allclose(ours[p > 0], (p / p.sum())[p > 0], rtol=2e-4, atol=2e-6)


def test_the_order_is_theirs(theirs):
    assert theirs[-1]["order"] == ["RepetitionPenaltyLogitsProcessor", "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper",
                                   "MinPLogitsWarper"]  # fmt: skip


@pytest.mark.parametrize("i", range(len(BEAMS)))
def test_beams_are_theirs(theirs, i):
    case, model = BEAMS[i], theirs[0]
    sampling = Sampling(repetition_penalty=case.get("repetition_penalty", 1.0))
    tokens = beams.stream(model, [case["prompt"]], case["n"], case["beams"], case["n_best"], case["length_penalty"], (EOT,), sampling)
    ours = {}
    for token in tokens:
        ids, _score = ours.get(token.sequence, ([], None))
        ours[token.sequence] = [*ids, token.id], token.score
    found = theirs[-1]["beams"][i]
    longest = max(len(ids) for ids, _ in ours.values())
    assert [ids + [EOT] * (longest - len(ids)) for ids, _ in ours.values()] == [row for row, _ in found]
    np.testing.assert_allclose([score for _, score in ours.values()], [score for _, score in found], rtol=1e-4)
