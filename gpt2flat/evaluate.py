"""python -m gpt2flat.evaluate MODEL... [DATA...]: loss, perplexity and bits per byte of models on texts, their answers to HellaSwag."""

import json
import math
import os
import sys
import time
from pathlib import Path

from .command import MODEL_HELP, Parser, data_folders, number, open_model, redraw, run
from .errors import UsageError
from .evaluation.heat import coloured, legend
from .evaluation.heatpage import Heat, page
from .evaluation.sets import How, Opened, Set, TextSet, open_set, validation_of
from .evaluation.table import as_text, heading, words
from .formats.files import write_atomically
from .generation.cache import WEIGHTS
from .kernels import MAX_THREADS
from .model import PRECISIONS
from .training.run import find_checkpoint
from .training.screen import duration, say
from .weights import find_shape

BIG = 1 << 20
RECOMPUTE = 3  # activations of one layer are kept, not of all: a forward needs no more
HEAT_TOKENS = 2000
NEEDS = {"heat_tokens": "heat", "num_fewshot": "tasks", "task_folder": "tasks"}  # a flag -> the one without which it says nothing
COLOR = ("auto", "always", "never")


def parser() -> Parser:
    p = Parser("gpt2flat evaluate", description=__doc__.split(": ", 1)[1])
    p.add_argument("words", nargs="*", metavar="MODEL | DATA",
                   help=f"models: {MODEL_HELP}; data: token files or a quoted pattern of them, a text file, a folder of prepared "
                   "data; default: the validation data of each run")  # fmt: skip
    p.add_argument("-t", "--seq-len", type=number("--seq-len", int, 1, BIG), metavar="T",
                   help="tokens of a window; default: the model's block size")  # fmt: skip
    p.add_argument("--stride", type=number("--stride", int, 1, BIG), metavar="S",
                   help="tokens from window to window; default T: windows side by side. Smaller: each token has at least T - S + 1 "
                   "before it, at T/S times the cost")  # fmt: skip
    p.add_argument("-b", "--batch-size", type=number("--batch-size", int, 1, BIG), metavar="B",
                   help="windows at once; a matter of speed and memory only (about 1024 tokens)")  # fmt: skip
    p.add_argument(
        "--max-tokens", type=number("--max-tokens", int, 1), metavar="N", help="predict the first N tokens only"
    )
    p.add_argument("--limit", type=number("--limit", int, 1), metavar="N", help="ask the first N questions only")
    p.add_argument(
        "--tasks", metavar="NAME,...", help="tasks of EleutherAI's lm-evaluation-harness (gpt2flat[harness])"
    )
    p.add_argument("--task-folder", metavar="FOLDER", help="where tasks of your own are, as its YAML files")
    p.add_argument(
        "--num-fewshot", type=number("--num-fewshot", int, 0, 1000), metavar="K", help="examples before each question"
    )
    p.add_argument("--heat", nargs="?", const="", metavar="FILE.html",
                   help="print the texts coloured by the loss of each token, or write them as a page with tooltips")  # fmt: skip
    p.add_argument("--heat-tokens", type=number("--heat-tokens", int, 1, BIG), metavar="N",
                   help=f"of each text that --heat shows ({HEAT_TOKENS})")  # fmt: skip
    p.add_argument(
        "--color", default=COLOR[0], help="for --heat: auto (on a terminal, unless NO_COLOR is set), always, never"
    )
    p.add_argument("--weights", type=weights, default="fp32", metavar="fp32,bf16,int8",
                   help="a row of the table for each: bf16 and int8 are read token by token, as generate writes with them, which takes "
                   "about as long as writing (fp32)")  # fmt: skip
    p.add_argument("--precision", default=PRECISIONS[0], help=f"{' or '.join(PRECISIONS)}: of matrix products")
    threads = "at most; default: physical cores, or OMP_NUM_THREADS"
    p.add_argument("--threads", type=number("--threads", int, 1, MAX_THREADS), help=threads)
    p.add_argument("--json", action="store_true", help="print JSON, every digit")
    return p


def weights(text: str) -> list[str]:
    names = text.split(",")
    if wrong := [name for name in names if name not in WEIGHTS]:
        raise UsageError(
            f"--weights {text}: found {wrong[0]!r}, expected some of {', '.join(WEIGHTS)} with commas between them"
        )
    return names


class Progress:
    """A line on a terminal's stderr, or nothing: what is being measured, how far, how long it will take."""

    def __init__(self, what: str):
        self._what, self._start, self._drawn, self._on = what, time.perf_counter(), 0.0, sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if self._on and now - self._drawn > 0.1:
            left = duration((now - self._start) * (total - done) / max(1, done))
            redraw(f"{self._what}: {done:,} of {total:,}, {left} left")
            self._drawn = now

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc) -> None:
        if self._on:
            redraw()


