"""The binding of one compiled variant: NumPy views in, C pointers out. Meaning lives one floor up (ops.py, program.py)."""

import functools
import importlib
import os
from importlib.util import find_spec

import numpy as np

from ..errors import ForkError, UnsupportedCPUError, reason
from . import openmp, record
from .ops import Kernel, Op

ISAS = ("scalar", "avx2", "avx512", "avx512bf16")  # in rising order; cpu_isa() in C gives the index of the best
CTYPES = {"f32": "float[]", "i32": "int32_t[]"}
_ran = _forked = False  # a kernel has run in this process; in the one it was forked from


def _mark_child() -> None:
    global _forked
    _forked = _ran  # the threads of the parent's OpenMP pool do not exist here; a parallel region would wait for them


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mark_child)


def ready() -> None:
    """To be called before a kernel. Raises ForkError in a child forked after kernels had run: their threads are gone."""
    global _ran
    _ran = True
    if _forked:
        raise ForkError("gpt2flat kernels cannot run in a forked child: start workers with spawn or forkserver")


def _import(isa: str):
    try:
        return importlib.import_module(f"gpt2flat.kernels._{isa}")
    except ImportError as error:
        if "libgomp" in str(error) and openmp.load():  # the wheel's own, where the system has none
            return importlib.import_module(f"gpt2flat.kernels._{isa}")
        raise


class Native:
    """The C kernels compiled for one instruction set. Raises ImportError when that variant was not built, and
    UnsupportedCPUError when it was built from other sources than these."""

    name = "c"
    announce = None  # nothing takes long here (twins.py)

    def __init__(self, isa: str):
        module = _import(isa)
        self.isa, self.ffi, self.lib = isa, module.ffi, module.lib
        carried = self.lib.sources_hash() if hasattr(self.lib, "sources_hash") else None
        try:
            expected = record.expected_hash()
        except OSError as problem:
            raise UnsupportedCPUError(f"csrc/ cannot be read ({reason(problem)}): {record.rebuild()}") from None
        if expected is None:
            raise UnsupportedCPUError(f"{record.NAME} is missing beside the C kernels in {record.HERE}: {record.rebuild()}")
        if carried != expected:
            raise UnsupportedCPUError(
                f"the C kernels ({isa}) were built from other sources than the ones here, as after an update: {record.rebuild()}"
            )

    @property
    def label(self) -> str:
        """What runs, and what would be better but could not be built."""
        best = ISAS[self.lib.cpu_isa()]
        notes = []
        if best != self.isa and (why := record.why_missing(best)):
            notes.append(f"{best} not built, {why}")
        elif best != self.isa and not find_spec(f"gpt2flat.kernels._{best}"):
            notes.append(f"{best} is missing: {record.rebuild()}")
        if not self.openmp():
            notes.append(f"one thread, built without OpenMP: {record.why_missing(self.isa, 'openmp') or 'as asked'}")
        return f"C kernels, {self.isa}" + (f" ({'; '.join(notes)})" if notes else "")

    def openmp(self) -> bool:
        return bool(self.lib.has_openmp())

    @property
    def multiplies_bf16(self) -> bool:
        """Whether bf16 products are the CPU's own; without, inputs are rounded and multiplied as float32."""
        return self.isa == "avx512bf16"

    @property
    def adapts(self) -> bool:
        """Whether limit_team is obeyed."""
        return self.openmp()

    def last_team(self) -> int:
        """Threads that worked in the latest kernel."""
        return self.lib.last_team()

    def limit_team(self, threads: int) -> None:
        """Kernels that the calling thread runs from now on use at most so many threads, whatever they were bound with; 0: no limit."""
        self.lib.limit_team(threads)

    def team(self, threads: int) -> list[int]:
        """The system's id of each thread of a team, by rank; empty where the system does not tell."""
        ids = np.full(threads, -1, np.int64)  # NumPy 1 on Windows: int32
        self.ready()
        self.lib.team_threads(self.ffi.from_buffer("int64_t[]", ids), threads)
        return ids.tolist() if ids.min() >= 0 else []

    def bind(self, kernel: Kernel, tensors: dict[str, np.ndarray | None], numbers: dict[str, int]):
        """The kernel with its arguments put in: a callable without arguments. Keeps the buffers alive. Shapes are the caller's duty."""
        values = []
        for arg in kernel.args:
            view = tensors.get(arg.name)
            kind = CTYPES[arg.dtype]
            values.append(
                self.ffi.NULL if view is None else self.ffi.from_buffer(kind, view, require_writable=not arg.const)
            )
        values += [int(numbers[dim]) for dim in kernel.dims] + [int(numbers[acc]) for acc in kernel.accs]
        return functools.partial(getattr(self.lib, kernel.name), *values)

    def scratch(self, op: Op, dims: dict[str, int]) -> int:
        """Floats of scratch that the op's kernels need; 0 without scratch."""
        if not op.scratch:
            return 0
        return getattr(self.lib, f"{op.name}_scratch")(*(dims[d] for d in (*op.dims.split(), "NT")))

    ready = staticmethod(ready)

    def flops_of_peak_round(self, bf16: bool = False) -> int:
        """Flops of one round of peak_round, per thread."""
        return self.lib.peak_flops(bf16)

    def peak_round(self, threads: int, bf16: bool = False):
        """A callable (rounds) that runs independent FMAs in registers on `threads` threads; time it for the machine's
        peak. bf16: of products in bf16, where the CPU has them."""
        self.ready()
        out = np.zeros(32 * threads, np.float32)
        return lambda rounds: self.lib.peak_fma(self.ffi.from_buffer("float[]", out), rounds, bf16, threads)

    def stream_round(self, out: np.ndarray, data: np.ndarray, ranges: np.ndarray, threads: int, factors=(1, 0)):
        """A callable (rounds) that visits arrays inside `data` (kernels.h, stream); time it for the speed of memory.
        Ranges are the caller's duty."""
        self.ready()
        floats = [self.ffi.from_buffer("float[]", view) for view in (out, data, np.array(factors, np.float32))]
        pointers = [*floats[:2], self.ffi.from_buffer("int64_t[]", ranges), floats[2]]
        return lambda rounds: self.lib.stream(*pointers, len(ranges), rounds, threads)
