"""Files that cannot surprise: regular files read by position, and writes that either happen whole or not at all.

No format is known here and nothing is mapped: a file truncated underneath is an exception, never a signal."""

import contextlib
import errno
import mmap
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import CheckpointError, Gpt2FlatError, reason

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BLOCK = 4 << 20  # bytes that are read or written at once: a disk's full speed, and still warm for a hash
PIECE = 16 << 20  # bytes of a large view that a thread reads
READERS = min(4, os.cpu_count() or 1)
BY_POSITION = hasattr(os, "preadv")  # not on macOS and Windows


class RegularFile:
    """A regular file opened for reading; `size` is its length in bytes at opening. Use it in a `with`, or close() it.

    error: the class raised when the file cannot be opened; short: when it ends too early (default: the same)."""

    def __init__(self, path, error: type[Gpt2FlatError], short: type[Gpt2FlatError] | None = None):
        self._short, self._fd = short or error, -1
        self.path = _path(path, error)
        try:
            # without O_NONBLOCK the open of a pipe would wait for a writer
            self._fd = os.open(self.path, os.O_RDONLY | _option("NONBLOCK", "CLOEXEC", "BINARY"))
        except (OSError, ValueError) as problem:
            raise error(f"{path}: cannot be opened: {reason(problem)}") from None
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            found = _SPECIAL.get(stat.S_IFMT(status.st_mode), "a special file")
            raise error(f"{path}: found {found}, expected a regular file")
        self.size = status.st_size

    def read_into(self, offset: int, view) -> None:
        """Fills `view` (writable, contiguous) with the bytes from `offset` on; of a large one several pieces at a time, since new
        memory costs more than reading does."""
        rest = memoryview(view).cast("B") if memoryview(view).nbytes else memoryview(b"")
        if len(rest) < 2 * PIECE or not BY_POSITION:
            return self._read_piece(offset, rest)
        with ThreadPoolExecutor(READERS) as pool:
            starts = range(0, len(rest), PIECE)
            for _ in pool.map(lambda start: self._read_piece(offset + start, rest[start : start + PIECE]), starts):
                pass

    def _read_piece(self, offset: int, rest: memoryview) -> None:
        wanted = len(rest)
        while rest:
            try:
                got = _read_at(self._fd, rest, offset + wanted - len(rest))
            except OSError as problem:
                if problem.errno == errno.EINVAL and past_cache(self._fd, False):
                    continue
                raise self._short(f"{self.path}: cannot be read: {reason(problem)}") from None
            if got == 0:
                raise self._short(
                    f"{self.path}: found {wanted - len(rest)} bytes at offset {offset}, expected {wanted}: the file "
                    "was cut short, perhaps while in use; copy it again"
                )
            rest = rest[got:]

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on."""
        data = bytearray(length)
        self.read_into(offset, data)
        return bytes(data)

    def blocks(self) -> Iterator[memoryview]:
        """All bytes, BLOCK at a time, each valid until the next: from the disk itself where that can be."""
        block = _aligned_block()
        for start in range(0, self.size, BLOCK):
            part = block[: min(BLOCK, self.size - start)]
            past_cache(self._fd, len(part) == BLOCK)
            self.read_into(start, part)
            yield part

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # what was read has been read
                os.close(fd)

    def __enter__(self) -> "RegularFile":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class FileOps:
    """The calls that change files and folders. Everything durable goes through one of these, so that tests can record
    the calls, make any of them fail, or end the process at it. They raise OSError."""

    def create(self, path: Path) -> int:
        """The descriptor of a new file, open to write. Nothing may be there yet, not even a symbolic link."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _option("CLOEXEC", "BINARY"), 0o666)

    def write(self, fd: int, view) -> int:
        """Bytes written, which may be fewer than `view` has."""
        return os.write(fd, view)

    def past_cache(self, fd: int, wanted: bool) -> bool:
        return past_cache(fd, wanted)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def mkdir(self, path: Path) -> None:
        os.mkdir(path)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)

    def fsync_dir(self, folder: Path) -> None:
        """Makes the names in `folder` durable."""
        if os.name == "nt":
            return  # Windows syncs no directories
        fd = os.open(folder, os.O_RDONLY | _option("DIRECTORY", "CLOEXEC"))
        try:
            os.fsync(fd)
        except OSError as problem:
            if problem.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a directory
                raise
        finally:
            os.close(fd)

    def free(self, folder: Path) -> int:
        """Bytes that this user can still write there."""
        return shutil.disk_usage(folder).free


DISK = FileOps()


