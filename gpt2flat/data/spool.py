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
from pathlib import Path

import numpy as np

from ..errors import DataError, FormatError
from ..formats import llmc
from .bpe import cut
from .documents import Document, Tally
from .tokenizer import Tokenizer

SEGMENT = 1 << 22  # characters; a process holds a few dozen bytes for each
TOKENIZER = "tokenizer.bin"


@dataclass
class Segment:
    """Texts in UTF-8, each with whether a document starts there."""

    texts: list[tuple[bool, bytes]]
    size: int  # bytes

    def key(self, tokenizer: bytes) -> str:
        digest = hashlib.sha256(tokenizer)
        for starts, text in self.texts:
            digest.update(b"%d %d " % (starts, len(text)))
            digest.update(text)
        return digest.hexdigest()[:32]


def segments(documents: Iterable[Document], tally: Tally, most: int | None = None) -> Iterator[Segment]:
    """The documents (at most so many) in segments of about SEGMENT characters. Empty documents are left out and counted."""
    texts, size, held, taken = [], 0, 0, 0
    for document in documents:
        starts = True
        for part in cut(document):
            raw = part.encode()
            texts.append((starts, raw))
            starts, size, held = False, size + len(raw), held + len(part)
            if held >= SEGMENT:
                yield Segment(texts, size)
                texts, size, held = [], 0, 0
        if starts:
            tally.skip("an empty document", f"behind document {tally.documents}")
            continue
        tally.documents += 1
        taken += 1
        if taken == most:
            break
    if texts:
        yield Segment(texts, size)


def encode(tokenizer: Tokenizer, texts: list[tuple[bool, bytes]]) -> np.ndarray:
    """The ids of a segment, int32."""
    rows, together = [np.empty(0, np.int32)], []
    for starts, raw in texts:
        if starts:
            together.append(raw.decode())
            continue
        if together:
            rows.append(tokenizer.encode_documents(together))
            together = []
        rows.append(tokenizer.encode(raw.decode()))
    if together:
        rows.append(tokenizer.encode_documents(together))
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
                name = f"{self.side}-{len(self.names):08d}-{part.key(tokenizer)}.bin"
                self.names.append(name)
                self.text += part.size
                known = _count(self.folder / name) if name in there else 0
                waiting.append(known or submit(self.folder / name, part.texts))
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
    try:
        return encoded if isinstance(encoded, int) else encoded.result()
    except BrokenProcessPool:
        raise DataError(
            "a process that encodes was ended from outside, perhaps for want of memory: start again to go on, with fewer --jobs"
        ) from None


# --- processes -------------------------------------------------------------------------------------------------------

_tokenizer: Tokenizer | None = None  # of a process that encodes


@contextlib.contextmanager
def _workers(tokenizer: Path, jobs: int):
    """submit(path, texts) -> a Future of the count, or with one job the count."""
    if jobs == 1:
        loaded = Tokenizer.load(tokenizer)
        yield lambda path, texts: _write(loaded, path, texts)
        return
    context = multiprocessing.get_context("spawn")  # threads, if any run here, do not survive a fork
    pool = ProcessPoolExecutor(jobs, context, _begin, (tokenizer,))
    try:
        yield lambda path, texts: pool.submit(_encode_in_process, path, texts)
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


def _encode_in_process(path: Path, texts: list[tuple[bool, bytes]]) -> int:
    return _write(_tokenizer, path, texts)


def _write(tokenizer: Tokenizer, path: Path, texts: list[tuple[bool, bytes]]) -> int:
    ids = encode(tokenizer, texts)
    llmc.write_tokens(path, ids)
    return len(ids)
