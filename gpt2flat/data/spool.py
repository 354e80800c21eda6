"""Documents to ids, in segments that processes encode side by side; each segment becomes a token file in a folder of work.

The segments depend on the text alone, and a file is named by what its segment holds: what a killed run has left is taken
over where it fits, and the number of processes changes nothing."""

import contextlib
import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from ..errors import DataError, FormatError
from ..formats import llmc
from .bpe import cut
from .documents import Document, Tally
from .tokenizer import Tokenizer

SEGMENT = 1 << 22  # characters; a process holds a few dozen bytes for each
TOKENIZER = "tokenizer.bin"
SEGMENTS = "*-*-*.bin"  # side, number, key


@dataclass
class Segment:
    """Texts, each with whether a document starts there."""

    texts: list[str]
    starts: list[bool]

    def measure(self, tokenizer: bytes) -> tuple[int, str]:
        """The bytes of its texts in UTF-8, and the name of what this tokenizer makes of them."""
        raw = "".join(self.texts).encode()
        digest = hashlib.sha256(tokenizer)
        for lengths in (len(self.texts), *map(len, self.texts)), self.starts:
            digest.update(np.array(lengths, "<i8"))
        digest.update(raw)
        return len(raw), digest.hexdigest()[:32]


def segments(documents: Iterable[Document], tally: Tally, most: int | None = None) -> Iterator[Segment]:
    """The documents (at most so many) in segments of about SEGMENT characters. Empty documents are left out and counted."""
    texts, starts, held, taken = [], [], 0, 0
    for document in documents:
        first = True
        for part in cut(document):
            texts.append(part)
            starts.append(first)
            first = False
            held += len(part)
            if held >= SEGMENT:
                yield Segment(texts, starts)
                texts, starts, held = [], [], 0
        if first:
            tally.skip("an empty document", f"{tally.now}, behind document {tally.documents}")
            continue
        tally.documents += 1
        taken += 1
        if taken == most:
            break
    if texts:
        yield Segment(texts, starts)


def encode(tokenizer: Tokenizer, part: Segment) -> np.ndarray:
    """The ids of a segment, int32."""
    rows = []
    for start, pairs in groupby(zip(part.starts, part.texts, strict=True), itemgetter(0)):
        texts = [text for _, text in pairs]
        rows += [tokenizer.encode_documents(texts)] if start else map(tokenizer.encode, texts)
    return np.concatenate(rows)


class Spool:
    """The token files of all segments, in order, of one side of a data set. `text` is the bytes of text in them."""

    def __init__(self, folder: Path, side: str):
        self.folder, self.side = folder, side
        self.names, self.counts, self.text = [], [], 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """The ids of one segment after the other."""
        for name in self.names:
            file = llmc.open_tokens(self.folder / name)
            try:
                yield file.read(0, file.count)
            finally:
                file.close()

    def fill(self, parts: Iterable[Segment], jobs: int, watch: Callable[[], None]) -> None:
        """Encodes segments with the tokenizer in the folder; `watch` is called for each. Raises DataError, CheckpointError."""
        tokenizer = (self.folder / TOKENIZER).read_bytes()
        there = {path.name for path in self.folder.glob(f"{self.side}-*.bin")}
        with _workers(self.folder / TOKENIZER, jobs) as submit:
            waiting: deque[Future | int] = deque()
            for part in parts:
                size, key = part.measure(tokenizer)
                name = f"{self.side}-{len(self.names):08d}-{key}.bin"
                self.names.append(name)
                self.text += size
                known = _count(self.folder / name) if name in there else 0
                waiting.append(known or submit(self.folder / name, part))
                watch()
                while len(waiting) > jobs + 1:
                    self.counts.append(_result(waiting.popleft()))
            self.counts += map(_result, waiting)


def _count(path: Path) -> int:
    """The tokens of a segment that was encoded before; 0 if its file is not whole."""
    try:
        file = llmc.open_tokens(path)
    except (FormatError, DataError):
        return 0
    file.close()
    return file.count


def _result(encoded: Future | int) -> int:
    return encoded if isinstance(encoded, int) else encoded.result()


# --- processes -------------------------------------------------------------------------------------------------------

_tokenizer: Tokenizer | None = None  # of a process that encodes


@contextlib.contextmanager
def _workers(tokenizer: Path, jobs: int):
    """submit(path, part) -> a Future of the count, or with one job the count."""
    if jobs == 1:
        loaded = Tokenizer.load(tokenizer)
        yield lambda path, part: _write(loaded, path, part)
        return
    context = multiprocessing.get_context("spawn")  # threads, if any run here, do not survive a fork
    pool = ProcessPoolExecutor(jobs, context, _begin, (tokenizer,))
    try:
        yield lambda path, part: pool.submit(_encode_in_process, path, part)
    except BrokenProcessPool:  # of what was submitted, or at the next one
        raise DataError(
            "a process that encodes was ended from outside, perhaps for want of memory: start again to go on, with fewer --jobs"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(tokenizer: Path) -> None:
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started this
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    _tokenizer = Tokenizer.load(tokenizer)


def _end_with(parent) -> None:
    parent.join()
    os._exit(1)


def _encode_in_process(path: Path, part: Segment) -> int:
    return _write(_tokenizer, path, part)


def _write(tokenizer: Tokenizer, path: Path, part: Segment) -> int:
    ids = encode(tokenizer, part)
    llmc.write_tokens(path, ids)
    return len(ids)
