"""The binding of the Numba twins: the interface of native.Native on functions compiled when they are first bound.

Imported only when this backend is chosen: here and in the twins, nowhere else, numba is needed."""

import importlib
import inspect
import threading
from collections.abc import Callable

import numba
import numpy as np
from numba.core import event

from . import cpu, native
from .jit import STEMS
from .ops import KERNELS, OPS, Kernel, Op

ABSENT = np.empty(0, np.float32)  # an optional argument that is not there
LOCK = threading.Lock()  # of the process, as numba's pool of threads is


class _Compiling(event.Listener):
    """Tells a callback the name of each kernel that is being compiled; what comes from the cache is not."""

    def __init__(self, twins: "Twins"):
        self.twins = twins

    def on_start(self, event):
        function = event.data["dispatcher"].py_func
        if self.twins.announce and function.__module__.startswith(__package__) and function.__name__ in KERNELS:
            self.twins.announce(f"compiling {function.__name__} (once: it is kept for the next time)")

    def on_end(self, event):
        pass


class _Writable:
    """A writable alias of a read-only array that a kernel only reads: for numba the two would be different types."""

    def __init__(self, array: np.ndarray):
        self.array = array  # keeps it alive
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}


class Twins:
    """The Numba kernels. One at a time runs: not every thread pool of numba bears two callers. `announce` is told, one
    line each, which kernels are being compiled; without it nothing is said."""

    name = isa = "numba"
    multiplies_bf16 = adapts = False  # native.py
    announce: Callable[[str], None] | None = None

    def __init__(self, why: str = ""):
        """why: what decided for this backend, for `label`."""
        self.why = why
        modules = [importlib.import_module(f"{__package__}.{stem}") for stem in STEMS]
        self.functions = {name: found for m in modules for name, found in vars(m).items() if name in KERNELS}
        self._scratch = {op: vars(m)[f"{op}_scratch"] for m in modules for op in OPS if f"{op}_scratch" in vars(m)}
        self._team = 0
        event.register("numba:compile", _Compiling(self))

    @property
    def label(self) -> str:
        return "Numba kernels" + (f" ({self.why})" if self.why else "")

    def openmp(self) -> bool:
        """Whether kernels use threads: numba always brings a pool of its own."""
        return True

    def last_team(self) -> int:
        """Threads that were at work in the latest kernel."""
        return self._team

    def team(self, threads: int) -> list:
        """Empty: numba does not tell which threads of the system work for it."""
        return []

    def most_threads(self) -> int:
        """Threads that numba can use: NUMBA_NUM_THREADS, else the CPUs of this process. More workers share these."""
        return numba.config.NUMBA_NUM_THREADS

    def bind(self, kernel: Kernel, tensors: dict[str, np.ndarray | None], numbers: dict[str, int]):
        """The kernel with its arguments put in: a callable without arguments. Keeps the buffers alive; compiles
        if need be. Shapes are the caller's duty."""
        values = []
        for arg in kernel.args:
            view = tensors.get(arg.name)
            view = ABSENT if view is None else view.reshape(-1)
            values.append(view if view.flags.writeable else np.asarray(_Writable(view)))
        values += [int(numbers[dim]) for dim in kernel.dims] + [int(numbers[acc]) for acc in kernel.accs]
        return self._bound(self.functions[kernel.name], values, numbers["NT"])

    def _bound(self, function, values: list, NT: int):
        if not numba.config.DISABLE_JIT:  # NUMBA_DISABLE_JIT=1: plain Python, which a debugger can step through
            with LOCK:
                function.compile(tuple(numba.typeof(value) for value in values))

        def call():
            with LOCK:
                before, self._team = numba.get_num_threads(), min(NT, self.most_threads())
                numba.set_num_threads(self._team)
                try:
                    function(*values)
                finally:
                    numba.set_num_threads(before)

        return call

    def scratch(self, op: Op, dims: dict[str, int]) -> int:
        """Floats of scratch that the op's kernels need; 0 without scratch."""
        return self._scratch[op.name](*(dims[d] for d in (*op.dims.split(), "NT"))) if op.scratch else 0

    def signature(self, name: str) -> list[str]:
        """Argument names of a kernel or of a scratch function, in order."""
        found = self.functions.get(name) or self._scratch[name.removesuffix("_scratch")]
        return list(inspect.signature(getattr(found, "py_func", found)).parameters)

    ready = staticmethod(native.ready)

    def flops_of_peak_round(self, bf16: bool = False) -> int:
        """Flops of one round of peak_round, per thread."""
        return 2 * cpu.CHAINS * cpu.STEPS

    def peak_round(self, threads: int, bf16: bool = False):
        """A callable (rounds) that runs independent FMAs on `threads` threads; time it for the machine's peak. bf16 is
        no different: the twins multiply rounded numbers as float32."""
        out = np.zeros(cpu.CHAINS * threads, np.float32)
        return lambda rounds: self._bound(cpu.peak, [out, rounds, threads], threads)()

    def stream_round(self, out: np.ndarray, data: np.ndarray, ranges: np.ndarray, threads: int, factors=(1, 0)):
        """A callable (rounds) that visits arrays inside `data` (kernels.h, stream); time it for the speed of memory.
        Ranges are the caller's duty."""
        views = [out, data, ranges.reshape(-1), np.array(factors, np.float32)]
        return lambda rounds: self._bound(cpu.stream, [*views, len(ranges), rounds, threads], threads)()
