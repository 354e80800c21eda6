"""Step, and the binder that turns an architecture's steps into calls of kernels on views of the arena.

It solves every dim from the tables and checks every shape once. Knows no architecture; bound, it is plain lists of calls."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property

from .errors import KernelArgError
from .kernels.ops import OPS, Arg, Kernel, Op
from .memory import axes as ax
from .memory.layout import Layout


@cache
def _split(name: str) -> tuple[str, str | None]:
    """ "stream[l+1]" -> ("stream", "l+1")."""
    return re.fullmatch(r"(\w+)(?:\[(.+)\])?", name).groups()


@dataclass(frozen=True, init=False)
class Step:
    """One op and the names of its tensors: Step("linear", out="qkv", inp="ln1", weight="qkvw", bias="qkvb").

    In a block a name means the layer's slot, or the only slot; "stream[l+1]" names one. Nothing else belongs here."""

    op: str
    names: dict[str, str]

    def __init__(self, op: str, **names: str):
        object.__setattr__(self, "op", op)
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class Ref:
    """A tensor of the arena: section, row and slot (0 for a row that is not stacked)."""

    section: str
    name: str
    slot: int = 0
    stacked: bool = False

    def __str__(self) -> str:
        return f'{self.section}["{self.name}"]' + (f"[{self.slot}]" if self.stacked else "")


@dataclass
class Call:
    """A kernel call of a program. Program.bind sets `run`; `numbers`: dims and acc flags; `kind`: one for alike calls."""

    kernel: Kernel
    op: Op
    layer: int | None
    refs: dict[str, Ref]
    shapes: dict[str, tuple[int, ...]]
    numbers: dict[str, int]
    run: Callable = field(default=None, repr=False)

    def __call__(self) -> None:
        self.run()

    @cached_property
    def kind(self) -> tuple:
        return self.kernel.name, *(self.numbers[name] for name in (*self.kernel.dims, *self.kernel.accs))

    @property
    def where(self) -> str:
        """For messages: "linear_forward, layer 3, writing acts["qkv"][3]"."""
        layer = "" if self.layer is None else f", layer {self.layer}"
        return f"{self.kernel.name}{layer}, writing {', '.join(str(self.refs[a.name]) for a in self.written)}"

    @property
    def written(self) -> list[Arg]:
        return [a for a in self.kernel.args if a.name in self.refs and not (a.const or a.role in ("work", "scratch"))]

    @property
    def accs(self) -> dict[str, int]:
        return {acc: self.numbers[acc] for acc in self.kernel.accs if "d" + acc[4:] in self.refs}

    @property
    def flops(self) -> int:
        return self.op.count_flops(self.kernel, self.numbers)

    @property
    def bytes(self) -> int:
        """Bytes that the call reads and writes at least."""
        return sum(move.bytes for move in self.op.moves(self.kernel, self.numbers) if move.name in self.refs)


class Binder:
    """Steps as calls on tensors of some sections. A name belongs to the first of `layouts` (by section) that has it."""

    def __init__(self, steps: list[tuple[Step, int | None]], layouts: dict[str, Layout], dims: dict[str, int]):
        """steps: each with its layer; dims: all of them."""
        self.steps, self.layouts, self.dims = steps, layouts, dims
        self._solved = {}  # shapes and dims of a step, which are those of every layer

    def forward_calls(self) -> list[Call]:
        """Of every step, in their order."""
        return [self._call(step, layer, "forward") for step, layer in self.steps]

    def _slot(self, name: str, layer: int | None) -> tuple[str, int | None]:
        """The row that a step's name means in a layer, and which slot of it if there were all of them."""
        name, index = _split(name)
        return name, ax.size(index, {"L": self.dims["L"], "l": layer or 0}) if index else layer

    def _tensors(self, index: int, *roles: str) -> list[tuple[str, int | None]]:
        """Row and slot of the tensors that a step has in these roles."""
        step, layer = self.steps[index]
        return [self._slot(step.names[a.name], layer) for a in OPS[step.op].args(*roles) if a.name in step.names]

    def _ref(self, name: str, layer: int | None) -> Ref:
        name, slot = self._slot(name, layer)
        section = next((section for section, layout in self.layouts.items() if name in layout), None)
        if section is None:
            raise KernelArgError(f"a step names {name!r}, which is in no table")
        place = self.layouts[section][name]
        if slot is None or place.slots <= 1:  # not stacked, or the only slot
            slot = 0
        elif not 0 <= slot < place.slots:
            raise KernelArgError(f"{name}[{slot}] is beyond its {place.slots} slots")
        return Ref(section, name, slot, bool(place.row.slots))

    def _shape(self, ref: Ref) -> tuple[int, ...]:
        return self.layouts[ref.section][ref.name].slot_shape

    def _call(self, step: Step, layer: int | None, form: str, accs: dict[str, int] | None = None) -> Call:
        op, accs, refs = OPS[step.op], accs or {}, {}
        kernel = getattr(op, form)
        for arg in kernel.args:
            of = arg.name if arg.name in step.names else arg.name[1:]
            if of in step.names and (of == arg.name or arg.const or f"acc_{of}" in accs):
                ref = self._ref(step.names[of], layer)
                refs[arg.name] = ref if of == arg.name else self._gradient(ref)
            elif not arg.optional and arg.role != "scratch":
                raise KernelArgError(f"step {step.op}: {arg.name} is not named")
        solved = id(step), form, *refs
        if solved not in self._solved:
            where = f"step {step.op}" + ("" if layer is None else f", layer {layer}")
            shapes = {name: self._shape(ref) for name, ref in refs.items()}
            axes = {a.name: a.axes for a in kernel.args if a.name in refs}
            self._solved[solved] = shapes, ax.solve(where, axes, shapes, self.dims)
        shapes, numbers = self._solved[solved]
        return Call(kernel, op, layer, refs, shapes, {**numbers, **dict.fromkeys(kernel.accs, 0), **accs})


def bind(calls: list[Call], sections, kernels) -> None:
    """Puts views of `sections` (by name) and the kernels' functions into the calls."""
    scratch = sections["scratch"]["scratch"]
    for call in calls:
        views = {arg: sections[ref.section].slot(ref.name, ref.slot) for arg, ref in call.refs.items()}
        call.run = kernels.bind(call.kernel, {**views, "scratch": scratch}, call.numbers)


def bound_call(op: Op, views: dict, numbers: dict[str, int], kernels) -> Call:
    """The forward call of an op on these views; it stands in no program."""
    return Call(op.forward, op, None, {}, {}, numbers, kernels.bind(op.forward, views, numbers))
