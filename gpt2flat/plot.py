"""python -m gpt2flat.plot RUN...: the curves of runs as a picture: loss, validation, learning rate, gradient norm, speed."""

import sys
from pathlib import Path

from .benchmarks.plot import check_plot
from .command import Parser, number, run
from .errors import UsageError
from .inspection.curves import AXES, KEYS, KINDS, default_name, draw
from .inspection.runs import open_run


def parser() -> Parser:
    p = Parser("gpt2flat plot", description=__doc__.split(": ", 1)[1])
    p.add_argument("runs", nargs="+", metavar="RUN", help="run directories, drawn over each other")
    p.add_argument("-o", "--out", metavar="FILE", help="a .png or .svg; default: a PNG with the runs' names")
    p.add_argument("--x", choices=list(AXES), default="step", help="what runs from left to right (step)")
    p.add_argument("--keys", metavar="KEYS", default=",".join(KEYS), help=f"what to draw ({','.join(KEYS)})")
    p.add_argument("--smooth", metavar="N", type=number("--smooth", int, 1), default=0,
                   help="updates that a line averages over; default: a fiftieth of the run; 1: none")  # fmt: skip
    return p


def keys_of(text: str) -> list[str]:
    """The keys in "loss,lr". Raises UsageError for one that is not there."""
    keys = [key.strip() for key in text.split(",") if key.strip()]
    wrong = [key for key in keys if key not in KEYS]
    if wrong or not keys:
        raise UsageError(f"--keys {text}: expected some of {', '.join(KEYS)}, with commas")
    return keys


def body(argv: list[str]) -> None:
    args = parser().parse(argv)
    keys = keys_of(args.keys)
    check_plot(args.out or "picture.png", "--out", KINDS)
    runs = [open_run(Path(name)) for name in args.runs]
    out = args.out or default_name(runs)
    draw(out, runs, args.x, keys, args.smooth)
    print(out)


def main(argv: list[str] | None = None) -> int:
    return run("plot", body, argv)


if __name__ == "__main__":
    sys.exit(main())
