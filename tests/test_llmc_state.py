"""llm.c's training states: one that its own code wrote is continued to the batch, and ours are the same to the byte.

llmc_tiny/state.bin: written by llm.c's dataloader.h and rand.h (f1e2ace) after 13 batches of 4 x 64 tokens, shuffled,
with m, v and master weights 0.25, 0.5, ... of 6 parameters at step 13; NEXT: the first token of each of the 30 batches
that its loader gave then."""

import struct
from pathlib import Path

import numpy as np
import pytest

import samples
from gpt2flat.data.mt19937 import Stream
from gpt2flat.data.tokens import ArrayShard, FileShard, TokenLoader
from gpt2flat.errors import CheckpointError, FormatError, NonFiniteError
from gpt2flat.formats import llmc_state
from gpt2flat.formats.llmc_state import StateFile
from gpt2flat.inspection.files import describe
from gpt2flat.model import Model

TINY = Path(__file__).parent / "llmc_tiny"
GOLDEN = TINY / "state.bin"
NEXT = [
    8,
    31,
    15,
    92,
    67,
    29,
    10,
    52,
    83,
    19,
    83,
    8,
    75,
    52,
    48,
    75,
    23,
    52,
    34,
    34,
    48,
    88,
    61,
    1,
    90,
    48,
    95,
    63,
    75,
    30,
]
P = samples.parameters(samples.DIMS)
SHUFFLE = 1024 + 12 * 6  # byte of GOLDEN: behind m, v and master weights
SEED = slice(3804 - 2520, 3804 - 2512)  # llm.c never sets it


def loaders(shards, **options):
    return lambda: TokenLoader([ArrayShard(np.arange(n)) for n in shards], 2, 4, 50257, **options)


def first_tokens(loader, n):
    return [int(loader.next_batch()[0][0, 0]) for _ in range(n)]


def floats(scale=1.0):
    return scale * np.arange(1, P + 1, dtype=np.float32)


def save(folder, loader, step=7, **options):
    return llmc_state.write(
        folder, step, samples.DIMS, floats(), floats(2), floats(3), loader.state(), len(loader._sample_order), **options
    )


# --- what llm.c wrote ------------------------------------------------------------------------------------------------


def test_a_state_of_llmc_is_continued():
    loader = TokenLoader([FileShard(TINY / "tokens_train.bin")], 4, 64, 50257, shuffle=True)
    first_tokens(loader, 13)
    with StateFile(GOLDEN, 6) as file:
        assert (file.step, file.master, file.shuffled, file.shard, file.sample) == (13, True, True, 0, 13)
        m, v, params = np.empty((3, 6), np.float32)
        file.read_into(m, v, params)
        assert np.array_equal(np.concatenate([m, v, params]), np.arange(1, 19) * 0.25)
        state = file.loader(1)
    fresh = TokenLoader([FileShard(TINY / "tokens_train.bin")], 4, 64, 50257, shuffle=True, seed=1)
    fresh.restore(state)
    assert first_tokens(loader, 30) == first_tokens(fresh, 30) == NEXT


def test_ours_are_the_same_bytes(tmp_path, monkeypatch):
    loader = TokenLoader([FileShard(TINY / "tokens_train.bin")], 4, 64, 50257, shuffle=True)
    first_tokens(loader, 13)
    m, v, params = np.arange(1, 19, dtype=np.float32).reshape(3, 6) * np.float32(0.25)
    files = llmc_state.write(tmp_path, 13, samples.DIMS, params, m, v, loader.state(), 42)
    ours, theirs = bytearray(files.state.read_bytes()), bytearray(GOLDEN.read_bytes())
    ours[SEED] = theirs[SEED]
    assert ours == theirs and files.done.read_bytes() == b""


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [(9,), (33,), (141, 100, 260, 75)])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("master", [True, False])
def test_any_place_is_continued(tmp_path, shards, shuffle, master):
    make = loaders(shards, shuffle=shuffle)
    for taken in (0, 1, 3, 4, 16, 17, 28, 29, 300):
        loader = make()
        first_tokens(loader, taken)
        files = save(tmp_path, loader, step=taken, master=master)
        with StateFile(files.state, P) as file:
            assert (file.step, file.master) == (taken, master)
            m, v, params = np.zeros((3, P), np.float32)
            file.read_into(m, v, params)
            state = file.loader(len(shards), epoch=loader.state()["epoch"])
        assert np.array_equal(m, floats(2)) and np.array_equal(v, floats(3))
        assert np.array_equal(params, floats() if master else 0 * floats())
        fresh = make()
        first_tokens(fresh, 5)
        fresh.restore(state)
        assert fresh.state()["epoch"] == loader.state()["epoch"]
        assert first_tokens(fresh, 80) == first_tokens(loader, 80)


