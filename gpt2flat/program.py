"""Step, and the binder that turns an architecture's steps into calls of kernels on views of the arena.

It solves every dim from the tables, checks every shape once, reverses the steps by the d-rule and derives which gradient
overwrites and which adds, and which steps run again in backward. Knows no architecture; bound, it is plain lists of calls."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property

from .errors import KernelArgError
from .kernels.ops import OPS, Arg, Kernel, Op
from .memory import axes as ax
from .memory.layout import ALIGN, Layout, Row

READS = ("read", "index", "knob")  # the roles of activations that a forward kernel reads


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


class Program:
    """The calls of a model for one (B, T).

    forward: losses only.  body: forward without the classifier.  train[acc] and backward[acc]: what follows body, or forward, to
    get all gradients; acc 0 for the first micro-batch (parameter gradients overwrite), 1 for the rest (they add). The rows of
    the level `recompute` have one slot: calls of body stand in backward again, before the first reader of what they make."""

    def __init__(self, head, block, tail, params, acts, dims: dict[str, int], kernels, recompute: int = 0):
        """head, block, tail: Steps; params, acts: Rows; dims: all of them; kernels: a backend; recompute: 0 to 3."""
        self.dims = dims
        layers = [(s, l) for l in range(dims["L"]) for s in block]
        self.steps = [(s, None) for s in head] + layers + [(s, None) for s in tail]
        used = {name.split("[")[0] for step, _ in self.steps for name in step.names.values()}
        known = {row.name: row for row in acts} | {row.name: row for row in params}
        for name in sorted(used - set(known)):
            raise KernelArgError(f"a step names {name!r}, which is in no table")
        self.params = Layout.plan(params, dims)
        self.acts = Layout.plan([row.at(recompute) for row in acts if row.name in used], dims, ALIGN)
        indices = range(len(self.steps))
        self.makers = {tensor: i for i in indices for tensor in self._tensors(i, "written", "saved")}
        # row with one slot -> the slot of which it holds the contents after body
        self.fresh = dict.fromkeys(row for row, _ in self.makers if self.acts[row].slots == 1)
        for i in indices:
            self._remake(self._tensors(i, *READS), 0, self.fresh)  # forward finds what it reads
            self._note(i, self.fresh)
        # activation -> the row whose gradient memory it uses, for every activation that has a gradient
        self.homes = {row: self.acts[row].row.home for i in indices for row, _ in self._tensors(i, "written", "read")}
        homes = [known[name] for name in dict.fromkeys(self.homes.values())]
        self.dacts = Layout.plan([Row(row.name, row.axes) for row in homes], dims, ALIGN)
        self.body = [self._call(step, layer, "forward") for step, layer in self.steps[:-1]]
        last = self.steps[-1]  # the head, which after forward has losses already
        self.forward = self.body + [self._call(*last, "forward")]
        self.train = [self._reverse(add) for add in (False, True)]
        self.backward = [[self._call(*last, "backward", c.accs) if c.op.head else c for c in l] for l in self.train]
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
        section = "params" if name in self.params else "acts"
        place = (self.params if section == "params" else self.acts)[name]
        if slot is None or place.slots <= 1:  # not stacked, or the only slot
            slot = 0
        elif not 0 <= slot < place.slots:
            raise KernelArgError(f"{name}[{slot}] is beyond its {place.slots} slots")
        return Ref(section, name, slot, bool(place.row.slots))

    def _gradient(self, ref: Ref) -> Ref:
        if ref.section == "params":
            return Ref("grads", ref.name, ref.slot, ref.stacked)
        return Ref("dacts", self.homes[ref.name])

    def _shape(self, ref: Ref) -> tuple[int, ...]:
        return getattr(self, {"grads": "params"}.get(ref.section, ref.section))[ref.name].slot_shape

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
        where = f"step {step.op}" + ("" if layer is None else f", layer {layer}")
        shapes = {name: self._shape(ref) for name, ref in refs.items()}
        axes = {a.name: a.axes for a in kernel.args if a.name in refs}
        numbers = ax.solve(where, axes, shapes, self.dims)
        return Call(kernel, op, layer, refs, shapes, {**numbers, **dict.fromkeys(kernel.accs, 0), **accs})

    def _reverse(self, add: bool) -> list[Call]:
        """The steps backwards. A home is live from its first writer until the step that made the tensor it is named after: a write
        to a live home adds, any other overwrites, so nothing needs zeroing. `add`: parameter gradients start out live."""
        grads = [Ref("grads", p.row.name, slot, p.slots > 0) for p in self.params for slot in range(p.slots or 1)]
        live, calls, fresh = set(grads if add else ()), [], dict(self.fresh)
        for index, (step, layer) in reversed(list(enumerate(self.steps))):
            op = OPS[step.op]
            into = {
                a.name: self._gradient(self._ref(step.names[a.name], layer))
                for a in op.differentiable
                if a.name in step.names
            }
            made = [self._ref(step.names[a.name], layer) for a in op.args("written")]
            outs = {self._gradient(ref) for ref in made}
            same = {name: into[name] for name in op.identity.split() if name in into}
            passed = outs.intersection(same.values()) if outs.issuperset(same.values()) else set()
            if passed:  # the homes coincide: the gradient already lies where it belongs
                into = {name: home for name, home in into.items() if name not in same}
            if not into:
                continue
            self._check_reverse(step, layer, op, into, outs, live)
            accs = {}
            for name, home in into.items():
                accs[f"acc_{name}"] = int(home in live)
                live.add(home)
            live -= {self._gradient(ref) for ref in made if self.homes[ref.name] == ref.name} - passed
            needed = [self._slot(step.names[name], layer) for name in op.back.split() if name in step.names]
            calls += self._remake(needed, index + 1, fresh)
            calls.append(self._call(step, layer, "train" if op.head else "backward", accs))
        return calls

    def _check_reverse(self, step, layer, op, into, outs, live) -> None:
        where = f"backward of step {step.op}" + ("" if layer is None else f", layer {layer}")
        if outs & set(into.values()):
            raise KernelArgError(
                f"{where}: reads and writes the same gradient {', '.join(map(str, outs & set(into.values())))}"
            )
        if not op.head and outs - live:
            raise KernelArgError(f"{where}: no step writes {', '.join(map(str, outs - live))}")

    def _note(self, index: int, fresh: dict[str, int | None]) -> None:
        fresh |= {row: slot for row, slot in self._tensors(index, "written", "saved") if row in fresh}

    def _remake(self, needed: list[tuple[str, int | None]], end: int, fresh: dict[str, int | None]) -> list[Call]:
        """The calls of body, all in front of step `end`, after which every needed tensor is there. fresh: the slot that each
        row with one slot holds by now. Before a call comes what makes its own inputs, and what is there is not made again."""
        calls = []
        for row, slot in needed:
            index = end if fresh.get(row, slot) == slot else self.makers.get((row, slot), end)
            if index < end:
                calls += self._remake(self._tensors(index, *READS), index, fresh) + [self.body[index]]
                self._note(index, fresh)
        lost = [f"{row}[{slot}]" for row, slot in needed if fresh.get(row, slot) != slot]
        if lost:
            raise KernelArgError(
                f"{', '.join(lost)}: read when the row's one slot cannot hold it: give the row all slots"
            )
        return calls

    def flops(self) -> int:
        """Flops of one forward and backward, without what recompute makes again."""
        return sum(call.flops for call in {id(call): call for call in self.body + self.train[0]}.values())
