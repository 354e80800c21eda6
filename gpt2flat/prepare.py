"""python -m gpt2flat.prepare INPUT ...: text files, folders, patterns, standard input, JSON lines or Hugging Face datasets to
token files that train finds by itself; or a well-known set by its name."""

import codecs
import os
import re
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

from .command import Parser, data_folders, number, redraw, run
from .data import spool
from .data.documents import Reading, Tally
from .data.prepared import Order, prepare
from .data.sets import KNOWN, locate, surprise, write_questions
from .data.shards import SHARD, Split
from .data.sources import HUB, STDIN, find_sources
from .data.tokenizer import check_tokenizer
from .errors import UsageError
from .kernels.threads import MAX_THREADS, default_threads
from .memory.arena import human
from .training.screen import say

SMALL = 1 << 24  # bytes of input that are encoded before a second process would have started
VAL_FLAGS = ("val_fraction", "val_tokens", "val_split")
TEXT_FLAGS = (
    "field",
    "format",
    "split_on_blank_lines",
    "split_on",
    "invalid",
    "val_data",
    *VAL_FLAGS,
)
SPLITS = ("auto", "documents", "last", "first")


def parser() -> Parser:
    p = Parser("gpt2flat prepare", description="Makes token files that train finds by itself.")
    # fmt: off
    for flags, how in (
        ("inputs", {"nargs": "*", "metavar": "INPUT", "help":
            f"a text or .jsonl file (also .gz), a folder, a pattern, {STDIN} for standard input, {HUB}NAME, {HUB}NAME:CONFIG or "
            f"{HUB}NAME@SPLIT for a dataset of Hugging Face's; or one of the known sets: {', '.join(KNOWN)}"}),
        ("--list", {"action": "store_true", "help": "the known sets, with sources and licences"}),
        ("--from", {"dest": "origin", "metavar": "PLACE", "help": "where a known set comes from: a local file or folder, or another web address"}),
        ("--name", {"help": "of the data set; default: that of the first input"}),
        ("--out", {"metavar": "FOLDER", "help": "the files go to FOLDER/NAME/; default $GPT2FLAT_DATA or data/"}),
        ("--tokenizer", {"metavar": "gpt2|char|byte|bpe:N", "help": "bpe:N learns N tokens from this text (gpt2flat[bpe]); default gpt2"}),
        ("--field", {"default": "text", "help": "of a line of JSON that holds the text (text)"}),
        ("--format", {"default": "auto", "choices": ("auto", "text", "jsonl"), "help": "auto: by the name"}),
        ("--split-on-blank-lines", {"action": "store_true", "help": "a text file holds a document per paragraph; the blank line belongs to it"}),
        ("--split-on", {"metavar": "TEXT", "help": r"a text file holds documents with TEXT (\n, \r, \t as in Python) between them"}),
        ("--invalid", {"default": "refuse", "choices": ("refuse", "replace"), "help": "what is no UTF-8 ends this, or becomes U+FFFD (refuse)"}),
        ("--val-data", {"action": "append", "default": [], "metavar": "INPUT", "help": "documents for validation, in place of a part of the others"}),
        ("--val-fraction", {"type": number("--val-fraction", float, 0, 0.5), "default": 0.1, "help": "for validation (0.1)"}),
        ("--val-tokens", {"type": number("--val-tokens", int, 1, 1 << 31), "help": "for validation, in place of a fraction"}),
        ("--val-split", {"default": "auto", "choices": SPLITS, "help": "which: some documents, spread evenly, or the last or first tokens; "
                         "auto: documents if there are 100 or more, else the last tokens"}),
        ("--shard-size", {"type": number("--shard-size", int, 1, (1 << 31) - 1), "default": SHARD, "help": f"tokens per file ({SHARD:,})"}),
        ("--max-documents", {"type": number("--max-documents", int, 1), "help": "take so many and leave the rest"}),
        ("--jobs", {"type": number("--jobs", int, 1, MAX_THREADS), "help": "processes that encode; default: physical cores"}),
        ("--force", {"action": "store_true", "help": "replace a data set that is there"}),
    ):
        p.add_argument(flags, **how)
    # fmt: on
    return p


def order_of(args) -> Order:
    """What the flags ask for. Raises UsageError, DataError."""
    if not args.inputs:
        raise UsageError(
            "what is to be prepared is missing: text files, a folder, - or the name of a set; --help tells more"
        )
    if args.origin:
        raise UsageError(f"--from is for the known sets ({', '.join(KNOWN)}), and {args.inputs[0]} is none")
    if args.val_data and (wrong := _given(args, VAL_FLAGS)):
        raise UsageError(f"{wrong[0]} is for a part of the text, and --val-data names all of the validation: leave one out")
    if [*args.inputs, *args.val_data].count(STDIN) > 1:
        raise UsageError(f"{STDIN} is there twice, and standard input can be read once only: leave one out")
    tally = Tally()
    sources = find_sources(args.inputs, tally)
    val_sources = find_sources(args.val_data, tally) if args.val_data else []
    order = Order(
        _name(args.inputs[0]),
        Path(),
        sources,
        "gpt2",
        _reading(args),
        tuple(val_sources),
        _split(args),
        args.val_fraction,
    )
    return _settled(args, replace(order, skipped=tally.skipped))


