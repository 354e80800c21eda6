"""The token loader against llm.c's order of samples, every way its data can be wrong, and data sets on disk."""

import json
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2flat.data.tokens import ArrayShard, FileShard, TokenLoader, find_datasets, find_shards, fingerprint
from gpt2flat.errors import CheckpointError, DataError, FormatError, UsageError
from gpt2flat.formats import llmc

TINY = Path(__file__).parent / "llmc_tiny"
# llm.c's order of 4 shards of 4 samples: rank -> [(order of shards, orders of samples)], epoch by epoch
SHARDED = {
    0: [
        ([1, 0, 3, 2], [[3, 1, 0, 2], [1, 3, 2, 0], [2, 0, 3, 1], [3, 1, 0, 2]]),
        ([2, 0, 3, 1], [[0, 2, 1, 3], [3, 2, 1, 0], [0, 2, 1, 3], [0, 2, 3, 1]]),
    ],
    1: [([2, 1, 3, 0], [[2, 0, 3, 1], [2, 1, 3, 0], [2, 0, 1, 3], [0, 3, 1, 2]])],
}


def shard_files(folder, counts, step=1000):
    """Token files whose ids count up from step * index."""
    for index, count in enumerate(counts):
        llmc.write_tokens(folder / f"part_{index:03d}.bin", step * index + np.arange(count))
    return str(folder / "part_*.bin")


def first_ids(loader, n):
    return [int(loader.next_batch()[0][0, 0]) for _ in range(n)]


# --- llm.c's semantics


def test_a_batch_is_BT_plus_1_tokens_of_the_file():
    ids = np.fromfile(TINY / "tokens_train.bin", "<u2")[512:]
    loader = TokenLoader(find_shards(TINY / "tokens_train.bin"), B=4, T=64, vocab_size=97)
    assert (loader.num_tokens, loader.batches) == (10800, 42)
    for sample in range(loader.batches):
        tokens, targets = loader.next_batch()
        at = 256 * sample
        assert tokens.dtype == targets.dtype == np.int32 and tokens.shape == targets.shape == (4, 64)
        assert tokens.ravel().tolist() == ids[at : at + 256].tolist()
        assert targets.ravel().tolist() == ids[at + 1 : at + 257].tolist()
        assert tokens.flags.c_contiguous and targets.flags.c_contiguous and not np.shares_memory(tokens, targets)
    assert loader.state() == {"epoch": 0, "order": [0], "shard": 0, "sample": 42, "stream": None}
    assert loader.next_batch()[0].ravel().tolist() == ids[:256].tolist()
    assert (loader.state()["epoch"], loader.state()["sample"]) == (1, 1)


