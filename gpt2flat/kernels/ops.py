"""The op table: one row per kernel, adding shapes, roles and cost to what csrc/kernels.h declares.

The row gives the forward arguments by role; the backward signature follows: d + a forward argument is its gradient (the d-rule).
Sizes, checks, test inputs, program listings and costs derive from here; tests hold the header to it. No other list exists."""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

from ..memory import axes as ax

F32, I32 = "f32", "i32"
# dims that no shape tells: how a kernel computes, 0 unless asked for; their values
MODES = {"BF16": range(2), "QB": range(0, 513, 16), "KB": range(0, 193, 16), "PACK": range(3)}
READ, UPDATE, WRITE = range(3)  # what a kernel does to an array; of csrc/kernels.h, stream


@dataclass(frozen=True)
class Arg:
    """One tensor argument: `axes` are products and sums of dims ("N, (NH+2*KVH)*HS"), `optional` may be absent (NULL)."""

    name: str
    axes: str
    role: str  # written, saved, read, index, knob, weight, work, scratch
    dtype: str = F32
    optional: bool = False
    const: bool = False


@dataclass(frozen=True)
class Kernel:
    """One C function: its name, tensor arguments in order, dims (NT last) and accumulate flags."""

    name: str
    args: tuple[Arg, ...]
    dims: tuple[str, ...]
    accs: tuple[str, ...] = ()


class Move(NamedTuple):
    """What a call does to one tensor: READ, UPDATE (read and written) or WRITE, and how many floats of it."""

    name: str
    what: int
    floats: int

    @property
    def bytes(self) -> int:
        return 4 * self.floats * (2 if self.what == UPDATE else 1)


