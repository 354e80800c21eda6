"""A power cut: every call of a long history of saves is recorded, and for each moment of it states are made that the
disk may be in: what was not synced is there or not, whole or in part, in any order (ALICE, OSDI 2014; CrashMonkey, OSDI
2018).

A file's bytes are safe after its fsync, a name after the fsync of its folder, and nothing else is safe."""

import itertools
import random
from dataclasses import dataclass
from pathlib import Path

from fault_scenarios import RUN, Oracle, Outcome, find, perform, scratch, small_blocks
from gpt2flat.formats.files import FileOps, write_atomically
from gpt2flat.training.checkpoints import Checkpoints

SECTOR = 512
EXHAUSTIVE = 6  # so many calls that are not synced: all their subsets are tried
HISTORY = [
    ("write", 1, 0), ("write", 2, 0), ("prune", 1), ("write", 3, 0), ("write", 3, 1), ("write", 4, 0), ("prune", 2),
    ("write", 2, 1), ("write", 5, 0), ("prune", 1),
]  # fmt: skip


@dataclass(eq=False)
class Call:
    """A change of one thing (a file or folder, by number): bytes at an offset, or names that now mean something else.
    synced: after how many calls it was safe; removed: what no longer has a name."""

    of: int
    offset: int = 0
    data: bytes = b""
    names: dict[str, int | None] | None = None
    synced: int | None = None
    removed: int | None = None

    def is_safe(self, moment: int) -> bool:
        return self.synced is not None and self.synced <= moment


class CrashDisk(FileOps):
    """Does what it is told below `root`, and records it."""

    def __init__(self, root: Path):
        self.calls: list[Call] = []
        self._root, self._tree, self._fds, self._next = root, {0: {}}, {}, itertools.count(1)

    def _folder(self, path: Path) -> int | None:
        """The number of a folder, None if it is not below the root."""
        if not path.is_relative_to(self._root):
            return None
        at = 0
        for name in path.relative_to(self._root).parts:
            at = self._tree[at][name]
        return at

    def _name(self, path: Path, thing: int | None, old: Path | None = None) -> None:
        of = self._folder(path.parent)
        removed = self._tree[of].get(path.name) if thing is None else None
        names = {path.name: thing} if old is None else {old.name: None, path.name: thing}
        self._tree[of] |= names
        self.calls.append(Call(of, names=names, removed=removed))

    def _sync(self, thing: int | None) -> None:
        for call in self.calls:
            if call.of == thing and call.synced is None:
                call.synced = len(self.calls)

    def create(self, path):
        fd = super().create(path)
        self._fds[fd] = [next(self._next), 0]
        self._name(path, self._fds[fd][0])
        return fd

    def write(self, fd, view):
        written = super().write(fd, view)
        thing, offset = self._fds[fd]
        self.calls.append(Call(thing, offset, bytes(view[:written])))
        self._fds[fd][1] += written
        return written

    def fsync(self, fd):
        super().fsync(fd)
        self._sync(self._fds[fd][0])

    def mkdir(self, path):
        super().mkdir(path)
        thing = next(self._next)
        self._tree[thing] = {}
        self._name(path, thing)

    def rename(self, old, new):
        assert old.parent == new.parent
        super().rename(old, new)
        self._name(new, self._tree[self._folder(old.parent)][old.name], old)

    def unlink(self, path):
        super().unlink(path)
        self._name(path, None)

    def rmdir(self, path):
        super().rmdir(path)
        self._name(path, None)

    def fsync_dir(self, folder):
        super().fsync_dir(folder)
        self._sync(self._folder(folder))


def record(place: Path) -> tuple[list[Call], list[Oracle]]:
    """The calls of HISTORY, and before each of them, and at the end, what may be found."""
    (place / "run").mkdir()
    disk = CrashDisk(place / "run")
    store, oracles, now = Checkpoints(place / "run" / "checkpoints", RUN, disk), [], Oracle()
    for action in HISTORY:
        now.begun(action)
        perform(store, action)
        while len(oracles) < len(disk.calls):
            oracles.append(_copy(now))
        now.done(action)
    return disk.calls, [*oracles, now]


def _copy(oracle: Oracle) -> Oracle:
    copy = Oracle()
    copy.allowed = {step: set(versions) for step, versions in oracle.allowed.items()}
    return copy


def pending(calls: list[Call], moment: int) -> list[Call]:
    """Of the first `moment` calls those that a power cut may undo, but for what lies in a folder that is gone for
    good."""
    done = calls[:moment]
    gone = {call.removed for call in done if call.is_safe(moment)} - {None}
    return [call for call in done if not call.is_safe(moment) and call.of not in gone]


