"""PyTorch and NumPy at the same work, each in a process of its own (peer.py): started, asked in turn, ended."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from .machine import Timed, Times

PEERS = ("torch", "numpy")
SCRIPT = Path(__file__).with_name("peer.py")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PATIENCE = 10  # seconds for a peer to end


class Peer:
    """A peer's process, for a `with`. name: "torch"; label: "torch 2.13.0"; knows: the kernels it has, and "step".

    Raises UsageError where its package is missing, and whenever it fails."""

    def __init__(self, name: str, threads: int):
        self.name, self._errors = name, tempfile.TemporaryFile()  # noqa: SIM115
        # our spin count is set for our own threads and not for those of others
        env = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
        command = [sys.executable, "-P", str(SCRIPT), name, str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                                         text=True, env=env | dict.fromkeys(THREADS, str(threads)))  # fmt: skip
        try:
            hello = self._answer()
            if "missing" in hello:
                raise UsageError(
                    f"--vs {name}: {name} cannot be imported: pip install 'gpt2flat[{name}]' ({hello['missing']})"
                )
        except BaseException:
            self.close()
            raise
        self.label, self.knows = hello["name"], hello["knows"]

    def start(self, work: str, numbers: dict) -> bool:
        """Prepares a kernel or the step; False if the peer has no such thing. It then does rounds of that."""
        return work in self.knows and self.ask({"start": work, "with": numbers})["known"]

    def ask(self, message: dict) -> dict:
        try:
            print(json.dumps(message), file=self._process.stdin, flush=True)
        except OSError:
            pass  # it has ended, and why is told below
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        found = json.loads(line) if line.endswith("\n") else {"error": self._last_words()}
        if "error" in found:
            raise UsageError(f"--vs {self.name}: its process failed: {found['error']}")
        return found

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").split("\n")
        return f"exit code {code}, {next((line for line in reversed(said) if line.strip()), 'nothing said')}"

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what it has not read
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *error) -> None:
        self.close()


class Remote(Timed):
    """The work that a peer has started, timed by its own clock."""

    def __init__(self, peer: Peer, window: float):
        super().__init__(self.clock, window)
        self.peer = peer

    def clock(self, rounds: int) -> float:
        return self.peer.ask({"rounds": rounds})["seconds"]

    @property
    def row(self) -> "PeerRow":
        return PeerRow(self.peer.name, self.peer.label, self.times)


@dataclass(frozen=True)
class PeerRow:
    """How long a peer took for the same work."""

    name: str
    label: str
    times: Times


def remotes(peers: list[Peer], work: str, numbers: dict, window: float) -> list[Remote]:
    """The peers that know a work, ready for it."""
    return [Remote(peer, window) for peer in peers if peer.start(work, numbers)]
