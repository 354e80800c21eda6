"""kill -9 before and after every file operation of a save, at every system call of it, and at random moments of saving
without end; and errors that the system itself returns. The parent of the killed is the oracle.

System calls are met with strace, attached to a child that waits at a pipe, so that only the save is counted."""

import contextlib
import ctypes
import errno
import os
import random
import re
import select
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np

from fault_calls import CODES, Watched, calls_of
from fault_scenarios import FAILED, RUN, SCENARIOS, Outcome, ended, in_child, perform, scenario, scratch
from gpt2flat.training.checkpoints import Checkpoints
from gpt2flat.formats.lock import FolderLock

KILLED = -signal.SIGKILL
# read: of the pipe; futex: between the threads that write and hash, as many as it takes
NOT_OF_THE_SAVE = {"exit_group", "restart_syscall", "read", "futex"}
INJECTED = ("openat", "fcntl", "write", "fsync", "close", "rename", "mkdir", "unlink", "rmdir", "preadv2", "statfs",
            "newfstatat", "getdents64")  # fmt: skip


def killed_at_calls(count: int, seed: int) -> Outcome:
    """Before and after each file operation."""
    cases = [(name, n, after) for name in SCENARIOS for n in range(len(calls_of(name))) for after in (False, True)]
    chosen = sorted(random.Random(seed).sample(cases, min(count, len(cases))))
    return Outcome(len(chosen), [f"{case}: {wrong}" for case in chosen if (wrong := kill_at(*case))])


def kill_at(name: str, number: int, after: bool) -> str:
    """After a call is before the next one."""

    def kill(at, called, arguments):
        if at == number + after:
            os.kill(os.getpid(), signal.SIGKILL)

    with scenario(name, Watched(kill)) as (store, action, oracle):

        def work():
            perform(store, action)
            os.kill(os.getpid(), signal.SIGKILL)  # after the last one

        code = ended(in_child(work))
        return f"ended with {code}" if code != KILLED else oracle.judge_after(store.folder)


# --- system calls ----------------------------------------------------------------------------------------------------


