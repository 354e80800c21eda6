"""The cffi builder: one extension module per instruction set from the same sources, as one translation unit each.

A variant sees only its own flags, so no AVX opcode leaks into the baseline; none takes the build machine's instruction set,
unsafe math or contraction, which would change bits. Each is optional; what became of it is in gpt2flat/kernels/build.json."""

import contextlib
import itertools
import json
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cffi import FFI
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError, LinkError

HERE = Path(__file__).resolve().parent
HEADER = (HERE / "kernels.h").read_text()
RECORD = runpy.run_path(str(HERE.parent / "gpt2flat" / "kernels" / "record.py"))
HASH = RECORD["source_hash"](HERE)

FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]  # Apple's clang has none
ISA_FLAGS = {
    "scalar": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"],
}
ISA_FLAGS["avx512bf16"] = [*ISA_FLAGS["avx512"], "-mavx512bf16", "-mavx512vnni"]
X86 = platform.machine().lower() in ("x86_64", "amd64")
# what CFLAGS of the environment may not bring in: bits would change, or the CPU would not know the code
FORBIDDEN = re.compile(r"-(Ofast|f(fast|unsafe|associative|finite|reciprocal)-math.*|fno-signed-zeros|m(arch=.*|avx.*|fma4?|bmi2?|sse[34].*|f16c|lzcnt))")
COMPLAINT = re.compile(r"\berror:|cannot find|undefined reference", re.IGNORECASE)


def builder(isa: str) -> FFI:
    ffi = FFI()
    ffi.cdef(HEADER)
    ffi.set_source(
        f"gpt2flat.kernels._{isa}",
        '#include "kernels.c"',
        include_dirs=["csrc"],
        define_macros=[("SOURCES_HASH", f"INT64_C({HASH})")],
        depends=[str(path.relative_to(HERE.parent)) for path in RECORD["sources"](HERE)],
        extra_compile_args=FLAGS + ISA_FLAGS[isa],
        optional=True,
    )
    return ffi


scalar, avx2, avx512, avx512bf16 = (builder(isa) for isa in ISA_FLAGS)
MODULES = [f"csrc/build.py:{isa}" for isa in ISA_FLAGS if X86 or isa == "scalar"]


@contextlib.contextmanager
def overheard():
    """Within, the lines that this process and the compilers that it starts write to stderr are kept, and passed on at the end."""
    lines, language = [], os.environ.get("LC_ALL")
    sys.stderr.flush()
    with tempfile.TemporaryFile("w+", errors="replace") as kept:
        terminal = os.dup(2)
        os.dup2(kept.fileno(), 2)
        os.environ["LC_ALL"] = "C"  # record.py knows the English words
        try:
            yield lines
        finally:
            os.environ.pop("LC_ALL") if language is None else os.environ.update(LC_ALL=language)
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            kept.seek(0)
            lines += kept.read().splitlines()
            sys.stderr.writelines(f"{line}\n" for line in lines)


class BuildKernels(build_ext):
    """Builds each variant by itself, with OpenMP and failing that without; leaves the record, and in a wheel libgomp."""

    def run(self) -> None:
        self.variants, self.into_tree = {}, bool(self.inplace)  # setuptools clears `inplace` while it builds
        super().run()
        folders = {Path(self.build_lib), Path(self.get_ext_fullpath("gpt2flat.kernels._")).parents[2]}
        record = {"sources": HASH, "compiler": self.version(), "variants": self.variants}
        for folder in folders:
            (folder / "gpt2flat" / "kernels" / RECORD["NAME"]).write_text(json.dumps(record, indent=1) + "\n")

    def build_extensions(self) -> None:
        for tool in ("compiler_so", "compiler", "linker_so"):
            words = getattr(self.compiler, tool, None) or []
            setattr(self.compiler, tool, [word for word in words if not FORBIDDEN.fullmatch(word)])
        (Path(self.build_lib) / "gpt2flat" / "kernels").mkdir(parents=True, exist_ok=True)
        old = RECORD["read"](Path(self.build_lib) / "gpt2flat" / "kernels")
        complaints = [variant.get("error") for variant in old.get("variants", {}).values()]
        self.force = bool(self.force or old.get("sources") != HASH or any(complaints))
        super().build_extensions()
        if not self.into_tree and self.openmp_used() and sys.platform == "linux":
            self.copy_libgomp()

    def build_extension(self, ext) -> None:
        plain, errors = list(ext.extra_compile_args), []
        for openmp in [OPENMP, []] if OPENMP else [[]]:
            ext.extra_compile_args, ext.extra_link_args = plain + openmp, openmp
            with overheard() as heard:
                try:
                    super().build_extension(ext)
                    break
                except (CompileError, LinkError, BaseError, OSError, subprocess.CalledProcessError) as problem:
                    failure = str(problem)
            errors.append(next((line.strip() for line in heard if COMPLAINT.search(line)), failure))
        flags = [*getattr(self.compiler, "compiler_so", []), *ext.extra_compile_args]
        built = len(errors) < (2 if OPENMP else 1)
        self.variants[ext.name.rpartition("_")[2]] = {
            "built": built, "openmp": built and bool(ext.extra_link_args), "flags": " ".join(flags),
            "error": errors[0] if errors else None,
        }  # fmt: skip
        if not built:  # an older one must not stay behind
            for folder in (self.build_lib, *["."] * self.into_tree):
                Path(folder, self.get_ext_filename(ext.name)).unlink(missing_ok=True)
            print(f"gpt2flat: {ext.name} is left out: {errors[0]}", file=sys.stderr)

    def ask(self, question: str) -> str:
        """What the compiler answers to an option; "" if it cannot."""
        words = getattr(self.compiler, "compiler_so", None) or [""]
        program = itertools.takewhile(lambda word: not word.startswith("-"), words)  # may be "ccache gcc"
        try:
            return subprocess.run([*program, question], capture_output=True, text=True).stdout.strip()
        except OSError:
            return ""

    def version(self) -> str:
        return self.ask("--version").partition("\n")[0]

    def openmp_used(self) -> bool:
        return any(variant["openmp"] for variant in self.variants.values())

    def copy_libgomp(self) -> None:
        """The compiler's OpenMP runtime, under its own name, for machines that have none (gpt2flat/kernels/openmp.py)."""
        found = Path(self.ask("-print-file-name=libgomp.so.1"))
        if found.is_absolute() and found.exists():
            shutil.copyfile(found.resolve(), Path(self.build_lib) / "gpt2flat" / "kernels" / "libgomp.so.1")
        else:
            print("gpt2flat: the compiler names no libgomp.so.1: machines without one need Numba", file=sys.stderr)
