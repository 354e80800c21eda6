"""No two threads of a kernel meet: a C program made from the op table, under clang's thread sanitizer.

LLVM's OpenMP tells the sanitizer of its barriers through libarcher; gcc's does not, and would show races that are none.
The build is the scalar one: the sanitizer passes over vectors of 32 bytes. Who does what is the same at every width."""

import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import harness
from gpt2flat.kernels.ops import I32, KERNELS, OP_OF
from gpt2flat.memory import axes as ax
from seeded_faults import C_FAULTS
from tree import Tree

THREADS = (2, 3, 8)
RACES = [fault for fault in C_FAULTS if "before all are" in fault.name]  # barriers taken away
HEAD = """#include "kernels.c"
#include <stdio.h>
#include <stdlib.h>
static float *floats(int64_t n) {
    float *p = malloc(sizeof *p * (size_t)n);
    for (int64_t i = 0; i < n; i++) p[i] = 0.25f + (float)(i * 7919 % 1000) * 1e-3f;
    return p;
}
static int32_t *whole(int64_t n, int32_t below) {
    int32_t *p = malloc(sizeof *p * (size_t)n);
    for (int64_t i = 0; i < n; i++) p[i] = (int32_t)(i * 31 % below);
    return p;
}
int main(void) {
"""


def value(arg, op, dims: dict[str, int]) -> str:
    """An argument as C."""
    if arg.role == "scratch":
        numbers = ", ".join(str(dims[dim]) for dim in (*op.dims.split(), "NT"))
        return f"floats({op.name}_scratch({numbers}))"
    size = math.prod(ax.shape(arg.axes, dims))
    if arg.dtype == I32:
        below = {"targets": "V", "tokens": "Vp", "positions": "S" if "S" in dims else "maxT"}
        return f"whole({size}, {dims[below[arg.name]] if arg.role == 'index' else 1})"
    return f"floats({size})"


def program() -> str:
    """main() that calls every kernel with several shapes, accumulate flags, numbers of threads and limits below them."""
    calls = []
    for name, kernel in KERNELS.items():
        op = OP_OF[name]
        for i, sizes in enumerate((harness.modest(op), *harness.grid(op, 4))):
            for threads in THREADS:
                dims = dict(sizes) | {"NT": threads}
                words = [value(arg, op, dims) for arg in kernel.args] + [str(dims[dim]) for dim in kernel.dims]
                words += [str(i & 1) for _acc in kernel.accs]
                limit = threads - (i >> 1 & 1)
                calls.append(f"    limit_team({limit}), {name}({', '.join(words)});")
    return HEAD + "\n".join(calls) + '\n    puts("done");\n    return 0;\n}\n'


def run(folder: Path) -> subprocess.CompletedProcess:
    """Builds and runs the program with the sources in folder/csrc."""
    clang = shutil.which("clang")
    assert clang, "clang is not there: apt install clang libomp-dev"
    archer = Path(clang).resolve().parents[1] / "lib/libarcher.so"
    assert archer.exists(), f"{archer} is not there: apt install libomp-dev"
    (folder / "races.c").write_text(program())
    flags = "-O1 -g -std=gnu11 -ffp-contract=off -fopenmp -fsanitize=thread -DSOURCES_HASH=0".split()
    words = [clang, *flags, "-I", "csrc", "races.c", "-o", "races", "-lm"]
    built = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    # OpenMP's own mutexes; its whole library cannot be left out, for then memcpy and memset are too
    (folder / "known").write_text("race:pthread_mutex_\n")
    options = {"OMP_TOOL_LIBRARIES": str(archer), "TSAN_OPTIONS": "halt_on_error=1 suppressions=known"}
    return subprocess.run(
        ["./races"], cwd=folder, capture_output=True, text=True, timeout=600, env=os.environ | options
    )


@pytest.mark.full
def test_no_threads_meet(tmp_path):
    done = run(Tree(tmp_path / "tree").folder)
    assert done.returncode == 0 and done.stdout == "done\n", done.stdout + done.stderr[:5000]


@pytest.mark.full
@pytest.mark.parametrize("fault", RACES, ids=lambda fault: fault.file)
def test_a_barrier_less_is_a_race(tmp_path, fault):
    tree = Tree(tmp_path / "tree")
    tree.replace(fault.file, fault.old, fault.new)
    done = run(tree.folder)
    assert done.returncode > 0 and "WARNING: ThreadSanitizer: data race" in done.stderr, (
        done.stdout + done.stderr[:3000]
    )
    assert Path(fault.file).name in done.stderr


def test_there_are_races_to_plant():
    assert len(RACES) >= 3 and len({fault.file for fault in RACES}) == len(RACES)
