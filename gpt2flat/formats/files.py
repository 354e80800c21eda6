"""Files that cannot surprise: regular files read by position, and writes that either happen whole or not at all.

No format is known here and nothing is mapped: a file truncated underneath is an exception, never a signal."""

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError, Gpt2FlatError, reason


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
        """Fills `view` (writable, contiguous) with the bytes from `offset` on."""
        rest = memoryview(view).cast("B") if memoryview(view).nbytes else memoryview(b"")
        wanted = len(rest)
        while rest:
            try:
                got = _read_at(self._fd, rest, offset + wanted - len(rest))
            except OSError as problem:
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

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> "RegularFile":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def write_atomically(path, *buffers) -> None:
    """Writes the buffers (bytes or contiguous arrays), one behind the other, as write_stream_atomically does."""
    write_stream_atomically(path, buffers)


def write_stream_atomically(path, buffers: Iterable) -> None:
    """Writes buffers (bytes or contiguous arrays), one by one as they are made, as the file `path`: all or nothing.

    The bytes go to a new file beside the target, reach the disk, and only then take the name, so `path` may be the file
    the data was loaded from. A target keeps its mode and, where allowed, its owner; a symbolic link is replaced.
    Raises CheckpointError with the system's reason; nothing is left behind, and the target is as it was (or, if only
    the last step failed, the sync of its folder, wholly new)."""
    path = _path(path, CheckpointError)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp") if path.name else path
    fd = -1
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _option("CLOEXEC", "BINARY"), 0o666)
        _keep_owner_and_mode(path, fd)
        for buffer in buffers:
            _write_all(fd, buffer)
        os.fsync(fd)
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{path}: cannot be written: {reason(problem)}") from None
    finally:
        if fd >= 0:
            os.close(fd)
            temporary.unlink(missing_ok=True)  # gone already when the rename went through


def _path(path, error: type[Gpt2FlatError]) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise error(f"{type(path).__name__} is no path: expected text or a pathlib.Path") from None


def _option(*names: str) -> int:
    """Options of os.open, 0 for those that this system does not have."""
    return sum(getattr(os, f"O_{name}", 0) for name in names)


def _read_at(fd: int, view, offset: int) -> int:
    """Bytes read into `view` from `offset` on: by position where the system can, else (macOS, Windows) behind a seek."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    os.lseek(fd, offset, os.SEEK_SET)
    data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)


def _write_all(fd: int, buffer) -> None:
    view = memoryview(buffer)
    rest = view.cast("B") if view.nbytes else memoryview(b"")
    while rest:
        rest = rest[os.write(fd, rest) :]


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


def _sync_directory(folder: Path) -> None:
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


_SPECIAL = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
