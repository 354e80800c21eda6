"""The kernels under gcc's address and undefined-behaviour sanitizers: their tests are green, planted faults are red.

In a copy of the tree every array ends where its allocation ends. Masked intrinsics are not seen here, but by the guard
pages and guard words of the other tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from gpt2flat.kernels import available_isas, backend
from gpt2flat.kernels.ops import OP_OF
from seeded_faults import C_FAULTS
from tree import Tree

CHECKS = "address,undefined,float-cast-overflow"
# Python's own flags may have -fwrapv, with which no overflow is an error; use-after-scope takes gcc 12 minutes
FLAGS = f"-g -fno-wrapv -fsanitize={CHECKS} -fno-sanitize-recover=all -fno-sanitize-address-use-after-scope"
TESTS = ("tests/test_kernels.py", "tests/test_packed.py", "tests/test_order_of_sums.py", "tests/test_model.py", "tests/test_decoder.py")

PLANTED = {fault.name: fault for fault in C_FAULTS}
READ, WRITE = PLANTED["a whole vector is read at the tail"], PLANTED["the last channels run into the next row"]
PLANTS = {  # kernel to run: file, old, new, what the sanitizer says
    "gelu_forward": (READ.file, READ.old, READ.new, "AddressSanitizer: "),
    "embedding_backward": (WRITE.file, WRITE.old, WRITE.new, "AddressSanitizer: "),
    "adamw": ("csrc/adamw.c", "v16_set(1.0f / *correction1)", "v16_set((float)((int)P * 65537) / *correction1)",
              "signed integer overflow"),
    "grad_norm": ("csrc/adamw.c", "*norm = (float)sqrt(total);", "*norm = (float)(int)(1e30 * sqrt(total));",
                  "outside the range of representable values"),
}  # fmt: skip


def sanitized(folder: Path, *changes: tuple[str, str, str]) -> tuple[Tree, dict[str, str]]:
    """A tree with kernels built that way, and the environment in which Python can load them."""
    assert shutil.which("gcc"), "gcc is not there: apt install gcc"
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    assert os.path.isabs(runtime), "gcc's libasan is not there: apt install libasan8"
    tree = Tree(folder)
    for change in (
        ("csrc/build.py", '"-O3"', '"-O1"'),
        ("tests/harness.py", "\nHOME = Placed", "\nHOME = Bare"),
        *changes,
    ):
        tree.replace(*change)
    tree.replace("tests/harness.py", 'return [*natives(), kernels.backend("numba")]', "return natives()")
    tree.build(CC="gcc", CFLAGS=FLAGS, LDFLAGS=f"-fsanitize={CHECKS}")
    preload = {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    tree.check(**preload)
    return tree, preload


@pytest.mark.full
def test_the_kernels_are_clean(tmp_path):
    tree, preload = sanitized(tmp_path / "tree")
    for module in (tree.folder / "gpt2flat/kernels").glob("_*.so"):
        assert b"__asan_report_load4" in module.read_bytes() and b"__ubsan_handle_" in module.read_bytes()
    done = tree.pytest(*TESTS, "-k", "not numba", **preload)
    assert done.returncode == 0, f"pytest ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"


@pytest.mark.full
def test_planted_faults_are_reported(tmp_path):
    """On every instruction set, by name of the file; kernels without a fault pass in the same build."""
    tree, preload = sanitized(tmp_path / "tree", *(plant[:3] for plant in PLANTS.values()))
    for isa in available_isas():
        for name in (*PLANTS, "residual_forward"):
            done = tree.python(f"tests/{Path(__file__).name}", name, isa, **preload)
            if name in PLANTS:
                file, _old, _new, words = PLANTS[name]
                assert words in done.stderr and file in done.stderr, f"{name} on {isa}: {done.stdout}{done.stderr}"
            assert ("done" in done.stdout) == (name not in PLANTS), f"{name} on {isa}: {done.stdout}{done.stderr}"


def run_one(name: str, isa: str) -> None:
    harness.execute(harness.Case(name, harness.modest(OP_OF[name])), backend("c", isa))
    print("done")


if __name__ == "__main__":
    run_one(*sys.argv[1:])
