"""Drawing: what is kept against the definitions, frequencies against exact probabilities, and the odd rows."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2flat.errors import NonFiniteError, UsageError
from gpt2flat.generation.sampling import BLOCK, BUCKETS, STEPS, Sampling, invert, log_probability, log_softmax

LOGITS = np.array([2.0, -1.0, 0.5, 3.0, 3.0, -4.0, 1.0, 0.0, 2.5, -0.5, 1.5, -2.0], np.float32)
SEEN = np.array([3, 5, 3, 8])
ALONE = [
    dict(temperature=0.5), dict(temperature=2.0), dict(top_k=3), dict(top_p=0.7), dict(min_p=0.2), dict(repetition_penalty=1.7),
    dict(repetition_penalty=0.6), dict(repetition_penalty=1.7, repetition_window=2), dict(temperature=0.0),
]  # fmt: skip
TOGETHER = [a | b for a, b in itertools.combinations(ALONE[:-1], 2)] + [
    dict(temperature=0.8, top_k=9, top_p=0.9, min_p=0.05, repetition_penalty=1.3),
    dict(temperature=1.5, top_k=7, top_p=0.95, min_p=0.3, repetition_penalty=1.2, repetition_window=1),
    dict(temperature=0.0, repetition_penalty=3.0),
]


def exact(
    logits, seen=(), temperature=1.0, top_k=None, top_p=None, min_p=None, repetition_penalty=1.0, repetition_window=None
):
    """The probabilities by the definitions, with a full sort."""
    x = logits.astype(np.float64)
    for i in set(seen if repetition_window is None else list(seen)[len(seen) - repetition_window :]):
        x[i] = x[i] / repetition_penalty if x[i] > 0 else x[i] * repetition_penalty
    if temperature == 0:
        return np.eye(len(x))[x.argmax()]
    x /= temperature
    p, order = np.exp(x - x.max()), np.argsort(-x, kind="stable")
    if top_k and top_k < len(x):
        p[x < x[order[top_k - 1]]] = 0
    p /= p.sum()
    if top_p is not None:
        before = np.cumsum(p[order]) - p[order]
        p[order[1:][before[1:] >= top_p]] = 0
    if min_p is not None:
        p[p < min_p * p.max()] = 0
    return p / p.sum()


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    """How many standard deviations the statistic is above its mean; ids that are never expected must not be there."""
    assert not counts[p == 0].any()
    kept = p > 0
    expected = counts.sum() * p[kept]
    degrees = kept.sum() - 1
    return ((np.square(counts[kept] - expected) / expected).sum() - degrees) / math.sqrt(2 * max(1, degrees))


@pytest.mark.parametrize("settings", ALONE + TOGETHER, ids=str)
def test_probabilities_are_those_of_the_definitions(settings):
    np.testing.assert_allclose(
        Sampling(**settings).probabilities(LOGITS, SEEN), exact(LOGITS, SEEN, **settings), rtol=1e-12
    )


@pytest.mark.parametrize("settings", ALONE + TOGETHER[-3:], ids=str)
def test_frequencies(settings):
    sampling, random, n = Sampling(**settings), np.random.Generator(np.random.PCG64(5)), 2500
    counts = np.bincount([sampling.draw(LOGITS, SEEN, random) for _ in range(n)], minlength=len(LOGITS))
    assert counts.sum() == n and chi_square(counts, exact(LOGITS, SEEN, **settings)) < 4


def test_the_chi_square_sees_a_wrong_distribution():
    random = np.random.Generator(np.random.PCG64(5))
    counts = np.bincount(
        [Sampling(temperature=1.1).draw(LOGITS, SEEN, random) for _ in range(2500)], minlength=len(LOGITS)
    )
    assert chi_square(counts, exact(LOGITS)) > 4


def whole_row(kind: str) -> np.ndarray:
    """Logits over GPT-2's vocabulary: like a trained model's, like those of random weights, equal, or with what is next to impossible."""
    stream = np.random.RandomState(3)
    row = stream.standard_normal(50257) * {"trained": 2.5, "flat": 0.05, "equal": 0.0, "far": 3.0}[kind]
    if kind in ("trained", "far"):
        row[stream.randint(0, 50257, 20)] += 10
    if kind == "far":
        row[1000:40000] = -1e30
    return row.astype(np.float32)


@pytest.mark.parametrize("kind", ["trained", "flat", "equal", "far"])
@pytest.mark.parametrize(
    "settings",
    [{}, dict(top_k=40), dict(top_p=0.9), dict(min_p=0.01), dict(temperature=0.7, top_k=5000, top_p=0.5, min_p=1e-4)],
    ids=str,
)
def test_rows_of_a_whole_vocabulary(kind, settings):
    logits = whole_row(kind)
    p = exact(logits, **settings)
    found = Sampling(**settings).probabilities(logits)
    np.testing.assert_allclose(found, p, rtol=1e-9)
    random = np.random.Generator(np.random.PCG64(1))
    draws = [Sampling(**settings).draw(logits, (), random) for _ in range(150)]
    assert p[draws].all()
    # ids in 12 groups of the same probability, more or less
    group = np.minimum((np.cumsum(p) - p / 2) * 12, 11).astype(int)
    assert chi_square(np.bincount(group[draws], minlength=12), np.bincount(group, p, 12)) < 4


@given(
    st.lists(st.sampled_from([0.0, 1e-300, 1.0, 0.3, 7.0]), min_size=1, max_size=3 * BLOCK),
    st.floats(0, 1, exclude_max=True),
)
def test_inversion_takes_the_id_in_which_the_number_falls(weights, at):
    weights = np.array([*weights, 1.0])
    found, ends = invert(weights, at), np.cumsum(weights)
    assert weights[found] > 0
    slack = 1e-12 * ends[-1]
    assert ends[found] - weights[found] - slack <= at * ends[-1] <= ends[found] + slack


def test_numbers_at_the_ends():
    last = 1.0 - 2.0**-53
    for n in (1, BLOCK, 3 * BLOCK, 3 * BLOCK + 1):
        for weights in (np.ones(n), np.full(n, 0.1), np.random.RandomState(0).rand(n)):
            assert (invert(weights, 0.0), invert(weights, last)) == (0, n - 1)
    assert invert(np.repeat([0.0, 1.0], BLOCK), 0.0) == invert(np.ones(2 * BLOCK), 0.5) == BLOCK
    assert invert(np.array([0.0, 1.0, 0.0]), 0.0) == invert(np.array([0.0, 1.0, 0.0]), last) == 1


class One:
    def random(self):
        return 1.0 - 2.0**-53


def test_what_cannot_be_is_never_taken():
    logits = np.array([-1e30, 0.0, -np.float32(3e38)], np.float32)
    assert Sampling().draw(logits, (), One()) == 1
    assert Sampling(temperature=0).draw(np.zeros(4, np.float32), (), One()) == 0
    assert Sampling(temperature=1e-300).draw(np.zeros(4, np.float32), (), One()) == 3
    assert Sampling(temperature=1e-300).draw(np.array([0, 1e-3], np.float32), (), One()) == 1
    assert Sampling(repetition_penalty=1e6).draw(np.array([3e38, -3e38], np.float32), [0, 1], One()) == 0


def test_equal_ones_at_the_edge():
    flat = np.zeros(8, np.float32)
    assert Sampling(top_k=3).probabilities(flat).tolist() == [1 / 8] * 8  # all equal the third
    assert Sampling(top_p=0.5).probabilities(flat).tolist() == [1 / 4] * 4 + [0] * 4
    assert Sampling(top_p=0.0).probabilities(LOGITS).argmax() == 3 and Sampling(top_p=0.0).probabilities(LOGITS)[3] == 1
    assert Sampling(min_p=1.0).probabilities(LOGITS)[[3, 4]].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("step", [1 / STEPS, 1 / STEPS / BUCKETS, 0.5 / STEPS / BUCKETS, 1.0])
def test_the_nucleus_among_buckets(step):
    """Logits on the edges of buckets, of the finer ones, between these, and below all of them: the ids of a full sort."""
    random = np.random.RandomState(4)
    for p in random.random_sample(60):
        logits = (-step * random.randint(0, 70, 200)).astype(np.float32)
        assert (Sampling(top_p=p).probabilities(logits) > 0).tolist() == (exact(logits, top_p=p) > 0).tolist()


def test_a_nucleus_that_ends_with_a_bucket():
    """The likeliest alone are exactly p of the sum: none of the next bucket, nor of the next finer one, is needed."""
    for apart in (1.0, 2 / STEPS / BUCKETS):
        below = next(b for b in apart * np.arange(1.0, 2.0, 0.01) if _share(b) * (3 + np.exp(-b)) == 3.0)
        found = Sampling(top_p=_share(below)).probabilities(np.array([0, -below, 0, 0]))
        assert found.tolist() == [1 / 3, 0, 1 / 3, 1 / 3]


def _share(below: float) -> float:
    return 3.0 / (3 + np.exp(-below))


def test_log_probabilities_are_those_of_the_model():
    expected = np.log(exact(LOGITS))
    np.testing.assert_allclose(log_softmax(np.stack([LOGITS, LOGITS + 7]))[1], expected, rtol=1e-6)
    np.testing.assert_allclose([log_probability(LOGITS, i) for i in range(12)], expected, rtol=1e-12)


@pytest.mark.parametrize("name, values", {
    "temperature": (-1.0, math.nan, math.inf, "1", None), "top_k": (0, 1.5, True), "top_p": (-0.1, 1.1, math.nan), "min_p": (-0.1, 1.1),
    "repetition_penalty": (0, -1, None, math.inf), "repetition_window": (-1, 0.5),
}.items())  # fmt: skip
def test_settings_out_of_range(name, values):
    for value in values:
        with pytest.raises(UsageError, match=name):
            Sampling(**{name: value})


@pytest.mark.parametrize("settings", [{}, dict(temperature=0)])
def test_damaged_weights(settings):
    with pytest.raises(NonFiniteError):
        Sampling(**settings).draw(np.array([0.0, np.nan], np.float32), (), np.random.default_rng())
