"""Checkpoints of version 1 and 5 and token files without header in use; bfloat16: rounding, memory."""

import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from gpt2flat import GPT2Config, Model
from gpt2flat.errors import CheckpointError, FormatError, NonFiniteError, UsageError
from gpt2flat.formats import bf16
from gpt2flat.generate import main as generate
from gpt2flat.info import main as info
from gpt2flat.train import main as train

TINY = Path(__file__).parent / "llmc_tiny"
V, VP, C = 97, 128, 32  # of that model


def changed(words: dict[int, int], payload: bytes) -> bytes:
    """llm.c's tiny checkpoint with other header words and another payload."""
    header = list(struct.unpack("<256i", (TINY / "model.bin").read_bytes()[:1024]))
    for index, value in words.items():
        header[index] = value
    return struct.pack("<256i", *header) + payload


@pytest.fixture
def files(tmp_path):
    """The tiny checkpoint as version 1, 3 and 5 (its floats cut to bfloat16), made here byte by byte."""
    floats = (TINY / "model.bin").read_bytes()[1024:]
    unpadded = floats[: 4 * V * C] + floats[4 * VP * C :]
    upper = np.frombuffer(floats, "<u2")[1::2].tobytes()
    made = {1: changed({1: 1, 7: 0}, unpadded), 3: changed({}, floats), 5: changed({1: 5}, upper)}
    for version, data in made.items():
        (tmp_path / f"v{version}.bin").write_bytes(data)
    return {version: tmp_path / f"v{version}.bin" for version in (1, 3, 5)}


def test_version_1_is_version_3_without_padding(files):
    old, new = Model.load(files[1]), Model.load(files[3])
    assert old.config == new.config and np.array_equal(old.params.floats, new.params.floats)
    old.save(files[1])
    assert files[1].read_bytes() == files[3].read_bytes()


def test_version_5_is_the_upper_half(files):
    half, whole = Model.load(files[5]), Model.load(files[3])
    assert half.config == whole.config
    assert np.array_equal(half.params.floats.view("<u4"), whole.params.floats.view("<u4") & 0xFFFF0000)
    raw = files[5].read_bytes()
    half.save(files[5], dtype="bf16")  # nothing to round: the same file again
    assert files[5].read_bytes() == raw
    whole.save(files[5], dtype="bf16")
    assert np.array_equal(Model.load(files[5]).params.floats.view("<u4") >> 16, bf16.encode(whole.params.floats))


@pytest.mark.parametrize("version", [1, 3, 5])
def test_cropped(files, version):
    whole, part = Model.load(files[version]), Model.load(files[version], block_size=9)
    for name, view in part.params.items():
        assert np.array_equal(view, whole.params[name][:9] if name == "wpe" else whole.params[name]), name


