"""The tests of the kernels kill the faults of seeded_faults.py: at least 95 % of them, each in a copy of the tree."""

import os
import queue
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpt2flat.kernels import ISAS, available_isas
from seeded_faults import C_FAULTS, PYTHON_FAULTS, Fault
from tree import ROOT, Tree

FIRST = ("test_kernels.py", "test_packed.py", "test_decoder.py", "test_order_of_sums.py", "test_guard_pages.py", "test_model.py", "test_stored_parity.py")
TESTS = [f"tests/{name}" for name in FIRST]  # what dies soonest comes first
WORKERS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
ALL = C_FAULTS + PYTHON_FAULTS


@pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.name)
def test_a_fault_has_its_place(fault):
    text = (ROOT / fault.file).read_text()
    assert text.count(fault.old) == 1, f"{fault.file} holds {text.count(fault.old)} times, expected once: {fault.old}"
    assert fault.old != fault.new


def test_there_are_enough_faults():
    assert len(C_FAULTS) >= 40 and len({fault.name for fault in ALL}) == len(ALL)
    sources = {path.name for path in (ROOT / "csrc").glob("*.[ch]")} - {"kernels.h", "kernels.c", "cpu.c"}
    assert sources == {Path(fault.file).name for fault in C_FAULTS}


def is_here(fault: Fault) -> bool:
    """Whether the instruction set that a fault is named after can be tested on this machine."""
    isa = fault.name.partition(":")[0]
    return isa not in ISAS or isa in available_isas()


def death(tree: Tree) -> str:
    """What in the tests of a tree goes red, or "" when all are green."""
    try:
        done = tree.pytest(*TESTS, timeout=900)
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode == 0:
        return ""
    red = re.search(r"^FAILED tests/(\S+)", done.stdout, re.M)  # an ERROR is no death: the fault was ill made
    assert red or done.returncode < 0, (
        f"pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    )
    return red[1] if red else f"signal {-done.returncode}"


def try_fault(tree: Tree, fault: Fault) -> str:
    tree.replace(fault.file, fault.old, fault.new)
    try:
        if fault.file.startswith("csrc"):
            tree.build()
        return death(tree)
    finally:
        tree.restore(fault.file)


def score(folder: Path, faults: list[Fault], say=print) -> list[str]:
    """Names of the faults that survive. Trees are shared by turns, which keeps the compiled twins."""
    trees: queue.Queue[Tree] = queue.Queue()

    def sound(number: int) -> None:
        tree = Tree(folder / f"tree{number}")
        tree.build()
        tree.check()
        red = death(tree)
        assert not red, f"without any fault {red} is red"
        trees.put(tree)

    def one(fault: Fault) -> bool:
        tree = trees.get()
        try:
            red = try_fault(tree, fault)
        finally:
            trees.put(tree)
        say(
            f"{'killed  ' if red else 'SURVIVED'} {Path(fault.file).name}: {fault.name}{red and f'  by {red}'}",
            flush=True,
        )
        return bool(red)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(sound, range(WORKERS)))
        return [fault.name for fault, killed in zip(faults, list(pool.map(one, faults))) if not killed]


@pytest.mark.full
@pytest.mark.parametrize("faults", [C_FAULTS, PYTHON_FAULTS], ids=["c", "python"])
def test_the_suite_kills_the_faults(tmp_path, capsys, faults):
    with capsys.disabled():
        print(f"\nleft out, not of this CPU: {[fault.name for fault in faults if not is_here(fault)]}")
        faults = [fault for fault in faults if is_here(fault)]
        survivors = score(tmp_path, faults)
        print(f"{len(faults) - len(survivors)} of {len(faults)} seeded faults killed")
    assert len(survivors) <= len(faults) // 20, f"survivors: {', '.join(survivors)}"


if __name__ == "__main__":  # python tests/test_seeded_faults.py FOLDER [words of names]: some of them
    for kind, faults in (("c", C_FAULTS), ("python", PYTHON_FAULTS)):
        chosen = [f for f in faults if is_here(f) and any(word in f.name for word in sys.argv[2:] or [""])]
        if chosen:
            print("survivors:", score(Path(sys.argv[1], kind), chosen))
