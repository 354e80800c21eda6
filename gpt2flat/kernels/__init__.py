"""Which backend, which instruction set; and `run`, one kernel on NumPy arrays.

GPT2FLAT_BACKEND=auto|c|numba   GPT2FLAT_ISA=auto|scalar|avx2|avx512|avx512bf16 (of C)   OMP_NUM_THREADS=n
`auto` takes C, or the Numba twins where no C kernels can be imported. An explicit wish that cannot be met raises; the
commands print what was taken and why. Kernels print nothing: backend().announce is told what takes long."""

import functools
import os
import sys
from pathlib import Path

from ..errors import UnsupportedCPUError
from . import checked, record
from .native import ISAS, Native
from .ops import OP_OF
from .team import Team
from .threads import MAX_THREADS, Placement, Threads, default_threads

BACKENDS = ("auto", "c", "numba")


def _wish(variable: str, choices: tuple[str, ...]) -> str:
    wish = os.environ.get(variable, "auto").strip().lower() or "auto"
    if wish not in choices:
        raise UnsupportedCPUError(f"{variable}={wish} is not known here; it takes {', '.join(choices)}")
    return wish


def _missing_kernels(isa: str, error: ImportError) -> str:
    """Why a variant cannot be imported, and what helps."""
    if (error.name or "") in ("_cffi_backend", "cffi"):
        return "the C kernels need cffi, which is missing: pip install cffi"
    if known := record.why_missing(isa):
        return f"C kernels not built, {known}"
    if "libgomp" in str(error):
        return f"the C kernels need libgomp, which is missing: apt install libgomp1 ({error})"
    if record.in_source_tree():
        return (
            f"gpt2flat was imported from the source tree {record.ROOT}, where no C kernels are built: {record.rebuild()}, "
            f"or change to another folder to use an installed copy ({error})"
        )
    return f"the C kernels are not installed: {record.rebuild()} ({error})"


@functools.lru_cache(maxsize=None)
def _native(isa: str) -> Native:
    return Native(isa)


@functools.lru_cache(maxsize=None)
def _twins(why: str):
    """The Numba twins; numba is imported here and only here. Raises UnsupportedCPUError."""
    try:
        from .twins import Twins
    except ImportError as error:
        absent = (error.name or "").startswith(("numba", "llvmlite"))
        fix = "pip install 'gpt2flat[numba]'" if absent else "pip install --upgrade numba"  # numpy is too new for it
        raise UnsupportedCPUError(f"the Numba kernels need numba, which cannot be imported: {fix} ({error})") from None
    return Twins(why)


def best_isa() -> str:
    """The best instruction set that this CPU and operating system offer, built or not. Raises UnsupportedCPUError."""
    try:
        return ISAS[_native("scalar").lib.cpu_isa()]
    except ImportError as error:
        raise UnsupportedCPUError(_missing_kernels("scalar", error)) from None


def available_isas() -> list[str]:
    """The instruction sets of C that are built here and that this CPU and operating system offer, in rising order."""
    found = []
    for isa in ISAS[: ISAS.index(best_isa()) + 1]:
        try:
            found.append(_native(isa).isa)
        except ImportError:
            continue
    return found


def backend(name: str | None = None, isa: str | None = None):
    """The kernels to use: native.Native or twins.Twins, which have the same interface.

    Raises UnsupportedCPUError when an explicit wish cannot be met, when neither C nor numba can be imported, or when
    the C kernels were built from other sources than these."""
    name = name or _wish("GPT2FLAT_BACKEND", BACKENDS)
    if name not in BACKENDS:
        raise UnsupportedCPUError(f"backend {name!r} is not known here; choose from {', '.join(BACKENDS)}")
    if name == "numba":
        if isa not in (None, "auto", "numba"):
            raise UnsupportedCPUError(
                f"{isa} is an instruction set of the C kernels, Numba finds its own: leave it out"
            )
        return _twins("")
    isa = isa or _wish("GPT2FLAT_ISA", ("auto", *ISAS))
    if isa != "auto":
        return _exactly(isa)
    if name == "c":
        return _native(available_isas()[-1])
    return _automatic()


def _exactly(isa: str) -> Native:
    have = available_isas()
    if isa not in have:
        known = f"; {why}" if ISAS.index(isa) <= ISAS.index(best_isa()) and (why := record.why_missing(isa)) else ""
        raise UnsupportedCPUError(f"GPT2FLAT_ISA={isa}: this machine and build have {', '.join(have)}{known}")
    return _native(isa)


def _automatic():
    """C with the best instruction set; the twins without C, or where C has one thread for want of OpenMP."""
    try:
        _native("scalar")
    except ImportError as error:
        missing = _missing_kernels("scalar", error)
        try:
            return _twins(missing)
        except UnsupportedCPUError as too:
            raise UnsupportedCPUError(f"{missing}; {too}") from None
    best = _native(available_isas()[-1])
    if best.openmp():
        return best
    try:
        return _twins(f"C kernels built without OpenMP, {record.why_missing(best.isa, 'openmp') or 'as asked'}")
    except UnsupportedCPUError:
        return best


def cpu_name() -> str:
    """What the CPU calls itself, for the first line of a run."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    import platform

    return platform.processor() or platform.machine() or sys.platform


def run(name: str, *, threads: int | None = None, kernels=None, **arguments) -> None:
    """Runs one kernel by name on NumPy arrays: run("linear_forward", out=y, inp=x, weight=w, bias=b).

    Tensors are C-contiguous little-endian float32 (int32 for indices) of the shapes in csrc/kernels.h; whatever the
    shapes do not tell (HS, V, T ...) and acc_* flags (0 by default) are passed by name; scratch is made. Raises
    KernelArgError (checked.py), and UsageError for threads that are no number from 1 to MAX_THREADS."""
    kernel, kernels = checked.find(name), kernels or backend()
    tensors, numbers = checked.arguments(kernel, arguments, default_threads(threads).count)
    checked.add_scratch(kernel, tensors, kernels.scratch(OP_OF[name], numbers))
    kernels.ready()
    kernels.bind(kernel, tensors, numbers)()