@pytest.mark.parametrize("version", [1, 5])
def test_commands_take_them(files, version, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = str(files[version])
    assert info([path]) == 0 and "vocabulary 97 (padded 128)" in capsys.readouterr().out
    assert generate([path, "-n", "4", "--seed", "1"]) == 0
    for part in ("train", "val"):  # as before June 2024: no header, int32
        np.fromfile(TINY / f"tokens_{part}.bin", "<u2")[512:].astype("<i4").tofile(f"old_{part}.bin")
    data = ["-i", "old_train.bin", "-j", "old_val.bin"]
    assert train(["-e", path, *data, "-x", "1", "-o", "run", "-v", "0", "-s", "0"]) == 0
    assert Model.load("run/checkpoints/step_00000001/model.bin").config == Model.load(files[3]).config
    assert train(["-e", path, *data, "-o", "more", "--n-layer", "3"]) == 2  # it has 2
    np.array([1] * 400 + [-3] + [1] * 400, "<i4").tofile("old_train.bin")
    assert train(["-e", path, *data, "-o", "more"]) == 4
    assert "old_train.bin: token 400 is id -3, expected 0 to 96" in capsys.readouterr().err


def test_damage_in_bf16_is_named(files):
    raw = bytearray(files[5].read_bytes())
    raw[-2:] = b"\x80\x7f"  # infinity
    files[5].write_bytes(raw)
    with pytest.raises(NonFiniteError, match="lnfb holds inf at flat index 31"):
        Model.load(files[5])
    files[5].write_bytes(raw[:-2])
    with pytest.raises(FormatError, match="expected .* for bf16 of the dims .*cut short"):
        Model.load(files[5])


def test_another_dtype_is_refused(files, tmp_path):
    model = Model.load(files[3])
    with pytest.raises(UsageError, match="dtype 'fp16': .* one of fp32, bf16"):
        model.save(tmp_path / "x.bin", dtype="fp16")
    with pytest.raises(CheckpointError, match="no such file"):
        model.save(tmp_path / "absent" / "x.bin", dtype="bf16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v1.bin", "v3.bin", "v5.bin"]


def test_what_bf16_rounds_to_infinity_is_not_saved(files):
    model, before = Model.load(files[3]), files[5].read_bytes()
    model.params["lnfb"][3] = 3.4e38
    with pytest.raises(NonFiniteError, match="number .* is 3.*e.38, which is no finite bf16"):
        model.save(files[5], dtype="bf16")
    assert files[5].read_bytes() == before and len(list(files[5].parent.iterdir())) == 3
    model.params["lnfb"][3] = 3.38e38
    model.save(files[5], dtype="bf16")
    assert np.isfinite(Model.load(files[5]).params["lnfb"][3])


# --- rounding


def value(bits: int) -> Fraction:
    """The number that float32 bits stand for, were the exponent 255 like any other (so that overflow is rounding)."""
    exponent, mantissa = bits >> 23 & 255, bits & 0x7FFFFF
    size = Fraction(mantissa + (1 << 23 if exponent else 0)) * Fraction(2) ** (max(exponent, 1) - 150)
    return -size if bits >> 31 else size


def nearest(bits: int) -> int:
    """bfloat16 by the definition: of the two neighbours the nearer one, of equally near ones the even one."""
    down, up = bits >> 16, (bits >> 16) + 1
    below, above = (abs(value(bits) - value(b << 16)) for b in (down, up))
    return down if below < above or (below == above and down % 2 == 0) else up


def test_encoding_is_to_nearest_even():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 4000, np.uint32)
    lows = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    highs = np.array([0, 1, 0x7F, 0x80, 0x3F80, 0x3F81, 0x7F7E, 0x7F7F, 0x8000, 0x8001, 0xFF7F], np.uint32) << 16
    bits = np.concatenate([bits, (highs[:, None] | lows).ravel(), [0x7F800000, 0xFF800000]]).astype(np.uint32)
    bits = bits[(bits & 0x7F800000 != 0x7F800000) | (bits & 0x7FFFFF == 0)]  # no NaN
    found = bf16.encode(bits.view(np.float32))
    assert found.dtype == np.uint16 and [int(x) for x in found] == [nearest(int(b)) for b in bits]


def test_nan_stays_nan_and_shapes_are_kept():
    odd = np.array([[0x7F800001, 0x7FFFFFFF], [0xFFFFFFFF, 0xFF800001]], np.uint32).view(np.float32)
    assert (bf16.encode(odd) == 0x7FC0).all() and bf16.encode(odd).shape == (2, 2)


def test_decoding_is_exact():
    every = np.arange(1 << 16, dtype="<u2")
    out = np.empty(1 << 16, np.float32)
    bf16.decode_into(every, out)
    assert np.array_equal(out.view(np.uint32), every.astype(np.uint32) << 16)
    good = ~np.isnan(out)
    assert np.array_equal(bf16.encode(out[good]), every[good])


def test_memory_stays_bounded(tmp_path):
    model = Model(GPT2Config(block_size=64, vocab_size=50257, n_layer=1, n_head=1, n_embd=384))  # 42 MB in bf16
    assert model.params.floats.size > 18 * bf16.PIECE
    model.params.floats[:] = np.arange(model.params.floats.size, dtype=np.uint32) % 251  # bfloat16 holds these
    tracemalloc.start()
    try:
        model.save(tmp_path / "big.bin", dtype="bf16")
        wrote = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        again = Model.load(tmp_path / "big.bin")
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.array_equal(again.params.floats, model.params.floats)
    assert (tmp_path / "big.bin").stat().st_size == 1024 + 2 * model.params.floats.size
    assert wrote < 24 << 20 and read < 16 << 20, (wrote, read)
