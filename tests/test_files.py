"""Reading by position and writing all or nothing, with every system call failing in turn."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2flat.errors import CheckpointError, DataError, FormatError
from gpt2flat.formats import files
from gpt2flat.formats.files import BLOCK, RegularFile, write_atomically

TINY = Path(__file__).parent / "llmc_tiny"


# --- reading


def test_short_reads_are_continued(tmp_path, monkeypatch):
    data = os.urandom(5000)
    (tmp_path / "f").write_bytes(data)
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: whole(fd, [buffers[0][:700]], at))
    with RegularFile(tmp_path / "f", DataError) as file:
        assert file.read(11, 4321) == data[11 : 11 + 4321]


def test_a_large_view_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 1000)
    data = os.urandom(7777)
    (tmp_path / "f").write_bytes(data)
    with RegularFile(tmp_path / "f", DataError) as file:
        assert file.read(11, 7766) == data[11:]
        with pytest.raises(DataError, match="found 777 bytes at offset 7000, expected 1000: the file was cut short"):
            file.read(0, 10_000)


def test_a_reading_error_names_the_reason(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with RegularFile(TINY / "model.bin", DataError, short=FormatError) as file:
        with pytest.raises(FormatError, match="input/output error"):
            file.read(0, 4)


@pytest.mark.parametrize("refused", [False, True])
def test_blocks_are_all_of_a_file(tmp_path, monkeypatch, refused):
    data = os.urandom(2 * BLOCK + 12345)
    (tmp_path / "f").write_bytes(data)
    whole, calls = os.preadv, []

    def read(fd, buffers, at):
        direct = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        calls.append(bool(direct))
        if direct and refused:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return whole(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", read)
    with RegularFile(tmp_path / "f", DataError) as file:
        assert b"".join(map(bytes, file.blocks())) == data and not calls[-1]


# --- writing


@pytest.fixture
def source(tmp_path):
    """A checkpoint in its own folder, mode 0640."""
    path = tmp_path / "own" / "model.bin"
    path.parent.mkdir()
    path.write_bytes((TINY / "model.bin").read_bytes())
    path.chmod(0o640)
    return path


@pytest.mark.parametrize("way", ["same path", "symbolic link", "hard link"])
def test_saving_over_the_source(tmp_path, source, way):
    target = source if way == "same path" else tmp_path / "link.bin"
    if way == "symbolic link":
        target.symlink_to(source)
    elif way == "hard link":
        target.hardlink_to(source)
    old = source.read_bytes()
    image = np.fromfile(source, np.float32)
    image[256:] += 1
    with open(source, "rb") as reader:
        for _ in range(3):
            write_atomically(target, image[:256].tobytes(), image[256:])
        assert reader.read() == old, "the old file was written into"
    assert target.read_bytes() == image.tobytes() and not target.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert way == "same path" or source.read_bytes() == old
    assert [p.name for p in source.parent.iterdir()] == ["model.bin"]


def test_a_new_file_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_atomically(tmp_path / ("n" * 250), b"a", bytearray(), np.zeros((0, 3)), memoryview(b"b"))
    finally:
        os.umask(old)
    (path,) = tmp_path.iterdir()
    assert path.read_bytes() == b"ab" and stat.S_IMODE(path.stat().st_mode) == 0o640


def failing(name, code, after=0):
    """A stand-in for os.<name> that fails from call number `after` on."""
    real, calls = getattr(os, name), iter(range(10**6))

    def call(*args, **kwargs):
        if next(calls) >= after:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    return call


FAILURES = [("open", 0), ("write", 0), ("write", 1), ("fchmod", 0), ("fsync", 0), ("replace", 0)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("call, after", FAILURES)
def test_a_failed_write_changes_nothing(source, monkeypatch, call, after, code):
    old = source.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(call, code, after))
        with pytest.raises(CheckpointError, match=os.strerror(code).lower()) as failure:
            write_atomically(source, b"head", b"body")
    assert str(source) in str(failure.value) and source.read_bytes() == old
    assert [p.name for p in source.parent.iterdir()] == ["model.bin"]


def test_a_folder_that_cannot_be_synced(source, monkeypatch):
    for code, tolerated in ((errno.EIO, False), (errno.EINVAL, True)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing("fsync", code, after=1))
            if tolerated:
                write_atomically(source, b"whole")
            else:
                with pytest.raises(CheckpointError, match="input/output error"):
                    write_atomically(source, b"whole")
        assert source.read_bytes() == b"whole" and len(list(source.parent.iterdir())) == 1


def test_an_interrupt_leaves_nothing_behind(source, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    old = source.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(source, b"new")
    assert source.read_bytes() == old and len(list(source.parent.iterdir())) == 1


def test_short_writes_are_continued_and_the_order_is_safe(source, monkeypatch):
    """write* fsync(file) replace fsync(folder): anything else can lose both old and new at a power cut."""
    calls = []

    def watch(name, real):
        def call(*args, **kwargs):
            calls.append(name)
            return real(*args, **kwargs)

        return call

    real = os.write
    monkeypatch.setattr(os, "write", watch("write", lambda fd, view: real(fd, view[:1000])))
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, watch(name, getattr(os, name)))
    data = np.arange(2500, dtype=np.float32)
    write_atomically(source, data)
    assert source.read_bytes() == data.tobytes()
    assert calls == ["write"] * 10 + ["fsync", "replace", "fsync"]


def test_a_disk_that_takes_nothing(source, monkeypatch):
    old = source.read_bytes()
    monkeypatch.setattr(os, "write", lambda fd, view: 0)
    with pytest.raises(CheckpointError, match="nothing was written"):
        write_atomically(source, b"x")
    assert source.read_bytes() == old and len(list(source.parent.iterdir())) == 1


@pytest.mark.parametrize("target", ["absent/model.bin", ".", "/", "nul\0byte"])
def test_targets_that_cannot_be(tmp_path, target):
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_atomically(tmp_path / target, b"x")
    assert not list(tmp_path.iterdir())


def test_a_full_disk(source):
    """With RLIMIT_FSIZE the kernel writes short first and refuses then, like a disk that fills up."""
    script = """if True:
        import resource, sys
        from gpt2flat.errors import CheckpointError
        from gpt2flat.formats.files import write_atomically
        failed = 0
        for limit in range(0, 130000, 6500):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                write_atomically(sys.argv[1], bytes(1024), bytes(127000))
            except CheckpointError as problem:
                assert "file too large" in str(problem), problem
                failed += 1
        print(failed)
    """
    old = source.read_bytes()
    run = subprocess.run([sys.executable, "-c", script, source], capture_output=True, text=True, timeout=60)
    assert run.stdout.split() == ["20"], run.stderr
    assert source.read_bytes() == old and len(list(source.parent.iterdir())) == 1


@pytest.mark.parametrize("allowed", [True, False])
def test_the_owner_stays_where_that_is_allowed(source, monkeypatch, allowed):
    """Another user's file that one of its group writes: the new one is given to its owner, or keeps at least its mode."""
    given, stat_of = [], os.stat

    def of_another(path, *args, **kwargs):
        found = stat_of(path, *args, **kwargs)
        return os.stat_result([*found[:4], found.st_uid + 1, *found[5:10]]) if Path(path) == source else found

    def give(fd, uid, gid):
        given.append((uid, gid))
        if not allowed:
            raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "stat", of_another)
    monkeypatch.setattr(os, "fchown", give)
    write_atomically(source, b"new")
    monkeypatch.undo()
    found = os.stat(source)
    assert given == [(found.st_uid + 1, found.st_gid)]
    assert source.read_bytes() == b"new" and stat.S_IMODE(found.st_mode) == 0o640
