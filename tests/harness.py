"""Runs any kernel of the op table on hostile memory and compares it with its float64 reference.

A Case says which kernel, which dims, which kind of numbers; shapes, roles, dtypes and flags come from the op table.
Every array has guard words on both sides and a base 0 to 60 bytes from a cache line; what is written is filled with NaN
before; scratch has the exact size that the kernel asks for; what is read must come back unchanged."""

import functools
import os
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import truth
from gpt2flat import kernels
from gpt2flat.kernels.ops import I32, KERNELS, MODES, OP_OF, OPS
from gpt2flat.generation.packed import pack_rows
from gpt2flat.kernels.packing import packed_floats
from gpt2flat.memory import axes as ax
from gpt2flat.model import Model
from homes import Bare, Placed

SLACK = 2.0  # the bounds are those of the written formula; a kernel may multiply by a reciprocal where that divides
FILLS = ("normal", "large", "small", "mixed", "constant", "whole", "onehot")
KNOBS = dict(lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, correction1=0.271, correction2=0.142625,
             grad_scale=0.5)  # fmt: skip

# Awkward sizes by free dim: around the vector widths, the tiles and the blocks of csrc. What derives: N, NH, Vp, maxT.
SIZES = {
    "B": (1, 3, 2), "T": (1, 64, 65, 193, 7, 129, 192), "N": (1, 33, 65, 7, 130, 16),
    "C": (1, 16, 49, 768, 193, 17, 8, 31),
    "OC": (1, 47, 16, 193, 9, 48, 97), "KVH": (1, 2, 1, 3), "group": (1, 1, 2), "HS": (1, 16, 17, 64, 8, 33),
    "V": (2, 193, 50, 192, 17, 387), "pad": (0, 15, 1), "extra": (0, 3), "R": (1024, 3, 16, 1, 32),
    "P": (1, 17, 4097, 65537, 140001), "BF16": (0, 1, 0, 1, 1),
    "PACK": (0, 1, 2),
}  # fmt: skip
# Sizes that only one op's blocking makes special: K > 768 and M > 1024 of each of the three GEMMs, a weight gradient
# that needs more scratch than the other two, two blocks of keys.
PRODUCTS = (dict(N=1030, C=9, OC=50), dict(N=13, C=785, OC=33), dict(N=9, C=50, OC=1799), dict(N=768, C=192, OC=193))
EDGES = {
    "linear": PRODUCTS,
    "linear_residual": PRODUCTS[:3],
    "gelu_linear": (*PRODUCTS, dict(N=1540, C=9, OC=20)),
    "attention": (dict(B=1, T=261, NH=2, KVH=1, HS=20), dict(B=1, T=385, NH=1, KVH=1, HS=7)),
    "attention_standard": (dict(B=1, T=261, NH=2, KVH=1, HS=20),),
    "decode_linear": (dict(B=5, C=785, OC=50, W=packed_floats(785, 2), PACK=2), dict(B=6, C=800, OC=26, W=400, PACK=1)),
    "decode_attention": (dict(B=5, S=400, NH=2, KVH=1, HS=20),),
    "classifier": (dict(N=8, C=20, V=200, Vp=256, R=3), dict(N=1030, C=5, V=30, Vp=32, R=1030)),
}


@dataclass(frozen=True)
class Case:
    """One call of one kernel. acc: bit i is the i-th accumulate flag. absent: optional arguments are NULL."""

    kernel: str
    sizes: tuple[tuple[str, int], ...]
    fill: str = "normal"
    acc: int = 0
    absent: bool = False
    p_drop: float = 0.0
    offset: int = 0
    poison: str = ""  # the input that holds one NaN

    @property
    def dims(self) -> dict[str, int]:
        modes = {mode: 0 for mode in MODES if mode in OP_OF[self.kernel].dims.split()}
        return modes | dict(self.sizes)

    def __str__(self) -> str:
        words = [self.kernel, *(f"{d}{n}" for d, n in self.sizes), self.fill, f"acc{self.acc}"]
        return "-".join(
            words
            + ["absent"] * self.absent
            + [f"drop{self.p_drop}"] * bool(self.p_drop)
            + [f"poison_{self.poison}"] * bool(self.poison)
        )


