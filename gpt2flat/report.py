"""python -m gpt2flat.report RUN: one HTML page of a run: curves, samples, memory map, settings, machine, checkpoints."""

import sys
from pathlib import Path

from .command import Parser, run
from .formats.files import write_atomically
from .inspection.curves import default_name
from .inspection.page import page
from .inspection.runs import open_run


def parser() -> Parser:
    p = Parser("gpt2flat report", description=__doc__.split(": ", 1)[1])
    p.add_argument("run", metavar="RUN", help="a run directory; it may be running")
    p.add_argument("-o", "--out", metavar="FILE.html", help="default: the run's name, in the current directory")
    return p


def body(argv: list[str]) -> None:
    args = parser().parse(argv)
    found = open_run(Path(args.run))
    out = args.out or default_name([found], ".html")
    write_atomically(out, page(found).encode())
    print(out)


def main(argv: list[str] | None = None) -> int:
    return run("report", body, argv)


if __name__ == "__main__":
    sys.exit(main())
