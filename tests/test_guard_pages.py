"""No kernel reads or writes outside its arrays: every array ends, then begins, at a page that may not be touched.

Runs in a process of its own, because the proof of an access out of bounds is that the process dies."""

import ctypes
import mmap
import sys

import numpy as np

import harness
from gpt2flat.kernels.ops import KERNELS, OP_OF

PAGE = mmap.PAGESIZE
PROT_NONE = 0


class Fenced:
    """An array between two forbidden pages: flush with the one behind it (`offset` even) or the one before it (odd)."""

    def __init__(self, content: np.ndarray, offset: int):
        pages = -(-content.nbytes // PAGE)
        self.region = mmap.mmap(-1, (pages + 2) * PAGE)
        whole = np.frombuffer(self.region, np.uint8)
        start = PAGE if offset % 2 else (pages + 1) * PAGE - content.nbytes
        self.view = whole[start : start + content.nbytes].view(content.dtype).reshape(content.shape)
        self.view[...] = content
        self.before = content.tobytes()
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        for page in (0, pages + 1):
            if protect(ctypes.c_void_p(whole.ctypes.data + page * PAGE), ctypes.c_size_t(PAGE), PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")

    def strays(self) -> int:
        return 0

    def changed(self) -> bool:
        return self.view.tobytes() != self.before


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
