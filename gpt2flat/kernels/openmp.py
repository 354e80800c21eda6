"""The OpenMP runtime of this process. There must be one only: two that alternate cost 600 times a kernel's time.

The kernels ask for libgomp.so.1 by its plain name, as torch does, so whoever comes first decides for all. numba asks for
libgomp.so.1.0.0, the system's: where there is none, it has a slower pool of threads of its own."""

import ctypes
import os
import re
from pathlib import Path

OWN = Path(__file__).resolve().parent / "libgomp.so.1"  # in a wheel: for machines without the system's


def load() -> bool:
    """Loads libgomp: one that is there already, else the system's, else the wheel's own. False if there is none."""
    for name in ("libgomp.so.1", str(OWN)):
        try:
            ctypes.CDLL(name)
            return True
        except OSError:
            continue
    return False


def loaded() -> list[str]:
    """The OpenMP runtimes in this process, by path; none where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if re.match(r"lib(gomp|omp|iomp5)\b", os.path.basename(path)))
