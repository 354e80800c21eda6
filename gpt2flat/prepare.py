"""python -m gpt2flat.prepare INPUT ...: text files, folders, patterns, standard input, JSON lines or Hugging Face datasets to
token files that train finds by itself; or a well-known set by its name."""

import argparse
import codecs
import os
import re
import sys
import time
from pathlib import Path

from .command import Parser, data_folders, number, run
from .data.documents import HUB, STDIN, Reading, Tally, find_sources
from .data.prepared import Order, check_tokenizer, prepare
from .data.shards import SHARD, Split
from .errors import UsageError
from .kernels.threads import MAX_THREADS, default_threads
from .memory.arena import human
from .training.screen import say

SMALL = 1 << 24  # bytes of input that are encoded before a second process would have started
SPLITS = ("auto", "documents", "last", "first")


def parser() -> Parser:
    p = Parser(
        "gpt2flat prepare",
        description="Makes token files that train finds by itself.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = p.add_argument
    add("inputs", nargs="*", metavar="INPUT", help=f"a text or .jsonl file (also .gz), a folder, a pattern, {STDIN} for standard input,\n"
        f"{HUB}NAME, {HUB}NAME:CONFIG or {HUB}NAME@SPLIT for a dataset of Hugging Face's")  # fmt: skip
    add("--name", help="of the data set; default: that of the first input")
    add("--out", metavar="FOLDER", help="the files go to FOLDER/NAME/; default $GPT2FLAT_DATA or data/")
    add("--tokenizer", default="gpt2", metavar="gpt2|char|byte|bpe:N",
        help="bpe:N learns N tokens from this text ('gpt2flat[bpe]'); default gpt2")  # fmt: skip
    add("--field", default="text", help="of a line of JSON that holds the text (text)")
    add("--format", default="auto", choices=("auto", "text", "jsonl"), help="auto: by the name")
    add(
        "--split-on-blank-lines",
        action="store_true",
        help="a text file holds a document per paragraph; the blank line belongs to it",
    )
    add(
        "--split-on",
        metavar="TEXT",
        help=r"a text file holds documents with TEXT (\n, \r, \t: as in Python) between them",
    )
    add(
        "--invalid",
        default="refuse",
        choices=("refuse", "replace"),
        help="what is no UTF-8 ends this, or becomes U+FFFD (refuse)",
    )
    add(
        "--val-data",
        action="append",
        default=[],
        metavar="INPUT",
        help="documents for validation, in place of a part of the others",
    )
    add("--val-fraction", type=number("--val-fraction", float, 0, 0.5), default=0.1, help="for validation (0.1)")
    add("--val-tokens", type=number("--val-tokens", int, 1, 1 << 31), help="for validation, in place of a fraction")
    add("--val-split", default="auto", choices=SPLITS, help="which: some documents, spread evenly, or the last or first tokens;\n"
        "auto: documents if there are 100 or more, else the last tokens")  # fmt: skip
    add(
        "--shard-size",
        type=number("--shard-size", int, 1, (1 << 31) - 1),
        default=SHARD,
        help=f"tokens per file ({SHARD:,})",
    )
    add("--max-documents", type=number("--max-documents", int, 1), help="take so many and leave the rest")
    add("--jobs", type=number("--jobs", int, 1, MAX_THREADS), help="processes that encode; default: physical cores")
    add("--force", action="store_true", help="replace a data set that is there")
    return p


def order_of(args) -> Order:
    if not args.inputs:
        raise UsageError(
            "what is to be prepared is missing: text files, a folder, - or the name of a set; --help tells more"
        )
    check_tokenizer(args.tokenizer)
    tally = Tally()
    sources = find_sources(args.inputs, tally)
    val_sources = find_sources(args.val_data, tally) if args.val_data else []
    name = args.name or _name(args.inputs[0])
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise UsageError(f"--name {name}: expected letters, digits and - _ + .")
    size = sum(source.size or SMALL for source in sources)
    return Order(
        name, (Path(args.out) if args.out else data_folders()[0]) / name, sources, args.tokenizer, _reading(args), tuple(val_sources),
        _split(args), args.val_fraction, args.shard_size, args.jobs or (1 if size < SMALL else default_threads().count),
        args.max_documents, tally.skipped, args.force,
    )  # fmt: skip


def _name(word: str) -> str:
    if word == STDIN:
        return "stdin"
    word = word.removeprefix(HUB).partition("@")[0].partition(":")[0]
    stem = Path(os.path.abspath(word)).name.removesuffix(".gz")
    return re.sub(r"[^\w+-]+", "_", os.path.splitext(stem)[0]).strip("_") or "text"


def _reading(args) -> Reading:
    separator = "\n\n" if args.split_on_blank_lines else None
    if args.split_on is not None:
        if separator:
            raise UsageError("--split-on and --split-on-blank-lines both say where a document ends: leave one out")
        separator = re.sub(r"\\[nrt\\]", lambda found: codecs.decode(found[0], "unicode_escape"), args.split_on)
        if not separator:
            raise UsageError("--split-on is empty, expected the text between two documents")
    return Reading(args.format, args.field, separator, args.split_on_blank_lines, args.invalid)


def _split(args) -> Split | None:
    amount = args.val_tokens or args.val_fraction
    if args.val_split == "documents" and args.val_tokens:
        raise UsageError("--val-tokens is for --val-split last or first; documents are taken by --val-fraction")
    if args.val_split == "auto":
        return Split("last", amount) if args.val_tokens else None
    return Split(args.val_split, amount)


class Progress:
    """A line that is drawn over and over, on a terminal only."""

    def __init__(self, total: int | None):
        self.total, self.began, self.drawn = total, time.monotonic(), 0.0

    def __call__(self, stage: str, tally: Tally) -> None:
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self.drawn < 0.1:
            return
        self.drawn = now
        share = f" of {human(self.total)}" if self.total else ""
        rate = human(int(tally.read / max(now - self.began, 1e-3)))
        print(
            f"\r{stage:<9} {tally.documents:,} documents, {human(tally.read)}{share}, {rate}/s\033[K",
            end="",
            file=sys.stderr,
            flush=True,
        )

    def clear(self) -> None:
        if self.drawn:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def body(argv: list[str]) -> None:
    order = order_of(parser().parse(argv))
    sizes = [source.size for source in (*order.sources, *order.val_sources)]
    progress, began = Progress(None if None in sizes else sum(sizes)), time.monotonic()
    try:
        report = prepare(order, progress)
    finally:
        progress.clear()
    tell(order, report, time.monotonic() - began)


def tell(order: Order, report: dict, seconds: float) -> None:
    documents, tokens, tokenizer = report["documents"], report["tokens"], report["tokenizer"]
    speed = (
        f"{report['text_bytes'] / 1e6 / max(seconds, 1e-3):.1f} MB/s with {order.jobs} process{'es' * (order.jobs > 1)}"
    )
    say("documents", f"{documents['all']:,} with {human(report['text_bytes'])} of text, in {seconds:.1f} s, {speed}")
    how = {
        "given": "that was named",
        "first": "the first tokens",
        "last": "the last tokens",
        "documents": "documents, spread evenly",
    }
    kept = (
        f"{tokens['val']:,} for validation ({how[report['split']['how']]})" if tokens["val"] else "none for validation"
    )
    say("tokens", f"{tokens['train']:,} to train on, {kept}; {report['bytes_per_token']:.2f} bytes of text each")
    unused = report["unused_ids"]
    say("tokenizer", f"{tokenizer['kind']}, V {tokenizer['vocab_size']:,}, of which {unused:,} do not occur")
    for why, entry in report["skipped"].items():
        say(
            "left out",
            f"{entry['count']:,} x {why}: {', '.join(entry['first'])}{' ...' * (entry['count'] > len(entry['first']))}",
        )
    if report["replaced_bytes"]:
        say("replaced", f"{report['replaced_bytes']:,} bytes that are no UTF-8, each run of them by U+FFFD")
    files = [file["name"] for side in report["files"].values() for file in side]
    shown = files if len(files) < 5 else [files[0], "...", files[-1]]
    say("files", f"{order.folder}/: {', '.join([*shown, 'tokenizer.bin', order.name + '.json'])}")
    say("try next", f"python -m gpt2flat.train --dataset {order.name}")


def main(argv: list[str] | None = None) -> int:
    return run("prepare", body, argv)


if __name__ == "__main__":
    sys.exit(main())
