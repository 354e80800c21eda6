"""Which kernel is called with which dims, from the programs of a model; the arguments of such a call in one buffer."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from ..arch import gpt2
from ..errors import UsageError
from ..generation.cache import Cache
from ..kernels.ops import I32, KERNELS, MODES, OPS, Arg, Kernel, Op
from ..memory.arena import Section, flat
from ..memory.layout import ALIGN, Layout, Row
from ..model import Model
from ..program import Call
from .machine import Machine, Stream

SPREAD = 1 << 18  # random numbers that are drawn; a larger array repeats them
WEIGHTS = 0.02  # their standard deviation; that of everything else is 1
# as in the first update of a training; what is not named is 0
KNOBS = dict(lr=1e-4, beta1=0.9, beta2=0.999, eps=1e-8, correction1=0.1, correction2=0.001, grad_scale=1.0)


@dataclass(frozen=True)
class Case:
    """One kernel, its dims (NT is the machine's) and accumulate flags; how many calls of a training step are so."""

    op: Op
    kernel: Kernel
    dims: dict[str, int]
    accs: dict[str, int]
    calls: int

    @property
    def flops(self) -> int:
        return self.op.count_flops(self.kernel, self.dims)

    @property
    def moves(self) -> list:
        return self.op.moves(self.kernel, self.dims | self.accs)

    @property
    def bf16(self) -> bool:
        return bool(self.dims.get("BF16"))

    @property
    def key(self) -> tuple:
        return self.kernel.name, *self.dims.items(), *self.accs.items()

    def __str__(self) -> str:
        flags = [acc for acc, on in self.accs.items() if on]
        sizes = [f"{dim}{size}" for dim, size in self.dims.items() if dim not in MODES]
        return " ".join(
            [*sizes, *(f"{mode}{n if n > 1 else ''}" for mode in MODES if (n := self.dims.get(mode))), *flags]
        )


def step_cases(config: gpt2.GPT2Config, B: int, T: int, kernels, precision: str = "fp32") -> list[Case]:
    """Every kernel of the op table at each of its shapes in a training step of (B, T), in the order of the table.

    What only the other attention, the plain program and generation (of B rows, T tokens each) use comes with no calls; the optimizer
    is one call on all parameters."""
    ways = [*({"attention": attention} for attention in gpt2.ATTENTION), {"fused": False}]
    programs = [Model(config, kernels=kernels, precision=precision, **way).program(B, T) for way in ways]
    called = [call for program in programs for call in program.calls] + Cache(Model(config, kernels=kernels), B, T, "fp32").calls
    step = programs[0].body + programs[0].train[0]
    known = programs[0].dims | {"P": config.num_parameters}
    return [case for op in OPS.values() for case in _cases_of(op, called, step, known)]


def _cases_of(op: Op, called: list[Call], step: list[Call], known: dict[str, int]) -> list[Case]:
    names, cases = op.dims.split(), []
    shapes = dict.fromkeys(_values(call.numbers, names) for call in called if call.op is op)
    for shape in shapes or [_values(known, names)]:
        for kernel in op.kernels:
            alike = [call for call in called if call.kernel is kernel and _values(call.numbers, names) == shape]
            flags = Counter(_values(call.numbers, kernel.accs) for call in step if call in alike)
            if not flags:  # not in the step: as another program calls it, else all gradients overwrite
                numbers = alike[0].numbers if alike else dict.fromkeys(kernel.accs, 0)
                flags[_values(numbers, kernel.accs)] = int(op.update)
            for accs, calls in flags.items():
                cases.append(Case(op, kernel, dict(zip(names, shape)), dict(zip(kernel.accs, accs)), calls))
    return cases


def _values(numbers: dict[str, int], names: Iterable[str]) -> tuple[int, ...]:
    return tuple(numbers[name] for name in names)


def select(cases: list[Case], names: list[str]) -> list[Case]:
    """The cases of the ops and kernels that are named; all of them if none is. Raises UsageError."""
    for name in names:
        if name not in OPS and name not in KERNELS:
            raise UsageError(f"no op or kernel {name!r}; the ops are {', '.join(OPS)}")
    return [case for case in cases if not names or case.op.name in names or case.kernel.name in names]


def resize(cases: list[Case], wish: dict[str, int]) -> list[Case]:
    """The cases with the dims of `wish` in place of their own, each once. Raises UsageError for a dim that none has."""
    if not wish:
        return cases
    have = dict.fromkeys(dim for case in cases for dim in case.dims)
    for dim in wish.keys() - have.keys():
        raise UsageError(f"--dims {dim}={wish[dim]}: no such dim here; there are {', '.join(have)}")
    resized = [replace(c, dims={d: wish.get(d, n) for d, n in c.dims.items()}, calls=0) for c in cases]
    return list({case.key: case for case in resized}.values())


class Arguments:
    """The arguments of a case in one buffer: `views` by name, filled with random numbers; `stream` visits what a call
    moves. Scratch suits every one of the machines. Raises CapacityError."""

    def __init__(self, case: Case, machines: list[Machine]):
        self.numbers = case.dims | case.accs | {"NT": machines[0].threads}
        scratch = max(machine.kernels.scratch(case.op, self.numbers) for machine in machines)
        rows = [
            Row(a.name, str(max(scratch, 1)) if a.role == "scratch" else a.axes, dtype=a.dtype)
            for a in case.kernel.args
        ]
        layout = Layout.plan(rows, self.numbers, ALIGN)
        data = flat(layout.floats, f"{case.kernel.name} {case}")
        section = Section(case.kernel.name, data, layout)
        self.views = {name: section[name] for name in section}
        self.stream = Stream(data, [(move, layout[move.name].offset) for move in case.moves])
        self.bytes = data.nbytes
        for arg in case.kernel.args:
            _fill(arg, self.views[arg.name], case.dims)


def _fill(arg: Arg, view: np.ndarray, dims: dict[str, int]) -> None:
    rng = np.random.default_rng(0)
    count = min(view.size, SPREAD)
    if arg.role == "knob":
        view[...] = KNOBS.get(arg.name, 0)
    elif arg.name == "positions":  # the cache is full
        view[...] = dims.get("S", dims.get("maxT")) - 1
    elif arg.role == "index":  # ids of the vocabulary
        view[...] = rng.integers(0, dims.get("V", dims.get("Vp")), view.shape)
    elif arg.dtype != I32 and arg.role not in ("work", "scratch"):
        drawn = rng.standard_normal(count, np.float32) * np.float32(WEIGHTS if arg.role == "weight" else 1)
        spread(view, abs(drawn) if arg.role == "saved" else drawn)  # v and rstd are never negative


def spread(view: np.ndarray, drawn: np.ndarray) -> None:
    """Fills a view with the same numbers again and again."""
    flat_view = view.reshape(-1)
    for start in range(0, view.size, drawn.size):
        flat_view[start : start + drawn.size] = drawn[: view.size - start]
