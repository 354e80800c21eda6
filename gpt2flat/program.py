"""Step, and the binder that turns an architecture's steps into calls of kernels on views of the arena.

It solves every dim from the tables, checks every shape once, reverses the steps by the d-rule and derives which gradient
overwrites and which adds. Knows no architecture; after binding, a program is a plain list of calls."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from .errors import KernelArgError
from .kernels.ops import MODES, OPS, Arg, Kernel, Op
from .memory import axes as ax
from .memory.layout import ALIGN, Layout, Row


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
    """One kernel call of a program; `run` is set by Program.bind. `numbers` holds the dims and the acc flags."""

    kernel: Kernel
    op: Op
    layer: int | None
    refs: dict[str, Ref]
    shapes: dict[str, tuple[int, ...]]
    numbers: dict[str, int]
    run: Callable = field(default=None, repr=False)

    def __call__(self) -> None:
        self.run()

    @property
    def where(self) -> str:
        """For messages: "linear_forward, layer 3, writing acts["qkv"][3]"."""
        layer = "" if self.layer is None else f", layer {self.layer}"
        return f"{self.kernel.name}{layer}, writing {', '.join(str(self.refs[a.name]) for a in self.written)}"

    @property
    def written(self) -> list[Arg]:
        return [
            a for a in self.kernel.args if not a.const and a.role not in ("work", "scratch") and a.name in self.refs
        ]

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

    def code(self) -> str:
        """The call as a line of Python for kernels.run; only the dims that no shape tells are passed."""
        told = {
            axis for a in self.kernel.args if a.name in self.refs for axis in ax.split(a.axes) if axis.isidentifier()
        }
        told |= {"NT"} | {mode for mode in MODES if not self.numbers.get(mode)}
        numbers = {d: self.numbers[d] for d in self.kernel.dims if d not in told} | self.accs
        arguments = [f"{a.name}={self.refs[a.name]}" for a in self.kernel.args if a.name in self.refs]
        line = f"{self.kernel.name}({', '.join(arguments + [f'{k}={v}' for k, v in numbers.items()])})"
        first = self.written[0].name
        return f"{line}  # {'' if self.layer is None else f'layer {self.layer}, '}{first} {self.shapes[first]}"


class Program:
    """The calls of a model for one (B, T).

    forward: losses only.  body: forward without the classifier.  train[acc] and backward[acc]: what follows body, or forward, to
    get all gradients; acc 0 for the first micro-batch (parameter gradients overwrite), 1 for the rest (they add)."""

    def __init__(
        self, head, block, tail, params: tuple[Row, ...], acts: tuple[Row, ...], dims: dict[str, int], kernels
    ):
        self.dims = dims
        self.steps = (
            [(s, None) for s in head] + [(s, l) for l in range(dims["L"]) for s in block] + [(s, None) for s in tail]
        )
        used = {name.split("[")[0] for step, _ in self.steps for name in step.names.values()}
        known = {row.name: row for row in acts} | {row.name: row for row in params}
        for name in sorted(used - set(known)):
            raise KernelArgError(f"a step names {name!r}, which is in no table")
        self.params = Layout.plan(params, dims)
        self.acts = Layout.plan([row for row in acts if row.name in used], dims, ALIGN)
        self.homes = self._gradient_homes()
        homes = [known[name] for name in dict.fromkeys(self.homes.values())]
        self.dacts = Layout.plan([Row(row.name, row.axes) for row in homes], dims, ALIGN)
        self.body = [self._call(step, layer, "forward") for step, layer in self.steps[:-1]]
        self.forward = self.body + [self._call(*self.steps[-1], "forward")]
        self.train = [self._reverse("train", add) for add in (False, True)]
        self.backward = [self._reverse("backward", add) for add in (False, True)]
        self.scratch = max(kernels.scratch(call.op, call.numbers) for call in self.calls)

    @cached_property
    def calls(self) -> list[Call]:
        """Every call, each once."""
        lists = [self.forward, *self.train, *self.backward]
        return list({id(call): call for calls in lists for call in calls}.values())

    def bind(self, sections, kernels) -> None:
        """Puts views of `sections` (by name) and the kernels' functions into the calls."""
        scratch = sections["scratch"]["scratch"]
        for call in self.calls:
            views = {arg: sections[ref.section].slot(ref.name, ref.slot) for arg, ref in call.refs.items()}
            call.run = kernels.bind(call.kernel, {**views, "scratch": scratch}, call.numbers)

    def _gradient_homes(self) -> dict[str, str]:
        """Activation -> the row whose gradient memory it uses, for every activation that has a gradient."""
        homes = {}
        for step, _ in self.steps:
            op = OPS[step.op]
            for arg in op.args("written", "read"):
                name = step.names[arg.name].split("[")[0]
                homes[name] = self.acts[name].row.home
        return homes

    def _ref(self, name: str, layer: int | None) -> Ref:
        name, index = re.fullmatch(r"(\w+)(?:\[(.+)\])?", name).groups()
        section = "params" if name in self.params else "acts"
        place = (self.params if section == "params" else self.acts)[name]
        slot = ax.size(index, {"L": self.dims["L"], "l": layer or 0}) if index else layer or 0
        if place.slots <= 1:  # not stacked, or the only slot
            slot = 0
        elif not 0 <= slot < place.slots:
            raise KernelArgError(f"{name}[{slot}] is beyond its {place.slots} slots")
        return Ref(section, name, slot, bool(place.row.slots))

    def _gradient(self, ref: Ref) -> Ref:
        if ref.section == "params":
            return Ref("grads", ref.name, ref.slot, ref.stacked)
        return Ref("dacts", self.homes[ref.name])

    def _shape(self, ref: Ref) -> tuple[int, ...]:
        layout = {"params": self.params, "grads": self.params, "acts": self.acts, "dacts": self.dacts}[ref.section]
        return layout[ref.name].slot_shape

    def _call(self, step: Step, layer: int | None, form: str, accs: dict[str, int] | None = None) -> Call:
        op = OPS[step.op]
        kernel = getattr(op, form)
        refs = {}
        for arg in kernel.args:
            of = arg.name if arg.name in step.names else arg.name[1:]
            if of in step.names:
                ref = self._ref(step.names[of], layer)
                refs[arg.name] = ref if of == arg.name else self._gradient(ref)
            elif not arg.optional and arg.role != "scratch":
                raise KernelArgError(f"step {step.op}: {arg.name} is not named")
        where = f"step {step.op}" + ("" if layer is None else f", layer {layer}")
        shapes = {name: self._shape(ref) for name, ref in refs.items()}
        axes = {a.name: a.axes for a in kernel.args if a.name in refs}
        numbers = ax.solve(where, axes, shapes, self.dims)
        return Call(kernel, op, layer, refs, shapes, {**numbers, **{acc: 0 for acc in kernel.accs}, **(accs or {})})

    def _reverse(self, head_form: str, add: bool) -> list[Call]:
        """The steps backwards. A home is live from its first writer until the step that made the tensor it is named after: a write
        to a live home adds, any other overwrites, so nothing needs zeroing. `add`: parameter gradients start out live."""
        live = {self._gradient(self._ref(row.name, slot)) for row, slot in self._param_slots()} if add else set()
        calls = []
        for step, layer in reversed(self.steps):
            op = OPS[step.op]
            into = {
                a.name: self._gradient(self._ref(step.names[a.name], layer))
                for a in op.differentiable
                if a.name in step.names
            }
            made = [self._ref(step.names[a.name], layer) for a in op.args("written")]
            outs = {self._gradient(ref) for ref in made}
            if op.identity and set(into.values()) == outs:
                continue  # the homes coincide: the gradient already lies where it belongs
            self._check_reverse(step, layer, op, into, outs, live)
            accs = {}
            for name, home in into.items():
                accs[f"acc_{name}"] = int(home in live)
                live.add(home)
            live -= {self._gradient(ref) for ref in made if self.homes[ref.name] == ref.name}
            calls.append(self._call(step, layer, head_form if op.head else "backward", accs))
        return calls

    def _check_reverse(self, step, layer, op, into, outs, live) -> None:
        where = f"backward of step {step.op}" + ("" if layer is None else f", layer {layer}")
        if outs & set(into.values()):
            raise KernelArgError(
                f"{where}: reads and writes the same gradient {', '.join(map(str, outs & set(into.values())))}"
            )
        if not op.head and outs - live:
            raise KernelArgError(f"{where}: no step writes {', '.join(map(str, outs - live))}")
        for name in op.back.split():
            place = self.acts.places.get(step.names[name].split("[")[0]) if name in step.names else None
            if layer is not None and place and place.row.slots and place.slots < self.dims["L"]:
                raise KernelArgError(f"{where}: reads {place.row.name}, of which only the last layer's slot is left")

    def _param_slots(self):
        for place in self.params:
            for slot in range(place.slots or 1):
                yield place.row, slot or None

    def flops(self) -> int:
        """Flops of one forward and backward."""
        return sum(call.flops for call in self.body + self.train[0])
