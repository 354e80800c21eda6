"""Sequences of ids: the same whatever the batch, their neighbours and threads; when they end; what they see."""

from types import SimpleNamespace

import numpy as np
import pytest

from gpt2flat import GPT2Config, Model
from gpt2flat.errors import DataError, KernelArgError, UsageError
import plain_decoder
from gpt2flat.generation import stream
from gpt2flat.generation.generate import generate
from gpt2flat.generation.sampling import Sampling, log_softmax
from gpt2flat.generation.stream import at_ids


@pytest.fixture(scope="module")
def model() -> Model:
    return made(1)


def made(threads: int) -> Model:
    m = Model.init(GPT2Config(block_size=24, vocab_size=257, n_layer=2, n_head=2, n_embd=16), threads=threads)
    for _name, view in m.params.items():
        view *= 8  # far from uniform
    return m


class FakeModel:
    """Logits that depend on the last token only: the next id is likeliest, then the one after it."""

    def __init__(self, V: int = 10, shifts=((1, 3.0), (2, 2.0), (3, 1.0))):
        self.shifts = shifts
        self.V, self.seen, self.config = V, [], SimpleNamespace(block_size=8, vocab_size=V)

    def logits(self, tokens, at):
        self.seen.append(tokens.copy())
        out = np.full((*tokens.shape, self.V), -5.0, np.float32)
        for shift, value in self.shifts:
            np.put_along_axis(out, (tokens[..., None] + shift) % self.V, value, axis=-1)
        return out[:, at]


@pytest.fixture
def fake(monkeypatch) -> FakeModel:
    monkeypatch.setattr(stream, "Decoder", plain_decoder.Decoder)
    return FakeModel()


def by_sequence(tokens) -> dict[int, list[int]]:
    found = {}
    for token in tokens:
        found.setdefault(token.sequence, []).append(token.id)
    return found


