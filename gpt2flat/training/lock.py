"""One writer per run directory: a lock that the system releases when its owner ends, however it ends."""

import os
import platform
import re
from pathlib import Path

from ..errors import CheckpointError, RunLockedError, reason

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

OWNER = re.compile(rb"pid (\d{1,20}) on ([\w.-]{1,255})\n", re.ASCII)


class RunLock:
    """Holds the lock file `path` until release(), the end of a `with`, or the end of the process.

    The file says "pid 123 on host" and stays where it is: removing it would let two owners have a file each. Windows has
    no such locks, so nothing is held there; neither do some network file systems, which say so."""

    def __init__(self, path):
        """Raises RunLockedError that names the owner if there is one, CheckpointError if the file cannot be locked."""
        self.path, self._fd = Path(path), -1
        if fcntl is None:
            return
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"pid {os.getpid()} on {platform.node() or 'this-machine'}\n".encode(), 0)
        except BlockingIOError:
            owner = OWNER.fullmatch(os.pread(self._fd, 512, 0))
            who = f"process {owner[1].decode()} on {owner[2].decode()}" if owner else "another process"
            self.release()
            raise RunLockedError(
                f"{self.path.parent}: {who} is training in it: wait for its end, or name another directory with --out"
            ) from None
        except OSError as problem:
            self.release()
            raise CheckpointError(f"{self.path}: cannot be locked: {reason(problem)}") from None

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *exc) -> None:
        self.release()
