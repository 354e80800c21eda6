"""The error family. Every failure a user can cause is one of these; a command prints it as one line and exits with
`code`. Besides: the check of a number, which all floors need."""

import numbers

FLOAT32_END = 3e38


class Gpt2FlatError(Exception):
    """Base of the family; `code` is the exit status a command ends with."""

    code = 2


class UsageError(Gpt2FlatError):
    """A flag, setting or configuration that cannot be: names the setting and what would do."""


class FormatError(Gpt2FlatError, ValueError):
    """A file is not what it should be: names the file, what was found and what was expected."""

    code = 3


class DataError(Gpt2FlatError):
    """Tokens or text that cannot be used: too short, an id out of range, a shard truncated underneath."""

    code = 4


class CheckpointError(Gpt2FlatError):
    """A checkpoint or run directory that cannot be written or read."""

    code = 5


class NonFiniteError(Gpt2FlatError, ArithmeticError):
    """A loss, gradient or weight is NaN or infinite: names the tensor."""

    code = 6


class CapacityError(Gpt2FlatError, MemoryError):
    """The memory plan does not fit: lists the plan beside what is available."""

    code = 7


class KernelArgError(Gpt2FlatError, TypeError, ValueError):
    """A kernel or model argument of the wrong dtype, shape, layout or range: names step, argument and both shapes."""

    code = 8


class UnsupportedCPUError(Gpt2FlatError):
    """An explicit wish (GPT2FLAT_BACKEND, GPT2FLAT_ISA) that this machine or build cannot meet, or no kernels at all."""

    code = 9


class ForkError(Gpt2FlatError, RuntimeError):
    """A kernel was called in a process forked after the threads had started; use spawn or forkserver."""

    code = 10


class RunLockedError(Gpt2FlatError):
    """Another process trains or prepares in this folder: names its pid and host."""

    code = 11


def require_number(what: str, value, low: float, end: float = FLOAT32_END, whole: bool = False) -> None:
    """Raises UsageError unless `value` is a number (True is none), low <= value < end; NaN is in no range."""
    kind = numbers.Integral if whole else numbers.Real
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if not (is_number and low <= value < end):
        found = value if is_number and (isinstance(value, float) or abs(value) < 1 << 99) else type(value).__name__
        which = "a whole number, " if whole else ""
        end = f"{end:,.0f}" if whole else f"{end:g}"
        raise UsageError(f"{what} = {found}, expected {which}{low:g} or more and below {end}")


def reason(problem: Exception) -> str:
    """What the system said, for the middle of a sentence: "no space left on device"."""
    return (getattr(problem, "strerror", None) or str(problem)).lower()
