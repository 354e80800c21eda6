"""Program: the calls of a model for one batch shape, forward and backward.

It reverses the steps of an architecture by the d-rule and derives which gradient overwrites and which adds, and which steps run
again in backward."""

from functools import cached_property

from . import binding
from .binding import Binder, Call, Ref, Step
from .errors import KernelArgError
from .kernels.ops import OPS
from .memory.layout import ALIGN, Layout, Row

READS = ("read", "index", "knob")  # the roles of activations that a forward kernel reads


class Program(Binder):
    """The calls of a model for one (B, T).

    forward: losses only.  body: forward without the classifier.  train[acc] and backward[acc]: what follows body, or forward, to
    get all gradients; acc 0 for the first micro-batch (parameter gradients overwrite), 1 for the rest (they add). The rows of
    the level `recompute` have one slot: calls of body stand in backward again, before the first reader of what they make."""

    def __init__(self, head, block, tail, params, acts, dims: dict[str, int], kernels, recompute: int = 0):
        """head, block, tail: Steps; params, acts: Rows; dims: all of them; kernels: a backend; recompute: 0 to 3."""
        layers = [(s, l) for l in range(dims["L"]) for s in block]
        super().__init__([(s, None) for s in head] + layers + [(s, None) for s in tail], {}, dims)
        used = {name.split("[")[0] for step, _ in self.steps for name in step.names.values()}
        known = {row.name: row for row in acts} | {row.name: row for row in params}
        for name in sorted(used - set(known)):
            raise KernelArgError(f"a step names {name!r}, which is in no table")
        self.params = Layout.plan(params, dims)
        self.acts = Layout.plan([row.at(recompute) for row in acts if row.name in used], dims, ALIGN)
        self.layouts = {"params": self.params, "acts": self.acts}
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
        self.layouts |= {"grads": self.params, "dacts": self.dacts}
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
        binding.bind(self.calls, sections, kernels)

    def _gradient(self, ref: Ref) -> Ref:
        if ref.section == "params":
            return Ref("grads", ref.name, ref.slot, ref.stacked)
        return Ref("dacts", self.homes[ref.name])

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
