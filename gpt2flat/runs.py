"""python -m gpt2flat.runs [FOLDER | RUN RUN...]: which runs there are and how far they got; or runs side by side; or models, presets."""

import json
import sys
from pathlib import Path

from .benchmarks.plot import check_plot
from .command import Parser, data_folders, run
from .data.tokenizer import escape_controls
from .errors import UsageError
from .inspection import presets, tables
from .inspection.curves import KEYS, KINDS, default_name, draw
from .inspection.runs import RunRecord, find_runs, open_run
from .training.run import RUNS


def parser() -> Parser:
    p = Parser("gpt2flat runs", description=__doc__.split(": ", 1)[1])
    p.add_argument(
        "where", nargs="*", metavar="FOLDER | RUN", help=f"a folder of runs ({RUNS}), or two or more runs to compare"
    )
    p.add_argument(
        "--models", action="store_true", help="list model files: of data/ and $GPT2FLAT_DATA, the newest of each run"
    )
    p.add_argument("--presets", action="store_true", help="list the shapes that --init knows by name")
    p.add_argument("--plot", nargs="?", const="", metavar="FILE", help="draw the runs' curves, as gpt2flat plot does")
    p.add_argument("--json", action="store_true", help="print JSON")
    return p


def body(argv: list[str]) -> None:
    args = parser().parse(argv)
    if args.models + args.presets + (len(args.where) > 1) > 1 or (
        args.presets and (args.where or args.plot is not None)
    ):
        raise UsageError("--models, --presets and a comparison of runs are three different questions: ask one")
    if args.plot is not None:
        check_plot(args.plot or "picture.png", "--plot", KINDS)
    if args.presets:
        return show_presets(args.json)
    if len(args.where) > 1:
        runs = [open_run(Path(name)) for name in args.where]
        show_comparison(runs, args.json)
    else:
        runs, problems = found(Path(args.where[0]) if args.where else None)
        show_models(runs, args.json) if args.models else show_runs(runs, args.json)
        for problem in problems:
            print(f"gpt2flat runs: {escape_controls(problem)}", file=sys.stderr)
    if args.plot is not None:
        if not runs:
            raise UsageError("--plot: there is no run to draw")
        out = args.plot or default_name(runs)
        draw(out, runs, "step", list(KEYS))
        print(out, file=sys.stderr if args.json else sys.stdout)


def found(where: Path | None) -> tuple[list[RunRecord], list[str]]:
    """The runs in a folder, or the one that it is; none without a folder runs/. Raises CheckpointError."""
    if where is None:
        return find_runs() if RUNS.is_dir() else ([], [])
    return ([open_run(where)], []) if (where / "config.toml").exists() else find_runs(where)


def show(as_json: bool, name: str, rows: list[dict], head: tuple[str, ...], words, left: int, none: str) -> None:
    if as_json:
        print(json.dumps({name: rows}, indent=1))
    else:
        print(tables.as_text(head, [words(row) for row in rows], left) if rows else none)


def show_runs(runs: list[RunRecord], as_json: bool) -> None:
    show(as_json, "runs", [tables.run_row(r) for r in runs], tables.RUN_HEAD, tables.run_words, 2,
         "no run yet: python -m gpt2flat.train makes one")  # fmt: skip


def show_models(runs: list[RunRecord], as_json: bool) -> None:
    rows = tables.find_models(data_folders(), runs)
    show(
        as_json,
        "models",
        rows,
        tables.MODEL_HEAD,
        tables.model_words,
        2,
        "no model file: ./downloaddataset.sh fetches GPT-2 124M",
    )


def show_presets(as_json: bool) -> None:
    show(as_json, "presets", presets.presets(), presets.HEAD, presets.words, 1, "")


def show_comparison(runs: list[RunRecord], as_json: bool) -> None:
    told = tables.compare(runs)
    if as_json:
        print(json.dumps({"runs": [str(r.path) for r in runs], **told}, indent=1, default=str))
        return
    names = [r.name for r in runs]
    names = names if len(set(names)) == len(names) else [str(r.path) for r in runs]
    blocks = []
    for title, rows in told.items():
        words = [tables.compare_words(name, values) for name, values in rows.items()]
        blocks += [tables.as_text([title, *names], words)] if rows else [f"{title}: no difference"]
    print("\n\n".join(blocks))


def main(argv: list[str] | None = None) -> int:
    return run("runs", body, argv)


if __name__ == "__main__":
    sys.exit(main())
