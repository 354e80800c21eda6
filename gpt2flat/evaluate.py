"""python -m gpt2flat.evaluate MODEL... [DATA...]: loss, perplexity and bits per byte of models on texts, their answers to HellaSwag."""

import json
import math
import sys
import time

from .command import MODEL_HELP, Parser, data_folders, number, open_model, run
from .evaluation.sets import How, Opened, Set, open_set, validation_of
from .evaluation.table import as_text
from .kernels import MAX_THREADS
from .model import PRECISIONS
from .training.screen import duration, say

BIG = 1 << 20


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
    p.add_argument("--precision", default=PRECISIONS[0], help=f"{' or '.join(PRECISIONS)}: of matrix products")
    threads = "at most; default: physical cores, or OMP_NUM_THREADS"
    p.add_argument("--threads", type=number("--threads", int, 1, MAX_THREADS), help=threads)
    p.add_argument("--json", action="store_true", help="print JSON, every digit")
    return p


class Progress:
    """A line on a terminal's stderr, or nothing: what is being measured, how far, how long it will take."""

    def __init__(self, what: str):
        self._what, self._start, self._drawn, self._on = what, time.perf_counter(), 0.0, sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if self._on and now - self._drawn > 0.1:
            left = duration((now - self._start) * (total - done) / max(1, done))
            print(f"\r\x1b[K{self._what}: {done:,} of {total:,}, {left} left", end="", file=sys.stderr, flush=True)
            self._drawn = now

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc) -> None:
        if self._on:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def body(argv: list[str]) -> None:
    args = parser().parse(argv)
    how = How(args.seq_len, args.stride, args.batch_size, args.max_tokens, args.limit)
    named = {word: open_set(word) for word in args.words}
    models: list[str | None] = [word for word, found in named.items() if found is None] or [None]
    sets = [found for found in named.values() if found]
    columns: dict[str, Set] = {found.title: found for found in sets}
    results: dict[str, dict[str, dict]] = {}
    for name in models:
        model, tokenizer, path = open_model(name, threads=args.threads, precision=args.precision, recompute=3)
        opened = Opened(name or str(path), model, tokenizer, path)
        results[opened.name] = {}
        for data in sets or [validation_of(opened, data_folders())]:
            columns.setdefault(data.title, data)
            with Progress(f"{opened.name} on {data.title}") as told:
                results[opened.name][data.title] = data.measure(opened, how, told)
        del model, opened  # its memory goes before the next one comes
    show_json(results) if args.json else show(columns, results)


def show(columns: dict[str, Set], results: dict[str, dict[str, dict]]) -> None:
    for title, data in columns.items():
        for facts in dict.fromkeys(data.facts(found[title]) for found in results.values() if title in found):
            say("data", f"{title}: {facts}")
    heads = [(title, data.metrics) for title, data in columns.items()]
    print(as_text(heads, [(name, [found.get(title) for title in columns]) for name, found in results.items()]))


def show_json(results: dict[str, dict[str, dict]]) -> None:
    rows = [
        {"model": name, "set": title} | {key: value if not isinstance(value, float) or math.isfinite(value) else None
                                         for key, value in found.items()}
        for name, sets in results.items() for title, found in sets.items()
    ]  # fmt: skip
    print(json.dumps({"results": rows}, indent=1))


def main(argv: list[str] | None = None) -> int:
    return run("evaluate", body, argv)


if __name__ == "__main__":
    sys.exit(main())
