"""Makes a data set: documents in, NAME_train.bin, NAME_val.bin, tokenizer.bin and the report NAME.json out, in one folder.

Work that a killed run has left in .NAME.work is taken over. The report is written last: with it a data set is whole."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

from ..errors import CheckpointError, DataError, UsageError, reason
from ..formats.files import remove_empty, write_atomically, write_stream_atomically
from ..formats.lock import FolderLock
from . import shards
from .bpe import MOST_VOCAB
from .documents import PIECE, Document, Reading, Tally
from .shards import Part, Split
from .sources import Source, file_source
from .spool import SEGMENTS, TOKENIZER, Spool, segments
from .tokenizer import Tokenizer, make_tokenizer

BUSY = "preparing it: wait for its end, or give this one another --name"
Watch = Callable[[str, Tally], None]


@dataclass(frozen=True)
class Order:
    """What is wanted. val_sources: documents for validation; without them `split` says which are, None by the number of
    documents. most: so many documents of each."""

    name: str
    folder: Path
    sources: list[Source]
    tokenizer: str = "gpt2"
    reading: Reading = Reading()
    val_sources: tuple[Source, ...] = ()
    split: Split | None = None
    val_fraction: float = 0.1
    shard_size: int = shards.SHARD
    jobs: int = 1
    most: int | None = None
    skipped: dict = field(default_factory=dict)  # what was met already and left out
    anew: bool = False
    about: dict | None = None  # of a known set, for the report


def prepare(order: Order, watch: Watch = lambda stage, tally: None) -> dict:
    """Makes the data set and returns its report. `watch` is called now and then with what is going on.

    Raises UsageError, DataError, FormatError, CheckpointError, and RunLockedError when another process is making it; what was
    encoded stays for the next attempt."""
    work = order.folder / f".{order.name}.work"
    _check_absent(order, work)
    _make_folder(order.folder)
    lock = FolderLock(order.folder / f".{order.name}.lock", BUSY)
    try:
        _check_absent(order, work)  # another process may have made it meanwhile
        _make_folder(work)
        told = _make(order, work, watch)
        shutil.rmtree(work, ignore_errors=True)
    finally:
        if not any(work.glob(SEGMENTS)):  # nothing that another attempt could take over
            shutil.rmtree(work, ignore_errors=True)
        lock.remove()
        remove_empty(order.folder)
    return told


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be made: {reason(problem)}") from None


def _check_absent(order: Order, work: Path) -> None:
    """Raises UsageError for a data set that is there and is not to be made anew; one on which work was left may be."""
    there = _files(order)
    if there and not order.anew and not (work / TOKENIZER).exists():
        raise UsageError(f"{there[0]} is there already: --force prepares it anew, --name gives another name")


def _make(order: Order, work: Path, watch: Watch) -> dict:
    sides = [(order.sources, "train"), *([(order.val_sources, "val")] if order.val_sources else [])]
    if order.tokenizer not in ("gpt2", "byte"):
        sides = [([_kept(source, work) for source in sources], side) for sources, side in sides]
    tally = Tally(skipped=order.skipped)
    tokenizer = _tokenizer(order, [sources for sources, _ in sides], watch)
    _check_neighbours(order, tokenizer)
    tokenizer.save(work / TOKENIZER)
    spools = [_encode(order, sources, side, work, tally, watch) for sources, side in sides]
    told = _write(order, tokenizer, spools, tally, watch)
    report = order.folder / f"{order.name}.json"
    write_atomically(report, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape"))
    return told


def _files(order: Order) -> list[Path]:
    """What there is of the data set, its report first."""
    files = (order.folder / f"{order.name}.json", *shards.files_of(order.folder, order.name))
    return [path for path in files if path.exists()]


def _documents(order: Order, sources: list[Source], tally: Tally) -> Iterator[Document]:
    return chain.from_iterable(source.open(order.reading, tally) for source in sources)


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def _tokenizer(order: Order, sides: list[list[Source]], watch: Watch) -> Tokenizer:
    tally = Tally()

    def texts() -> Iterator[str]:
        for sources in sides:
            for part in segments(_documents(order, sources, tally), tally, order.most):
                watch("reading", tally)
                yield from part.texts

    made = make_tokenizer(order.tokenizer, texts())
    if made.vocab_size > MOST_VOCAB:
        raise DataError(
            f"the text has {made.vocab_size - 1:,} different characters, more than a token file can hold: take --tokenizer byte"
        )
    return made


def _kept(source: Source, work: Path) -> Source:
    """The source itself if it can be read twice, else a copy of what it says."""
    if source.again:
        return source
    copy = work / "input"
    write_stream_atomically(copy, iter(partial(sys.stdin.buffer.read1, PIECE), b""))
    return replace(file_source(copy), name=source.name)


def _check_neighbours(order: Order, tokenizer: Tokenizer) -> None:
    there = order.folder / TOKENIZER
    if there.is_file() and not order.anew and Tokenizer.load(there) != tokenizer:
        raise UsageError(
            f"{there} is of another vocabulary, and of other token files: take another --out or --name, or --force"
        )


# --- encoding and writing --------------------------------------------------------------------------------------------


def _encode(order: Order, sources: list[Source], side: str, work: Path, tally: Tally, watch: Watch) -> Spool:
    spool = Spool(work, side)
    found = segments(_documents(order, sources, tally), tally, order.most)
    spool.fill(found, order.jobs, lambda: watch("encoding", tally))
    if not spool.counts:
        told = "; ".join(f"{entry['count']} x {why}, {entry['first'][0]}" for why, entry in tally.skipped.items())
        raise DataError(f"{sources[0].name}: no text in it" + (f" ({told})" if told else ""))
    return spool


def _write(order: Order, tokenizer: Tokenizer, spools: list[Spool], tally: Tally, watch: Watch) -> dict:
    eot, name, folder = tokenizer.eot, order.name, order.folder
    split = order.split or Split("documents" if tally.documents >= shards.MANY else "last", order.val_fraction)
    if len(spools) == 2:
        split, sides = None, [Part(spools[0]), Part(spools[1])]
    else:
        sides = [Part(spools[0], split, False), Part(spools[0], split, True)]
    watch("counting", tally)
    seen = shards.count(sides, eot, tokenizer.vocab_size)
    if not sides[0].tokens:
        raise DataError(f"{name}: nothing is left to train on: all {sides[1].tokens:,} tokens are for validation")
    sizes = [shards.shard_sizes(part.tokens, order.shard_size) for part in sides]
    files, told = shards.names(name, *map(len, sizes)), {}
    for path in _files(order):  # not before there is something in its place
        path.unlink()
    for side in (0, 1):
        watch("writing", tally)
        if side:
            tokenizer.save(folder / TOKENIZER)
        told["val" if side else "train"] = shards.write(folder, files[side], sizes[side], sides[side].ids(eot))
    text = sum(spool.text for spool in spools)
    tokens = [part.tokens for part in sides]
    return {
        "name": name, **({"set": order.about} if order.about else {}),
        "documents": {"all": tally.documents, "train": sides[0].documents, "val": sides[1].documents},
        "tokens": {"all": sum(tokens), "train": tokens[0], "val": tokens[1]},
        "text_bytes": text, "bytes_per_token": round(text / (sum(tokens) - tally.documents), 4),
        "tokenizer": {"kind": order.tokenizer, "vocab_size": tokenizer.vocab_size, "end_of_text": eot,
                      "sha256": hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest()},
        "unused_ids": int((sum(seen) == 0).sum()), "unused_in_train": int((seen[0] == 0).sum()),
        "split": {"how": "given"} if split is None else asdict(split), "reading": asdict(order.reading),
        "skipped": tally.skipped, "replaced_bytes": tally.replaced,
        "sources": tally.sources, "more_sources": tally.unnamed, "files": told,
    }  # fmt: skip
