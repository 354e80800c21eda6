"""What an installed copy leans on: the build record, and only what every system and every minimal installation has."""

import json
from pathlib import Path

import pytest

import harness
from gpt2flat.kernels import record

ROOT = Path(__file__).parents[1]


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


@pytest.mark.parametrize("content", ["", "[]", "{", '{"variants": 3}', '{"sources": "x", "variants": {}}', '{"sources": 1, "variants": {"avx2": 3}}', None])
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
    "os": "sched_getaffinity preadv pread register_at_fork fchmod fchown O_NONBLOCK O_CLOEXEC O_DIRECTORY O_DIRECT getuid",
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
