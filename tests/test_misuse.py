"""kernels.run refuses every wrong argument before C sees it; a forked child is told so; the float environment stays."""

import ctypes
import platform

import numpy as np
import pytest

import harness
from gpt2flat import kernels
from gpt2flat.errors import KernelArgError
from gpt2flat.kernels.ops import KERNELS, OP_OF
from gpt2flat.memory import axes as ax

BY_KERNEL = pytest.mark.parametrize("name", KERNELS)


def valid(name: str) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Arguments that kernels.run accepts, without scratch, and the dims that the shapes may not tell."""
    case = harness.Case(name, harness.modest(OP_OF[name]))
    placed = harness.place(case, harness.natives()[-1], 1)
    return {n: p.view for n, p in placed.items() if n != "scratch"}, case.dims


def args_of(name: str):
    return [arg for arg in KERNELS[name].args if arg.role != "scratch"]


def refused(name: str, arrays: dict, dims: dict, match: str) -> None:
    before = {n: a.tobytes() for n, a in arrays.items() if isinstance(a, np.ndarray)}
    with pytest.raises(KernelArgError, match=match) as caught:
        kernels.run(name, **arrays, **dims)
    assert "\n" not in str(caught.value)
    assert before == {n: a.tobytes() for n, a in arrays.items() if isinstance(a, np.ndarray)}


@BY_KERNEL
def test_what_is_valid_runs(name):
    arrays, dims = valid(name)
    kernels.run(name, threads=2, **arrays, **dims)


def unaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape)


WRONG = {
    "float64": lambda a: a.astype(np.float64),
    "other type": lambda a: a.view(np.int32 if a.dtype == np.float32 else np.float32),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "a list": lambda a: a.tolist(),
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.shape[-1] > 1 else np.float64(0),
    "backwards": lambda a: a[..., ::-1] if a.shape[-1] > 1 else np.float64(0),
    "unaligned": unaligned,
    "one more axis": lambda a: a[None],
    "flat": lambda a: a.reshape(-1) if a.ndim > 1 else np.float64(0),
    "empty": lambda a: a[:0],
}


@BY_KERNEL
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_array_is_refused(name, wrong):
    for arg in args_of(name):
        arrays, dims = valid(name)
        refused(name, arrays | {arg.name: WRONG[wrong](arrays[arg.name])}, dims, arg.name)


def alone(name: str) -> set[str]:
    """Dims that a single axis of a single argument tells, so that any length is right."""
    axes = [axis for arg in args_of(name) for axis in ax.split(arg.axes)]
    return {axis for axis in axes if sum(axis in other for other in axes) == 1 and axis.isidentifier()}


@BY_KERNEL
def test_a_shape_that_fits_no_other_is_refused(name):
    arrays, dims = valid(name)
    for arg in args_of(name):
        for i, axis in enumerate(ax.split(arg.axes)):
            shape = list(arrays[arg.name].shape)
            shape[i] += 1
            free = {d: n for d, n in dims.items() if d not in ax.split(arg.axes)}
            if axis not in alone(name):
                refused(name, arrays | {arg.name: np.ones(shape, arrays[arg.name].dtype)}, free, name)


@BY_KERNEL
def test_a_missing_read_only_or_overlapping_argument_is_refused(name):
    arrays, dims = valid(name)
    for arg in args_of(name):
        if not arg.optional:
            refused(name, {n: a for n, a in arrays.items() if n != arg.name}, dims, f"{arg.name} is missing")
        if not arg.const:
            frozen = arrays[arg.name].view()
            frozen.flags.writeable = False
            refused(name, arrays | {arg.name: frozen}, dims, "read-only")
            for other in args_of(name):
                if other is not arg and arrays[other.name].shape == arrays[arg.name].shape and other.dtype == arg.dtype:
                    refused(name, arrays | {arg.name: arrays[other.name]}, dims, "overlaps")


def test_an_unknown_kernel_or_argument_is_refused():
    arrays, dims = valid("gelu_forward")
    refused("gelu", arrays, dims, "no kernel 'gelu'")
    refused("gelu_forward", arrays | {"weight": arrays["inp"]}, dims, "no argument weight")


@pytest.mark.parametrize("name, index", [(n, a.name) for n in KERNELS for a in KERNELS[n].args if a.role == "index"])
def test_an_id_out_of_range_is_refused(name, index):
    arrays, dims = valid(name)
    limit = dims["V"] if index == "targets" else dims["Vp"]
    for wrong in (-2, limit, 2**31 - 1, -(2**31)):
        ids = arrays[index].copy()
        ids[-1] = wrong
        refused(name, arrays | {index: ids}, dims, f"{index} reach")


@pytest.mark.parametrize(
    "name, wrong",
    [("embedding_forward", {"T": 0}), ("embedding_forward", {"T": 5}), ("embedding_forward", {"T": 42}),
     ("attention_forward", {"KVH": 3}), ("attention_forward", {"HS": 18}), ("attention_forward", {"KVH": 0}),
     ("classifier_forward", {"V": 209}), ("classifier_forward", {"V": 0}), ("classifier_forward", {"V": -1}),
     ("gelu_forward", {"NT": 0}), ("linear_forward", {"NT": -1000})],
)  # fmt: skip
def test_a_dim_that_cannot_be_is_refused(name, wrong):
    arrays, dims = valid(name)
    refused(name, arrays, dims | wrong, f"{next(iter(wrong))}|targets")


def test_a_dim_that_contradicts_the_shapes_is_refused():
    arrays, dims = valid("gelu_forward")
    refused("gelu_forward", arrays, dims | {"N": dims["N"] + 1}, "N")


@pytest.mark.parametrize("name", [n for n in KERNELS if any(a.role == "scratch" for a in KERNELS[n].args)])
def test_scratch_that_is_too_small_is_refused(name):
    arrays, dims = valid(name)
    needed = harness.natives()[-1].scratch(OP_OF[name], dims | {"NT": 1})
    refused(name, arrays | {"scratch": np.empty(needed - 1, np.float32)}, dims | {"NT": 1}, "scratch")


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, np.nan])
@pytest.mark.parametrize("name", [n for n in KERNELS if any(a.name == "p_drop" for a in KERNELS[n].args)])
def test_a_dropout_that_is_no_probability_is_refused(name, p):
    arrays, dims = valid(name)
    refused(name, arrays | {"p_drop": np.float32([p])}, dims, "p_drop")


# --- the float environment


def control_word() -> int:
    """MXCSR without its sticky flags: rounding mode, masks, flush-to-zero, denormals-are-zero."""
    environment = ctypes.create_string_buffer(64)
    ctypes.CDLL("libm.so.6").fegetenv(environment)
    return int.from_bytes(environment.raw[28:32], "little") & 0xFFC0


GLIBC_X86 = platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"


@BY_KERNEL
def test_kernels_leave_the_float_environment_alone(name):
    before = control_word() if GLIBC_X86 else None
    for native in harness.backends():
        harness.execute(harness.Case(name, harness.modest(OP_OF[name])), native, 3)
    assert (control_word() if GLIBC_X86 else None) == before
    assert np.float32(1e-40) * np.float32(0.5) > 0 and np.float32(1) + np.float32(2**-24) == 1


IMPORT = "import numpy as np, gpt2flat.kernels as k; k.available_isas(); assert np.float32(1e-40) * np.float32(0.5) > 0"


def test_import_leaves_the_float_environment_alone():
    assert harness.python("-c", IMPORT).returncode == 0


# --- fork

FORK = """
import os, sys
import numpy as np
from gpt2flat import kernels
from gpt2flat.errors import ForkError

x = np.ones((40, 50), np.float32)
kernels.run("gelu_forward", out=x.copy(), inp=x, threads=2)
child = os.fork()
if child == 0:
    try:
        kernels.run("gelu_forward", out=x.copy(), inp=x, threads=2)
    except ForkError as error:
        os._exit(7 if "spawn" in str(error) else 8)
    os._exit(9)
_, status = os.waitpid(child, 0)
kernels.run("gelu_forward", out=x.copy(), inp=x, threads=2)  # the parent goes on
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("backend", ["c", "numba"])
def test_a_forked_child_gets_an_error_and_does_not_hang(backend, monkeypatch):
    monkeypatch.setenv("GPT2FLAT_BACKEND", backend)
    assert harness.python("-W", "ignore", "-c", FORK).returncode == 7