class Tracing:
    """A child that performs a scenario's action under strace with these options; `code` is how it ended, `log` what
    strace saw."""

    def __init__(self, place: Path, store: Checkpoints, action: tuple, *options: str):
        ready, go = os.pipe()

        def work():
            with contextlib.suppress(OSError):
                ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_long(-1))  # PR_SET_PTRACER: anyone may trace it
            os.read(ready, 1)
            perform(store, action)

        pid = in_child(work)
        log = place / "strace"
        command = ["strace", "-o", str(log), *options, "-p", str(pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.problem = "" if "attached" in tracer.stderr.readline() else "strace cannot attach"
        os.write(go, b"x")
        os.close(go), os.close(ready)
        self.code = ended(pid)
        tracer.communicate()
        self.log = log.read_text() if log.exists() else ""

    def counts(self) -> Counter:
        calls = Counter(re.findall(r"^(\w+)\(", self.log, re.M))
        return Counter({name: times for name, times in calls.items() if name not in NOT_OF_THE_SAVE})


def left_out() -> str:
    if not shutil.which("strace"):
        return "no strace"
    with scenario("first") as (store, action, _):
        return Tracing(store.folder.parent, store, action, "-e", "trace=fsync").problem


def system_calls(name: str) -> Counter:
    """{system call: how often} of a scenario's last action."""
    with scenario(name) as (store, action, _):
        return Tracing(store.folder.parent, store, action).counts()


def killed_at_system_calls(count: int, seed: int) -> Outcome:
    """At the entry of every system call of each scenario."""
    if why := left_out():
        return Outcome(left_out=why)
    cases = [
        (name, call, n) for name in SCENARIOS for call, times in system_calls(name).items() for n in range(1, times + 1)
    ]
    chosen = sorted(random.Random(seed).sample(cases, min(count, len(cases))))
    return Outcome(len(chosen), [f"{case}: {wrong}" for case in chosen if (wrong := kill_in(*case))])


def kill_in(name: str, call: str, number: int) -> str:
    with scenario(name) as (store, action, oracle):
        traced = Tracing(store.folder.parent, store, action, "-e", f"inject={call}:signal=KILL:when={number}")
        if traced.code not in (0, KILLED) or (traced.code == 0 and call != "munmap"):
            return f"ended with {traced.code}"  # where memory is freed differs from run to run
        return oracle.judge_after(store.folder)


def failing_system_calls(count: int, seed: int) -> Outcome:
    """Every system call of a save that can fail x every error, once."""
    if why := left_out():
        return Outcome(left_out=why)
    cases = [
        (name, call, n, errno.errorcode[code])
        for name in SCENARIOS
        for call, times in system_calls(name).items()
        if call in INJECTED
        for n in range(1, times + 1)
        for code in CODES
    ]
    chosen = sorted(random.Random(seed).sample(cases, min(count, len(cases))))
    return Outcome(len(chosen), [f"{case}: {wrong}" for case in chosen if (wrong := fail_in(*case))])


def fail_in(name: str, call: str, number: int, code: str) -> str:
    with scenario(name) as (store, action, oracle):
        traced = Tracing(store.folder.parent, store, action, "-e", f"inject={call}:error={code}:when={number}")
        if "(INJECTED)" not in traced.log:
            return "nothing was injected"
        if traced.code not in (0, FAILED):
            return f"ended with {traced.code}"
        if traced.code == 0 and action[0] == "write":  # prune leaves alone what it could not look at
            oracle.done(action)
        return oracle.judge_after(store.folder)


# --- random moments --------------------------------------------------------------------------------------------------


def killed_at_random(count: int, seed: int) -> Outcome:
    """Processes that take the lock, recover, and save 1 MB again and again, each killed at some moment of that; the
    next one goes on in the same folder. keep = 2."""
    outcome, rng = Outcome(), random.Random(seed)
    with scratch() as place:
        (place / "run").mkdir()
        saved, folder = 0, place / "run" / "checkpoints"
        for number in range(count):
            outcome.tried += 1
            saved, wrong = _one_life(place, rng.uniform(0.001, 0.06), saved)
            newest = Checkpoints(folder, RUN).newest()
            step = newest.step if newest else 0
            if step not in (saved, saved + 1):
                wrong = wrong or f"step {step} is the newest, {saved} was the last that was said to be durable"
            if newest and newest.read("model.bin") != _megabyte(step):
                wrong = wrong or f"step {step} has other bytes"
            temporaries = [name for name in os.listdir(folder) if name.startswith(".")] if folder.exists() else []
            if len(temporaries) > 1:
                wrong = wrong or f"leaves {temporaries}"
            if wrong:
                outcome.lost.append(f"kill {number}: {wrong}")
                break
            saved = step
    return outcome


def _one_life(place: Path, seconds: float, start: int) -> tuple[int, str]:
    """(the last step that a child said was durable, what went wrong)."""
    said, say = os.pipe()

    def work():
        with FolderLock(place / "lock"):
            store = Checkpoints(place / "run" / "checkpoints", RUN)
            os.write(say, b"%d\n" % start)
            for step in range(start + 1, 1 << 30):
                store.write(step, {"model.bin": [_megabyte(step)]})
                os.write(say, b"%d\n" % step)
                store.prune(2)

    pid = in_child(work)
    os.close(say)
    select.select([said], [], [], 10)  # it has begun
    select.select([], [], [], seconds)
    os.kill(pid, signal.SIGKILL)
    code = ended(pid)
    with os.fdopen(said) as lines:
        steps = [int(line) for line in lines]
    return (steps or [start])[-1], "" if code == KILLED else f"ended with {code} by itself"


def _megabyte(step: int) -> bytes:
    return np.random.default_rng(step).bytes(1 << 20)