def dims_of(op, free: dict[str, int]) -> tuple[tuple[str, int], ...]:
    """The dims of an op from sizes that may be chosen freely, so that the conditions of kernels.h hold."""
    names = op.dims.split()
    derived = {"NH": free["KVH"] * free["group"], "Vp": free["V"] + free["pad"], "maxT": free["T"] + free["extra"]}
    if "T" in names:
        derived["N"] = free["B"] * free["T"]
    modes = dict.fromkeys(MODES, 0)
    derived["S"] = -(-(free["T"] + free["extra"]) // 16) * 16
    derived["W"] = packed_floats(free["C"], free.get("PACK", 0))
    return tuple((name, (modes | free | derived)[name]) for name in names)


def grid(op, count: int = 8):
    """`count` combinations of awkward sizes, then the op's own edges."""
    for i in range(count):
        yield dims_of(op, {dim: sizes[i % len(sizes)] for dim, sizes in SIZES.items()})
    for edge in EDGES.get(op.name, ()):
        for BF16 in (0, 1) if "BF16" in op.dims.split() else (0,):
            known = dict.fromkeys(MODES, 0) | edge | {"BF16": BF16}
            yield tuple((name, known[name]) for name in op.dims.split())


def modest(op) -> tuple[tuple[str, int], ...]:
    """One middling, awkward shape."""
    return dims_of(op, dict(B=2, T=21, N=37, C=35, OC=50, KVH=2, group=2, HS=19, V=203, pad=5, extra=4, R=16, P=70001))


# --- inputs


def inputs(case: Case) -> dict[str, np.ndarray | None]:
    """All arguments that hold something before the call, by name; the others start as NaN. Fresh copies."""
    return {name: None if array is None else array.copy() for name, array in _inputs(case).items()}


@functools.lru_cache(maxsize=256)
def _inputs(case: Case) -> dict[str, np.ndarray | None]:
    kernel, op = KERNELS[case.kernel], OP_OF[case.kernel]
    known = {}
    for arg in op.args("saved") if op.alone else ():  # the optimizer's state and the cache are read and written
        state = numbers(case, arg)
        known[arg.name] = abs(state) if arg.name == "v" else state
    for arg in op.args("read", "index", "knob", "weight"):
        known[arg.name] = None if arg.optional and case.absent else numbers(case, arg)
    if any(arg.const and arg.role in ("written", "saved") for arg in kernel.args):
        forward = truth.run(op.forward.name, known, case.dims)
        known |= {arg.name: forward[arg.name].value.astype(np.float32) for arg in op.args("written", "saved")}
    given = {}
    for i, arg in enumerate(kernel.args):
        if arg.role == "gradient" and (arg.const or _accumulates(kernel, case, i)):
            given[arg.name] = numbers(case, arg)
        elif arg.name in known and (arg.const or op.alone):
            given[arg.name] = known[arg.name]
        elif arg.role == "work" and arg.dtype == I32:
            given[arg.name] = np.zeros(ax.shape(arg.axes, case.dims), np.int32)
        if arg.optional and case.absent:
            given[arg.name] = None
    if case.poison:
        given[case.poison] = given[case.poison].copy()
        places = np.flatnonzero(given[case.poison])  # not behind a mask
        given[case.poison].flat[_rng(case, case.poison).choice(places)] = np.nan
    return given


def _accumulates(kernel, case: Case, i: int) -> bool:
    arg = kernel.args[i]
    return not arg.const and arg.role == "gradient" and bool(case.acc >> kernel.accs.index(f"acc_{arg.name[1:]}") & 1)


def _rng(case: Case, name: str):
    sizes = tuple(size for size in case.sizes if size[0] not in ("QB", "KB"))  # tiles change no bit
    return np.random.default_rng(zlib.crc32(f"{case.kernel.split('_')[0]}/{name}/{sizes}/{case.fill}".encode()))


def numbers(case: Case, arg) -> np.ndarray:
    rng, shape, pack = _rng(case, arg.name), ax.shape(arg.axes, case.dims), case.dims.get("PACK", 0)
    if arg.axes == "OC,W" and pack:
        rows = numbers(replace(case, sizes=tuple((case.dims | {"PACK": 0, "W": case.dims["C"]}).items())), arg)
        packed = np.empty(shape, np.float32)
        pack_rows(packed, rows, pack)
        return packed
    if arg.role == "index":
        places = case.dims.get("S", case.dims.get("maxT"))
        low, high = {"targets": (-1, case.dims.get("V")), "tokens": (0, case.dims.get("Vp")), "positions": (0, places)}[arg.name]
        ids = rng.integers(low, high, shape)
        return np.where(rng.random(shape) < 0.1, low, ids).astype(np.int32)  # -1, and a token that comes often
    if arg.role == "knob":
        knob = KNOBS | {"p_drop": case.p_drop, "key_drop": 12345}
        return np.full(shape, knob[arg.name], np.int32 if arg.dtype == I32 else np.float32)
    normal = rng.normal(size=shape)
    made = {
        "normal": lambda: normal,
        "large": lambda: normal * 100,
        "small": lambda: normal * 1e-20,  # products are subnormal
        "mixed": lambda: normal * 10.0 ** rng.uniform(-6, 2, shape),
        "constant": lambda: np.full(shape, rng.choice([0.7, -1.3, 3.1])),
        "whole": lambda: rng.integers(-3, 4, shape),
        "onehot": lambda: _onehot(rng, shape) if arg.role == "gradient" and arg.const else normal,
    }
    return made[case.fill]().astype(np.float32)


def _onehot(rng, shape) -> np.ndarray:
    array = np.zeros(shape)
    array.flat[rng.integers(array.size)] = 1.0
    return array


# --- memory

HOME = Placed  # where arrays are put (homes.py); test_sanitizers.py takes Bare


def place(case: Case, native, threads: int, home=None) -> dict[str, Bare | None]:
    kernel, op, dims = KERNELS[case.kernel], OP_OF[case.kernel], case.dims | {"NT": threads}
    given, placed = inputs(case), {}
    for i, arg in enumerate(kernel.args):
        content = given.get(arg.name)
        if content is None and arg.name not in given:
            shape = (native.scratch(op, dims),) if arg.role == "scratch" else ax.shape(arg.axes, dims)
            content = np.full(shape, np.nan, np.float32)
        offset = case.offset + 5 * i if case.offset else 0
        placed[arg.name] = None if content is None else (home or HOME)(content, offset)
    return placed


# --- running and comparing


def execute(case: Case, native, threads: int = 1, home=None, limit: int = 0) -> dict[str, np.ndarray]:
    """Runs the case, of C with a limit of the team, and returns what was written, after the checks that need no reference."""
    kernel = KERNELS[case.kernel]
    placed = place(case, native, threads, home)
    accs = {acc: case.acc >> i & 1 for i, acc in enumerate(kernel.accs)}
    views = {name: p and p.view for name, p in placed.items()}
    call = native.bind(kernel, views, case.dims | {"NT": threads} | accs)
    if limit:
        native.limit_team(limit)
    try:
        call()
    finally:
        if limit:
            native.limit_team(0)
    for arg in kernel.args:
        if placed[arg.name] is None:
            continue
        strays = placed[arg.name].strays()
        assert not strays, f"{case}: {strays} words outside {arg.name} were written"
        assert not (arg.const and placed[arg.name].changed()), f"{case}: {arg.name} is read only and was changed"
    if native.openmp():
        wanted = min(threads, limit or threads)
        assert native.last_team() == wanted, f"{case}: {native.last_team()} threads worked, {wanted} were asked for"
    results = [a.name for a in kernel.args if not a.const and a.role not in ("work", "scratch")]
    return {name: views[name] for name in results if placed[name]}


@functools.lru_cache(maxsize=64)
def expected(case: Case) -> dict[str, truth.Num]:
    """What the kernel must write, with bounds: the reference, plus the old values where acc says so."""
    kernel, given = KERNELS[case.kernel], inputs(case)
    arrays = {n: a for n, a in given.items() if n in read_by(kernel)}
    wanted = truth.run(case.kernel, arrays, case.dims)
    for i, arg in enumerate(kernel.args):
        if _accumulates(kernel, case, i) and given[arg.name] is not None:
            wanted[arg.name] = wanted[arg.name].onto(given[arg.name])
    return wanted


def read_by(kernel) -> set[str]:
    """Names of the arguments whose values a kernel may use."""
    return {a.name for a in kernel.args if a.const or (OP_OF[kernel.name].alone and a.role == "saved")}


def check(case: Case, native, threads: int = 1) -> dict[str, np.ndarray]:
    """execute, then compare every element of every written array with the reference. Returns what was written."""
    written, wanted = execute(case, native, threads), expected(case)
    for name, got in written.items():
        compare(f"{case} on {native.isa}: {name}", got, wanted[name])
    return written


def compare(what: str, got: np.ndarray, want: truth.Num) -> None:
    error, bound = abs(got.astype(np.float64) - want.value), SLACK * want.err
    bad = ~(error <= bound)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise AssertionError(
            f"{what}{list(at)} = {got[at]!r}, expected {want.value[at]:.9g} within {bound[at]:.2g} "
            f"(error {error[at]:.2g}; {int(bad.sum())} of {bad.size} elements are wrong)"
        )


def assert_same_bits(what: str, one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys(), what
    for name in one:
        differ = one[name].view(np.int32) != other[name].view(np.int32)
        assert not differ.any(), f"{what}: {name} differs in {int(differ.sum())} of {differ.size} elements"


def natives() -> list:
    """The C binding of every instruction set that is built here and that this CPU has, in rising order."""
    return [kernels.backend("c", isa) for isa in kernels.available_isas()]


def backends() -> list:
    """Everything that must pass the same tests: the C bindings and the Numba twins."""
    return [*natives(), kernels.backend("numba")]


def cases(fills=FILLS) -> list[Case]:
    """Every kernel: awkward sizes, kinds of numbers, accumulate flags, absent arguments, bases off the cache line."""
    found = []
    for name, kernel in KERNELS.items():
        op, all_accs = OP_OF[name], (1 << len(kernel.accs)) - 1
        middle = Case(name, modest(op), offset=3)
        found += [Case(name, sizes, offset=i % 16, acc=i % (all_accs + 1)) for i, sizes in enumerate(grid(op))]
        found += [replace(middle, fill=fill) for fill in fills]
        found += [replace(middle, fill="whole", acc=acc) for acc in range(1, all_accs + 1)]
        found += [replace(middle, acc=all_accs)] * bool(all_accs)
        if any(arg.optional for arg in kernel.args) or any(arg.optional for arg in op.args("weight", "read")):
            found += [replace(middle, absent=True)]
        for pack in (1, 2) if "PACK" in kernel.dims else ():
            sizes = dict(dims_of(op, dict(middle.sizes) | {"KVH": 1, "group": 1, "V": 1, "pad": 0, "T": 1, "extra": 0, "PACK": pack}))
            found += [replace(middle, sizes=tuple(sizes.items()), fill=fill) for fill in fills]
        if any(arg.name == "p_drop" for arg in kernel.args):
            found += [replace(middle, p_drop=0.4, acc=acc) for acc in (0, all_accs)]
    return list(dict.fromkeys(found))


def python(*words: str, timeout: float = 600) -> subprocess.CompletedProcess:
    """A Python of its own that sees the same package."""
    path = os.pathsep.join([str(Path(kernels.__file__).parents[2]), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=timeout, env=environment)


def calls_of_a_step(config, B: int, T: int) -> dict[str, int]:
    """How often each kernel is called in a training step of (B, T); the optimizer once on all parameters."""
    program = Model(config, kernels=backends()[0]).program(B, T)
    called = Counter(call.kernel.name for call in program.body + program.train[0])
    return called | {op.name: 1 for op in OPS.values() if op.update}


def ops_with_backward() -> list:
    return [op for op in OPS.values() if not op.alone]
