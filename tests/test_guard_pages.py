"""No kernel reads or writes outside its arrays: every array ends, then begins, at a page that may not be touched.

Runs in a process of its own, because the proof of an access out of bounds is that the process dies."""

import ctypes
import sys

import numpy as np

import harness
from gpt2flat.kernels.ops import KERNELS, OP_OF
from homes import Fenced


def run_all() -> None:
    for name, kernel in KERNELS.items():
        op = OP_OF[name]
        for i, sizes in enumerate((harness.modest(op), *harness.grid(op, 5))):
            case = harness.Case(name, sizes, acc=i * 7 % (1 << len(kernel.accs)))
            for native in harness.backends():
                for side in (0, 1):
                    print(f"{case} on {native.isa}, fence {('behind', 'before')[side]}", flush=True)
                    harness.execute(case, native, 2, home=lambda content, _offset, side=side: Fenced(content, side))
    print("done", flush=True)


def touch(index: int) -> None:
    """Reads one float of a fenced array of 10, at any index."""
    fenced = Fenced(np.zeros(10, np.float32), 0 if index >= 0 else 1)
    ctypes.c_float.from_address(fenced.view.ctypes.data + 4 * index).value  # noqa: B018
    print("done", flush=True)


def test_no_kernel_touches_a_forbidden_page():
    for name in KERNELS:  # compiles the twins here, where no clock runs
        harness.execute(harness.Case(name, harness.modest(OP_OF[name])), harness.backends()[-1])
    done = harness.python(__file__)
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 0 and last == "done", f"exit {done.returncode} in {last}\n{done.stderr[-2000:]}"


def test_the_pages_are_forbidden():
    assert harness.python(__file__, "9").returncode == 0
    assert harness.python(__file__, "10").returncode < 0
    assert harness.python(__file__, "-1").returncode < 0


if __name__ == "__main__":
    touch(int(sys.argv[1])) if sys.argv[1:] else run_all()
