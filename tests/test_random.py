"""The random stream against llm.c's words, PyTorch's numbers (2.13, CPU generator; stored) and the shuffles of both."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2flat.data import mt19937
from gpt2flat.data.mt19937 import Stream, normal_

WORDS = {
    137: [4053805790, 2173880614, 380293709, 1237255315, 2986595568],
    42: [1608637542, 3421126067, 4083286876, 787846414, 3143890026],
}
# torch.empty(n).normal_(generator=g) with seed 137, and the uniform drawn next: fewer than 16, 16, with a tail
NORMALS = {
    7: ([0.90807813, 0.029868588, 0.96195894, 0.90042686, 0.51685095, 1.1259274, -0.53311586], 0.9590718150138855),
    16: (
        [1.1220245, -0.66312784, -0.5289731, 1.0454035, -0.055338379, 0.16621369, 0.091959171, 0.68002957]
        + [-0.84036362, -1.1242744, -1.3860172, 1.284236, 0.16462018, 0.53710997, -0.65701163, 0.16786012],
        0.9590718150138855,
    ),
    23: (
        [1.1220245, -0.66312784, -0.5289731, 1.0454035, -0.055338379, 0.16621369, 0.091959171, -2.6463957]
        + [-0.065695032, 0.21808295, -0.46536165, -0.3310841, 2.5485482, 0.1042538, -0.4062658, 0.94624484]
        + [-0.2913765, 0.34313807, -1.1186705, -0.18305328, -2.315316, 0.39619878, 0.93834162],
        0.1651771068572998,
    ),
}
# torch.empty(100_003).normal_(0, 0.02, generator=g) with seed 42: single values across the chunks and the tail
LARGE = {0: 0.038538303, 1: 0.029745681, 7: -0.032093339, 8: -0.015042705, 65535: 0.032429896, 65536: 0.017768158}
LARGE |= {99983: -0.010040021, 99984: 0.013081625, 99999: 0.036532555, 100000: -0.0091714542, 100002: -0.0046275491}
LARGE_SUM, LARGE_SQUARES = 4.254010820318925, 40.473293924494136


@pytest.mark.parametrize("seed", WORDS)
def test_words(seed):
    stream = Stream(seed)
    assert stream.words(2).tolist() + stream.words(3).tolist() == WORDS[seed]


@pytest.mark.parametrize("seed", [42, 42 + (1 << 32), 42 - (1 << 32)])
def test_uniforms_are_pytorchs(seed):
    wanted = [0.8822692632675171, 0.9150039553642273, 0.38286375999450684, 0.9593056440353394, 0.3904482126235962]
    drawn = Stream(seed).uniform(5)
    assert drawn.dtype == np.float32 and drawn.tolist() == wanted


@pytest.mark.parametrize("n", NORMALS)
def test_normals_are_pytorchs(n):
    values, uniform = NORMALS[n]
    stream, view = Stream(137), np.full(n, np.nan, np.float32)
    normal_(view, 1.0, stream)
    np.testing.assert_allclose(view, values, rtol=1e-6, atol=5e-7)
    assert stream.uniform(1)[0] == np.float32(uniform), "the stream is not where PyTorch's is afterwards"


@pytest.mark.parametrize("chunk", [16, 4096, mt19937.CHUNK])
def test_a_large_tensor_in_chunks(monkeypatch, chunk):
    monkeypatch.setattr(mt19937, "CHUNK", chunk)
    view = np.full((7, 100_003), np.nan, np.float32)[3]
    normal_(view, 0.02, Stream(42))
    np.testing.assert_allclose(view[list(LARGE)], list(LARGE.values()), rtol=1e-6, atol=1e-8)
    assert view.sum(dtype=np.float64) == pytest.approx(LARGE_SUM, abs=1e-5)
    assert np.square(view, dtype=np.float64).sum() == pytest.approx(LARGE_SQUARES, rel=1e-7)


@given(st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_every_element_is_written_and_nothing_else(n, seed):
    home = np.full(n + 2, 7.5, np.float32)
    home[1:-1] = np.nan
    normal_(home[1:-1], 1.0, Stream(seed))
    assert np.isfinite(home).all() and home[0] == home[-1] == 7.5


@pytest.mark.parametrize("view", [np.zeros(32), np.zeros((16, 16), np.float32)[:, ::2], np.zeros((4, 8), np.float32).T])
def test_other_arrays_are_refused(view):
    with pytest.raises(ValueError, match="contiguous float32"):
        normal_(view, 1.0, Stream(1))


def test_permutations_are_llmcs():
    stream = Stream(42)
    assert stream.permutation(8).tolist() == [1, 0, 3, 7, 5, 4, 2, 6]
    assert stream.permutation(8).tolist() == [1, 6, 7, 2, 3, 5, 0, 4]
    assert Stream(42).permutation(1192)[:10].tolist() == [408, 791, 914, 1057, 81, 450, 299, 907, 582, 321]


@given(st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_permutations_permute_and_draw_n_minus_1_words(n, seed):
    stream, other = Stream(seed), Stream(seed)
    assert sorted(stream.permutation(n).tolist()) == list(range(n))
    other.words(max(0, n - 1))
    assert stream.words(1)[0] == other.words(1)[0]
