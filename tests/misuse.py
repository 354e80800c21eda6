"""Wrong arguments to every kernel, made from the op table: each is refused, and nothing is changed; odd ones must run.

Run as a program (python tests/misuse.py c|numba) it prints how many there were and what went wrong, as JSON: the proof
of a crash is that the process dies, and the last line on stderr then names the case."""

import array
import ctypes
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import harness
from gpt2flat import kernels
from gpt2flat.errors import KernelArgError
from gpt2flat.kernels.ops import KERNELS, MODES, OP_OF, Arg

SIZES = dict(B=2, T=5, N=10, C=6, OC=7, KVH=2, group=2, HS=3, V=11, pad=2, extra=1, R=4, P=33)
SHOWN = 20  # of what went wrong
REFUSED, RUNS, EITHER = "refused", "runs", "either"
TOGETHER = ("gain", "shift")  # both or none


@dataclass(frozen=True)
class Case:
    """A call of a kernel with some arguments replaced: `name` of what is wrong with `argument`, and what must be."""

    kernel: str
    argument: str
    name: str
    replaced: dict
    wanted: str

    def __str__(self) -> str:
        return f"{self.kernel}: {self.argument} {self.name}"


class Plain(np.ndarray):
    """A subclass of arrays."""


class Offers:
    """What is no array but has the protocols of one."""

    def __init__(self, content: np.ndarray):
        self.content, self.__array_interface__ = content, content.__array_interface__

    def __array__(self, *args, **kwargs):
        return self.content


# --- what can be wrong with an array ---------------------------------------------------------------------------------

TYPES = "f8 f2 i1 i2 i8 u2 u4 u8 >f4 >i4 c8 c16 g O ? V4 S4 U1 M8[s] m8[s] f4,f4 f4 i4".split()
THINGS = {
    "a list": np.ndarray.tolist, "a tuple": lambda a: tuple(a.ravel()), "text": lambda a: "inp",
    "bytes": np.ndarray.tobytes, "a memoryview": memoryview, "a bytearray": lambda a: bytearray(a.tobytes()),
    "an int": lambda a: 3, "2^63": lambda a: 1 << 63, "a float": lambda a: 0.5, "NaN": lambda a: float("nan"),
    "True": lambda a: True, "a dict": lambda a: {}, "a set": lambda a: {1}, "an object": lambda a: object(),
    "a type": lambda a: np.ndarray, "a function": lambda a: np.zeros, "a generator": lambda a: (x for x in a),
    "a scalar": lambda a: a.ravel()[0], "an address": lambda a: a.ctypes.data,
    "a pointer": lambda a: a.ctypes.data_as(ctypes.c_void_p), "a ctypes array": lambda a: (ctypes.c_float * a.size)(),
    "an array.array": lambda a: array.array("f", bytes(4 * a.size)), "offered as an array": Offers,
    "a matrix": lambda a: a.reshape(a.shape[0], -1).view(np.matrix), "a masked array": np.ma.array,
    "a record array": lambda a: a.view(np.recarray), "a subclass": lambda a: a.view(Plain),
}  # fmt: skip
FORMS = {
    "with an axis in front": lambda a: a[None], "with an axis behind": lambda a: a[..., None],
    "0-d": lambda a: np.zeros((), a.dtype), "empty": lambda a: a[:0],
    "of no rows and columns": lambda a: np.empty((0,) * a.ndim, a.dtype),
    "every second": lambda a: np.repeat(a, 2, -1)[..., ::2], "every second row": lambda a: np.repeat(a, 2, 0)[::2],
    "backwards": lambda a: a[..., ::-1], "upside down": lambda a: a[::-1],
    "of stride 0": lambda a: np.broadcast_to(a.ravel()[0], a.shape),
    "of stride 0, writable": lambda a: np.lib.stride_tricks.as_strided(a, strides=(0,) * a.ndim),
    "flat": lambda a: a.reshape(-1), "transposed": lambda a: a.T,
    "transposed in memory": lambda a: np.ascontiguousarray(a.T), "in Fortran's order": np.asfortranarray,
}  # fmt: skip