@dataclass(frozen=True)
class Op:
    """written: outputs, each with a gradient; saved: kept for backward; read: inputs with a gradient; index: int32 inputs;
    knob: one-element values that change between calls; weight: parameters; work: state between the op's own kernels.
    `back` names the forward arguments that backward reads besides the gradients. To those of `identity` the gradient passes
    unchanged: where the homes coincide it is there already and backward does not write it. A `head` op ends the program and has a train form.
    An op of the optimizer or of generation stands alone: no backward, its kernel is named like the op, and what it saves it also reads.
    `flops` are of forward; backward costs twice as many unless `back_flops` says otherwise. A kernel moves all of each
    tensor once, or of a table what `visited` says: the rows that ids pick."""

    name: str
    dims: str
    written: str = ""
    saved: str = ""
    read: str = ""
    index: str = ""
    knob: str = ""
    weight: str = ""
    work: str = ""
    back: str = ""
    scratch: str = ""  # which kernels take scratch: "", "backward" or "forward backward"
    identity: str = ""
    head: bool = False
    update: bool = False  # belongs to the optimizer
    decode: bool = False  # belongs to generation
    flops: str = "0"
    back_flops: str = ""
    visited: str = ""

    def args(self, *roles: str) -> tuple[Arg, ...]:
        return tuple(arg for role in roles for arg in _parse(getattr(self, role), role))

    @property
    def alone(self) -> bool:
        return self.update or self.decode

    @cached_property
    def differentiable(self) -> tuple[Arg, ...]:
        return self.args("read", "weight")

    def _kernel(self, form: str, written: tuple[Arg, ...], read: tuple[Arg, ...], accs=()) -> Kernel:
        constant = tuple(Arg(a.name, a.axes, a.role, a.dtype, a.optional, const=True) for a in read)
        scratch = (Arg("scratch", "", "scratch"),) if form in self.scratch.split() else ()
        name = self.name if self.alone else f"{self.name}_{form}"
        return Kernel(name, written + constant + self.args("work") + scratch, (*self.dims.split(), "NT"), accs)

    @cached_property
    def forward(self) -> Kernel:
        inputs = self.args("read", "index", "knob", "weight")
        return self._kernel("forward", self.args("written", "saved"), inputs)

    @cached_property
    def backward(self) -> Kernel:
        gradients = tuple(_gradient(a, a.name in self.identity.split()) for a in self.differentiable)
        mine = {a.name: a for a in self.args("written", "saved", "read", "index", "knob", "weight")}
        upstream = tuple(_gradient(a) for a in self.args("written"))
        accs = tuple(f"acc_{a.name}" for a in self.differentiable)
        return self._kernel("backward", gradients, upstream + tuple(mine[name] for name in self.back.split()), accs)

    @cached_property
    def train(self) -> Kernel:
        """The head only: forward and backward with one visit of each row chunk."""
        gradients = tuple(_gradient(a) for a in self.differentiable)
        written = self.args("written") + gradients + self.args("saved")
        upstream = tuple(_gradient(a) for a in self.args("written"))
        accs = tuple(f"acc_{a.name}" for a in self.differentiable)
        return self._kernel("train", written, upstream + self.args("read", "index", "knob", "weight"), accs)

    @cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        both = (self.forward,) if self.alone else (self.forward, self.backward)
        return both + ((self.train,) if self.head else ())

    def count_flops(self, kernel: Kernel, numbers: dict[str, int]) -> int:
        """Flops of one call of one of the op's kernels; numbers: its dims."""
        forward = ax.size(self.flops, numbers)
        backward = ax.size(self.back_flops, numbers) if self.back_flops else 2 * forward
        form = kernel.name.removeprefix(self.name + "_")
        return {"backward": backward, "train": forward + backward}.get(form, forward)

    def moves(self, kernel: Kernel, numbers: dict[str, int]) -> list[Move]:
        """What one call has to read and write at least; numbers: its dims and accumulate flags. Scratch and work space,
        which another way of computing may not need, are left out."""
        visited, found = {arg.name: arg.axes for arg in _parse(self.visited, "weight")}, []
        for arg in kernel.args:
            if arg.role in ("work", "scratch"):
                continue
            source = arg.name[1:] if arg.role == "gradient" else arg.name
            added = arg.role == "gradient" and numbers.get(f"acc_{source}") or self.alone and arg.role == "saved"
            what = READ if arg.const else UPDATE if added else WRITE
            axes = arg.axes if what == WRITE else visited.get(source, arg.axes)  # what overwrites a table writes all
            floats = min(ax.floats(axes, numbers), ax.floats(arg.axes, numbers))  # ids repeat where they outnumber rows
            found.append(Move(arg.name, what, floats))
        return found


def _gradient(arg: Arg, optional: bool = False) -> Arg:
    return Arg("d" + arg.name, arg.axes, "gradient", arg.dtype, arg.optional or optional)


@cache
def _parse(text: str, role: str) -> tuple[Arg, ...]:
    """ "out[N,C] bias?[OC]" -> Args; knobs and work may name int32 as key_drop:i[1]."""
    found = re.findall(r"(\w+)(:i)?(\?)?\[([^\]]*)\]", text)
    dtype = {"index": I32}.get(role, F32)
    return tuple(Arg(n, axes, role, I32 if i else dtype, bool(opt), role not in ("written", "saved", "work")) for n, i, opt, axes in found)


_ATTENTION = dict(
    dims="B T NH KVH HS BF16 QB KB",
    written="out[B*T, NH*HS]",
    read="inp[B*T, (NH+2*KVH)*HS]",
    knob="p_drop[1] key_drop:i[1]",
    scratch="forward backward",
    flops="2*B*T*(T+1)*NH*HS",
)
_FUSED = dict(
    dims="N C OC BF16",
    written="out[N,OC]",
    weight="weight[OC,C] bias?[OC]",
    back="inp weight",
    scratch="forward backward",
    identity="added",
)

_DECODE = dict(scratch="forward", decode=True, flops="2*B*C*OC", dims="B C OC W PACK", written="out[B,OC]",
               weight="gain?[C] shift?[C] weight[OC,W] bias?[OC]")  # fmt: skip

