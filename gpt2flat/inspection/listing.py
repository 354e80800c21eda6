"""A bound program as text: every call with shapes, flops and bytes, or as straight-line Python."""

from ..memory.arena import human
from ..program import Call, Program


def sections(program: Program) -> dict[str, list[Call]]:
    """The program in the order of a training step, for people."""
    return {"forward": program.body, "classifier and backward": program.train[0]}


def listing(program: Program) -> str:
    """One line a call: kernel, layer, written tensors with shapes and acc flags, flops, bytes."""
    lines = []
    for title, calls in sections(program).items():
        lines.append(f"# {title}: {sum(c.flops for c in calls) / 1e9:.3f} GFLOP")
        for call in calls:
            layer = "" if call.layer is None else f"[{call.layer}]"
            flags = " ".join(f"{k}={v}" for k, v in call.accs.items())
            written = ", ".join(f"{call.refs[a.name]} {call.shapes[a.name]}" for a in call.written)
            lines.append(
                f"{call.kernel.name}{layer} -> {written}  {flags}  {call.flops / 1e6:.3f} MFLOP, {human(call.bytes)}"
            )
    return "\n".join(" ".join(line.split()) for line in lines)


def as_code(program: Program) -> str:
    """The step as straight-line Python over params, grads, acts, dacts and the kernels by name (gpt2flat.kernels.run)."""
    return "\n".join(
        line for title, calls in sections(program).items() for line in [f"# {title}", *(c.code() for c in calls)]
    )
