"""The cffi builder: one extension module per instruction set from the same sources, as one translation unit each.

A variant sees only its own flags, so no AVX opcode leaks into the baseline; none takes the build machine's instruction set,
unsafe math or contraction, which would change bits. cpu_isa() is asked in the baseline."""

import platform
import re
import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
HEADER = (HERE / "kernels.h").read_text()
SOURCES = re.findall(r'#include "(.*?)"', (HERE / "kernels.c").read_text())

FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's clang has none
ISA_FLAGS = {
    "scalar": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"],
}
X86 = platform.machine().lower() in ("x86_64", "amd64")


def builder(isa: str) -> FFI:
    ffi = FFI()
    ffi.cdef(HEADER)
    ffi.set_source(
        f"gpt2flat.kernels._{isa}",
        '#include "kernels.c"',
        include_dirs=["csrc"],
        depends=[f"csrc/{name}" for name in ["build.py", "kernels.c", *SOURCES]],
        extra_compile_args=FLAGS + OPENMP + ISA_FLAGS[isa],
        extra_link_args=OPENMP,
    )
    return ffi


scalar, avx2, avx512 = (builder(isa) for isa in ISA_FLAGS)
MODULES = [f"csrc/build.py:{isa}" for isa in ISA_FLAGS if X86 or isa == "scalar"]