def body(argv: list[str]) -> None:
    args = parser().parse(argv)
    check_heat(args)
    check_flags(args)
    how = How(args.seq_len, args.stride, args.batch_size, args.max_tokens, args.limit)
    named = {word: open_set(word) for word in args.words}
    models: list[str | None] = [word for word, data in named.items() if data is None] or [None]
    sets = [*filter(None, named.values()), *tasks_of(args)]
    if args.limit is not None and all(isinstance(data, TextSet) for data in sets):
        raise UsageError(f"--limit {args.limit}: counts questions, and none are asked: --max-tokens is for texts")
    paths = {name: find_checkpoint(name) for name in models}
    for path in paths.values():
        find_shape(path)  # a mistake in the last model is told before the first one is measured
    columns: dict[str, Set] = {data.title: data for data in sets}
    results: dict[str, dict[str, dict]] = {}
    heats: list[Heat] = []
    for name, path in paths.items():
        model, tokenizer, _ = open_model(str(path), threads=args.threads, precision=args.precision, recompute=RECOMPUTE)
        for kept in args.weights:
            opened = Opened(name or str(path), model, tokenizer, path).packed(kept)
            results[opened.name] = {}
            for data in sets or [validation_of(opened, data_folders())]:
                columns.setdefault(data.title, data)
                with Progress(f"{opened.name} on {data.title}") as told:
                    found = results[opened.name][data.title] = data.measure(opened, how, told)
                if args.heat is not None and isinstance(data, TextSet):
                    heats.append(heat_of(data, opened, how, args.heat_tokens or HEAT_TOKENS, found))
        del model, opened  # its memory goes before the next one comes
    show_heat(heats, args)
    show_json(results) if args.json else show(columns, results)


def check_flags(args) -> None:
    """Raises UsageError for a flag beside what would not heed it, or without what would."""
    for flag, needed in NEEDS.items():
        if getattr(args, flag) is not None and getattr(args, needed) is None:
            raise UsageError(f"--{flag.replace('_', '-')} is for --{needed}, which is not there: give both, or none")
    if args.weights != ["fp32"] and args.tasks:
        raise UsageError("--weights does not go with --tasks: the harness asks the model as it is")


def tasks_of(args) -> list[Set]:
    if not args.tasks:
        return []
    from .evaluation.harness import Task  # here, because few have it, and it takes a second

    return [Task(name, args.task_folder, args.num_fewshot) for name in args.tasks.split(",")]


# --- the table -------------------------------------------------------------------------------------------------------


def show(columns: dict[str, Set], results: dict[str, dict[str, dict]]) -> None:
    for title, data in columns.items():
        told: dict[str, list[str]] = {}  # facts -> the models that they hold for
        for name, found in results.items():
            if title in found:
                told.setdefault(data.facts(found[title]), []).append(name)
        for facts, names in told.items():
            say("data", f"{title}: {facts}" + (f" ({', '.join(names)})" if len(told) > 1 else ""))
    heads = [(title, data.metrics) for title, data in columns.items()]
    print(as_text(heads, [(name, [found.get(title) for title in columns]) for name, found in results.items()]))


def show_json(results: dict[str, dict[str, dict]]) -> None:
    rows = [
        {"model": name, "set": title} | {key: value if not isinstance(value, float) or math.isfinite(value) else None
                                         for key, value in found.items()}
        for name, sets in results.items() for title, found in sets.items()
    ]  # fmt: skip
    print(json.dumps({"results": rows}, indent=1))


# --- heat ------------------------------------------------------------------------------------------------------------


def check_heat(args) -> None:
    """Raises UsageError, before anything is computed, for a --heat that could not be shown."""
    if args.color not in COLOR:
        raise UsageError(f"--color {args.color}: expected {', '.join(COLOR)}")
    if args.heat and not args.heat.endswith(".html"):
        raise UsageError(f"--heat {args.heat}: expected a file name that ends in .html, or none: put --heat last")
    if args.heat and not Path(args.heat).absolute().parent.is_dir():
        raise UsageError(f"--heat {args.heat}: there is no directory {Path(args.heat).parent}")
    auto = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    if args.heat == "" and (args.json or not (auto if args.color == "auto" else args.color == "always")):
        raise UsageError(
            "--heat prints colours, for a terminal: --color always does so anywhere, --heat FILE.html writes a page"
        )


def heat_of(data: TextSet, opened: Opened, how: How, tokens: int, found: dict[str, object]) -> Heat:
    pieces, tokenizer = data.heat(opened, how, tokens)
    shown = sum(token.loss is not None for piece in pieces for token in piece.tokens)
    which = "all" if shown == found["tokens"] else "the first"
    facts = [(words(metric, found), heading(metric)) for metric in data.metrics]
    return Heat(opened.name, f"{data.title}, {which} {shown:,} tokens", pieces, facts, tokenizer)


def show_heat(heats: list[Heat], args) -> None:
    if args.heat:
        if not heats:
            raise UsageError("--heat: no text is among what was evaluated")
        write_atomically(args.heat, page(heats).encode())
        print(args.heat, file=sys.stderr if args.json else sys.stdout)
        return
    for heat in heats:
        say(heat.model, heat.title)
        print("".join(coloured(heat.pieces)) + f"\n{legend()}\n")


def main(argv: list[str] | None = None) -> int:
    return run("evaluate", body, argv)


if __name__ == "__main__":
    sys.exit(main())
