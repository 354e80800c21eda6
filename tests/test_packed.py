"""Packed weights and the int8 that x becomes beside them: what they mean, what is lost, and what a NaN does."""

import numpy as np
import pytest

import harness
import truth
from gpt2flat import kernels
from gpt2flat.generation.packed import pack_rows, unpack_rows
from gpt2flat.kernels.packing import BF16, INT8, packed_floats

BY_ISA = pytest.mark.parametrize("native", harness.backends(), ids=lambda native: native.isa)
C = 275  # two blocks of 128 and one of 19


def packed(rows: np.ndarray, pack: int) -> np.ndarray:
    out = np.full((len(rows), packed_floats(rows.shape[1], pack)), np.nan, np.float32)
    pack_rows(out, rows, pack)
    return out


def weights(rows: int = 6) -> np.ndarray:
    rng = np.random.default_rng(2)
    return (
        rng.standard_normal((rows, C)) * 10.0 ** rng.integers(-9, 9, (rows, C // 32 + 1)).repeat(32, 1)[:, :C]
    ).astype(np.float32)


def by_blocks(rows: np.ndarray) -> np.ndarray:
    """(n, C) -> (n, blocks, 32), zeros behind the last."""
    return np.pad(rows, [(0, 0), (0, -rows.shape[1] % 32)]).reshape(len(rows), -1, 32)


def test_int8_is_the_nearest_of_255_numbers():
    rows = weights()
    meant = unpack_rows(packed(rows, INT8), C, INT8)
    wide, got = by_blocks(rows), by_blocks(meant)
    most = abs(wide).max(2, keepdims=True)
    assert (abs(got - wide) <= most / 127 * 0.502).all() and (abs(got - wide).max(2) > most[..., 0] / 127 * 0.2).all()
    assert (abs(got).max(2, keepdims=True) >= most * 0.995).all()
    scale = most / 127
    assert (abs(np.rint(got / scale)).max(2) >= 126).all(), "the numbers do not reach the ends"


@pytest.mark.parametrize("pack", [BF16, INT8])
def test_packed_rows_lie_as_the_contract_says(pack):
    rows = weights()
    assert np.array_equal(truth.unpacked(packed(rows, pack), C, pack), unpack_rows(packed(rows, pack), C, pack))
    assert np.array_equal(
        packed(rows, pack).view(np.uint8),
        packed(np.pad(rows, [(0, 0), (0, -C % 128)]), pack)[:, : packed_floats(C, pack)].view(np.uint8),
    )


def test_blocks_without_numbers_are_zeros():
    rows = np.zeros((1, C), np.float32)
    rows[0, 32:64] = np.ldexp(1.0, -149) * np.arange(32)
    assert not unpack_rows(packed(rows, INT8), C, INT8).any()
    assert not unpack_rows(packed(rows, BF16), C, BF16).any()


def taken(native, x: np.ndarray) -> np.ndarray:
    """What rows of x become beside int8 weights, times 127 / 2^20: their products with unit vectors."""
    out, units = np.empty(x.shape, np.float32), 127 * np.ldexp(np.eye(C, dtype=np.float32), -20)
    kernels.run("decode_linear", kernels=native, threads=2, out=out, inp=x, weight=packed(units, INT8), PACK=INT8)
    return out


@BY_ISA
def test_x_is_rounded_to_the_nearest_and_to_even(native):
    x = weights(5)
    x[0, [0, 1, 2, 3, 16, 17, 18, 19]] = [-127, 0.5, 1, 1.5, 2, 2.5, -2.5, 3]  # a lane with halves
    x[1, :128] = 0
    x[1, 32:64] = 3.4e38
    x[2, 256:] = np.float32(5e-38) * np.arange(C - 256)
    x[3, 256:] = 1.1e-36
    lanes = truth.by_lanes(x)
    most = abs(lanes).max(2, keepdims=True)
    numbers = np.rint(lanes * np.divide(np.float32(127), most, where=most > 1e-36, out=np.zeros_like(most)))
    assert numbers[0, 0].tolist() == [-127, 0, 1, 2, 2, 2, -2, 3] and not numbers[2, 32:].any()
    assert (numbers[1, 4:8] == 127).all() and numbers[3, 32, 0] == 127
    want = numbers * (127 / 2**20) * (most * (np.float32(1) / np.float32(127))).astype(np.float64)
    assert np.array_equal(taken(native, x), truth.by_elements(want, C).astype(np.float32))


@BY_ISA
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_makes_its_row_nan_and_no_other(native, wrong):
    for at in (0, 31, 32, C - 1):
        x = weights(5)
        want = taken(native, x)
        x[3, at] = wrong
        got = taken(native, x)
        assert np.isnan(got[3]).all() and np.array_equal(np.delete(got, 3, 0), np.delete(want, 3, 0))
        assert np.isnan(taken(native, x[3:4].copy())).all()
