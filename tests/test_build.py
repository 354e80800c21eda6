"""Every way in which a build can fall short leaves a package that works or says in one line what to install.

Each case builds a copy of the source tree with a compiler of its own making, at -O0, or takes a copy of what another has built,
and asks the result what it runs on."""

import functools
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
TEMPTING = "-Ofast -march=native -ffast-math -g0"
ASK = """
import sys
from gpt2flat import kernels
k = kernels.backend()
print(k.name, "|", k.label, "|", k.openmp(), "|", ",".join(kernels.available_isas()) if k.name == "c" else "")
"""


def source(tree: Path) -> Path:
    """A source tree without what a build leaves."""
    keep = shutil.ignore_patterns("*.so", "__pycache__", "build.json", "_*.c")
    for name in ("csrc", "gpt2flat"):
        shutil.copytree(ROOT / name, tree / name, ignore=keep)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    return tree


@pytest.fixture
def tree(tmp_path) -> Path:
    return source(tmp_path / "tree")


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """builds(lacks) -> the tree that this compiler has built, under flags that a build must not take; built once."""

    @functools.cache
    def built(lacks: str) -> Path:
        tree = source(tmp_path_factory.mktemp("built") / "tree")
        done = build(tree, lacks, CFLAGS=TEMPTING)
        assert done.returncode == 0, done.stderr
        return tree

    return built


@pytest.fixture
def built(builds, tmp_path) -> Path:
    """A copy of a tree that was built, where nothing was lacking."""
    return shutil.copytree(builds("nothing"), tmp_path / "tree")


@pytest.fixture
def without_openmp(builds, tmp_path) -> Path:
    return shutil.copytree(builds("OpenMP"), tmp_path / "tree")


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
    assert done.returncode == 0 and done.stderr.count("is left out") == len(variants(tree)), done.stderr
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
    if best.startswith("avx512"):
        assert f"C kernels, avx2 ({best} not built, the compiler rejects -mavx512f: install a newer gcc" in label
    refused = ask(tree, "import os; os.environ['GPT2FLAT_ISA'] = 'avx512'\n")
    assert refused.returncode and "GPT2FLAT_ISA=avx512: this machine and build have scalar" in refused.stderr


def test_built_without_openmp_c_stands_back_for_numba(without_openmp):
    tree = without_openmp
    assert all(v["built"] and not v["openmp"] and "libgomp.spec" in v["error"] for v in variants(tree).values())
    name, label, openmp, _ = answer(tree)
    assert (name, openmp) == ("numba", "True")
    assert "C kernels built without OpenMP, OpenMP missing: apt install gcc" in label
    name, label, openmp, _ = answer(tree, "import sys; sys.modules['numba'] = None\n")
    assert (name, openmp) == ("c", "False") and "one thread, built without OpenMP: OpenMP missing" in label
    assert build(tree).returncode == 0  # libgomp was installed: the next build takes it
    assert all(v["openmp"] and v["error"] is None for v in variants(tree).values())
    assert answer(tree)[0] == "c"


def test_what_was_built_from_other_sources_is_an_error(built):
    tree = built
    flags = [v["flags"].split() for v in variants(tree).values()]
    assert all("-g0" in f and not {"-Ofast", "-march=native", "-ffast-math"} & {*f} for f in flags)  # law 7
    assert answer(tree)[0] == "c"
    with open(tree / "csrc" / "gelu.c", "a") as source:
        source.write("// an update\n")
    stale = ask(tree)
    said = stale.stderr.splitlines()[-1]
    assert stale.returncode and "were built from other sources" in said and f"pip install -e {tree}" in said
    line, environment = [sys.executable, "-m", "gpt2flat.train", "--steps", "1"], os.environ | {"PYTHONPATH": str(tree)}
    run = subprocess.run(line, cwd=tree, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stderr.count("\n")) == (9, 1) and "other sources" in run.stderr
    newest = max(path.stat().st_mtime for path in tree.rglob("*.so"))
    os.utime(tree / "csrc" / "gelu.c", (newest - 1e6, newest - 1e6))  # the clock does not decide, the content does
    assert build(tree, "AVX-512").returncode == 0 and answer(tree)[0] == "c"


def test_an_extension_left_behind_by_a_failed_build_goes(built):
    tree = built
    with open(tree / "csrc" / "gelu.c", "a") as source:
        source.write("// an update\n")
    build(tree, CC="/nowhere/gcc")
    assert not list(tree.rglob("*.so")) and "no C compiler" in answer(tree)[1]


def test_a_build_for_elsewhere_leaves_the_tree_alone(built):
    tree = built
    with open(tree / "csrc" / "kernels.c", "a") as source:
        source.write("\n")
    built = sorted(tree.glob("gpt2flat/kernels/*.so"))
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", "elsewhere"]
    done = subprocess.run(command, cwd=tree, env=os.environ | {"CC": "/nowhere/gcc"}, capture_output=True, text=True)
    assert done.returncode == 0 and "is left out" in done.stderr
    assert built and sorted(tree.glob("gpt2flat/kernels/*.so")) == built


def test_what_the_record_does_not_blame_is_not_blamed(without_openmp):
    """Built without OpenMP, but all there: the missing cffi is named, and no other instruction set is called missing."""
    tree = without_openmp
    no_cffi = "import sys\nfor name in ('_cffi_backend', 'cffi'): sys.modules[name] = None\n"
    assert "pip install cffi" in answer(tree, no_cffi)[1]
    label = answer(tree, "import os; os.environ['GPT2FLAT_ISA'] = 'scalar'\n")[1]
    assert label.count("OpenMP missing") == 1 and "not built" not in label


def test_what_lies_beside_the_sources_does_not_matter(built):
    tree = built
    (tree / "csrc" / ".#gelu.c").symlink_to("nobody@nowhere.1")  # an editor's lock
    (tree / "csrc" / "try.c").touch()
    assert answer(tree)[0] == "c"
    shutil.rmtree(tree / "csrc")  # as an installed copy
    (tree / "gpt2flat/kernels/build.json").unlink()
    assert "build.json is missing" in ask(tree).stderr.splitlines()[-1]