OPS = {
    op.name: op
    for op in (
        Op("embedding", dims="N T C Vp maxT", written="out[N,C]", index="tokens[N]", weight="wte[Vp,C] wpe[maxT,C]",
           back="tokens", flops="N*C", back_flops="2*N*C", visited="wte[N,C] wpe[T,C]"),
        Op("layernorm", dims="N C", written="out[N,C]", saved="mean[N] rstd[N]", read="inp[N,C]", weight="weight[C] bias[C]",
           back="mean rstd inp weight", scratch="backward", flops="8*N*C"),
        Op("linear", dims="N C OC BF16", written="out[N,OC]", read="inp[N,C]", weight="weight[OC,C] bias?[OC]",
           back="inp weight", scratch="forward backward", flops="2*N*C*OC"),
        Op("attention", saved="lse[B,NH,T]", back="out lse inp p_drop key_drop", back_flops="5*B*T*(T+1)*NH*HS", **_ATTENTION),
        Op("attention_standard", saved="scores[B,NH,T,T] att[B,NH,T,T]", back="out att inp p_drop key_drop",
           back_flops="4*B*T*(T+1)*NH*HS", **_ATTENTION),
        Op("gelu", dims="N C", written="out[N,C]", read="inp[N,C]", back="inp", flops="20*N*C"),
        Op("residual", dims="N C", written="out[N,C]", read="inp1[N,C] inp2[N,C]", identity="inp1 inp2", flops="N*C"),
        Op("dropout", dims="N C", written="out[N,C]", read="inp[N,C] added?[N,C]", knob="p_drop[1] key_drop:i[1]",
           back="p_drop key_drop", identity="added", flops="2*N*C", back_flops="N*C"),
        Op("linear_residual", read="inp[N,C] added[N,OC]", flops="2*N*C*OC+N*OC", back_flops="4*N*C*OC", **_FUSED),
        Op("gelu_linear", read="inp[N,C] added?[N,OC]", flops="2*N*C*OC+20*N*C+N*OC", back_flops="4*N*C*OC+60*N*C", **_FUSED),
        Op("classifier", dims="N C V Vp R BF16", written="losses[N]", saved="lse[N]", read="inp[N,C]", index="targets[N]",
           weight="weight[Vp,C]", work="logits[R,Vp] held:i[1]", back="lse inp targets weight", head=True,
           scratch="forward backward train", flops="2*N*C*Vp"),
        Op("decode_embedding", dims="B C Vp maxT", written="out[B,C]", index="tokens[B] positions[B]", weight="wte[Vp,C] wpe[maxT,C]",
           decode=True, flops="B*C", visited="wte[B,C] wpe[B,C]"),
        Op("decode_linear", read="inp[B,C] added?[B,OC]", **_DECODE),
        Op("decode_linear_gelu", read="inp[B,C]", **_DECODE),
        Op("decode_cache", dims="B T S NH KVH HS", saved="keys[B,KVH,S,HS] values[B,KVH,S,HS]", read="inp[B*T, (NH+2*KVH)*HS]",
           decode=True, visited="keys[B,KVH,T,HS] values[B,KVH,T,HS]"),
        Op("decode_attention", dims="B S NH KVH HS", written="out[B, NH*HS]", saved="keys[B,KVH,S,HS] values[B,KVH,S,HS]",
           read="inp[B, (NH+2*KVH)*HS]", index="positions[B]", decode=True, flops="4*B*S*NH*HS"),
        Op("grad_norm", dims="P", written="norm[1]", read="grads[P]", scratch="forward", update=True, flops="2*P"),
        Op("adamw", dims="P", saved="params[P] m[P] v[P]", read="grads[P]",
           knob="lr[1] beta1[1] beta2[1] eps[1] weight_decay[1] correction1[1] correction2[1] grad_scale[1]",
           update=True, flops="16*P"),
    )
}  # fmt: skip
KERNELS = {kernel.name: kernel for op in OPS.values() for kernel in op.kernels}
OP_OF = {kernel.name: op for op in OPS.values() for kernel in op.kernels}
