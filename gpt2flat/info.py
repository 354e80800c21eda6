"""python -m gpt2flat.info [MODEL]: what a model is made of: its memory map, its bound program, the program as code."""

import sys
from pathlib import Path

from .arch import gpt2
from .command import Parser, number, run
from .errors import CheckpointError, reason
from .memory.arena import human
from .memory.picture import as_svg, as_text
from .model import Model, find_shape
from .program import Call, Program


def parser() -> Parser:
    p = Parser("gpt2flat info", description=__doc__.split(": ", 1)[1])
    p.add_argument(
        "model",
        nargs="?",
        default="d12",
        metavar="MODEL",
        help="a .bin checkpoint, a descriptor (d12) or a preset (tiny)",
    )
    p.add_argument("-b", "--batch-size", type=number("--batch-size", int, 1, 1 << 20), default=4, metavar="B")
    p.add_argument(
        "-t",
        "--seq-len",
        type=number("--seq-len", int, 1, 1 << 20),
        metavar="T",
        help="default 64, or the block size if that is smaller",
    )
    p.add_argument("--attention", choices=list(gpt2.ATTENTION), default="flash")
    p.add_argument("--program", action="store_true", help="print every call with shapes, flops and bytes")
    p.add_argument(
        "--as-code", action="store_true", help="print the program as straight-line Python, one kernel call a line"
    )
    p.add_argument("--map", metavar="FILE.svg", help="draw the memory map")
    return p


def open_model(name: str, attention: str) -> Model:
    """An empty model of the named shape; only the header of a checkpoint is read."""
    return Model(find_shape(name)[0], attention)


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


def describe(model: Model, name: str, B: int, T: int) -> str:
    c = model.config
    return (
        f"{name}: {c.n_layer} layers, {c.n_head} heads, {c.n_embd} channels, block size {c.block_size}, vocabulary {c.vocab_size} "
        f"(padded {c.padded_vocab_size}), {c.num_parameters:,} parameters; B {B}, T {T}"
    )


def body(argv: list[str]) -> None:
    args = parser().parse(argv)
    model = open_model(args.model, args.attention)
    B, T = args.batch_size, args.seq_len or min(64, model.config.block_size)
    program = model.program(B, T)
    layouts = model.layouts(program)
    title = describe(model, args.model, B, T)
    if args.as_code:
        print(as_code(program))
    elif args.program:
        print(listing(program))
    else:
        print(f"{title}\n{as_text(layouts)}")
    if args.map:
        try:
            Path(args.map).write_text(as_svg(layouts, title))
        except OSError as error:
            raise CheckpointError(
                f"{args.map}: cannot be written: {reason(error)}: name a file in a folder that can be written"
            ) from None


def main(argv: list[str] | None = None) -> int:
    return run("info", body, argv)


if __name__ == "__main__":
    sys.exit(main())
