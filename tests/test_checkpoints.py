"""Checkpoints of a run: what is written is found again whole, what is damaged is passed over, what goes is what may go.

Kills, power cuts and failing calls: test_faults.py."""

import errno
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from gpt2flat.errors import CheckpointError, FormatError, NonFiniteError, RunLockedError
from gpt2flat.formats import optimizer
from gpt2flat.formats.files import BLOCK, FileOps
from gpt2flat.inspection.files import describe
from gpt2flat.training import manifest
from gpt2flat.training.checkpoints import Checkpoints
from gpt2flat.formats.lock import FolderLock
from gpt2flat.training.manifest import Checkpoint
from gpt2flat.training.writer import Writer

RNG = np.random.default_rng(0)


@pytest.fixture
def store(tmp_path):
    return Checkpoints(tmp_path / "run" / "checkpoints", "mine", Ops(tmp_path))


class Ops(FileOps):
    """The disk without the waiting, and with a size that a test may set."""

    def __init__(self, home: Path):
        (home / "run").mkdir(exist_ok=True)
        self.room = None

    def fsync(self, fd):
        pass

    def fsync_dir(self, folder):
        pass

    def free(self, folder):
        return super().free(folder) if self.room is None else self.room


def floats(n=1000, seed=0):
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def files(seed=0, n=1000):
    x = floats(3 * n, seed)
    return {"model.bin": [b"head", x[:n]], "optimizer.bin": [bytes(1024), x[n : 2 * n], x[2 * n :]]}


def content(checkpoint):
    return {name: checkpoint.read(name) for name in checkpoint.manifest.files}


def steps(store, **options):
    return [checkpoint.step for checkpoint in store.verified(**options)]


def names(store):
    return sorted(os.listdir(store.folder))


# --- writing and finding ---------------------------------------------------------------------------------------------


def test_what_is_written_is_found_again(store):
    facts = {"loss": 1 / 3, "words": [2**32 - 1, -1], "best": None, "of": {"a": ["é"]}}
    path = store.write(12, files(), facts)
    assert path == store.folder / "step_00000012" and names(store) == ["step_00000012"]
    found = store.newest()
    assert (found.path, found.step, found.run_id, found.facts) == (path, 12, "mine", facts)
    assert content(found) == {name: b"".join(map(bytes, map(memoryview, b))) for name, b in files().items()}
    assert found.model == path / "model.bin" and found.size == 4 + 4000 + 1024 + 8000
    with found.open("model.bin") as file:
        assert file.read(0, 4) == b"head"
    with pytest.raises(CheckpointError, match=r"holds no loader.bin, only model.bin, optimizer.bin"):
        found.read("loader.bin")


