"""python -m gpt2flat.info [WHAT]: what a model, file, run or machine is: a model's memory map, its program, the program as code."""

import sys
from pathlib import Path

from .arch import gpt2
from .command import Parser, number, run
from .data.tokenizer import escape_controls
from .errors import CheckpointError, UsageError, reason
from .generation.cache import WEIGHTS, Cache
from .generation.decoder import MAX_ROWS
from .inspection import files, machine
from .inspection.listing import as_code, listing
from .inspection.runs import describe_run
from .memory.arena import STATE
from .memory.picture import as_svg, as_text
from .model import Model
from .training.screen import describe
from .weights import find_shape

DEFAULT = "d12"


def parser() -> Parser:
    p = Parser("gpt2flat info", description=__doc__.split(": ", 1)[1])
    p.add_argument(
        "what",
        nargs="?",
        metavar="WHAT",
        help="weights (a .bin file, Hugging Face folder, nanoGPT's ckpt.pt, hf:NAME), a descriptor (d12, the default) or a preset "
        "(tiny); or a token file, tokenizer, debug state, multiple-choice file or run directory",
    )
    p.add_argument("-b", "--batch-size", type=number("--batch-size", int, 1, 1 << 20), default=4, metavar="B")
    p.add_argument(
        "-t",
        "--seq-len",
        type=number("--seq-len", int, 1, 1 << 20),
        metavar="T",
        help="default 64, or the block size if that is smaller",
    )
    p.add_argument(
        "--attention", default="flash", help="flash, flash:QxK with the queries and keys of its tiles, or standard"
    )
    p.add_argument("--dropout", type=number("--dropout", float, 0, 0.999), default=0.0, metavar="P",
                   help="as in training with it (0)")  # fmt: skip
    p.add_argument("-r", "--recompute", type=number("--recompute", int, 0, gpt2.RECOMPUTE), default=0, metavar="N",
                   help=f"0 to {gpt2.RECOMPUTE}: what backward computes again instead of keeping it")  # fmt: skip
    p.add_argument("--fused", type=number("--fused", int, 0, 1), default=1, metavar="0|1",
                   help="1: GELU and residuals within matrix products, the default; 0: apart")  # fmt: skip
    p.add_argument("--generate", type=number("--generate", int, 1, MAX_ROWS), metavar="ROWS",
                   help="with the memory in which so many sequences at once are generated")  # fmt: skip
    p.add_argument("--weights", choices=WEIGHTS, default="fp32", help="of --generate: how a step keeps the matrices (fp32)")
    p.add_argument("--program", action="store_true", help="print every call with shapes, flops and bytes")
    p.add_argument(
        "--as-code", action="store_true", help="print the program as straight-line Python, one kernel call a line"
    )
    p.add_argument(
        "--tensors", action="store_true", help="print mean, deviation and range of every tensor of a model"
    )
    p.add_argument("--machine", action="store_true", help="print CPU, threads, memory, kernels, their build, OpenMP")
    p.add_argument("--map", metavar="FILE.svg", help="draw the memory map")
    return p


def show(lines: files.Lines) -> None:
    before = None
    for label, text in lines:
        print(f"{'' if label == before else label:<11}{escape_controls(text)}")
        before = label


def body(argv: list[str]) -> None:
    args = parser().parse(argv)
    if args.machine:
        return show(machine.lines())
    path = Path(args.what or "")
    if args.what and path.exists() and not files.is_model(path):
        if args.tensors or args.program or args.as_code or args.map:
            raise UsageError(f"{path}: is no model; --tensors, --program, --as-code and --map are for one")
        return show(describe_run(path) if path.is_dir() else files.describe(path))
    if args.tensors:
        weights = find_shape(args.what)[1] if args.what else None
        if weights is None:
            raise UsageError("--tensors is for weights: name a .bin file or a Hugging Face folder")
        return show(files.tensors(weights))
    about_model(args)


def about_model(args) -> None:
    name = args.what or DEFAULT
    options = {option: getattr(args, option) for option in ("attention", "recompute", "fused", "dropout")}
    config, path = find_shape(name)
    model = Model(config, **options)  # empty: of weights only what they are made of is read
    B, T = args.batch_size, args.seq_len or min(64, model.config.block_size)
    program = model.program(B, T)
    layouts = model.layouts(program)
    if args.generate:
        made = Cache(model, args.generate, model.config.block_size, args.weights).layouts
        layouts = {name: layouts[name] for name in layouts if name in STATE} | {n: l for n, l in made.items() if l.floats} | layouts
    title = describe(model, name, B, T)
    if args.as_code:
        print(as_code(program))
    elif args.program:
        print(listing(program))
    else:
        show(files.weights(path) if path else [])
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
