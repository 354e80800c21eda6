"""Beam search against all sequences there are, and against the search written with lists."""

import itertools

import numpy as np
import pytest

from gpt2flat import GPT2Config, Model
from gpt2flat.errors import DataError, UsageError
from gpt2flat.generation import beams
from gpt2flat.generation.sampling import Sampling, log_softmax

V, EOT = 5, 4


class Toy:
    """A decoder whose logits are a random function of all ids of a row."""

    def __init__(self, seed: int):
        self.seed, self.held = seed, []

    def logits_of(self, row) -> np.ndarray:
        return np.random.RandomState([self.seed, *row]).standard_normal(V).astype(np.float32) * 2

    def prefill(self, prompts):
        self.held = [tuple(map(int, prompt)) for prompt in prompts]
        return np.stack([self.logits_of(row) for row in self.held])

    def step(self, ids):
        self.held = [(*row, int(i)) for row, i in zip(self.held, ids, strict=True)]
        return np.stack([self.logits_of(row) for row in self.held])

    def select(self, sources):
        self.held = [self.held[source] for source in sources]


def all_sequences(toy: Toy, prompt, n: int, length_penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """(score, ids) of everything that can be written, the best first."""
    found = []
    for length in range(1, n + 1):
        for ids in itertools.product(range(V), repeat=length):
            if EOT in ids[:-1] or (length < n and ids[-1] != EOT):
                continue
            total = sum(log_softmax(toy.logits_of((*prompt, *ids[:i])))[ids[i]] for i in range(length))
            found.append((total / length**length_penalty, ids))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("seed", range(3))
def test_wide_enough_it_is_exhaustive(seed, length_penalty):
    toy, prompt, n = Toy(seed), (1, 2), 3
    found = beams.search(toy, np.array(prompt), n, (V - 1) ** n * V, length_penalty, (EOT,))
    every = all_sequences(toy, prompt, n, length_penalty)
    assert [beam.ids for beam in found] == [ids for _score, ids in every]
    np.testing.assert_allclose([beam.score for beam in found], [score for score, _ids in every], rtol=1e-12)
    for beam in found:
        assert beam.end == ("stop" if beam.ids[-1] == EOT else "length")
        assert sum(beam.log_probs) == pytest.approx(beam.total, rel=1e-12)


def test_one_beam_is_greedy():
    toy = Toy(7)
    (beam,) = beams.search(toy, np.array([0]), 6, 1, 0.0)
    row = (0,)
    for i in beam.ids:
        assert i == toy.logits_of(row).argmax()
        row = (*row, i)


def slow_search(toy: Toy, prompt, n: int, width: int, length_penalty: float):
    """The rule of transformers once more: candidates in lists, all sorted."""
    live, done = [((), 0.0)], []
    for length in range(1, n + 1):
        every = [
            ((*ids, i), total + log_softmax(toy.logits_of((*prompt, *ids)))[i]) for ids, total in live for i in range(V)
        ]
        every = sorted(every, key=lambda one: -one[1])[: 2 * width]
        ended = [one for one in every[:width] if one[0][-1] == EOT or length == n]
        done = sorted(done + [(total / length**length_penalty, ids) for ids, total in ended], reverse=True)[:width]
        live = [one for one in every if one[0][-1] != EOT and length < n][:width]
        if not live or (len(done) == width and live[0][1] / length**length_penalty <= done[-1][0]):
            break
    return done


@pytest.mark.parametrize("width, length_penalty", [(1, 1.0), (2, 1.0), (3, 0.0), (4, 2.0), (3, -1.0)])
def test_narrow_it_keeps_the_best_of_each_step(width, length_penalty):
    for seed in range(20):
        found = beams.search(Toy(seed), np.array([3]), 7, width, length_penalty, (EOT,))
        assert [beam.ids for beam in found] == [
            ids for _, ids in slow_search(Toy(seed), (3,), 7, width, length_penalty)
        ]


@pytest.fixture(scope="module")
def model() -> Model:
    m = Model.init(GPT2Config(block_size=12, vocab_size=37, n_layer=2, n_head=2, n_embd=16), threads=1)
    for _name, view in m.params.items():
        view *= 8
    return m


def test_the_best_beam_of_a_model_is_likelier_than_greedy(model):
    greedy, best = ([*beams.stream(model, [[5, 6]], 8, width)] for width in (1, 8))
    assert [t.id for t in greedy] == model.generate([5, 6], 8, temperature=0)[2:].tolist()
    assert sum(t.log_prob for t in best) > sum(t.log_prob for t in greedy)
    assert best[-1].score == pytest.approx(sum(t.log_prob for t in best) / 8) and best[-1].end == "length"


def test_sequences_are_numbered_by_prompt_and_place(model):
    tokens = [*beams.stream(model, [[1], [2, 3]], 4, 3, n_best=2)]
    assert [t.sequence for t in tokens if t.end] == [0, 1, 2, 3]
    assert tokens[3].score >= tokens[7].score
    alone = [*beams.stream(model, [[2, 3]], 4, 3, n_best=2)]
    assert [(t.id, t.score) for t in alone] == [(t.id, t.score) for t in tokens[8:]]
    rows = model.generate([[1], [2]], 4, num_beams=3, n_best=2)
    assert rows.shape == (4, 5) and rows[:2, 1:].ravel().tolist() == [t.id for t in tokens[:8]]


def test_a_penalty_keeps_beams_from_repeating(model):
    usual, penalised = (
        [t.id for t in beams.stream(model, [[5, 6]], 10, 3, sampling=s)]
        for s in (Sampling(), Sampling(repetition_penalty=1e5))
    )
    assert len(set(usual)) < 10 == len(set(penalised))


@pytest.mark.parametrize("wrong, error", [
    (dict(n_best=4), UsageError), (dict(beams=0), UsageError), (dict(length_penalty=np.nan), UsageError), (dict(prompts=[[37]]), DataError),
])  # fmt: skip
def test_wrong_arguments(model, wrong, error):
    with pytest.raises(error):
        beams.stream(model, **(dict(prompts=[[1]], max_new_tokens=4, beams=3) | wrong))