def test_greedy_counts_up(fake):
    assert generate(fake, [4], 8, temperature=0).tolist() == [4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert generate(fake, [[4], [7]], 3, temperature=0).tolist() == [[4, 5, 6, 7], [7, 8, 9, 0]]
    assert generate(fake, [4], 0).tolist() == [4]


def test_a_seed_decides_and_rows_are_runs_of_their_own(fake):
    runs = [generate(fake, [0], 40, seed=seed).tolist() for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert generate(fake, [[0], [0]], 40, seed=0).tolist() == [runs[0], runs[2]]
    assert generate(fake, [0], 40, num_samples=2).tolist() == [runs[0], runs[2]]
    assert generate(fake, [0], 40).dtype == np.int32


def test_settings_reach_the_sampler(fake):
    steps = np.diff(generate(fake, [0], 400, top_k=2)) % 10
    assert set(steps) == {1, 2}
    assert set(np.diff(generate(fake, [0], 50, top_p=0.6)) % 10) == {1}
    assert set(np.diff(generate(fake, [0], 200, min_p=0.2)) % 10) == {1, 2}
    assert len(set(np.diff(generate(fake, [0], 400, temperature=50.0)) % 10)) == 10
    assert len(set(generate(fake, [0], 9, temperature=0, repetition_penalty=1e5))) == 10
    assert len(set(generate(fake, [0], 9, temperature=0, repetition_penalty=1e5, repetition_window=0))) == 10
    same = FakeModel(shifts=((0, 3.0), (1, 2.0)))
    assert set(generate(same, [4], 5, temperature=0)) == {4}
    again = generate(
        same, [4], 5, temperature=0, repetition_penalty=1e5, repetition_window=1
    )  # the last id counts, too
    assert again.tolist() == [4, 5, 6, 7, 8, 9]


PROMPTS = [[1, 2, 3], [200], list(range(60, 90)), [7] * 24, [5, 250]]  # also as long as a block, and longer


def test_no_batch_grouping_or_thread_count_changes_a_text(model):
    settings = dict(
        max_new_tokens=30,
        sampling=Sampling(top_p=0.9, repetition_penalty=1.1),
        samples=3,
        seed=11,
        ends=at_ids(range(0, 257, 13)),
    )
    whole = by_sequence(stream.stream(model, PROMPTS, batch=1, **settings))
    assert len(whole) == 15 and len(set(map(tuple, whole.values()))) == 15
    lengths = {len(ids) for ids in whole.values()}
    assert len(lengths) > 2  # some end early, in the midst of their batch
    for batch in (2, 4, 15, 100):
        assert by_sequence(stream.stream(model, PROMPTS, batch=batch, **settings)) == whole
    assert by_sequence(stream.stream(made(2), PROMPTS, batch=4, **settings)) == whole
    for p, prompt in enumerate(PROMPTS):  # alone, with the seed that it has among the others
        alone = by_sequence(stream.stream(model, [prompt], batch=2, **(settings | {"seed": 11 + 3 * p})))
        assert [alone[i] for i in range(3)] == [whole[3 * p + i] for i in range(3)]


def test_greedy_texts_are_those_of_full_forwards(model, monkeypatch):
    """Also beyond the block size, where the context starts anew."""
    settings = dict(max_new_tokens=50, sampling=Sampling(temperature=0, repetition_penalty=1.2))
    cached = by_sequence(stream.stream(model, PROMPTS, batch=3, **settings))
    monkeypatch.setattr(stream, "Decoder", plain_decoder.Decoder)
    assert by_sequence(stream.stream(model, PROMPTS, **settings)) == cached


def test_sequences_end_where_they_should(fake):
    tokens = [*stream.stream(fake, [[4], [6], [0]], 5, Sampling(temperature=0), ends=at_ids({8}))]
    assert by_sequence(tokens) == {0: [5, 6, 7, 8], 1: [7, 8], 2: [1, 2, 3, 4, 5]}
    assert {t.sequence: t.end for t in tokens if t.end} == {0: "stop", 1: "stop", 2: "length"}
    assert generate(fake, [4], 8, temperature=0, stop=7).tolist() == [4, 5, 6, 7]
    assert generate(fake, [[4], [6]], 8, temperature=0, stop=(8, 5)).tolist() == [[4, 5, 5], [6, 7, 8]]
    assert [*stream.stream(fake, [], 5)] == [*stream.stream(fake, [[1]], 0)] == []


def test_what_is_done_costs_no_step(fake):
    tokens = [*stream.stream(fake, [[4], [6], [0]], 9, Sampling(temperature=0), ends=at_ids({8}))]
    assert len(fake.seen) == len(tokens) == 4 + 2 + 8  # rows of logits


def test_several_samples_share_one_prefill(fake):
    [*stream.stream(fake, [[4], [6]], 1, samples=3, batch=4)]
    assert [seen[0, 0] for seen in fake.seen] == [4, 6, 6]


def test_log_probabilities_are_asked_for(model):
    tokens = [*stream.stream(model, [[3, 4]], 4, Sampling(temperature=0.5), log_probs=True)]
    ids = [3, 4]
    for token in tokens:
        assert token.log_prob == pytest.approx(log_softmax(model.logits([ids], last=True)[0])[token.id], rel=1e-5)
        ids.append(token.id)
    assert all(token.log_prob is None for token in stream.stream(model, [[3, 4]], 4))


def test_beyond_the_block_the_context_starts_at_a_multiple_of_half_of_it(model):
    ids = generate(model, np.arange(20), 60, seed=3)
    assert ids.shape == (80,) and ids.max() < 257 and (ids[:20] == np.arange(20)).all()
    for n in (24, 25, 36, 37, 48, 49, 79):
        start = next(s for s in range(0, n, 12) if n - s <= 24)
        seen = model.logits([ids[start:n]], last=True)[0]
        assert generate(model, ids[:n], 1, temperature=0)[-1] == seen.argmax()


@pytest.mark.parametrize("wrong, error", [
    (dict(tokens=[]), KernelArgError), (dict(tokens=[0.5]), KernelArgError), (dict(tokens=[[[1]]]), KernelArgError),
    (dict(tokens=[257]), DataError), (dict(max_new_tokens=-1), UsageError), (dict(temperature=-1.0), UsageError),
    (dict(temperature=np.nan), UsageError), (dict(temperature=np.inf), UsageError), (dict(top_k=0), UsageError),
    (dict(top_p=1.5), UsageError), (dict(seed=-1), UsageError), (dict(stop=257), UsageError), (dict(stop=0.5), UsageError),
    (dict(num_samples=0), UsageError), (dict(num_beams=0), UsageError), (dict(num_beams=2, top_k=4), UsageError),
    (dict(n_best=2), UsageError), (dict(length_penalty=2.0), UsageError), (dict(num_beams=2, n_best=3), UsageError), (dict(batch=0), UsageError),
])  # fmt: skip
def test_wrong_arguments(model, wrong, error):
    with pytest.raises(error):
        generate(model, **({"tokens": [1]} | wrong))


def test_ragged_prompts_are_checked(model):
    with pytest.raises(DataError, match="prompt 1"):
        stream.stream(model, [[1], [2, 257]])
