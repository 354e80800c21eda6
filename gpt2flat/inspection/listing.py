"""A bound program as text: every call with shapes, flops and bytes, or as straight-line Python."""

from ..kernels.ops import MODES
from ..memory import axes as ax
from ..memory.arena import human
from ..program import Call, Program


def sections(program: Program) -> dict[str, list[Call]]:
    """The program in the order of a training step, for people."""
    return {"forward": program.body, "classifier and backward": program.train[0]}


def is_again(calls: list[Call], call: Call) -> bool:
    """Whether a call of a list is one of forward that recompute put among those of backward."""
    return calls[0].op.head and call.kernel is call.op.forward


def listing(program: Program) -> str:
    """One line a call: kernel, layer, written tensors with shapes and acc flags, flops, bytes; `again`: recompute runs it."""
    lines = []
    for title, calls in sections(program).items():
        lines.append(f"# {title}: {sum(c.flops for c in calls) / 1e9:.3f} GFLOP")
        for call in calls:
            layer = "" if call.layer is None else f"[{call.layer}]"
            flags = " ".join(f"{k}={v}" for k, v in call.accs.items())
            flags += "again" * is_again(calls, call)
            written = ", ".join(f"{call.refs[a.name]} {call.shapes[a.name]}" for a in call.written)
            lines.append(
                f"{call.kernel.name}{layer} -> {written}  {flags}  {call.flops / 1e6:.3f} MFLOP, {human(call.bytes)}"
            )
    return "\n".join(" ".join(line.split()) for line in lines)


def as_code(program: Program) -> str:
    """The step as straight-line Python over params, grads, acts, dacts and the kernels by name (gpt2flat.kernels.run)."""
    lines = []
    for title, calls in sections(program).items():
        lines += [f"# {title}", *(code(call) + ", again" * is_again(calls, call) for call in calls)]
    return "\n".join(lines)


def code(call: Call) -> str:
    """A call as a line of Python for kernels.run; only the dims that no shape tells are passed."""
    args = [arg for arg in call.kernel.args if arg.name in call.refs]
    told = {axis for arg in args for axis in ax.split(arg.axes) if axis.isidentifier()}
    told |= {"NT"} | {mode for mode in MODES if not call.numbers.get(mode)}
    numbers = {dim: call.numbers[dim] for dim in call.kernel.dims if dim not in told} | call.accs
    given = [f"{arg.name}={call.refs[arg.name]}" for arg in args] + [f"{k}={v}" for k, v in numbers.items()]
    layer, first = "" if call.layer is None else f"layer {call.layer}, ", call.written[0].name
    return f"{call.kernel.name}({', '.join(given)})  # {layer}{first} {call.shapes[first]}"
