"""How the twins are compiled: the decorators `serial` and `parallel`, and the folder that keeps the machine code.

No fast-math beyond contraction (a * b + c rounds once where the CPU can), so no sum is reordered. Needs numba."""

import hashlib
import os
import tempfile
from pathlib import Path

import numba
import numpy as np

HERE = Path(__file__).parent
STEMS = ("linear", "layernorm", "embedding", "gelu", "residual", "dropout", "fused", "attention", "classifier", "decode", "adamw")  # of csrc/
PARTS = ("jit", "rows", "gemm")  # what they are made of


def _places() -> list[Path]:
    if os.environ.get("NUMBA_CACHE_DIR"):
        return [Path(os.environ["NUMBA_CACHE_DIR"])]
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/.cache")
    return [HERE / "__pycache__", Path(home, "gpt2flat")]


def cache_folder(places: list[Path] | None = None) -> Path | None:
    """The first of NUMBA_CACHE_DIR, else the package and the user's cache, that can be written; None: nothing is kept.

    Its name has a hash of all twins: numba itself looks at the file of a function but not at those of what it calls."""
    sources = b"".join((HERE / f"{name}.py").read_bytes() for name in (*PARTS, *STEMS))
    for place in _places() if places is None else places:
        folder = place / f"twins-{hashlib.sha256(sources).hexdigest()[:12]}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


FOLDER = cache_folder()
OPTIONS = dict(error_model="numpy", nogil=True, fastmath={"contract"}, cache=FOLDER is not None)
# only `prange` runs in parallel: nothing is fused, hoisted or made parallel behind the reader's back
OTHER = ("fusion", "comprehension", "reduction", "numpy", "setitem", "inplace_binop")
PRANGE = {"prange": True} | dict.fromkeys(OTHER, False)


def _compiled(function, **more):
    before = numba.config.CACHE_DIR  # read when a function is decorated; the user's own functions keep their place
    numba.config.CACHE_DIR = str(FOLDER or "")
    try:
        return numba.njit(**OPTIONS, **more)(function)
    finally:
        numba.config.CACHE_DIR = before


def serial(function):
    """Compiles a function that one thread runs."""
    return _compiled(function)


def parallel(function):
    """Compiles a function whose `prange(NT)` loops deal fixed units of work to NT workers."""
    return _compiled(function, parallel=PRANGE)


# A constant argument is a type of its own for numba, and prange counts in uint64, which makes float64 of sums with
# int64: both would compile a callee once more. So both are passed as i64(...).
i64 = np.int64


@serial
def part(n, w, workers):
    """The units [begin, end) of n that worker w does."""
    return n * w // workers, n * (w + 1) // workers
