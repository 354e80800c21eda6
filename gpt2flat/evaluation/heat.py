"""What each token of a text cost the model, and the text in these colours for a terminal.

The losses are those that evaluation takes the mean of. A character cut into several tokens is one piece, with their sum."""

import bisect
import codecs
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ..data.tokenizer import Tokenizer, escape_controls
from ..data.tokens import Shard
from .scoring import score_and_look
from .text import Windows

EDGES = (0.25, 0.5, 1.0, 2.0, 3.0, 4.5, 6.5)  # nats; a loss is in the bin of the edges below it
COLOURS = (
    194,
    193,
    229,
    222,
    216,
    210,
    203,
    198,
)  # of the bins, of xterm's 256: green, yellow, red; ink is black on all
INK, RESET = "\x1b[38;5;16;48;5;{}m", "\x1b[0m"
NEWLINE = "\u21b5"  # stands for the end of a line, which has a colour too


class Told(NamedTuple):
    """A token of a text and what the model thought of it: its loss in nats, how many ids it found likelier, and the likeliest id
    with its probability. None for the first token of a text, which nothing predicts."""

    id: int
    loss: float | None = None
    before: int | None = None
    best: int | None = None
    best_probability: float | None = None


class Piece(NamedTuple):
    """Text of one or more tokens, at least one character but at the end, and what is known of each."""

    text: str
    tokens: list[Told]

    @property
    def loss(self) -> float | None:
        losses = [token.loss for token in self.tokens if token.loss is not None]
        return math.fsum(losses) if losses else None


def bin_of(loss: float) -> int:
    return bisect.bisect(EDGES, loss)


def bins() -> list[str]:
    """What each bin holds, in nats."""
    between = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(EDGES)]
    return [f"< {EDGES[0]:g}", *between, f"> {EDGES[-1]:g}"]


def tell(model, shards: list[Shard], windows: Windows) -> Iterator[Told]:
    """The tokens of the shards, in order, up to the limit of the windows. Raises DataError, NonFiniteError."""
    for shard in shards:
        if windows.limit == 0:
            return
        rows = list(windows.rows([shard], model.config.vocab_size))
        if rows:
            yield Told(int(rows[0].ids[0]))
        for row, (losses, seen) in zip(rows, score_and_look(model, rows, 1, windows.T, 1, _likelier), strict=True):
            for id, loss, (before, best, lead) in zip(row.ids[row.known :], losses, seen.tolist(), strict=True):
                yield Told(int(id), float(loss), int(before), int(best), math.exp(min(0.0, lead - float(loss))))
        if windows.limit is not None:
            windows = windows._replace(limit=windows.limit - min(windows.limit, shard.count - 1))


def _likelier(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """(m, 3): how many ids are likelier than the one that came, the likeliest, and by how much its logit is the larger."""
    rows = np.arange(len(ids))
    own, best = logits[rows, ids], logits.argmax(1)
    before = (logits > own[:, None]).sum(1) + (
        (logits == own[:, None]) & (np.arange(logits.shape[1]) < ids[:, None])
    ).sum(1)
    return np.stack([before, best, logits[rows, best].astype(np.float64) - own], axis=1)


def pieces(tokens: Iterable[Told], tokenizer: Tokenizer) -> Iterator[Piece]:
    """Tokens as text; bytes that are not UTF-8 become U+FFFD."""
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    waiting: list[Told] = []
    for token in tokens:
        waiting.append(token)
        if text := utf8.decode(tokenizer.token_bytes(token.id)):
            yield Piece(text, waiting)
            waiting = []
    if rest := utf8.decode(b"", final=True):
        yield Piece(rest, waiting)


def coloured(found: Iterable[Piece]) -> Iterator[str]:
    """The text for a terminal of 256 colours, piece by piece; control characters are shown."""
    for piece in found:
        shown = escape_controls(piece.text)
        if piece.loss is None:
            yield shown
            continue
        ink = INK.format(COLOURS[bin_of(piece.loss)])
        lines = shown.split("\n")
        # no colour is on where a line ends: it would run to the edge of the terminal
        yield "\n".join(
            f"{ink}{line}{NEWLINE * (i < len(lines) - 1)}{RESET}" if line or i < len(lines) - 1 else ""
            for i, line in enumerate(lines)
        )


def legend() -> str:
    """A line that says what the colours are."""
    return "loss in nats: " + " ".join(
        f"{INK.format(colour)} {name} {RESET}" for colour, name in zip(COLOURS, bins(), strict=True)
    )
