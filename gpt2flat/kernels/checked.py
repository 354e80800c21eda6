"""What kernels.run asks of its arguments before C or Numba sees them: names, types, shapes, layout, overlap and ranges.

Whatever is wrong raises KernelArgError, in one line that names kernel and argument; nothing has been written then."""

import operator

import numpy as np

from ..errors import KernelArgError
from ..memory import axes as ax
from .ops import KERNELS, MODES, OP_OF, Arg, Kernel
from .packing import packed_floats

MAX_THREADS = 1024
DTYPES = {"f32": np.dtype("<f4"), "i32": np.dtype("<i4")}
ARRAYS = (np.ndarray, np.memmap)  # a matrix has other shapes, a masked array a mask that no kernel sees
Tensors = dict[str, np.ndarray | None]


def find(name: str) -> Kernel:
    """The kernel of this name."""
    if not isinstance(name, str) or name not in KERNELS:
        raise KernelArgError(f"no kernel {name!r}; there are {', '.join(KERNELS)}")
    return KERNELS[name]


def arguments(kernel: Kernel, given: dict, threads: int) -> tuple[Tensors, dict[str, int]]:
    """(tensors by name, None for one that is absent; dims and accumulate flags by name) from what a caller passed.

    threads: what NT is unless it is among them."""
    given = dict(given)
    tensors = {arg.name: _tensor(kernel.name, arg, given.pop(arg.name, None)) for arg in kernel.args}
    names = [name for name in (*kernel.dims, *kernel.accs) if name in given]
    told = {name: _whole(kernel, name, given.pop(name)) for name in names}
    if given:
        takes = ", ".join(arg.name for arg in kernel.args)
        raise KernelArgError(f"{kernel.name} has no argument {', '.join(given)}; it takes {takes}")
    dims = _dims(kernel, tensors, told, threads)
    _check_values(kernel.name, tensors, dims)
    _check_overlap(kernel, tensors)
    return tensors, {acc: 0 for acc in kernel.accs} | dims


def add_scratch(kernel: Kernel, tensors: Tensors, needed: int) -> None:
    """Makes the work space that was not passed; `needed` floats."""
    if "scratch" in tensors and tensors["scratch"] is None:
        tensors["scratch"] = np.empty(needed, np.float32)
    elif "scratch" in tensors and tensors["scratch"].size < needed:
        have = tensors["scratch"].size
        raise KernelArgError(f"{kernel.name}: scratch holds {have} floats, expected {needed} (or leave it out)")


def _tensor(name: str, arg: Arg, view) -> np.ndarray | None:
    if view is None:
        if arg.optional or arg.role == "scratch":
            return None
        raise KernelArgError(f"{name}: {arg.name} is missing")
    if type(view) not in ARRAYS or view.dtype != DTYPES[arg.dtype]:
        kind = f"{view.dtype} array" if type(view) in ARRAYS else type(view).__name__
        raise KernelArgError(f"{name}: {arg.name} is {kind}, expected a NumPy array of {DTYPES[arg.dtype].name}")
    if not view.flags.c_contiguous or not view.flags.aligned or view.size == 0:
        raise KernelArgError(f"{name}: {arg.name} of shape {view.shape} must be C-contiguous, aligned and not empty")
    if not arg.const and not view.flags.writeable:
        raise KernelArgError(f"{name}: {arg.name} is written, but the array is read-only")
    return view


def _whole(kernel: Kernel, name: str, value) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        raise KernelArgError(f"{kernel.name}: {name} is {type(value).__name__}, expected a whole number") from None
    if name in kernel.accs:
        if whole not in (0, 1):
            raise KernelArgError(f"{kernel.name}: {name} is neither 0 (overwrite) nor 1 (add)")
    elif isinstance(value, bool) or not abs(whole) < 1 << 63:
        kind = "bool" if isinstance(value, bool) else "beyond 64 bits"
        raise KernelArgError(f"{kernel.name}: {name} is {kind}, expected a whole number")
    return whole


def _dims(kernel: Kernel, tensors: Tensors, told: dict[str, int], threads: int) -> dict[str, int]:
    wanted = {a.name: a.axes for a in kernel.args if tensors[a.name] is not None and a.role != "scratch"}
    dims = ax.solve(kernel.name, wanted, {name: tensors[name].shape for name in wanted}, told)
    for name, value in told.items():
        if dims[name] != value:
            raise KernelArgError(f"{kernel.name}: {name} = {value}, but the shapes say {name} = {dims[name]}")
    dims = {"NT": threads} | {mode: 0 for mode in MODES} | dims
    missing = [dim for dim in kernel.dims if dim not in dims]
    if missing:
        raise KernelArgError(f"{kernel.name}: the shapes do not tell {', '.join(missing)}; pass {missing[0]}=")
    return dims


def _check_overlap(kernel: Kernel, tensors: Tensors) -> None:
    there = [arg for arg in kernel.args if tensors[arg.name] is not None]
    for arg in there:
        for other in there if not arg.const else ():
            if other is not arg and np.may_share_memory(tensors[arg.name], tensors[other.name]):
                raise KernelArgError(f"{kernel.name}: {arg.name} is written and overlaps {other.name}")


def _check_values(name: str, tensors: Tensors, dims: dict[str, int]) -> None:
    """The index and dim conditions of the contracts in csrc/kernels.h."""
    if not 1 <= dims["NT"] <= MAX_THREADS:
        raise KernelArgError(f"{name}: NT = {dims['NT']} threads, expected 1 to {MAX_THREADS}")
    for mode, allowed in MODES.items():
        if dims[mode] not in allowed:
            words = f"a multiple of {allowed.step} up to {allowed[-1]}" if allowed.step > 1 else f"0 to {allowed[-1]}"
            raise KernelArgError(f"{name}: {mode} = {dims[mode]}, expected {words}")
    for small, large in (("T", "maxT"), ("T", "S"), ("V", "Vp"), ("KVH", "NH")):
        if small in dims and large in dims and not 0 < dims[small] <= dims[large]:
            raise KernelArgError(f"{name}: {small} = {dims[small]}, expected 1 to {large} = {dims[large]}")
    for part, whole in (("KVH", "NH"), ("T", "N")):
        if part in OP_OF[name].dims and part in dims and whole in dims and dims[whole] % dims[part]:
            raise KernelArgError(f"{name}: {part} = {dims[part]} does not divide {whole} = {dims[whole]}")
    if "S" in dims and dims["S"] % 16:
        raise KernelArgError(f"{name}: S = {dims['S']}, expected a multiple of 16")
    if "W" in dims and dims["W"] != (wanted := packed_floats(dims["C"], dims["PACK"])):
        raise KernelArgError(f"{name}: W = {dims['W']}, expected {wanted} for C = {dims['C']} and PACK = {dims['PACK']}")
    if "gain" in tensors and (tensors["gain"] is None) != (tensors["shift"] is None):
        raise KernelArgError(f"{name}: gain and shift come together, expected both or none")
    limits = {"tokens": (0, dims.get("Vp")), "targets": (-1, dims.get("V")), "positions": (0, dims.get("S", dims.get("maxT")))}
    for index, (low, high) in limits.items():
        ids = tensors.get(index)
        if ids is not None and not (low <= ids.min() and ids.max() < high):
            raise KernelArgError(f"{name}: {index} reach from {ids.min()} to {ids.max()}, expected {low} to {high - 1}")
    p_drop = tensors.get("p_drop")
    if p_drop is not None and not 0.0 <= p_drop[0] < 1.0:
        raise KernelArgError(f"{name}: p_drop = {p_drop[0]}, expected 0 to below 1")
