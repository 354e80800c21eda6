"""Which backend, which instruction set, how many threads; and `run`, one kernel on NumPy arrays.

GPT2FLAT_BACKEND=auto|c|numba   GPT2FLAT_ISA=auto|scalar|avx2|avx512 (of C)   OMP_NUM_THREADS=n
`auto` takes C, or the Numba twins where no C kernels can be imported. An explicit wish that cannot be met raises; the
commands print what was taken and why. Kernels print nothing: backend().announce is told what takes long."""

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import KernelArgError, UnsupportedCPUError, UsageError
from ..memory import axes as ax
from ..memory.limits import affinity, cpu_quota
from . import record
from .native import ISAS, Native
from .ops import KERNELS, OP_OF

BACKENDS = ("auto", "c", "numba")
MAX_THREADS = 1024
DTYPES = {"f32": np.dtype("<f4"), "i32": np.dtype("<i4")}

# A thread that waits spins this often before it sleeps. The gain over libgomp's own 300,000 is mixed. An update of the preset
# tiny, 2 threads on 2 cores, rounds in turn, 1000 spins against 300,000: alone 13.7 and 13.7 ms; beside one busy process 37-40
# and 26-41 (10,000: 60-73); beside two 36-37 and 40-49. libgomp reads it when it is loaded, so it is set here.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _wish(variable: str, choices: tuple[str, ...]) -> str:
    wish = os.environ.get(variable, "auto").strip().lower() or "auto"
    if wish not in choices:
        raise UnsupportedCPUError(f"{variable}={wish} is not known here; it takes {', '.join(choices)}")
    return wish


def _missing_kernels(isa: str, error: ImportError) -> str:
    """Why a variant cannot be imported, and what helps."""
    if known := record.why_missing(isa):
        return f"C kernels not built, {known}"
    if (error.name or "") in ("_cffi_backend", "cffi"):
        return "the C kernels need cffi, which is missing: pip install cffi"
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
        return _twins(f"C kernels built without OpenMP, {record.why_missing(best.isa) or 'as asked'}")
    except UnsupportedCPUError:
        return best


@dataclass(frozen=True)
class Threads:
    """How many threads, and what decided it."""

    count: int
    why: str


def default_threads(wish: int | None = None) -> Threads:
    """A wish (--threads), else OMP_NUM_THREADS, else the physical cores in the affinity mask, limited by the cgroup quota.

    Raises UsageError for a wish that is not a whole number from 1 to MAX_THREADS."""
    if wish is not None:
        if type(wish) is not int or not 1 <= wish <= MAX_THREADS:
            raise UsageError(f"threads = {wish!r}: expected a whole number from 1 to {MAX_THREADS}")
        return Threads(wish, "as asked")
    from_env = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if from_env.isascii() and from_env.isdigit() and int(from_env) > 0:
        return Threads(min(int(from_env), MAX_THREADS), "OMP_NUM_THREADS")
    cores = {_core_of(cpu) for cpu in affinity()}
    count, why = len(cores), "physical cores"
    quota = cpu_quota()
    if quota is not None and quota < count:
        count, why = max(1, int(quota)), f"cgroup quota of {quota:.1f} CPUs"
    return Threads(count, why)


