"""What the commands share: a parser whose errors are one line, the way a command ends, facts about the machine.

A failure that a user can cause becomes one line on stderr and the exit code of its class (errors.py); Ctrl-C ends with
130, a reader of the output that went away with 141."""

import argparse
import contextlib
import os
import platform
import re
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from . import __version__
from .data.tokenizer import Tokenizer, escape_controls
from .errors import DataError, Gpt2FlatError, UsageError, reason
from .kernels import backend, cpu_name
from .model import Model
from .training.inputs import tokenizer_beside
from .training.run import WEIGHTS, find_checkpoint
from .training.settings import DIGITS, READ
from .weights import find_shape

INTERRUPTED, BROKEN_PIPE, FILE_TROUBLE = 130, 141, 5


class Parser(argparse.ArgumentParser):
    """Long flags with - or _, none abbreviated; every mistake raises UsageError. unknown(flag): what to say about one
    that is not there."""

    def __init__(self, *args, unknown: Callable[[str], str] = "{} is no flag of this command: --help lists them".format, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self._unknown = unknown

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        spelled = [_with_dashes(word) for word in argv]
        for word in spelled:
            # argparse would take -bq for -b with the value q
            if re.match("-[a-zA-Z][^ ]*$", word) and word.split("=")[0] not in self._option_string_actions:
                raise UsageError(self._unknown(word))
        values, rest = self.parse_known_args(spelled)
        if rest and self._get_positional_actions():  # flags stand between the arguments
            values, rest = self.parse_known_intermixed_args(spelled)
        if rest:
            flag = next((word for word in rest if word.startswith("-") and len(word) > 1), None)
            extra = f"{rest[0]!r} is one argument too many: --help lists the flags"
            raise UsageError(self._unknown(flag.split("=")[0]) if flag else extra)
        return values

    def error(self, message: str):
        raise UsageError(f"{message}: --help lists the flags")


def _with_dashes(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if re.fullmatch(r"--\w[\w-]*", name) else word


def number(flag: str, kind: type, low: float, high: float = float("inf")) -> Callable[[str], int | float]:
    """A reader of a flag's number, for argparse. It raises UsageError that says what was expected."""
    if kind is int:
        high = min(high, 10**DIGITS - 1)
        what = f"a whole number from {low:,} to {high:,}"
    else:
        what = f"a number from {low:g} to {high:g}" if high < float("inf") else f"a number of at least {low:g}"

    def read(text: str):
        try:
            value = READ[kind](text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise UsageError(f"{flag} {text}: expected {what}")
        return value

    return read


def run(name: str, body: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a command's body on its arguments and returns the exit code. A user's mistake is printed in one line."""
    for name_of in ("stdout", "stderr"):
        if getattr(sys, name_of) is None:  # closed by the caller
            setattr(sys, name_of, open(os.devnull, "w"))
        out = getattr(sys, name_of)
        if hasattr(out, "reconfigure"):
            out.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character gets its number
    try:
        code = body(list(sys.argv[1:] if argv is None else argv)) or 0
        sys.stdout.flush()
        return code
    except Gpt2FlatError as problem:
        return _fail(name, str(problem), problem.code)
    except KeyboardInterrupt:
        return _fail(name, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it flushes
        return BROKEN_PIPE
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else "standard output: "
        return _fail(name, where + reason(problem), FILE_TROUBLE)


def redraw(text: str = "") -> None:
    """Puts a line on a terminal's stderr in place of the one before, as much of it as fits: of one that wraps a part would stay."""
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        columns = 0
    shown = escape_controls(text.replace("\n", " "))[: (columns or 80) - 1]
    print(f"\r\x1b[K{shown}", end="", file=sys.stderr, flush=True)


def _fail(name: str, message: str, code: int) -> int:
    print(f"gpt2flat {name}: {escape_controls('; '.join(message.splitlines()))}", file=sys.stderr)
    return code


class StopSignal:
    """Within a `with`, Ctrl-C, SIGTERM and a closed terminal only ask for a stop: the loop ends after its update and saves. A second one
    aborts. Ctrl-C pressed before the `with` just ends the command.

    `number` is the signal that came, 0 before. A signal that the parent made this process ignore stays ignored."""

    def __init__(self):
        self.number = 0
        self._before = {}

    def __bool__(self) -> bool:
        return self.number != 0

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number


def open_kernels(name: str | None = None):
    """The kernels by the name of their backend; what takes long, such as compiling them, is told on stderr."""
    kernels = backend(name)
    kernels.announce = lambda line: print(line, file=sys.stderr, flush=True)
    return kernels


MODEL_HELP = f"{WEIGHTS}; default: the newest run under runs/"


def open_model(name: str | None = None, **options) -> tuple[Model, Tokenizer | None, Path]:
    """The model that a command was given (MODEL_HELP; None: that of the newest run), its tokenizer and the path of its weights;
    the tokenizer is None where nothing tells what the ids mean; one that is there and does not serve is told on stderr.

    options: those of Model; kernels by default the ones chosen here. Raises CheckpointError when nothing is there, FormatError,
    NonFiniteError for what is damaged, CapacityError."""
    path = find_checkpoint(name)
    vocab_size = find_shape(path)[0].vocab_size
    with ThreadPoolExecutor(1) as beside:  # reading the weights waits for the system most of the time
        found = beside.submit(_ready_tokenizer, path, vocab_size)
        model = Model.load(path, **options | {"kernels": options.get("kernels") or open_kernels()})
    tokenizer, why = found.result()
    if why:
        print(f"note: {escape_controls(why)}", file=sys.stderr)
    return model, tokenizer, path


def _ready_tokenizer(path: Path, vocab_size: int) -> tuple[Tokenizer | None, str]:
    """What tokenizer_beside finds, with its tables made, which takes longer than reading them."""
    tokenizer, why = tokenizer_beside(path, vocab_size)
    if tokenizer:
        with contextlib.suppress(DataError):  # a vocabulary that only decodes
            tokenizer.encode("")
    return tokenizer, why


def environment(model, peak: float) -> dict[str, object]:
    """What a run of `model` ran on, for env.json; peak in flops per second."""
    return surroundings() | {
        "backend": model.kernels.name, "isa": model.kernels.isa, "precision": model.precision, "threads": model.threads,
        "peak_gflops": round(peak / 1e9, 1),
    }  # fmt: skip


def surroundings() -> dict[str, object]:
    """When, what was asked, by which sources, on which CPU, with which versions."""
    from importlib.metadata import PackageNotFoundError, version  # here and below: a command starts sooner without

    versions = {"gpt2flat": __version__, "python": platform.python_version()}
    for package in ("numpy", "cffi", "numba", "tiktoken"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "started": datetime.now(UTC).isoformat(timespec="microseconds"), "command": sys.argv, "commit": commit(),
        "cpu": cpu_name(), "platform": platform.platform(), "versions": versions,
    }  # fmt: skip


def commit() -> str | None:
    """The commit of a source tree, or None for an installed copy."""
    import subprocess

    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists() or not shutil.which("git"):
        return None
    asked = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    return asked.stdout.strip() or None


def data_folders() -> list[Path]:
    """Where llm.c's files are looked for: $GPT2FLAT_DATA, then data/. Raises DataError if the first is no directory."""
    named = os.environ.get("GPT2FLAT_DATA")
    if named and not Path(named).is_dir():
        raise DataError(f"GPT2FLAT_DATA={named}: is not a directory; expected the one that holds your data")
    return [Path(folder) for folder in (named, "data") if folder]