def test_files_of_many_chunks_and_of_none(store):
    big = floats(5 * BLOCK // 8)
    store.write(1, {"big": [big, b"", big[:3], np.arange(5)], "empty": []})
    assert content(store.newest()) == {"big": big.tobytes() + big[:3].tobytes() + np.arange(5).tobytes(), "empty": b""}


class Disk(FileOps):
    """past: can files be written past the page cache; takes: blocks that are taken like this before one is refused."""

    def __init__(self, past, takes):
        self._past, self._left, self._now, self.direct = past, takes, False, 0

    def past_cache(self, fd, wanted):
        changed, self._now = self._past and wanted != self._now, self._past and wanted
        return changed

    def write(self, fd, view):
        if self._now and not self._left:
            raise OSError(errno.EINVAL, "not aligned")
        self._left -= self._now
        self.direct += self._now
        return super().write(fd, view)


@pytest.mark.parametrize("past, takes, direct", [(False, 0, 0), (True, 0, 0), (True, 1, 1), (True, 99, 2)])
def test_whole_blocks_go_past_the_cache_as_far_as_the_disk_can(tmp_path, past, takes, direct):
    disk, big = Disk(past, takes), floats(BLOCK // 4 + 100)
    (tmp_path / "run").mkdir()
    store = Checkpoints(tmp_path / "run" / "checkpoints", "mine", disk)
    store.write(1, {"model.bin": [b"head", big, big]})
    assert content(store.newest()) == {"model.bin": b"head" + 2 * big.tobytes()} and disk.direct == direct


def test_a_disk_that_refuses_every_way_is_told(store, monkeypatch):
    def refuse(fd, view):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(store._ops, "write", refuse)
    with pytest.raises(CheckpointError, match="cannot be written: invalid argument"):
        store.write(1, {"model.bin": [floats(BLOCK // 4)]})


def test_a_save_without_a_thread_to_hash_in_is_told(store, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    store.write(1, files())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(CheckpointError, match="cannot be written: can't start new thread"):
        store.write(2, files())
    assert names(store) == ["step_00000001"]


def test_the_highest_step_is_the_newest_whatever_the_clock_says(store):
    for step in (999_999, 1_000_000, 5, 99_999_999, 100_000_000):
        store.write(step, files(step, 10))
        os.utime(store.folder / f"step_{step:08d}", (1, 1))
    assert steps(store) == [100_000_000, 99_999_999, 1_000_000, 999_999, 5]


def test_nothing_is_found_where_nothing_is(store):
    assert store.newest() is None and steps(store) == [] and store.passed_over == []


def test_the_arena_is_free_once_all_is_read(store):
    x, y = floats(10), floats(10, 1)
    before = x.copy(), y.copy()

    def taken():
        assert not list(store.folder.glob("step*"))
        x[:], y[:] = np.nan, 0

    store.write(3, {"a.bin": [x], "b.bin": [y]}, taken=taken)
    assert content(store.newest()) == {"a.bin": before[0].tobytes(), "b.bin": before[1].tobytes()}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 17, 999])
def test_what_is_not_finite_is_not_saved(store, value, index):
    store.write(1, files())
    bad = files(1)
    bad["optimizer.bin"][2][index] = value
    with pytest.raises(NonFiniteError, match=rf"optimizer.bin: float {1000 + index} is {value}"):
        store.write(2, bad)
    assert names(store) == ["step_00000001"] and steps(store) == [1]


def test_a_full_disk_is_said_before_anything_is_written(store):
    store.write(1, files())
    store._ops.room = 1 << 20
    with pytest.raises(CheckpointError, match=r"checkpoints: 1.0 MB are free, a checkpoint takes 13.0 kB.*--keep"):
        store.write(2, files())
    store._ops.room += 13100
    store.write(3, files())
    assert names(store) == ["step_00000001", "step_00000003"]


@pytest.mark.parametrize(
    "bad", ["../model.bin", "/model.bin", "a/b", "", "manifest.json", "A.bin", ".x", "a" * 65, "a\0"]
)
def test_names_that_no_file_may_have(store, bad):
    with pytest.raises(CheckpointError, match="named by small letters"):
        store.write(1, {"model.bin": [b"x"], bad: [b"x"]})
    assert not store.folder.exists()


@pytest.mark.parametrize("facts", [{"x": float("nan")}, {"x": {1, 2}}, {"x": np.float32(1)}, {"x": 10**50}])
def test_facts_that_could_not_be_read_again(store, facts):
    with pytest.raises(CheckpointError, match="manifest"):
        store.write(1, files(), facts)
    assert names(store) == []


# --- one of the same step --------------------------------------------------------------------------------------------


def test_a_step_is_written_anew(store):
    for seed in range(3):
        store.write(4, files(seed))
        assert names(store) == ["step_00000004"]
        assert content(store.newest())["model.bin"] == b"head" + floats(3000, seed)[:1000].tobytes()


def test_what_is_not_ours_is_set_aside_and_never_removed(store):
    other = Checkpoints(store.folder, "theirs", store._ops)
    other.write(4, files(1))
    store.write(4, files(2))
    assert steps(store) == [4] and [c.run_id for c in store.verified(any_run=True)] == ["mine"]
    assert [name[:14] for name in names(store)] == [".old-00000004-", "step_00000004"]
    store.write(5, files(3))
    store.prune(1)
    assert [name[:14] for name in names(store)] == [".old-00000004-", "step_00000005"]
    assert [c.run_id for c in store.verified(any_run=True)] == ["mine", "theirs"]


def test_a_damaged_one_is_replaced(store):
    (store.write(4, files()) / "model.bin").write_bytes(b"?")
    assert store.newest() is None
    store.write(4, files(1))
    assert names(store) == ["step_00000004"] and steps(store) == [4]


def test_what_was_set_aside_is_found_and_gets_its_name_back(store):
    """A kill between the two renames."""
    path = store.write(4, files(1))
    aside = path.rename(store.folder / ".old-00000004-0123456789abcdef")
    found = store.newest()
    assert found.path == aside and found.step == 4
    store.recover()
    assert names(store) == ["step_00000004"] and steps(store) == [4]


def test_leftovers_of_killed_writers_go(store):
    store.write(4, files(1))
    for name in (".tmp-00000005-0123456789abcdef", ".old-00000004-0123456789abcdef"):
        os.mkdir(store.folder / name)
        for file in ("model.bin", "optimizer.bin", "manifest.json"):
            os.link(store.folder / "step_00000004" / file, store.folder / name / file)
    (store.folder / ".tmp-mine").mkdir()
    store.recover()
    assert names(store) == [".tmp-mine", "step_00000004"]


# --- damage ----------------------------------------------------------------------------------------------------------


def damage(kind):
    def change(path):
        model = path / "model.bin"
        data = model.read_bytes()
        if kind == "flipped bit":
            model.write_bytes(data[:-1] + bytes([data[-1] ^ 16]))
        elif kind == "shorter":
            model.write_bytes(data[:-1])
        elif kind == "longer":
            model.write_bytes(data + b"\0")
        elif kind == "missing":
            model.unlink()
        elif kind == "no manifest":
            (path / "manifest.json").unlink()
        elif kind == "another step":
            path.rename(path.parent / "step_00000007")
        elif kind == "a pipe":
            model.unlink()
            os.mkfifo(model)

    return change


KINDS = ["flipped bit", "shorter", "longer", "missing", "no manifest", "another step", "a pipe"]


def test_listing_reads_manifests_only(store):
    filled(store, 4)
    damage("flipped bit")(store.folder / "step_00000004")
    damage("no manifest")(store.folder / "step_00000003")
    Checkpoints(store.folder, "theirs", store._ops).write(2, files())
    assert [checkpoint.step for checkpoint in store.listed()] == [4, 2, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_one_before_a_damaged_one_is_taken(store, kind):
    store.write(1, files(1))
    damage(kind)(store.write(2, files(2)))
    assert store.newest().step == 1
    ((path, why),) = store.passed_over
    assert path.parent == store.folder and path.name in why and "\n" not in why


ATTACKS = {
    "empty": b"",
    "binary": b"\xff\xfe\0",
    "not an object": b"[]",
    "deep": b"[" * 200_000,
    "digits": b'{"step": ' + b"9" * 1_000_000 + b"}",
    "fifty digits": b"9" * 50,
    "huge": b" " * ((4 << 20) + 1),
    "a key twice": (b'"step": 2,', b'"step": 2, "step": 2,'),
    "NaN": (b'"facts": {', b'"facts": {"x": NaN'),
    "too large a float": (b'"facts": {', b'"facts": {"x": 1e999'),
    "another format": (b'"format": 1', b'"format": 2'),
    "true for a number": (b'"step": 2', b'"step": true'),
    "negative step": (b'"step": 2', b'"step": -2'),
    "a float": (b'"step": 2', b'"step": 2.0'),
    "unknown key": (b'"step": 2', b'"step": 2, "more": 1'),
    "no run": (b'"run": "mine"', b'"run": ""'),
    "folder in a name": (b'"model.bin"', b'"../step_00000001/model.bin"'),
    "absolute name": (b'"model.bin"', b'"/etc/passwd"'),
    "NUL in a name": (b'"model.bin"', b'"model\\u0000.bin"'),
    "its own name": (b'"model.bin"', b'"manifest.json"'),
    "device": (b'"model.bin"', b'"/dev/zero"'),
    "negative size": (b'"size": 4004', b'"size": -4004'),
    "huge size": (b'"size": 4004', b'"size": 9223372036854775808'),
    "size as text": (b'"size": 4004', b'"size": "4004"'),
    "no size": (b'"size": 4004,', b""),
    "short hash": (re.compile(rb'"sha256": "..'), b'"sha256": "'),
    "facts that are a list": (b'"facts": {}', b'"facts": []'),
    "files that are a list": (re.compile(rb'"files": \{.*?\n \}', re.S), b'"files": []'),
    "a file that is a list": (re.compile(rb'"model.bin": \{.*?\}', re.S), b'"model.bin": []'),
    "too many files": (b'"files": {', b'"files": {' + b",".join(b'"f%d": 1' % i for i in range(100)) + b","),
}


def sealed(data):
    """A manifest with a hash of its own that holds."""
    body = data[: data.rindex(b",")]
    return body + b',\n "sha256": "%b"\n}\n' % hashlib.sha256(body).hexdigest().encode()


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_manifests(store, attack):
    store.write(1, files(1))
    file = store.write(2, files(2)) / "manifest.json"
    data, change = file.read_bytes(), ATTACKS[attack]
    if isinstance(change, tuple):
        old, new = change
        changed, times = (
            old.subn(new, data, count=1)
            if isinstance(old, re.Pattern)
            else (data.replace(old, new, 1), data.count(old))
        )
        assert times >= 1
        change = sealed(changed)
    file.write_bytes(change)
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"manifest.json: [^\n]*$") as refusal:
        Checkpoint(file.parent)
    assert time.process_time() - start < 0.5 and len(str(refusal.value)) < 600
    assert store.newest().step == 1 and store.passed_over


def test_no_bit_of_a_manifest_can_change(store):
    data = (store.write(2, files(), {"losses": [1.5, 2.25]}) / "manifest.json").read_bytes()
    manifest.decode("here", data)
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(CheckpointError, match="here: is no manifest"):
            manifest.decode("here", bytes(flipped))


def test_a_manifest_is_read_as_it_was_written(store):
    path = store.write(2, files(), {"x": [1.5, "\u00e9"]})
    found = manifest.read(path)
    assert manifest.decode("here", manifest.encode(found)) == found
    assert json.loads((path / "manifest.json").read_text())["facts"] == {"x": [1.5, "\u00e9"]}


# --- pruning ---------------------------------------------------------------------------------------------------------


def filled(store, last=10):
    for step in range(1, last + 1):
        store.write(step, files(step, 4))
    return store


@pytest.mark.parametrize(
    "options, left",
    [
        ({"keep": 0}, range(1, 11)),
        ({"keep": 1}, [10]),
        ({"keep": 3}, [8, 9, 10]),
        ({"keep": 2, "major": 4}, [4, 8, 9, 10]),
        ({"keep": 2, "best": 3}, [3, 9, 10]),
        ({"keep": 1, "major": 5, "best": 9}, [5, 9, 10]),
        ({"keep": 99}, range(1, 11)),
    ],
)
def test_what_stays(store, options, left):
    removed = filled(store).prune(**options)
    assert steps(store) == sorted(left, reverse=True)
    assert {path.name for path in removed} | set(names(store)) == {f"step_{step:08d}" for step in range(1, 11)}


def test_pruning_counts_only_what_verifies(store):
    filled(store, 5)
    fresh = Checkpoints(store.folder, "mine", store._ops)
    damage("flipped bit")(store.folder / "step_00000005")
    fresh.prune(2)
    assert steps(fresh) == [4, 3] and names(store) == ["step_00000003", "step_00000004", "step_00000005"]


def test_pruning_never_touches_what_it_does_not_know(store, tmp_path):
    filled(store, 2)
    foreign = Checkpoints(store.folder, "theirs", store._ops).write(1000, files(7))
    for path in ("step_1", "step_00000000x", "notes", "step_00000000"):
        (store.folder / path).mkdir()
    (store.folder / "step_00000001" / "notes.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    moved = (store.folder / "step_00000002").rename(tmp_path / "elsewhere" / "step_00000002")
    (store.folder / "step_00000002").symlink_to(moved)
    before = set(names(store))
    store.write(10, files(3))
    assert store.prune(1) == [] and set(names(store)) == before | {"step_00000010"}
    assert (foreign / "model.bin").exists() and (moved / "model.bin").exists()
    assert steps(store) == [10, 2, 1]


def test_links_in_the_way_are_never_followed(store, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "keep.txt").write_text("x")
    store.folder.mkdir()
    (store.folder / "step_00000003").symlink_to(victim)
    (store.folder / ".tmp-00000003-0123456789abcdef").symlink_to(victim)
    (store.folder / ".old-00000003-0123456789abcdef").symlink_to(victim)
    store.write(3, files(1))
    store.prune(1)
    assert store.newest().step == 3 and [p.name for p in victim.iterdir()] == ["keep.txt"]


# --- the thread ------------------------------------------------------------------------------------------------------


class Slow(FileOps):
    """A disk whose files take until `gate` opens to be synced; `written` says that they were written."""

    def __init__(self):
        self.gate, self.written = threading.Event(), threading.Event()

    def fsync(self, fd):
        self.written.set()
        assert self.gate.wait(10)
        super().fsync(fd)


def test_saving_goes_on_beside_training(tmp_path):
    (tmp_path / "run").mkdir()
    disk = Slow()
    store = Checkpoints(tmp_path / "run" / "checkpoints", "mine", disk)
    ticks = count()
    writer = Writer(store, lambda: next(ticks), keep=1)
    x = floats()
    writer.before_update()
    assert writer.poll() == [] and writer.finish() == [] and not writer.busy
    writer.start(1, {"model.bin": [x]}, {"a": 1})
    writer.before_update()
    assert disk.written.wait(10) and writer.busy and writer.poll() == []
    before, x[:] = x.copy(), 0
    disk.gate.set()
    writer.start(2, {"model.bin": [x]})
    (one,) = writer.poll()
    assert (one.step, one.path, one.pruned) == (1, store.folder / "step_00000001", [])
    (two,) = writer.finish()
    assert (two.step, two.pruned) == (2, [one.path]) and one.seconds >= 1 and two.blocked >= 1
    assert steps(store) == [2] and not writer.busy and before.any()


def test_failures_come_back_and_cost_nothing(store):
    writer = Writer(store, time.perf_counter, keep=1)
    writer.start(1, files())
    writer.before_update()
    assert writer.finish()[0].problem is None
    store._ops.room = 0
    writer.start(2, files())
    writer.before_update()
    writer._join()
    store._ops.room = None
    writer.start(3, files() | {"bad": [np.float32([np.nan])]})
    writer.before_update()
    full, bad = writer.finish()
    assert isinstance(full.problem, CheckpointError) and "are free" in str(full.problem) and full.step == 2
    assert isinstance(bad.problem, NonFiniteError) and "bad: float 0" in str(bad.problem) and bad.step == 3
    assert full.path is bad.path is None and writer.poll() == writer.finish() == [] and steps(store) == [1]


def test_what_fails_after_a_save_does_not_hide_it(store, monkeypatch):
    def fail(*kept):
        raise CheckpointError("no room for a note")

    writer = Writer(store, time.perf_counter, keep=1)
    writer.start(1, files())
    writer._join()
    monkeypatch.setattr(store, "prune", fail)
    writer.start(2, files())
    one, two = writer.finish()
    assert (one.problem, two.path) == (None, store.folder / "step_00000002")
    assert str(two.problem) == "no room for a note" and steps(store) == [2, 1]


def test_no_thread_is_a_failure_of_the_save(store, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    writer = Writer(store, time.perf_counter)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        writer.start(1, files())
    writer.before_update()
    (save,) = writer.finish()
    assert isinstance(save.problem, CheckpointError) and "step 1 has no thread" in str(save.problem)
    writer.start(2, files())
    assert writer.finish()[0].problem is None and steps(store) == [2]


# --- the lock --------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from gpt2flat.formats.lock import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_writer_per_run(tmp_path):
    path = tmp_path / "lock"
    with FolderLock(path), pytest.raises(RunLockedError, match=rf"process {os.getpid()} on .*training in it"):
        FolderLock(path)
    with FolderLock(path):
        pass
    assert RunLockedError.code == 11


def test_the_lock_dies_with_its_owner(tmp_path):
    here = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    owner = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdin=-1, stdout=-1, env=here)
    assert owner.stdout.readline() == b"held\n"
    start = time.perf_counter()
    with pytest.raises(RunLockedError, match=f"process {owner.pid} on "):
        FolderLock(tmp_path / "lock")
    assert time.perf_counter() - start < 1
    owner.kill()
    owner.communicate()
    FolderLock(tmp_path / "lock").release()


@pytest.mark.parametrize("target", ["absent/lock", "folder", "link"])
def test_locks_that_cannot_be(tmp_path, target):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(CheckpointError, match="cannot be locked"):
        FolderLock(tmp_path / target)
    assert not (tmp_path / "victim").exists()


def test_a_lock_file_with_other_words(tmp_path):
    path = tmp_path / "lock"
    with FolderLock(path):
        path.write_bytes(b"\x1b]0;x\a" * 1000)
        with pytest.raises(RunLockedError, match="another process is training"):
            FolderLock(path)


def test_a_lock_file_that_its_owner_removes(tmp_path, monkeypatch):
    """Who has opened it before takes a new one: there are never two owners."""
    path, flock = tmp_path / "lock", fcntl.flock
    first = FolderLock(path)

    def late(fd, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        first.remove()
        return flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    second = FolderLock(path)
    with pytest.raises(RunLockedError):
        FolderLock(path)
    second.remove()
    assert not path.exists()


# --- optimizer.bin ---------------------------------------------------------------------------------------------------


def optimizer_file(put, P=100, begin=30, t=7, n=50):
    m, v = floats(n), abs(floats(n, 1))
    return put(b"".join(bytes(memoryview(b)) for b in optimizer.buffers(P, begin, t, m, v))), m, v


def test_the_optimizer_state_by_ranges(put):
    path, m, v = optimizer_file(put, P=(1 << 33) + 7, begin=1 << 33, t=1 << 40, n=7)
    with optimizer.OptimizerFile(path) as file:
        assert (file.P, file.begin, file.end, file.t) == ((1 << 33) + 7, 1 << 33, (1 << 33) + 7, 1 << 40)
        for first, last in ((0, 7), (2, 5), (6, 7), (3, 3)):
            found = np.full((2, last - first), np.nan, np.float32)
            file.read_into((1 << 33) + first, *found)
            assert np.array_equal(found, [m[first:last], v[first:last]])
        for first, n in (((1 << 33) - 1, 2), (1 << 33, 8), (0, 7)):
            with pytest.raises(FormatError, match="holds the parameters 8589934592 to 8589934599, expected"):
                file.read_into(first, np.empty(n, np.float32), np.empty(n, np.float32))


def test_info_tells_of_an_optimizer_state(put):
    path, *_ = optimizer_file(put)
    assert describe(path)[1] == ("state", "AdamW's m and v of parameters 30 to 80 of 100, after 7 updates")


@pytest.mark.parametrize("name, offset", [("m", 1024), ("v", 1024 + 200)])
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7F800000, 0xFF800000])
def test_moments_that_are_not_finite(put, name, offset, bits):
    path, m, v = optimizer_file(put)
    data = bytearray(path.read_bytes())
    data[offset + 4 * 20 : offset + 4 * 21] = bits.to_bytes(4, "little")
    path.write_bytes(data)
    with (
        optimizer.OptimizerFile(path) as file,
        pytest.raises(NonFiniteError, match=f"{name} is -?(nan|inf) at flat index 50"),
    ):
        file.read_into(30, m, v)


def test_a_second_moment_below_zero(put):
    path, m, v = optimizer_file(put)
    data = path.read_bytes()
    path.write_bytes(data[:-4] + np.float32(-1e-30).tobytes())
    with optimizer.OptimizerFile(path) as file, pytest.raises(FormatError, match="v is .* at flat index 79"):
        file.read_into(30, m, v)


@pytest.mark.parametrize("word, value, says", [
    (1, 2, "version 2"), (2, 0, "of 0 parameters"), (3, 1 << 10, "of 4398046511204 parameters"), (4, 80, "80 to 80"),
    (4, 81, "81 to 80"), (5, -1, "expected one within"), (6, 101, "30 to 101"), (6, 79, "m and v of 49"),
    (9, 1 << 20, "updates done"), (10, 1, "reserved"),
])  # fmt: skip
def test_optimizer_headers_that_cannot_be(put, word, value, says):
    path, *_ = optimizer_file(put)
    data = bytearray(path.read_bytes())
    data[4 * word : 4 * word + 4] = value.to_bytes(4, "little", signed=True)
    path.write_bytes(data)
    with pytest.raises(FormatError, match=says) as refusal:
        optimizer.OptimizerFile(path)
    assert str(path) in str(refusal.value)


def test_optimizer_states_that_cannot_be_written():
    x = floats(4)
    for bad in ((3, 0, 0, x, x), (4, 1, 0, x, x), (4, -1, 0, x, x), (4, 0, -1, x, x), (8, 0, 0, x[:0], x[:0]),
                (8, 0, 0, x, x[:3]), (8, 0, 0, x.astype(float), x)):  # fmt: skip
        with pytest.raises(FormatError, match="optimizer state"):
            optimizer.buffers(*bad)