def _core_of(cpu: int):
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return cpu


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

    Tensors are C-contiguous little-endian float32 (int32 for indices) of the shapes in csrc/kernels.h; whatever the shapes do
    not tell (HS, V, T ...) and acc_* flags (0 by default) are passed by name; scratch is made. Raises KernelArgError."""
    if name not in KERNELS:
        raise KernelArgError(f"no kernel {name!r}; there are {', '.join(KERNELS)}")
    kernel, op, kernels = KERNELS[name], OP_OF[name], kernels or backend()
    tensors, numbers = {}, {}
    for arg in kernel.args:
        view = arguments.pop(arg.name, None)
        if view is None and not arg.optional and arg.role != "scratch":
            raise KernelArgError(f"{name}: {arg.name} is missing")
        tensors[arg.name] = _checked(name, arg, view)
    for number in (*kernel.dims, *kernel.accs):
        if number in arguments:
            numbers[number] = int(arguments.pop(number))
    if arguments:
        raise KernelArgError(
            f"{name} has no argument {', '.join(arguments)}; it takes {', '.join(a.name for a in kernel.args)}"
        )
    given = {a.name: a for a in kernel.args if tensors[a.name] is not None}
    wanted = {n: a.axes for n, a in given.items() if a.role != "scratch"}
    dims = ax.solve(name, wanted, {n: tensors[n].shape for n in wanted}, numbers)
    for number, value in numbers.items():
        if dims[number] != value:
            raise KernelArgError(f"{name}: {number} = {value}, but the shapes say {number} = {dims[number]}")
    dims.setdefault("NT", default_threads(threads).count)
    missing = [d for d in kernel.dims if d not in dims]
    if missing:
        raise KernelArgError(f"{name}: the shapes do not tell {', '.join(missing)}; pass {missing[0]}=")
    _check_values(name, op, tensors, dims)
    needed = kernels.scratch(op, dims)
    if "scratch" in tensors and tensors["scratch"] is None:
        tensors["scratch"] = np.empty(needed, np.float32)
    elif "scratch" in tensors and tensors["scratch"].size < needed:
        raise KernelArgError(
            f"{name}: scratch holds {tensors['scratch'].size} floats, expected {needed} (or leave it out)"
        )
    _distinct(name, kernel, tensors)
    kernels.ready()
    kernels.bind(kernel, tensors, {acc: 0 for acc in kernel.accs} | dims)()


def _checked(name: str, arg, view):
    if view is None:
        return None
    if not isinstance(view, np.ndarray) or view.dtype != DTYPES[arg.dtype]:
        kind = f"{view.dtype} array" if isinstance(view, np.ndarray) else type(view).__name__
        raise KernelArgError(f"{name}: {arg.name} is {kind}, expected a NumPy array of {DTYPES[arg.dtype].name}")
    if not view.flags.c_contiguous or not view.flags.aligned or view.size == 0:
        raise KernelArgError(f"{name}: {arg.name} of shape {view.shape} must be C-contiguous, aligned and not empty")
    if not arg.const and not view.flags.writeable:
        raise KernelArgError(f"{name}: {arg.name} is written, but the array is read-only")
    return view


def _distinct(name: str, kernel, tensors) -> None:
    for arg in kernel.args:
        if arg.const or tensors[arg.name] is None:
            continue
        for other in kernel.args:
            if (
                other is not arg
                and tensors[other.name] is not None
                and np.may_share_memory(tensors[arg.name], tensors[other.name])
            ):
                raise KernelArgError(f"{name}: {arg.name} is written and overlaps {other.name}")


def _check_values(name: str, op, tensors, dims) -> None:
    """The index and dim conditions of the contracts in csrc/kernels.h."""
    limits = {"tokens": (0, dims.get("Vp")), "targets": (-1, dims.get("V"))}
    for index, (low, high) in limits.items():
        ids = tensors.get(index)
        if ids is not None and not (low <= ids.min() and ids.max() < high):
            raise KernelArgError(f"{name}: {index} reach from {ids.min()} to {ids.max()}, expected {low} to {high - 1}")
    for small, large in (("T", "maxT"), ("V", "Vp"), ("KVH", "NH")):
        if small in dims and large in dims and not 0 < dims[small] <= dims[large]:
            raise KernelArgError(f"{name}: {small} = {dims[small]}, expected 1 to {large} = {dims[large]}")
    for part, whole in (("KVH", "NH"), ("T", "N")):
        if part in dims and whole in dims and part in op.dims and dims[whole] % dims[part]:
            raise KernelArgError(f"{name}: {part} = {dims[part]} does not divide {whole} = {dims[whole]}")
    p_drop = tensors.get("p_drop")
    if p_drop is not None and not 0.0 <= p_drop[0] < 1.0:
        raise KernelArgError(f"{name}: p_drop = {p_drop[0]}, expected 0 to below 1")
    if dims["NT"] < 1:
        raise KernelArgError(f"{name}: NT = {dims['NT']} threads, expected 1 or more")
