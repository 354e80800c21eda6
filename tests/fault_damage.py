"""Bits that rot, clocks that jump, and many starters for one lock."""

import functools
import os
import random
import select
import signal
import time
from pathlib import Path

from fault_scenarios import RUN, Outcome, ended, find, in_child, perform, scratch
from gpt2flat.errors import RunLockedError
from gpt2flat.training.checkpoints import Checkpoints
from gpt2flat.formats.lock import FolderLock

STARTERS = 8


def flipped_bits(count: int, seed: int) -> Outcome:
    """One bit in one file of the newest checkpoint, manifest included: it is passed over and the one before is used."""
    outcome, rng = Outcome(), random.Random(seed)
    with scratch() as place:
        store = Checkpoints(place, RUN)
        for step in (1, 2):
            perform(store, ("write", step, 0))
        files = sorted((place / "step_00000002").iterdir())
        original = {path: path.read_bytes() for path in files}
        for _ in range(count):
            path = rng.choice(files)
            data = bytearray(original[path])
            bit = rng.randrange(8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            found, passed_over = find(place)
            outcome.tried += 1
            if found != {1: 0} or len(passed_over) != 1:
                outcome.lost.append(f"bit {bit} of {path.name}: {found}, {passed_over}")
            path.write_bytes(original[path])
    return outcome


def jumping_clocks(count: int, seed: int) -> Outcome:
    """Equal, random, ancient and future times on all files and folders: the same is newest, the same is removed."""
    outcome, rng = Outcome(), random.Random(seed)
    for _ in range(count):
        with scratch() as place:
            store = Checkpoints(place, RUN)
            steps = rng.sample([1, 2, 9, 10, 11, 99_999_999, 100_000_000], 4)
            for step in steps:
                perform(store, ("write", step, 0))
            times = rng.choice([lambda: 0, lambda: 2**31, lambda: rng.uniform(0, 2**33), lambda: time.time() + 3e8])
            for path in [*place.rglob("*"), place]:
                os.utime(path, (times(), times()))
            store = Checkpoints(place, RUN)
            newest = next((checkpoint.step for checkpoint in store.verified()), None)
            store.prune(2)
            outcome.tried += 1
            left = sorted(find(place)[0])
            if newest != max(steps) or left != sorted(steps)[-2:]:
                outcome.lost.append(f"of {steps} the newest is {newest}, {left} are left")
    return outcome


def readers_beside(count: int, seed: int) -> Outcome:
    """Two processes look for the newest checkpoint without end while `count` are saved and all but one removed: each finds
    a whole one, never an older one than before."""
    outcome = Outcome(count)
    with scratch() as place:
        store = Checkpoints(place, RUN)
        perform(store, ("write", 0, 0))
        (said, say), (waits, go) = os.pipe(), os.pipe()
        pids = [in_child(functools.partial(_reader, place, say, waits, go)) for _ in range(2)]
        os.close(say), os.close(waits)
        for step in range(1, count + 1):
            perform(store, ("write", step, 0))
            store.prune(1)
        os.close(go)
        with os.fdopen(said) as lines:
            looks = list(lines)
        outcome.lost += [line.strip() for line in looks if not line.startswith("looked")]
        outcome.lost += [f"a reader ended with {code}" for code in map(ended, pids) if code]
        outcome.lost += ["the readers had no time to look"] * (len(looks) < 2)
    return outcome


def _reader(place: Path, say: int, waits: int, go: int) -> None:
    os.close(go)
    last = looks = 0
    while not select.select([waits], [], [], 0)[0]:  # until the writer closes its end
        newest = Checkpoints(place, RUN).newest()
        looks += 1
        if newest is None or newest.step < last:
            os.write(say, f"found {newest and newest.step} after {last}\n".encode())
        last = newest.step if newest else last
    os.write(say, f"looked {looks} times\n".encode())


def many_starters(count: int, seed: int) -> Outcome:
    """Eight processes start at once: one gets the lock, the others name it within a second; then it is killed, and the
    lock is free."""
    outcome = Outcome()
    with scratch() as place:
        for number in range(count):
            outcome.tried += 1
            if wrong := _one_round(place / "lock"):
                outcome.lost.append(f"round {number}: {wrong}")
    return outcome


def _one_round(path: Path) -> str:
    (said, say), (waits, go) = os.pipe(), os.pipe()
    pids = [in_child(functools.partial(_starter, path, say, waits, go)) for _ in range(STARTERS)]
    os.close(say), os.close(waits), os.close(go)  # go: they all read its end
    words = b""
    while words.count(b"\n") < STARTERS and select.select([said], [], [], 10)[0]:
        words += os.read(said, 4096)
    lines = [line.split() for line in words.decode().splitlines()]
    winners = [int(pid) for what, pid, *_ in lines if what == "won"]
    told = {(int(of), float(seconds) < 1) for what, _, of, seconds in (line for line in lines if line[0] == "lost")}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        ended(pid)
    os.close(said)
    if len(lines) != STARTERS or len(winners) != 1 or told != {(winners[0], True)}:
        return str(lines)
    try:
        FolderLock(path).release()
    except RunLockedError as problem:
        return f"still held by the dead: {problem}"
    return ""


def _starter(path: Path, say: int, waits: int, go: int) -> None:
    os.close(go)
    os.read(waits, 1)
    start = time.perf_counter()
    try:
        lock = FolderLock(path)
    except RunLockedError as problem:
        owner = str(problem).partition("process ")[2].split()[0]
        os.write(say, f"lost {os.getpid()} {owner} {time.perf_counter() - start}\n".encode())
    else:
        os.write(say, f"won {os.getpid()} {lock.path}\n".encode())
    select.select([], [], [], 30)
