"""One OpenMP runtime in a process, whoever came first: two that alternate cost some 600 times a kernel's time."""

import pytest

import harness
from gpt2flat.kernels import openmp

# Alternates two loops of threads and prints the runtimes in this process and the worst factor over doing each alone.
ALTERNATE = """
import statistics, sys, time
{imports}
import numpy as np
from gpt2flat import kernels
from gpt2flat.kernels import openmp

x = np.ones((64, 1024), np.float32)
y, c = np.empty_like(x), kernels.backend("c")
ours = lambda: kernels.run("gelu_forward", out=y, inp=x, threads=2, kernels=c)
{other}
def ms(*calls):
    laps = []
    for _ in range(60):
        start = time.perf_counter()
        for call in calls:
            call()
        laps.append(time.perf_counter() - start)
    return statistics.median(laps) * 1e3

for call in (ours, theirs):
    call()
alone = ms(ours) + ms(theirs)
print(len(openmp.loaded()), ms(ours, theirs) / alone, openmp.loaded())
"""
OTHERS = {
    "numba": """
numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
@numba.njit(parallel=True)
def add(a, b):
    for i in numba.prange(a.size):
        b[i] = a[i] + 1
theirs = lambda: add(x.reshape(-1), y.reshape(-1))
""",
    "torch": """
torch.set_num_threads(2)
t = torch.ones(1 << 18)
theirs = lambda: t.add_(1)
""",
}


def alternate(first: str, second: str, other: str, monkeypatch) -> tuple[int, float, str]:
    """How many runtimes, the factor, and their paths; both packages imported and used in this order."""
    monkeypatch.setenv("NUMBA_THREADING_LAYER", "omp")
    use = {"gpt2flat": "from gpt2flat import kernels as k; k.backend('c')", "numba": "import numba", "torch": "import torch"}
    done = harness.python("-c", ALTERNATE.format(imports=f"{use[first]}\n{use[second]}", other=OTHERS[other]))
    assert done.returncode == 0, done.stderr
    count, factor, paths = done.stdout.split(maxsplit=2)
    return int(count), float(factor), paths


def check_beside(other: str, ours_first: bool, monkeypatch) -> None:
    order = ("gpt2flat", other) if ours_first else (other, "gpt2flat")
    for _ in range(3):  # a machine that is busy elsewhere slows threads that wait for each other
        count, factor, paths = alternate(*order, other, monkeypatch)
        assert count == 1, paths
        if factor < 20:
            return
    raise AssertionError(f"alternating kernels take {factor:.0f} times what they take alone, with {paths}")


@pytest.mark.parametrize("ours_first", [True, False], ids=["gpt2flat first", "numba first"])
def test_one_runtime_beside_numba(ours_first, monkeypatch):
    check_beside("numba", ours_first, monkeypatch)


def test_the_runtimes_of_a_process_are_told(tmp_path):
    code = "import gpt2flat\nfrom gpt2flat.kernels import openmp, backend\nbackend('c')\nprint(openmp.loaded())"
    assert harness.python("-c", code).stdout.count("libgomp") == 1
    assert harness.python("-c", "from gpt2flat.kernels import openmp\nprint(openmp.loaded())").stdout == "[]\n"


def test_two_runtimes_are_seen(tmp_path):
    """A copy under a name of its own, as most wheels carry one."""
    assert openmp.load()
    copy = tmp_path / "libgomp-f9a9ad78.so.1.0.0"
    copy.write_bytes(open(openmp.loaded()[0], "rb").read())
    content = copy.read_bytes().replace(b"libgomp.so.1\0", b"libgomp.s0.1\0")  # the name that it is known by
    copy.write_bytes(content)
    code = f"import ctypes\nfrom gpt2flat.kernels import openmp, backend\nbackend('c')\nctypes.CDLL({str(copy)!r})\nprint(len(openmp.loaded()))"
    assert harness.python("-c", code).stdout == "2\n"


def test_a_runtime_of_the_wheel_serves_where_the_system_has_none(tmp_path, monkeypatch):
    assert openmp.load()
    own = tmp_path / "libgomp.so.1"
    own.write_bytes(open(openmp.loaded()[0], "rb").read())
    code = (
        "import ctypes\nfrom gpt2flat.kernels import openmp\nopenmp.OWN = {!r}\nopen_ = ctypes.CDLL\n"
        "def without_system(name, *more):\n    if name == 'libgomp.so.1': raise OSError(name)\n    return open_(name, *more)\n"
        "ctypes.CDLL = without_system\n{}print(openmp.load(), openmp.loaded())"
    )
    use = "from gpt2flat import kernels\nkernels.backend('c')\n"  # its NEEDED libgomp.so.1 is the one that is there
    done = harness.python("-c", code.format(str(own), "openmp.load()\n" + use))
    assert done.stdout == f"True ['{own}']\n", done.stderr
    assert harness.python("-c", code.format("/nowhere", "")).stdout == "False []\n"