def write_all(ops: FileOps, fd: int, buffer) -> None:
    """Writes a whole buffer (bytes or a contiguous array), however little a call takes. Raises OSError."""
    view = memoryview(buffer)
    rest = view.cast("B") if view.nbytes else memoryview(b"")
    while rest:
        try:
            written = ops.write(fd, rest)
        except OSError as problem:  # past the cache only what is aligned can be written
            if problem.errno != errno.EINVAL or not ops.past_cache(fd, False):
                raise
            continue
        if not written:
            raise OSError(errno.EIO, "nothing was written")
        rest = rest[written:]


def in_blocks(pieces: Iterable[np.ndarray]) -> Iterator[memoryview]:
    """Arrays of bytes one behind the other, gathered into blocks that are full but the last, each valid until the
    next."""
    block, used = _aligned_block(), 0
    for piece in pieces:
        while piece.size:
            taken = min(piece.size, BLOCK - used)
            np.frombuffer(block, np.uint8)[used : used + taken] = piece[:taken]
            used, piece = used + taken, piece[taken:]
            if used == BLOCK:
                yield block
                used = 0
    if used:
        yield block[:used]


def write_block(ops: FileOps, fd: int, block: memoryview) -> None:
    """Writes one of in_blocks(). Whole ones go past the page cache: a checkpoint would push out what is in use there, and
    where pages have to come from a virtual machine's host it grows at a tenth of a disk's speed. Raises OSError."""
    ops.past_cache(fd, len(block) == BLOCK)
    write_all(ops, fd, block)


def write_atomically(path, *buffers, ops: FileOps = DISK) -> None:
    """Writes the buffers (bytes or contiguous arrays), one behind the other, as write_stream_atomically does."""
    write_stream_atomically(path, buffers, ops)


def write_stream_atomically(path, buffers: Iterable, ops: FileOps = DISK) -> None:
    """Writes buffers (bytes or contiguous arrays), one by one as they are made, as the file `path`: all or nothing.

    The bytes go to a new file beside the target, reach the disk, and only then take the name, so `path` may be the file
    the data was loaded from. A target keeps its mode and, where allowed, its owner; a symbolic link is replaced.
    Raises CheckpointError with the system's reason; nothing is left behind, and the target is as it was (or, if only
    the last step failed, the sync of its folder, wholly new)."""
    path = _path(path, CheckpointError)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp") if path.name else path
    fd = -1
    try:
        fd = ops.create(temporary)
        _keep_owner_and_mode(path, fd)
        for buffer in buffers:
            write_all(ops, fd, buffer)
        ops.fsync(fd)
        ops.rename(temporary, path)
        ops.fsync_dir(path.parent)
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{path}: cannot be written: {reason(problem)}") from None
    finally:
        if fd >= 0:
            with contextlib.suppress(OSError):
                ops.close(fd)
            with contextlib.suppress(OSError):
                ops.unlink(temporary)  # gone already when the rename went through


def remove_empty(*folders) -> None:
    """Takes away those of the folders that hold nothing, one after the other."""
    for folder in folders:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def past_cache(fd: int, wanted: bool) -> bool:
    """Whether an open file changed to be read and written past the page cache (O_DIRECT), or back. Not every system and
    file system can; what is not aligned to its blocks is refused then with EINVAL."""
    if fcntl is None or not hasattr(os, "O_DIRECT"):
        return False
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if bool(flags & os.O_DIRECT) == wanted:
            return False
        fcntl.fcntl(fd, fcntl.F_SETFL, flags ^ os.O_DIRECT)
    except OSError:
        return False
    return True


def _aligned_block() -> memoryview:
    return memoryview(mmap.mmap(-1, BLOCK))


def _path(path, error: type[Gpt2FlatError]) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise error(f"{type(path).__name__} is no path: expected text or a pathlib.Path") from None


def _option(*names: str) -> int:
    """Options of os.open, 0 for those that this system does not have."""
    return sum(getattr(os, f"O_{name}", 0) for name in names)


def _read_at(fd: int, view, offset: int) -> int:
    """Bytes read into `view` from `offset` on: by position where the system can, else (macOS, Windows) behind a
    seek."""
    if BY_POSITION:
        return os.preadv(fd, [view], offset)
    os.lseek(fd, offset, os.SEEK_SET)
    data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)


def _keep_owner_and_mode(target: Path, fd: int) -> None:
    try:
        old, new = os.stat(target), os.fstat(fd)
    except FileNotFoundError:
        return
    if not hasattr(os, "fchmod"):
        return
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        try:
            os.fchown(fd, old.st_uid, old.st_gid)
        except PermissionError:
            pass  # only root may give a file away
    os.fchmod(fd, stat.S_IMODE(old.st_mode))


_SPECIAL = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