def moved(a: np.ndarray, by: int) -> np.ndarray:
    """A copy that begins `by` bytes behind a cache line."""
    raw = np.zeros(a.nbytes + 128, np.uint8)
    begin = -raw.ctypes.data % 64 + by
    copy = raw[begin : begin + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


def locked(a: np.ndarray) -> np.ndarray:
    view = a.view()
    view.flags.writeable = False
    return view


def mapped(a: np.ndarray, mode: str) -> np.memmap:
    with tempfile.NamedTemporaryFile() as file:
        file.write(a.tobytes())
        file.flush()
        return np.memmap(file.name, a.dtype, mode, shape=a.shape)


def array_faults(arg: Arg, a: np.ndarray) -> Iterator[tuple[str, object, str]]:
    """(what is wrong, the array instead of `a`, what must happen)"""
    for name in TYPES:
        if np.dtype(name) != a.dtype:
            yield f"of type {name}", np.zeros(a.shape, name), REFUSED
    for name, make in THINGS.items():
        yield f"is {name}", make(a), REFUSED
    for name, make in FORMS.items():
        other = make(a)
        if (other.shape, other.strides) != (a.shape, a.strides) and not (
            other.shape == a.shape and other.flags.c_contiguous
        ):
            yield name, other, REFUSED
    for axis in range(a.ndim):
        for by in (1, -1):
            shape = [n + by * (i == axis) for i, n in enumerate(a.shape)]
            yield f"{by:+d} along axis {axis}", np.ones(shape, a.dtype), REFUSED
    for by in (1, 2, 3, 5):
        yield f"moved by {by} bytes", moved(a, by), REFUSED
    for by in (0, 4, 8, 60):
        yield f"moved by {by} bytes", moved(a, by), RUNS
    yield "is read-only", locked(a.copy()), RUNS if arg.const else REFUSED
    yield "is a read-only file", mapped(a, "r"), RUNS if arg.const else REFUSED
    yield "is a file", mapped(a, "r+"), RUNS
    yield "is None", None, RUNS if arg.optional and arg.name not in TOGETHER else REFUSED


def overlaps(kernel, arrays: dict[str, np.ndarray]) -> Iterator[Case]:
    """Written arguments that share memory with another, all of it, parts, one number; and neighbours, which do not."""
    for arg in (arg for arg in kernel.args if not arg.const and arg.role != "scratch"):
        a = arrays[arg.name]
        for other, b in arrays.items():
            for name, at in {
                "all of": 0,
                "all but one number of": 1,
                "one number of": a.size - 1,
                "behind": a.size,
            }.items():
                if other != arg.name and 0 <= at <= a.size:
                    room = np.zeros(at + max(a.size, b.size) + b.size, np.float32)
                    first = room[: a.size].view(a.dtype).reshape(a.shape)
                    second = room[at : at + b.size].view(b.dtype).reshape(b.shape)
                    first[...] = a
                    second[...] = b
                    wanted = RUNS if at == a.size else REFUSED
                    yield Case(kernel.name, arg.name, f"is {name} {other}", {arg.name: first, other: second}, wanted)


# --- what can be wrong with a number ---------------------------------------------------------------------------------

NUMBERS = {
    "-1": -1, "2^31": 1 << 31, "2^32": 1 << 32, "2^63": 1 << 63, "2^64": 1 << 64, "-2^63": -(1 << 63), "10^30": 10**30,
    "10^5000": 10**5000, "1.0": 1.0, "1.5": 1.5, "NaN": float("nan"), "infinite": float("inf"), "text": "3",
    "bytes": b"3", "a list": [3], "a tuple": (3,), "an array": np.array([3, 3]), "a float scalar": np.float32(3),
    "complex": 3j,
    "an object": object(), "None": None, "a dict": {},
}  # fmt: skip


def number_faults(kernel, dims: dict[str, int]) -> Iterator[Case]:
    for name in (*kernel.dims, *kernel.accs):
        faults = {what: (value, REFUSED) for what, value in NUMBERS.items()}
        if name in MODES:
            faults |= {
                "2": (2, REFUSED),
                "True": (True, REFUSED),
                "0": (0, RUNS),
                "int32": (np.int32(0 if "W" in dims else MODES[name][1]), RUNS),  # another packing needs other rows
            }
        elif name in kernel.accs:
            faults |= {
                "2": (2, REFUSED),
                "0": (0, RUNS),
                "1": (1, RUNS),
                "True": (True, RUNS),
                "int32": (np.int32(1), RUNS),
            }
        elif name == "NT":
            faults |= {"0": (0, REFUSED), "1025": (1025, REFUSED), "1": (1, RUNS), "int64": (np.int64(2), RUNS)}
        else:
            size = dims[name]
            near = EITHER if name == "V" else REFUSED  # the vocabulary may end anywhere above the last target
            faults |= {
                "0": (0, REFUSED),
                "True": (True, REFUSED),
                "one less": (size - 1, near),
                "one more": (size + 1, near),
            }
            faults |= {"itself": (size, RUNS), "itself as int32": (np.int32(size), RUNS)}
        for what, (value, wanted) in faults.items():
            yield Case(kernel.name, name, f"is {what}", {name: value}, wanted)


# --- trying them -----------------------------------------------------------------------------------------------------


def valid(name: str) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Arguments that kernels.run accepts, without scratch, and the dims that the shapes may not tell."""
    case = harness.Case(name, harness.dims_of(OP_OF[name], SIZES))
    placed = harness.place(case, kernels.backend(), 1)
    return {n: p.view for n, p in placed.items() if n != "scratch"}, case.dims


def cases(name: str) -> Iterator[Case]:
    kernel, (arrays, dims) = KERNELS[name], valid(name)
    for arg in kernel.args:
        if arg.role != "scratch":
            for what, value, wanted in array_faults(arg, arrays[arg.name]):
                yield Case(name, arg.name, what, {arg.name: value}, wanted)
        else:
            needed = kernels.backend().scratch(OP_OF[name], dims | {"NT": 1})
            for size, wanted in ((needed - 1, REFUSED), (needed, RUNS), (needed + 1, RUNS)):
                yield Case(name, arg.name, f"of {size - needed:+d}", {arg.name: np.zeros(size, np.float32)}, wanted)
            for what, value in {
                "of f8": np.zeros(needed),
                "read-only": locked(np.zeros(needed, np.float32)),
                "a list": [0.0],
            }.items():
                yield Case(name, arg.name, what, {arg.name: value}, REFUSED)
    yield from overlaps(kernel, arrays)
    yield from number_faults(kernel, dims)
    yield Case(name, "more", "is no argument", {"more": arrays[kernel.args[0].name]}, REFUSED)


def contents(arguments: dict) -> dict[str, bytes]:
    return {n: a.tobytes() for n, a in arguments.items() if isinstance(a, np.ndarray) and a.dtype != object}


def problem(case: Case, arrays: dict, dims: dict[str, int]) -> str:
    """What is wrong with how the case ended, or nothing."""
    arguments = arrays | {"NT": 1} | dims | case.replaced
    before = contents(arguments)
    try:
        kernels.run(case.kernel, **arguments)
        ended = RUNS
    except KernelArgError as error:
        ended, message = REFUSED, str(error)
        if "\n" in message or case.kernel not in message or len(message) > 1000:
            return f"a message that is no line about the kernel: {message}"
    except BaseException as error:  # a panic of another language is no Exception
        return f"raised {type(error).__name__}: {error}"
    if ended != case.wanted and case.wanted != EITHER:
        return f"{ended}, not {case.wanted}"
    may_change = {arg.name for arg in KERNELS[case.kernel].args if not arg.const} if ended == RUNS else set()
    changed = [n for n, content in contents(arguments).items() if content != before[n] and n not in may_change]
    return f"changed {', '.join(changed)}" if changed else ""


def try_all(stop: bool = False) -> dict:
    """Tries every case; stop: only up to the first problem."""
    counts, problems = Counter(), []
    for name in KERNELS:
        arrays, dims = valid(name)
        for case in cases(name):
            print(case, file=sys.stderr)
            fresh = {n: a.copy() for n, a in arrays.items()}
            counts[case.wanted] += 1
            if what := problem(case, fresh, dims):
                problems.append(f"{case}: {what}")
                if stop:
                    return report(counts, problems)
    return report(counts, problems)


def report(counts: Counter, problems: list[str]) -> dict:
    return {"counts": counts, "problems": len(problems), "shown": problems[:SHOWN]}


if __name__ == "__main__":
    kernels.backend = lambda chosen=kernels.backend(sys.argv[1]): chosen
    print(json.dumps(try_all()))
