"""The text of sequences, id by id, up to a stop string: also one that spans tokens, and nothing of it is shown."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from ..data.tokenizer import Decoder, Tokenizer
from ..errors import UsageError
from .stream import STOP, Token


class Text:
    """`whole` is what can be shown by now, `stopped` the stop string that was met, or None."""

    def __init__(self, tokenizer: Tokenizer | None, stops: tuple[str, ...] = ()):
        """tokenizer: None shows ids as numbers. Raises UsageError for an empty stop string, or one without a
        tokenizer."""
        if stops and tokenizer is None:
            raise UsageError("stop strings need a tokenizer, and none is beside the model: leave them out")
        if not all(stops):
            raise UsageError("a stop string is empty, expected at least a character")
        self._tokenizer, self._stops = tokenizer, stops
        self._decoder = Decoder(tokenizer) if tokenizer else None
        self._held, self._shown, self._taken, self.stopped = "", [], 0, None

    @property
    def whole(self) -> str:
        return "".join(self._shown)

    def feed(self, token: int) -> None:
        if self._decoder is None:
            self._shown.append(f"{token} ")
        elif token != self._tokenizer.eot:
            self._seek(self._decoder.feed(token))

    def finish(self) -> None:
        """Shows what was held back: it might have become a stop string, or a character."""
        if self._decoder and not self.stopped:
            self._seek(self._decoder.flush())
            self._shown.append(self._held)
            self._held = ""

    def take(self) -> str:
        """What has become `whole` since the last time."""
        new, self._taken = self._shown[self._taken :], len(self._shown)
        return "".join(new)

    def _seek(self, new: str) -> None:
        text = self._held + new
        # the first that is complete, of several the longest: so it does not matter how tokens cut them
        found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in self._stops if stop in text]
        if found:
            _end, shown, self.stopped = min(found)
        else:
            shown = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._shown.append(text[:shown])
        self._held = "" if found else text[shown:]


class Texts:
    """The texts of all sequences of a stream; `ends` is its rule: a sequence ends with end-of-text or a stop string."""

    def __init__(self, tokenizer: Tokenizer | None, stops: tuple[str, ...] = ()):
        """Raises UsageError as Text does."""
        Text(tokenizer, stops)
        self._texts = defaultdict(lambda: Text(tokenizer, stops))
        self._eot = tokenizer.eot if tokenizer else None

    def __getitem__(self, sequence: int) -> Text:
        return self._texts[sequence]

    def ends(self, sequence: int, token: int) -> str | None:
        text = self[sequence]
        text.feed(token)
        return STOP if text.stopped or token == self._eot else None

    def follow(self, tokens: Iterable[Token]) -> Iterator[Token]:
        """The same ids, once their text is there: of a stream that did not ask `ends`."""
        for token in tokens:
            self[token.sequence].feed(token.id)
            yield token

    def pop(self, sequence: int) -> Text:
        """The finished text of a sequence that has ended."""
        text = self._texts.pop(sequence)
        text.finish()
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin the stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
