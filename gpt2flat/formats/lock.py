"""One writer per folder: a lock that the system releases when its owner ends, however it ends."""

import contextlib
import os
import platform
import re
import time
from pathlib import Path

from ..errors import CheckpointError, RunLockedError, reason

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

OWNER = re.compile(rb"pid (\d{1,20}) on ([\w.-]{1,255})\n", re.ASCII)


class FolderLock:
    """Holds the lock file `path` until release(), the end of a `with`, or the end of the process.

    The file says "pid 123 on host". Its owner alone may remove it, before it lets go; else two could have a file each. Windows
    has no such locks, so nothing is held there; neither do some network file systems, which say so."""

    def __init__(self, path, busy: str = "training in it: wait for its end, or name another directory with --out"):
        """busy: what an owner does in the folder of `path`, and what there is to do for others.

        Raises RunLockedError that names the owner if there is one, CheckpointError if the file cannot be locked."""
        self.path, self._fd = Path(path), -1
        if fcntl is None:
            return
        try:
            while not self._is_there():
                self.release()
                self._fd = os.open(
                    self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666
                )
                self._take()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"pid {os.getpid()} on {_host()}\n".encode(), 0)
        except BlockingIOError:
            owner = self._owner()
            who = f"process {owner[1].decode()} on {owner[2].decode()}" if owner else "another process"
            self.release()
            raise RunLockedError(f"{self.path.parent}: {who} is {busy}") from None
        except OSError as problem:
            self.release()
            raise CheckpointError(f"{self.path}: cannot be locked: {reason(problem)}") from None

    def _is_there(self) -> bool:
        """Whether the file that is held is still the one of this name, and not one that its owner has removed meanwhile."""
        try:
            return self._fd >= 0 and os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _owner(self) -> re.Match | None:
        """What the file says, once it is not the word of an owner before."""
        for _ in range(20):
            owner = OWNER.fullmatch(os.pread(self._fd, 512, 0))
            if owner and (owner[2].decode() != _host() or os.path.exists(f"/proc/{owner[1].decode()}")):
                break
            time.sleep(0.01)  # the new one is about to write
        return owner

    def _take(self) -> None:
        """Raises BlockingIOError if there is an owner. Who only looks whether there is one holds the lock for an instant, but
        shared, and is waited for."""
        for _ in range(100):
            with contextlib.suppress(BlockingIOError):
                return fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            time.sleep(0.002)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove(self) -> None:
        """Releases it, and takes the file away."""
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *exc) -> None:
        self.release()


def _host() -> str:
    return re.sub(r"[^\w.-]", "-", platform.node(), flags=re.ASCII)[:255] or "this-machine"