def states(calls: list[Call], moment: int, wanted: int, rng: random.Random):
    """Choices of what of the first `moment` calls reached the disk, `wanted` or a few more: {call: its bytes, None for
    all}."""
    unsure = pending(calls, moment)
    safe = dict.fromkeys(call for call in calls[:moment] if call.is_safe(moment))
    if len(unsure) <= EXHAUSTIVE:
        for kept in itertools.product((False, True), repeat=len(unsure)):
            yield safe | dict.fromkeys(call for call, there in zip(unsure, kept) if there)
    for _ in range(wanted):
        share = rng.random()
        kept = [call for call in unsure if rng.random() < share]
        yield safe | {call: _torn(call.data, rng) if call.data and rng.random() < 0.3 else None for call in kept}


def _torn(data: bytes, rng: random.Random) -> bytes:
    """Only some sectors of a write reached the disk; the others read as zeros."""
    pieces = [data[at : at + SECTOR] for at in range(0, len(data), SECTOR)]
    return b"".join(piece if rng.random() < 0.5 else bytes(len(piece)) for piece in pieces)


def build(calls: list[Call], kept: dict[Call, bytes | None]) -> dict:
    """The tree that these calls make: {name: tree or bytes}."""
    folders, files = {0: {}}, {}
    for call in calls:
        if call in kept and call.names is not None:
            folders.setdefault(call.of, {}).update(call.names)
        elif call in kept:
            data, new = files.setdefault(call.of, bytearray()), kept[call] if kept[call] is not None else call.data
            data.extend(bytes(max(0, call.offset + len(new) - len(data))))
            data[call.offset : call.offset + len(new)] = new
    is_folder = {call.of for call in calls if call.names is not None}

    def tree(thing: int):
        if thing in files or thing not in is_folder:
            return bytes(files.get(thing, b""))
        return {name: tree(inner) for name, inner in sorted(folders.get(thing, {}).items()) if inner is not None}

    return tree(0)


def lay_out(tree: dict, place: Path) -> None:
    place.mkdir()
    for name, inner in tree.items():
        if isinstance(inner, dict):
            lay_out(inner, place / name)
        else:
            (place / name).write_bytes(inner)


def power_cut(count: int, seed: int) -> Outcome:
    """`count` different states or some more: all moments of HISTORY in turn, those with much that is not synced more
    often."""
    outcome, rng, seen, known = Outcome(), random.Random(seed), set(), {}
    with scratch() as place, small_blocks():
        calls, oracles = record(place)
        weights = [len(pending(calls, moment)) ** 2 for moment in range(len(oracles))]
        while outcome.tried < count:
            for moment, oracle in enumerate(oracles):
                for kept in states(calls, moment, -(-count * weights[moment] // sum(weights)), rng):
                    tree = build(calls, kept)
                    key = repr(tree)
                    if (moment, key) in seen:
                        continue
                    seen.add((moment, key))
                    outcome.tried += 1
                    deep = outcome.tried % 8 == 0
                    if deep or key not in known:
                        found, wrong = look(tree, _copy(oracle) if deep else None)
                        known[key] = found
                    wrong = oracle.verdict(*known[key]) or (deep and wrong)
                    if wrong:
                        outcome.lost.append(f"before call {moment}, state {outcome.tried}: {wrong}")
    return outcome


def power_cut_of_a_file(count: int, seed: int) -> Outcome:
    """One file that is written again and again, as config.toml and a tokenizer are: the old or the new one is there,
    whole."""
    outcome, rng, allowed = Outcome(), random.Random(seed), []
    versions = [b"", *(rng.randbytes(n) for n in (100, 3000, 1, 2000))]
    with scratch() as place:
        (place / "run").mkdir()
        disk = CrashDisk(place / "run")
        for old, new in itertools.pairwise(versions):
            write_atomically(place / "run" / "config.toml", new[:50], new[50:], ops=disk)
            allowed += [{old, new}] * (len(disk.calls) - len(allowed))
    for moment, possible in enumerate([*allowed, {versions[-1]}]):
        for kept in states(disk.calls, moment, -(-count // len(allowed)), rng):
            outcome.tried += 1
            found = build(disk.calls, kept).get("config.toml", b"")
            if found not in possible:
                outcome.lost.append(f"before call {moment}: {len(found)} bytes, expected {sorted(map(len, possible))}")
    return outcome


def look(tree: dict, oracle: Oracle | None) -> tuple[tuple, str]:
    """What find() says of a state; with an oracle also what is wrong with what the next start makes of it."""
    with scratch() as disk:
        lay_out(tree, disk / "run")
        folder = disk / "run" / "checkpoints"
        return find(folder), oracle.judge_after(folder) if oracle else ""