@pytest.mark.parametrize("nproc", [1, 2])
def test_ranges_of_llmcs_own_test(tmp_path, nproc):
    """llm.c's dev/test/test_dataloader.c: 4 shards of 140 counting tokens, B=4, T=8, 4 epochs."""
    pattern, BT = shard_files(tmp_path, [140] * 4, step=140), 32
    loaders = [TokenLoader(find_shards(pattern), 4, 8, 560, rank=rank, nproc=nproc) for rank in range(nproc)]
    for _ in range(4):
        for shard in range(4):
            for sample in range(4 // nproc):
                for rank, loader in enumerate(loaders):
                    tokens, targets = loader.next_batch()
                    start = 140 * shard + (sample * nproc + rank) * BT
                    assert tokens.ravel().tolist() == list(range(start, start + BT))
                    assert targets.ravel().tolist() == list(range(start + 1, start + BT + 1))
    assert [loader.batches for loader in loaders] == [16 // nproc] * nproc


def test_shuffle_of_one_shard():
    loader = TokenLoader([ArrayShard(np.arange(8 * 6 + 5))], B=2, T=3, vocab_size=100, shuffle=True)
    assert [i // 6 for i in first_ids(loader, 8)] == [1, 0, 3, 7, 5, 4, 2, 6]
    assert [i // 6 for i in first_ids(loader, 8)] == [1, 6, 7, 2, 3, 5, 0, 4]


@pytest.mark.parametrize("rank", SHARDED)
def test_shuffle_of_shards_and_samples(tmp_path, rank):
    nproc, BT = rank + 1, 6
    sample = nproc * BT
    shards = find_shards(shard_files(tmp_path, [4 * sample + 1] * 4))
    loader = TokenLoader(shards, B=2, T=3, vocab_size=4000, shuffle=True, rank=rank, nproc=nproc)
    for order, samples in SHARDED[rank]:
        wanted = [1000 * shard + s * sample + rank * BT for shard, row in zip(order, samples) for s in row]
        assert first_ids(loader, 16) == wanted


def test_shuffle_of_tinyshakespeare():
    shard = ArrayShard(np.arange(305_260) // 256)
    loader = TokenLoader([shard], B=4, T=64, vocab_size=1193, shuffle=True)
    assert loader.batches == 1192
    assert first_ids(loader, 10) == [408, 791, 914, 1057, 81, 450, 299, 907, 582, 321]


def test_files_and_arrays_give_the_same_batches(tmp_path):
    counts = [37, 29, 61]
    files = find_shards(shard_files(tmp_path, counts))
    arrays = [ArrayShard(1000 * i + np.arange(count)) for i, count in enumerate(counts)]
    one, other = (TokenLoader(shards, 2, 4, 3000, shuffle=True) for shards in (files, arrays))
    assert one.batches == other.batches == 4 + 3 + 7
    for _ in range(40):
        for a, b in zip(one.next_batch(), other.next_batch()):
            assert a.dtype == b.dtype == np.int32 and np.array_equal(a, b)
        assert one.state() == other.state()


def test_reset_starts_over_in_order():
    loader = TokenLoader([ArrayShard(np.arange(41))], 1, 8, 41)
    assert first_ids(loader, 3) == [0, 8, 16]
    loader.reset()
    assert first_ids(loader, 6) == [0, 8, 16, 24, 32, 0]


@given(st.data())
def test_an_epoch_visits_every_sample_once(data):
    B, T, nproc = (data.draw(st.integers(1, 4)) for _ in range(3))
    n = nproc * B * T
    counts = data.draw(st.lists(st.integers(n + 1, 9 * n), min_size=1, max_size=4))
    arrays = [ArrayShard(10_000 * i + np.arange(count)) for i, count in enumerate(counts)]
    wanted = sorted(10_000 * i + n * s for i, count in enumerate(counts) for s in range((count - 1) // n))
    for rank in range(nproc):
        loader = TokenLoader(arrays, B, T, 50_000, shuffle=data.draw(st.booleans()), rank=rank, nproc=nproc)
        assert loader.batches == len(wanted)
        for _ in range(2):
            assert sorted(i - rank * B * T for i in first_ids(loader, loader.batches)) == wanted


def test_tokens_is_for_looking(tmp_path):
    llmc.write_tokens(tmp_path / "t.bin", np.arange(100))
    loader = TokenLoader(find_shards(tmp_path / "t.bin"), 1, 8, 100)
    loader.next_batch()
    if sys.platform == "linux":
        assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "batches came through a memory map"
    assert isinstance(loader.tokens, np.memmap) and loader.tokens.tolist() == list(range(100))
    assert not loader.tokens.flags.writeable


def test_files_without_header_give_the_same_batches(tmp_path):
    ids = np.fromfile(TINY / "tokens_train.bin", "<u2")[512:]
    ids.astype("<i4").tofile(tmp_path / "old.bin")
    shards = find_shards(TINY / "tokens_train.bin"), find_shards(tmp_path / "old.bin")
    new, old = (TokenLoader(shard, 4, 64, 97, shuffle=True) for shard in shards)
    for _ in range(50):
        for a, b in zip(new.next_batch(), old.next_batch()):
            assert a.dtype == b.dtype == np.int32 and np.array_equal(a, b)
    assert isinstance(old.tokens, np.memmap) and old.tokens.tolist() == ids.tolist()
    with open(tmp_path / "old.bin", "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.array([-7], "<i4").tobytes())
    with pytest.raises(DataError, match="old.bin: token 10799 is id -7, expected 0 to 96"):
        TokenLoader(find_shards(tmp_path / "old.bin"), 1, 10799, 97).next_batch()
    os.truncate(tmp_path / "old.bin", 40)
    with pytest.raises(DataError, match="cut short"):
        old.next_batch()
    old.reset()
    (tmp_path / "old.bin").write_bytes((TINY / "tokens_train.bin").read_bytes())
    old.shards[0].close()
    with pytest.raises(DataError, match="found 10800 tokens of uint16, expected the 10800 of int32 of when"):
        old.next_batch()


# --- data that is wrong


@pytest.mark.parametrize("place", [0, 1, 7, 8])
@pytest.mark.parametrize("V, bad", [(V, bad) for V in (1, 257, 50257) for bad in (V, V + 1, 65535)])
def test_an_id_outside_the_vocabulary_is_named(tmp_path, V, bad, place):
    ids = np.zeros(25, int)
    ids[8 + place] = bad  # in the second batch: as an input, as both, or (place 8) only as a target
    llmc.write_tokens(tmp_path / "t.bin", ids)
    for shard, name in ((FileShard(tmp_path / "t.bin"), "t.bin"), (ArrayShard(ids, "my text"), "my text")):
        loader = TokenLoader([shard], 2, 4, V)
        if place:
            loader.next_batch()
        with pytest.raises(DataError, match=f"{name}: token {8 + place} is id {bad}, expected 0 to {V - 1}"):
            loader.next_batch()


def test_random_corrupt_batches_are_refused():
    """One id of a batch is out of range, anywhere, by anything: no batch comes out, and it is the one that is named."""
    rng = np.random.default_rng(0)
    for _ in range(5000):
        V, n = int(rng.integers(1, 65536)), int(rng.integers(2, 40))
        ids = rng.integers(0, V, n)
        at = int(rng.integers(n))
        ids[at] = rng.choice([V, rng.integers(V, 65536), rng.integers(V, 2**31), -1, -rng.integers(1, 2**31)])
        with pytest.raises(DataError, match=f"x: token {at} is id {ids[at]}, expected 0 to {V - 1}"):
            TokenLoader([ArrayShard(ids, "x")], 1, n - 1, V).next_batch()


def test_a_negative_id_is_named():
    with pytest.raises(DataError, match="token 3 is id -1"):
        TokenLoader([ArrayShard(np.array([0, 0, 0, -1, 0]))], 1, 4, 5).next_batch()


def test_every_id_of_16_bits_fits_a_vocabulary_of_65536():
    tokens, _ = TokenLoader([ArrayShard(np.array([65535, 0, 65535], np.uint16))], 1, 2, 65536).next_batch()
    assert tokens.tolist() == [[65535, 0]]


@pytest.mark.parametrize("nproc", [1, 3])
def test_the_shortest_shard(tmp_path, nproc):
    need = nproc * 2 * 4 + 1
    for count in (1, need - 2, need - 1, need, need + 1, 2 * need):
        llmc.write_tokens(tmp_path / "t.bin", np.zeros(count, int))
        shards = [ArrayShard(np.zeros(2 * need, int)), *find_shards(tmp_path / "t.bin")]
        if count >= need:
            TokenLoader(shards, 2, 4, 1, nproc=nproc).next_batch()
        else:
            with pytest.raises(
                DataError, match=f"t.bin: found {count} tokens, expected at least {need} .*--batch-size"
            ):
                TokenLoader(shards, 2, 4, 1, nproc=nproc)


@pytest.mark.parametrize("wrong", [{"B": 0}, {"T": 0}, {"B": -1}, {"rank": 1}, {"rank": -1}, {"nproc": 0}])
def test_impossible_settings(wrong):
    with pytest.raises(UsageError):
        TokenLoader([ArrayShard(np.arange(9))], **({"B": 1, "T": 2, "vocab_size": 9} | wrong))


def test_no_shards(tmp_path):
    with pytest.raises(DataError, match="no token shards"):
        TokenLoader([], 1, 1, 1)
    with pytest.raises(DataError, match="no_such.*: no such file"):
        find_shards(tmp_path / "no_such_*.bin")


def test_a_shard_beyond_2_GiB(tmp_path):
    """llm.c's seek offset was an int. The file is sparse: it takes no disk."""
    count = 2**31 - 1
    with open(tmp_path / "t.bin", "wb") as file:
        file.write(struct.pack("<256i", 20240520, 1, count, *[0] * 253))
        file.truncate(1024 + 2 * count)
        file.seek(1024 + 2 * (count - 3))
        file.write(np.array([7, 8, 9], "<u2").tobytes())
    shard = FileShard(tmp_path / "t.bin")
    assert shard.read(count - 4, 4).tolist() == [0, 7, 8, 9]
    assert TokenLoader([shard], 1024, 1024, 10).batches == 2047
    with open(tmp_path / "old.bin", "wb") as file:
        file.write(np.array([50256], "<i4").tobytes())
        file.truncate(4 * count)
        file.seek(4 * (count - 3))
        file.write(np.array([7, 8, 9], "<i4").tobytes())
    assert FileShard(tmp_path / "old.bin").read(count - 4, 4).tolist() == [0, 7, 8, 9]


# --- files that change underneath


@pytest.fixture
def running(tmp_path):
    """(paths of two shards, a loader that has read the first batch of the first)."""
    shards = find_shards(shard_files(tmp_path, [41, 41]))
    loader = TokenLoader(shards, 1, 8, 2000)
    loader.next_batch()
    return [shard.path for shard in shards], loader


@pytest.mark.parametrize("size", [0, 100, 1024, 1024 + 2 * 16])
def test_truncated_while_read(running, size):
    (first, _), loader = running
    os.truncate(first, size)
    with pytest.raises(DataError, match="part_000.bin.*cut short"):
        loader.next_batch()


@pytest.mark.parametrize("size", [0, 100, 1024, 1024 + 2 * 40])
def test_truncated_before_its_turn(running, size):
    (_, second), loader = running
    os.truncate(second, size)
    assert first_ids(loader, 4) == [8, 16, 24, 32]
    with pytest.raises(DataError, match="part_001.bin.*when the run started"):
        loader.next_batch()


def test_replaced_or_removed_while_read(running):
    (first, second), loader = running
    llmc.write_tokens(first, np.zeros(10, int))  # takes the name; the open file stays what it was
    llmc.write_tokens(second, np.arange(30))
    assert first_ids(loader, 4) == [8, 16, 24, 32]
    with pytest.raises(DataError, match="found 30 tokens of uint16, expected the 41 of uint16"):
        loader.next_batch()
    second.unlink()
    with pytest.raises(DataError, match="no such file"):
        loader.next_batch()


@pytest.mark.parametrize("shuffle", [False, True])
def test_one_shard_is_open_at_a_time(tmp_path, shuffle):
    shards = find_shards(shard_files(tmp_path, [20] * 6))
    before = len(os.listdir("/proc/self/fd"))
    loader = TokenLoader(shards, 1, 8, 6000, shuffle=shuffle)
    for _ in range(40):
        loader.next_batch()
        assert len(os.listdir("/proc/self/fd")) == before + 1


# --- finding files


def test_shards_are_sorted_by_bytes(tmp_path):
    for name in ("b", "a", "B", "a1", "é", "~"):
        llmc.write_tokens(tmp_path / f"{name}_t.bin", [1, 2])
    names = [shard.path.name for shard in find_shards(str(tmp_path / "*_t.bin"))]
    assert names == ["B_t.bin", "a1_t.bin", "a_t.bin", "b_t.bin", "~_t.bin", "é_t.bin"]


def test_a_path_is_not_a_pattern(tmp_path):
    path = tmp_path / "data[1].bin"
    llmc.write_tokens(path, [1, 2])
    assert [shard.path for shard in find_shards(path)] == [path]


def test_a_bad_file_among_the_shards_is_named(tmp_path):
    pattern = shard_files(tmp_path, [10, 10])
    (tmp_path / "part_002.bin").write_bytes(b"text, not tokens" * 100)
    with pytest.raises(FormatError, match="part_002.bin: starts with b'text, no', expected a token file"):
        find_shards(pattern)


def test_find_datasets(tmp_path):
    first, second = tmp_path / "data", tmp_path / "more"
    for file in (
        "x_train.bin",
        "x_val.bin",
        "lonely_train.bin",
        "_train.bin",
        "_val.bin",
        "sub/x_train.bin",
        "sub/x_val.bin",
    ):
        (first / file).parent.mkdir(parents=True, exist_ok=True)
        (first / file).touch()
    for file in ("deep/a_train.bin", "deep/a_val.bin", "x_train.bin", "x_val.bin"):
        (second / file).parent.mkdir(parents=True, exist_ok=True)
        (second / file).touch()
    found = find_datasets([tmp_path / "absent", first, second])
    assert found == {
        "a": (second / "deep/a_train.bin", second / "deep/a_val.bin"),
        "x": (first / "x_train.bin", first / "x_val.bin"),
    }
    assert list(found) == ["a", "x"] and find_datasets([]) == {}


# --- taking a position up again --------------------------------------------------------------------------------------


def three_shards() -> list[ArrayShard]:
    return [ArrayShard(np.arange(1000 * i, 1000 * i + n) % 97, f"shard{i}") for i, n in enumerate((300, 170, 410))]


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_restored_loader_goes_on_with_the_same_batches(shuffle):
    """From every position of three epochs over shards of unequal length, by way of JSON."""
    make = lambda: TokenLoader(three_shards(), 2, 8, 97, shuffle=shuffle, seed=5)  # noqa: E731
    loader, states, batches = make(), [], []
    for _ in range(3 * loader.batches + 1):
        states.append(json.loads(json.dumps(loader.state())))
        batches.append(loader.next_batch())
    for start in range(0, len(states), 7):
        other = make()
        other.restore(states[start])
        assert other.state() == states[start]
        for want in batches[start : start + 9]:
            assert all((a == b).all() for a, b in zip(other.next_batch(), want, strict=True))


@pytest.mark.parametrize("change", [
    {"order": [0, 1]}, {"order": [0, 1, 1]}, {"order": [0, 1, True]}, {"order": 3}, {"shard": 3}, {"shard": -1}, {"epoch": 1.0}, {"sample": 99},
    {"stream": None}, {"stream": {}}, {"stream": {"words": [1] * 623, "position": 1}}, {"stream": {"words": [1 << 32] * 624, "position": 1}},
    {"stream": {"words": [1] * 624, "position": 625}}, {"stream": {"words": ["1"] * 624, "position": 1}}, {"stream": "x"},
], ids=repr)  # fmt: skip
def test_a_position_that_does_not_fit_is_refused_and_changes_nothing(change):
    loader, other = (TokenLoader(three_shards(), 2, 8, 97, shuffle=True) for _ in range(2))
    for _ in range(5):
        loader.next_batch(), other.next_batch()
    with pytest.raises(CheckpointError, match="the position in the data does not fit it"):
        loader.restore(loader.state() | change)
    with pytest.raises(CheckpointError, match="does not fit"):
        loader.restore({name: value for name, value in loader.state().items() if name != "epoch"})
    assert loader.state() == other.state()
    assert all((a == b).all() for a, b in zip(loader.next_batch(), other.next_batch(), strict=True))


def test_fingerprints_tell_data_apart():
    shards = three_shards()
    same, other = fingerprint(shards), fingerprint([ArrayShard(s.tokens + (i == 2), s.name) for i, s in enumerate(shards)])
    assert same == fingerprint([ArrayShard(s.tokens.astype(np.uint16), "renamed") for s in shards])
    assert same[:2] == other[:2] and same[2] != other[2] and same[2][0] == 410
    long = np.zeros((1 << 24) + 5, np.uint16)
    first = fingerprint([ArrayShard(long)])
    long[-1] = 1
    assert fingerprint([ArrayShard(long)]) != first