def order_of_set(args, progress) -> Order:
    """What a known set asks for; flags say how it is encoded and stored. Raises UsageError, DataError, CheckpointError."""
    known = KNOWN[args.inputs[0]]
    path = locate_set(args, progress)
    sources, val_sources = known.open(known.hub if path is None else path)
    order = Order(
        known.stem,
        Path(),
        sources,
        known.tokenizer,
        known.reading,
        tuple(val_sources),
        known.split,
        about=known.facts(),
    )
    return _settled(args, order if args.max_documents is None else replace(order, split=None))


def locate_set(args, progress) -> Path | None:
    """The file of a known set, fetched if need be. Raises UsageError for flags that do not go with it."""
    known = KNOWN[args.inputs[0]]
    wrong = _given(args, TEXT_FLAGS)
    if wrong or len(args.inputs) > 1:
        what = wrong[0] if wrong else args.inputs[1]
        raise UsageError(
            f"{what} does not go with {known.name}, a known set: give its text as a file to have it another way"
        )
    folder = _folder(args, args.name or known.stem)
    return locate(known, args.origin, folder / "download", lambda got: progress("fetching", Tally(read=got)))


def prepare_questions(args, progress) -> None:
    known = KNOWN[args.inputs[0]]
    if args.tokenizer not in (None, "gpt2"):
        raise UsageError(
            f"--tokenizer {args.tokenizer}: {known.name} is made for GPT-2's vocabulary; evaluate takes the JSON lines for others"
        )
    out, count = write_questions(locate_set(args, progress), _folder(args, args.name or known.stem))
    expected = known.expected["questions"]
    say("questions", f"{count:,}{'' if count == expected else f', and the whole set has {expected:,}'}")
    say("files", str(out))


def _given(args, names: tuple[str, ...]) -> list[str]:
    """The flags among them that say something else than they do by default."""
    return [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) != parser().get_default(name)]


def _settled(args, order: Order) -> Order:
    name, tokenizer = args.name or order.name, args.tokenizer or order.tokenizer
    check_tokenizer(tokenizer)
    size = sum(source.size or SMALL for source in (*order.sources, *order.val_sources))
    return replace(
        order, name=name, folder=_folder(args, name), tokenizer=tokenizer, shard_size=args.shard_size, most=args.max_documents,
        jobs=args.jobs or (1 if size < SMALL else default_threads().count), anew=args.force,
    )  # fmt: skip


def _folder(args, name: str) -> Path:
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise UsageError(f"--name {name}: expected letters, digits and - _ + .")
    return (Path(args.out) if args.out else data_folders()[0]) / name


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

    def __init__(self):
        self.total, self.began, self.drawn = None, time.monotonic(), 0.0

    def expect(self, order: Order) -> None:
        sizes = [source.size for source in (*order.sources, *order.val_sources)]
        self.total = None if None in sizes else sum(sizes)

    def __call__(self, stage: str, tally: Tally) -> None:
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self.drawn < 0.1:
            return
        self.drawn = now
        share = f" of {human(self.total)}" if self.total else ""
        rate = human(int(tally.read / max(now - self.began, 1e-3)))
        count = f"{tally.documents:,} documents, " if tally.documents else ""  # a text is not counted before its end
        redraw(f"{stage:<9} {count}{human(tally.read)}{share}, {rate}/s")

    def clear(self) -> None:
        if self.drawn:
            redraw()


def list_sets() -> None:
    width = max(map(len, KNOWN))
    for known in KNOWN.values():
        say(f"{known.name:<{width}}", f"{known.about}; {known.licence}")
        where = known.file.url if known.file else f"{known.hub}, by pip install 'gpt2flat[datasets]'"
        say(" " * width, where + (f", {human(known.file.size)}" if known.file and known.file.size else ""))


def body(argv: list[str]) -> None:
    args = parser().parse(argv)
    if args.list:
        return list_sets()
    progress, began = Progress(), time.monotonic()
    try:
        known = KNOWN.get(args.inputs[0]) if args.inputs else None
        if known and args.tokenizer == "char" and f"{known.name}-char" in KNOWN:
            args.inputs[0] = f"{known.name}-char"
        if known and known.open is None:
            return prepare_questions(args, progress)
        order = order_of_set(args, progress) if known else order_of(args)
        progress.expect(order)
        report = prepare(order, progress)
    finally:
        progress.clear()
    tell(order, report, time.monotonic() - began)
    if known and (other := surprise(KNOWN[args.inputs[0]], report)):
        say("note", other)


def tell(order: Order, report: dict, seconds: float) -> None:
    documents, tokens, tokenizer = report["documents"], report["tokens"], report["tokenizer"]
    jobs = min(order.jobs, report["text_bytes"] // spool.SEGMENT + 1)  # no more of them had something to do
    speed = f"{report['text_bytes'] / 1e6 / max(seconds, 1e-3):.1f} MB/s with {jobs} process{'es' * (jobs > 1)}"
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
    pattern = order.folder / re.sub(r"_\d{6}", "_*", files[0])
    found = tokens["val"] and order.folder.parent.absolute() in [folder.absolute() for folder in data_folders()]
    where = f"--dataset {order.name}" if found else f"--train-data {shlex.quote(str(pattern))}"
    say("try next", f"python -m gpt2flat.train {where}{'' if tokens['val'] else ' --val-every 0'}")


def main(argv: list[str] | None = None) -> int:
    return run("prepare", body, argv)


if __name__ == "__main__":
    sys.exit(main())