def test_the_newest_that_is_done(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint of llm.c's"):
        llmc_state.newest(tmp_path)
    loader = loaders((33,))()
    for step in (9, 10, 11, 12):
        files = save(tmp_path, loader, step)
        assert [path.name for path in files] == [
            f"model_{step:08d}.bin",
            f"state_{step:08d}_00000.bin",
            f"DONE_{step:08d}",
        ]
    files.done.unlink()
    llmc_state.names(tmp_path, 11).state.unlink()
    (tmp_path / "DONE_x").touch()
    assert llmc_state.newest(tmp_path) == (10, llmc_state.names(tmp_path, 10))
    assert Model.load(llmc_state.names(tmp_path, 10).model, threads=1).params["lnfb"].size == samples.DIMS["C"]
    with pytest.raises(CheckpointError, match="cannot be read"):
        llmc_state.newest(tmp_path / "absent")


def test_done_comes_last(tmp_path, monkeypatch):
    written = []
    real = llmc_state.write_atomically
    monkeypatch.setattr(
        llmc_state, "write_atomically", lambda path, *parts: (written.append(path.name), real(path, *parts))
    )
    files = save(tmp_path, loaders((33,))())
    assert (
        written == [files.state.name, files.done.name]
        and files.model.stat().st_mtime_ns <= files.state.stat().st_mtime_ns
    )
    files.done.unlink()
    monkeypatch.setattr(llmc_state, "write_atomically", lambda path, *parts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(tmp_path, loaders((33,))(), 8)
    assert not list(tmp_path.glob("DONE*"))


def test_info_tells_of_a_state(tmp_path):
    loader = loaders((141, 100), shuffle=True)()
    first_tokens(loader, 3)
    files = save(tmp_path, loader)
    (_, head), (_, state), (_, data) = describe(files.state)
    assert "a training state" in head and state == f"m and v of {P} parameters after 7 updates, with master weights"
    assert data == f"sample 3 of {len(loader._sample_order)}, shuffled, in shard 0"
    files.model.unlink()
    assert describe(files.state)[1][1].startswith("after 7 updates; without its model beside it")


@pytest.mark.parametrize("step", [-1, 1 << 31])
def test_steps_that_llmc_cannot_count(tmp_path, step):
    with pytest.raises(FormatError, match="updates done, expected"):
        save(tmp_path, loaders((33,))(), step)
    assert not list(tmp_path.iterdir())


# --- damage ----------------------------------------------------------------------------------------------------------


def changed(put, *words, data=None, fill="<i"):
    """GOLDEN with (byte offset, value) written over it."""
    data = bytearray(GOLDEN.read_bytes() if data is None else data)
    for offset, value in words:
        struct.pack_into(fill, data, offset, value)
    return put(data)


@pytest.mark.parametrize("word, value, says", [
    (0, 20240326, "is a model checkpoint, expected a training state"), (1, 2, "version 2, expected 1"),
    (2, 2, "process 0 of 2"), (2, 0, "process 0 of 0"), (3, 1, "process 1 of 1"), (4, 2, "master weights 2"),
    (4, -1, "master weights -1"), (5, 2, "shuffle 2"), (10, -1, "step -1"), (7, 1, "zeros"), (19, 1, "zeros"),
    (29, 1, "zeros"), (34, 1, "reserved header word 34"), (4, 0, "to shuffle"), (5, 0, "found 3804 bytes, expected 1096"),
])  # fmt: skip
def test_headers_that_cannot_be(put, word, value, says):
    path = changed(put, (4 * word, value))
    with pytest.raises(FormatError, match=says) as refusal:
        StateFile(path, 6)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("count", [0, 2, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("at", [SHUFFLE, SHUFFLE + 12])
def test_counts_that_the_file_cannot_hold(put, at, count):
    with pytest.raises(FormatError, match="to shuffle, expected|found 3804 bytes, expected"):
        StateFile(changed(put, (at, count), fill="<Q"), 6)


@pytest.mark.parametrize("size", [0, 3, 1023, 1024, 1096, SHUFFLE + 4, SHUFFLE + 20, 3803, 3805])
def test_other_lengths(put, size):
    with pytest.raises(FormatError):
        StateFile(put((GOLDEN.read_bytes() + b"\0")[:size]), 6)


def test_another_model(put):
    for parameters in (5, 7, 1 << 40):
        with pytest.raises(FormatError):
            StateFile(GOLDEN, parameters)


MT = SHUFFLE + 8 + 4 + 8 + 4 * 42


@pytest.mark.parametrize("offset, value, says", [
    (4 * 30, 1, "sample 13 of 42 in shard 1 of 1"), (4 * 31, 1, "in shard 4294967296"), (4 * 32, 43, "sample 43 of 42"),
    (SHUFFLE + 8, 1, "order of shards"), (SHUFFLE + 8, -1, "order of shards"), (SHUFFLE + 20, 42, "order of samples is none"),
    (SHUFFLE + 24, -1, "order of samples is none"), (MT + 8, 3, "random stream stands at"), (MT + 12, 625, "random stream stands at"),
    (MT + 16 + 4 * 624, 1, "random stream stands at"), (MT + 20 + 4 * 624, 5, "random stream stands at"),
    (MT + 16 + 4 * 5, 5, "not what its random stream has drawn"),
])  # fmt: skip
def test_shuffles_that_cannot_be(put, offset, value, says):
    with StateFile(changed(put, (offset, value)), 6) as file, pytest.raises(FormatError, match=says):
        file.loader(1)


def test_an_order_that_was_not_drawn(put):
    ids = struct.unpack_from("<2i", GOLDEN.read_bytes(), SHUFFLE + 20)
    path = changed(put, (SHUFFLE + 20, ids[1]), (SHUFFLE + 24, ids[0]))
    with StateFile(path, 6) as file, pytest.raises(FormatError, match="not what its random stream has drawn"):
        file.loader(1)
    with StateFile(GOLDEN, 6) as file, pytest.raises(FormatError, match="of shard|shards of this data"):
        file.loader(2)


@pytest.mark.parametrize(
    "index, says", [(2, "m is nan at flat index 2"), (9, "v is nan at flat index 3"), (17, "a master weight is nan")]
)
def test_floats_that_are_not_finite(put, index, says):
    with (
        StateFile(changed(put, (1024 + 4 * index, float("nan")), fill="<f"), 6) as file,
        pytest.raises(NonFiniteError, match=says),
    ):
        file.read_into(*np.empty((3, 6), np.float32))
    with (
        StateFile(changed(put, (1024 + 4 * 8, -1.0), fill="<f"), 6) as file,
        pytest.raises(FormatError, match="v is -1.0 at flat index 2"),
    ):
        file.read_into(*np.empty((3, 6), np.float32))


# --- the random stream, backwards ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 623, 624, 625, 1871, 5000])
@pytest.mark.parametrize("before", [0, 1, 623, 624, 625, 2000])
def test_a_stream_goes_back(before, n):
    stream, again = Stream(42), Stream(42)
    stream.words(before + n)
    again.words(before)
    stream.back(n)
    assert 1 <= stream.state()["position"] <= 624
    assert np.array_equal(stream.words(n + 700), again.words(n + 700))
