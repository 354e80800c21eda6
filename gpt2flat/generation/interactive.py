"""A prompt loop: what was typed and what the model wrote behind it is the context of what comes. Signals are the
caller's."""

import shlex
import signal
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..data.tokenizer import Tokenizer, escape_controls
from ..errors import Gpt2FlatError, UsageError
from .decoder import Decoder
from .sampling import LIMITS, USUAL, Sampling
from .stream import stream
from .text import Texts

HELP = """Type text to go on from; what is written behind it is part of the context. An empty line: go on.
A line that ends with \\ is followed by a line break and goes on in the next. Ctrl-C stops an answer, Ctrl-D ends.
"""
OFF = "off"


class Talk:
    """One conversation. A line goes in with `say`, pieces of the answer come out through `write`."""

    def __init__(self, model, tokenizer: Tokenizer, sampling: Sampling, max_tokens: int, seed: int, stops: tuple[str, ...],
                 readers: dict[str, Callable], write: Callable[[str], None], stop_signal: Callable, weights: str = "fp32"):  # fmt: skip
        """readers: setting -> what turns the text of its value into one, or raises UsageError; stop_signal(): a context
        in which Ctrl-C and the like only set its `number`."""
        self.model, self.tokenizer = model, tokenizer
        self._weights, self._decoder = weights, self._make_decoder(weights)
        self.sampling, self.max_tokens, self.seed, self.stops = sampling, max_tokens, seed, stops
        self._readers, self._write, self._stop_signal = readers, write, stop_signal
        self.ids, self.turn = np.empty(0, np.int32), 0

    def _make_decoder(self, weights: str) -> Decoder:
        """It reads only what is new, where steps are what reading would be: not with fewer bits in one of them."""
        return Decoder(self.model, 1, None, weights, resume=weights == self.model.precision == "fp32")

    def say(self, line: str) -> int | None:
        """Obeys or answers a line. Returns 0 at /quit, the number of a signal that is to end the program, else None."""
        try:
            return self._obey(line[1:]) if line.startswith("/") else self._answer(line)
        except Gpt2FlatError as problem:  # a mistake in a line is no end of a conversation
            self._write(escape_controls(f"{problem}\n"))
        return None

    def _answer(self, line: str) -> int | None:
        new = self.tokenizer.encode(line) if line else np.empty(0, np.int32)
        ids = np.concatenate([self.ids, new])
        if not len(ids):
            ids = np.array([self.tokenizer.start], np.int32)
        if self._decoder.lost:  # something else has written with this model
            self._decoder = self._make_decoder(self._weights)
        texts, made = Texts(self.tokenizer, self.stops), []
        with self._stop_signal() as stop:
            for token in stream(self.model, [ids], self.max_tokens, self.sampling, 1, self.seed + self.turn, texts.ends,
                                decoder=self._decoder):  # fmt: skip
                made.append(token.id)
                self._write(escape_controls(texts[0].take()))
                if stop:
                    break
        text = texts.pop(0) if made else None
        if text:
            self._write(escape_controls(text.take()))
            if text.stopped:
                made = self.tokenizer.encode(text.whole)  # nothing of the stop string is in the context
        self._write("\n")
        self.ids, self.turn = np.concatenate([ids, np.array(made, np.int32)]), self.turn + 1
        return stop.number if stop and stop.number != signal.SIGINT else None

    # --- commands -----------------------------------------------------------------------------------------------------

    def _obey(self, line: str) -> int | None:
        name, _, value = line.strip().partition(" ")
        name, value = name.replace("-", "_"), value.strip()
        if name in ("quit", "exit"):
            return 0
        if name in ("help", ""):
            self._write(
                HELP
                + "".join(f"/{_flag(n)} {self._told(n)}\n" for n in self._readers)
                + "/stop TEXT ...  /reset  /help  /quit\n"
            )
        elif name == "reset":
            self.ids, self.turn = np.empty(0, np.int32), 0
        elif name == "stop":
            self.stops = _words(value)
        elif name not in self._readers:
            raise UsageError(
                f"/{name}: there are /{', /'.join(map(_flag, self._readers))}, /stop, /reset, /help, /quit"
            )
        elif value:
            self._set(name, value)
        else:
            self._write(f"/{_flag(name)} {self._told(name)}\n")
        return None

    def _told(self, name: str) -> str:
        value = getattr(self.sampling if name in LIMITS else self, name)
        return OFF if value is None else str(value)

    def _set(self, name: str, text: str) -> None:
        usual = getattr(USUAL, name, None)
        value = usual if text == OFF and name in LIMITS else self._readers[name](text)
        if name in LIMITS:
            self.sampling = replace(self.sampling, **{name: value})
        else:
            setattr(self, name, value)
        if name == "seed":
            self.turn = 0


def _words(text: str) -> tuple[str, ...]:
    try:
        found = tuple(shlex.split(text))
    except ValueError as problem:
        raise UsageError(f"/stop {text}: {problem}".lower()) from None
    if not all(found):
        raise UsageError("/stop: a stop string is empty, expected at least a character")
    return found


def _flag(name: str) -> str:
    return name.replace("_", "-")


def talk(conversation: Talk, read: Callable[[str], str], write: Callable[[str], None]) -> int:
    """Reads lines until they end; returns the exit status, 128 and its number for a signal. read(prompt) raises
    EOFError at the end and KeyboardInterrupt at Ctrl-C, which takes back what was typed."""
    while True:
        try:
            line = read("> ")
            while line.endswith("\\"):
                line = line[:-1] + "\n" + read(". ")
            ended = conversation.say(line)
        except KeyboardInterrupt:
            write("\n")
        except EOFError:
            write("\n")
            return 0
        else:
            if ended is not None:
                return 128 + ended if ended else 0
