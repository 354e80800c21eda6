"""Every way in which a build can fall short leaves a package that works or says in one line what to install.

Each case builds a copy of the source tree with a compiler of its own making, at -O0, and asks the result what it runs on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from gpt2flat.kernels import record

ROOT = Path(__file__).parents[1]
GCC = shutil.which("gcc")
WRAPPER = """#!/bin/sh
# gcc, but {what}
for word in "$@"; do
    shift
    case "$word" in {cases}
        -O3) set -- "$@" -O0 ;;
        *) set -- "$@" "$word" ;;
    esac
done
exec {gcc} "$@"
"""
REJECTS = '{pattern}) echo "gcc: error: {error}" >&2; exit 1 ;;'
COMPILERS = {  # what it lacks -> the case of its shell script
    "nothing": "",
    "Python.h": "-I*python*) ;;",  # the real error of a compiler that is not told where Python's headers are
    "AVX-512": REJECTS.format(pattern="-mavx512*", error="unrecognized command-line option '$word'"),
    "OpenMP": REJECTS.format(pattern="-fopenmp", error="cannot read spec file 'libgomp.spec': No such file or directory"),
}
ASK = """
import sys
from gpt2flat import kernels
k = kernels.backend()
print(k.name, "|", k.label, "|", k.openmp(), "|", ",".join(kernels.available_isas()) if k.name == "c" else "")
"""


@pytest.fixture
def tree(tmp_path):
    """A source tree without what a build leaves."""
    keep = shutil.ignore_patterns("*.so", "__pycache__", "build.json", "_*.c")
    for name in ("csrc", "gpt2flat"):
        shutil.copytree(ROOT / name, tmp_path / "tree" / name, ignore=keep)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / "tree")
    return tmp_path / "tree"


def build(tree: Path, lacks: str = "nothing", **environment) -> subprocess.CompletedProcess:
    """setup.py build_ext --inplace, as an editable install runs it, with a compiler that lacks something."""
    compiler = tree.parent / "cc"
    compiler.write_text(WRAPPER.format(what=f"without {lacks}", cases=COMPILERS[lacks], gcc=GCC))
    compiler.chmod(0o755)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = os.environ | {"CC": str(compiler)} | environment
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=300)


def ask(tree: Path, before: str = "", **environment) -> subprocess.CompletedProcess:
    found = os.environ | {"PYTHONPATH": str(tree)} | environment
    for name in ("GPT2FLAT_BACKEND", "GPT2FLAT_ISA"):
        found.pop(name, None)
    return subprocess.run([sys.executable, "-c", before + ASK], cwd=tree, env=found, capture_output=True, text=True, timeout=120)


def answer(tree: Path, before: str = "") -> list[str]:
    done = ask(tree, before)
    assert done.returncode == 0, done.stderr
    return [word.strip() for word in done.stdout.split("|")]


def variants(tree: Path) -> dict:
    return record.read(tree / "gpt2flat" / "kernels")["variants"]


@pytest.mark.parametrize("cc, lacks, words", [
    ("/nowhere/gcc", "nothing", "C kernels not built, no C compiler: apt install gcc, then pip install -e "),
    (None, "Python.h", "C kernels not built, Python.h missing: apt install python3-dev, then pip install -e "),
])  # fmt: skip
def test_without_compiler_or_headers_numba_serves_and_says_why(tree, cc, lacks, words):
    done = build(tree, lacks, **({"CC": cc} if cc else {}))
    assert done.returncode == 0 and done.stderr.count("is left out") == 3, done.stderr
    assert not list(tree.rglob("*.so")) and not any(v["built"] for v in variants(tree).values())
    name, label, _, _ = answer(tree)
    assert name == "numba" and f"Numba kernels ({words}{tree}" in label
    neither = ask(tree, "import sys; sys.modules['numba'] = None\n")
    assert words in neither.stderr.splitlines()[-1] and "gpt2flat[numba]" in neither.stderr.splitlines()[-1]


def test_a_compiler_that_rejects_avx512_builds_the_others(tree):
    assert build(tree, "AVX-512").returncode == 0
    assert [isa for isa, v in variants(tree).items() if v["built"]] == ["scalar", "avx2"]
    name, label, _, isas = answer(tree)
    best = harness.natives()[-1].isa
    assert name == "c" and isas in ("scalar", "scalar,avx2")
    if best == "avx512":
        assert "C kernels, avx2 (avx512 not built, the compiler rejects -mavx512f: install a newer gcc" in label
    refused = ask(tree, "import os; os.environ['GPT2FLAT_ISA'] = 'avx512'\n")
    assert refused.returncode and "GPT2FLAT_ISA=avx512: this machine and build have scalar" in refused.stderr


def test_built_without_openmp_c_stands_back_for_numba(tree):
    assert build(tree, "OpenMP").returncode == 0
    assert all(v["built"] and not v["openmp"] and "libgomp.spec" in v["error"] for v in variants(tree).values())
    name, label, openmp, _ = answer(tree)
    assert (name, openmp) == ("numba", "True")
    assert "C kernels built without OpenMP, OpenMP missing: apt install gcc" in label
    name, label, openmp, _ = answer(tree, "import sys; sys.modules['numba'] = None\n")
    assert (name, openmp) == ("c", "False") and "one thread, built without OpenMP: OpenMP missing" in label
    assert build(tree).returncode == 0  # libgomp was installed: the next build takes it
    assert all(v["openmp"] and v["error"] is None for v in variants(tree).values())
    assert answer(tree)[0] == "c"


def test_what_was_built_from_other_sources_is_an_error(tree):
    done = build(tree, CFLAGS="-Ofast -march=native -ffast-math -g0")
    assert done.returncode == 0, done.stderr
    flags = [v["flags"].split() for v in variants(tree).values()]
    assert all("-g0" in f and not {"-Ofast", "-march=native", "-ffast-math"} & {*f} for f in flags)  # law 7
    assert answer(tree)[0] == "c"
    with open(tree / "csrc" / "gelu.c", "a") as source:
        source.write("// an update\n")
    stale = ask(tree)
    said = stale.stderr.splitlines()[-1]
    assert stale.returncode and "were built from other sources" in said and f"pip install -e {tree}" in said
    run = subprocess.run([sys.executable, "-m", "gpt2flat.train", "--steps", "1"], cwd=tree, capture_output=True, text=True)
    assert (run.returncode, run.stderr.count("\n")) == (9, 1) and "other sources" in run.stderr
    newest = max(path.stat().st_mtime for path in tree.rglob("*.so"))
    os.utime(tree / "csrc" / "gelu.c", (newest - 1e6, newest - 1e6))  # the clock does not decide, the content does
    assert build(tree).returncode == 0 and answer(tree)[0] == "c"


def test_an_extension_left_behind_by_a_failed_build_goes(tree):
    build(tree)
    with open(tree / "csrc" / "gelu.c", "a") as source:
        source.write("// an update\n")
    build(tree, CC="/nowhere/gcc")
    assert not list(tree.rglob("*.so")) and "no C compiler" in answer(tree)[1]


@pytest.mark.parametrize("error, cause, cure", [
    ("x.c:57:10: fatal error: Python.h: No such file or directory", "Python.h missing", "apt install python3-dev"),
    ("x.c:55:14: fatal error: pyconfig.h: No such file or directory", "Python.h missing", "python3-dev"),
    ("gcc: fatal error: cannot read spec file 'libgomp.spec': No such file or directory", "OpenMP missing", "libgomp"),
    ("/usr/bin/ld: cannot find -lgomp: No such file or directory", "OpenMP missing", "libgomp"),
    ("clang: error: unsupported option '-fopenmp'", "OpenMP missing", "libgomp"),
    ("gcc: error: unrecognized command line option '-mavx512dq'; did you mean '-mavx512f'?", "rejects -mavx512dq", "newer"),
    ("clang: error: unknown argument: '-mavx512f'", "rejects -mavx512f", "newer"),
    ("[Errno 2] No such file or directory: 'gcc'", "no C compiler", "apt install gcc"),
    ("command 'gcc' failed: No such file or directory", "no C compiler", "apt install gcc"),
    ("gemm.c:3:1: error: expected ';'", "gemm.c:3:1: error: expected ';'", ""),
])  # fmt: skip
def test_a_complaint_becomes_a_cause_and_a_cure(error, cause, cure):
    assert cause in record.cause(error)[0] and cure in record.cause(error)[1] and bool(cure) == bool(record.cause(error)[1])


@pytest.mark.parametrize("content", ["", "[]", "{", '{"variants": 3}', None])
def test_a_record_that_is_none_is_as_if_absent(tmp_path, content):
    if content is not None:
        (tmp_path / record.NAME).write_text(content)
    assert record.read(tmp_path) == {}


def test_the_record_says_what_was_built():
    found = record.read()
    assert found["sources"] == record.source_hash(ROOT / "csrc") and found["compiler"]
    assert json.dumps(found) and all(isa in found["variants"] for isa in ("scalar",))
    assert all({"built", "openmp", "flags", "error"} == {*v} for v in found["variants"].values())


# --- what other systems do not have

ABSENT = {  # as on macOS and Windows
    "os": "sched_getaffinity preadv pread register_at_fork fchmod fchown O_NONBLOCK O_CLOEXEC O_DIRECTORY getuid",
    "mmap": "MADV_HUGEPAGE MADV_DONTNEED MAP_NORESERVE",
    "signal": "SIGHUP SIGKILL SIGPIPE",
}
DELETE = "import sys, numpy.random, subprocess, tempfile, {0}\nfor name in {1!r}.split():\n    if hasattr({0}, name): delattr({0}, name)\n"
MISSING = "import sys\nfor name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'): sys.modules[name] = None\n"
TRAIN = "from gpt2flat.train import main\nsys.exit(main(['--steps', '3', '-b', '2', '-s', '0', '--out', sys.argv[1]]))\n"


def test_functions_that_other_systems_lack_are_not_needed(tmp_path):
    gone = MISSING + "".join(DELETE.format(module, names) for module, names in ABSENT.items())
    done = harness.python("-c", gone + TRAIN, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    plain = harness.python("-c", "import sys\n" + TRAIN, str(tmp_path / "plain"))
    saved = [path / "checkpoints" / "step_00000003" / "model.bin" for path in (tmp_path / "run", tmp_path / "plain")]
    assert plain.returncode == 0 and saved[0].read_bytes() == saved[1].read_bytes()
    loaded = "from gpt2flat import Model\nprint(Model.load(sys.argv[1]).config.n_layer)\n"
    assert harness.python("-c", gone + loaded, str(saved[1])).stdout == "4\n"


@pytest.mark.parametrize("blocked", [("tiktoken", "numba", "regex"), ("tiktoken", "cffi", "_cffi_backend", "regex")])
def test_numpy_and_one_backend_are_enough(tmp_path, blocked):
    gone = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    done = harness.python("-c", gone + TRAIN, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert ("Numba kernels" if "cffi" in blocked else "C kernels") in done.stdout
