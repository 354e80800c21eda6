"""The Numba backend as a whole: chosen when asked or when C is missing, imported by nobody else, cached and silent."""

import numpy as np
import pytest

import harness
from gpt2flat import kernels
from gpt2flat.errors import UnsupportedCPUError
from gpt2flat.kernels import jit

TWINS = kernels.backend("numba")
NO_C = "import sys\nfor isa in ('scalar', 'avx2', 'avx512', 'avx512bf16'): sys.modules[f'gpt2flat.kernels._{isa}'] = None\n"
NO_CFFI = "import sys\nsys.modules['_cffi_backend'] = sys.modules['cffi'] = None\n"
NO_NUMBA = "import sys\nsys.modules['numba'] = None\n"
CHOICE = (
    "from gpt2flat import kernels\nk = kernels.backend()\nprint(k.name, '|', k.label, '|', 'numba' in sys.modules)\n"
)
REFUSED = """
from gpt2flat import kernels
from gpt2flat.errors import UnsupportedCPUError
try:
    kernels.backend({})
except UnsupportedCPUError as error:
    print(error)
"""


def said(code: str, monkeypatch, **environment) -> str:
    for name in ("GPT2FLAT_BACKEND", "GPT2FLAT_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = harness.python("-c", code)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_c_is_preferred_and_never_imports_numba(monkeypatch):
    assert said("import sys\n" + CHOICE, monkeypatch).endswith("| False\n")


@pytest.mark.parametrize("missing, why", [(NO_C, "no C kernels are built"), (NO_CFFI, "pip install cffi")])
def test_without_c_numba_is_taken_and_says_why(missing, why, monkeypatch):
    name, label, imported = said(missing + CHOICE, monkeypatch).strip().split(" | ")
    assert name == "numba" and why in label and imported == "True"


def test_an_explicit_wish_is_met_or_refused(monkeypatch):
    assert said("import sys\n" + CHOICE, monkeypatch, GPT2FLAT_BACKEND="numba").startswith(
        "numba | Numba kernels | True"
    )
    assert "pip install 'gpt2flat[numba]'" in said(NO_NUMBA + REFUSED.format("'numba'"), monkeypatch)
    neither = said(NO_C + NO_NUMBA[10:] + REFUSED.format(""), monkeypatch)
    assert "pip install -e " in neither and "gpt2flat[numba]" in neither and neither.count("\n") == 1
    assert "no C kernels" in said(NO_C + REFUSED.format("'c'"), monkeypatch)
    assert "no C kernels" in said(NO_C + REFUSED.format(""), monkeypatch, GPT2FLAT_ISA="avx2")
    with pytest.raises(UnsupportedCPUError, match="avx2"):
        kernels.backend("numba", "avx2")


COMPILE = """
import sys
import numpy as np
from gpt2flat import kernels
k = kernels.backend("numba")
k.announce = print if sys.argv[1:] else None
x = np.ones((3, 5), np.float32)
x.flags.writeable = False
for _ in range(2):
    kernels.run("residual_forward", out=np.empty_like(x), inp1=x, inp2=x.copy(), kernels=k)
"""


def test_compiling_is_announced_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    first, second = (harness.python("-c", COMPILE, "announce") for _ in range(2))
    assert first.stdout.count("compiling residual_forward") == 1 and first.stdout.count("\n") == 1, (
        first.stdout + first.stderr
    )
    assert second.stdout + second.stderr + first.stderr == "" and second.returncode == 0
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "other"))
    silent = harness.python("-c", COMPILE)
    assert silent.returncode == 0 and silent.stdout + silent.stderr == ""


def test_the_cache_falls_back(tmp_path):
    (tmp_path / "file").touch()
    closed, open_ = tmp_path / "file" / "below", tmp_path / "open"
    assert jit.cache_folder([closed, open_]).parent == open_
    assert jit.cache_folder([closed]) is None


def test_read_only_arrays_may_be_read():
    x = np.arange(15, dtype=np.float32).reshape(3, 5)
    x.flags.writeable = False
    out = np.full_like(x, np.nan)
    kernels.run("residual_forward", out=out, inp1=x, inp2=x.copy(), kernels=TWINS)
    assert (out == 2 * x).all() and not x.flags.writeable


def test_more_threads_than_numba_has_share_them(monkeypatch):
    monkeypatch.setattr(TWINS, "most_threads", lambda: 2)
    case = harness.Case("gelu_forward", harness.modest(harness.OP_OF["gelu_forward"]))
    few = harness.execute(case, TWINS, 2)
    views = {n: p and p.view for n, p in harness.place(case, TWINS, 5).items()}
    TWINS.bind(harness.KERNELS["gelu_forward"], views, case.dims | {"NT": 5})()
    assert TWINS.last_team() == 2
    harness.assert_same_bits("5 workers on 2 threads", few, {"out": views["out"]})


CALLERS = """
import threading
import numpy as np
from gpt2flat import kernels
x = np.random.default_rng(0).normal(size=(64, 300)).astype(np.float32)
outs = [np.empty_like(x) for _ in range(4)]

def many(out):
    for _ in range(50):
        kernels.run("gelu_forward", out=out, inp=x, threads=2, kernels=kernels.backend("numba"))

callers = [threading.Thread(target=many, args=(out,)) for out in outs]
for caller in callers:
    caller.start()
for caller in callers:
    caller.join()
assert all((out == outs[0]).all() for out in outs)
"""


@pytest.mark.parametrize("layer", ["default", "workqueue"])  # numba's own pool ends the process of two callers at once
def test_two_callers_at_once_wait_for_each_other(layer, monkeypatch):
    assert said(CALLERS, monkeypatch, NUMBA_THREADING_LAYER=layer) == ""


def test_the_peak_can_be_measured():
    run_rounds = TWINS.peak_round(2)
    run_rounds(3)
    assert TWINS.last_team() == 2 and TWINS.flops_of_peak_round() > 0


# --- without compiling

AS_PYTHON = """
import numba, harness, test_bench
from gpt2flat import kernels
from gpt2flat.kernels.ops import KERNELS, OP_OF
twins = kernels.backend("numba")
assert numba.config.DISABLE_JIT and not hasattr(twins.functions["gelu_forward"], "py_func")
few = dict(B=2, T=5, N=10, C=19, OC=18, KVH=2, group=2, HS=5, V=5, pad=3, extra=1, R=4, P=33)
many = dict(B=1, T=197, N=34, C=785, OC=20, KVH=1, group=1, HS=2, V=200, pad=3, extra=1, R=3, P=66000)
for name, kernel in KERNELS.items():
    small = harness.Case(name, harness.dims_of(OP_OF[name], few))
    large = harness.Case(name, harness.dims_of(OP_OF[name], many | (dict(N=7, C=5) if "classifier" in name else {})))
    harness.check(small, twins, 1)
    harness.check(harness.replace(small, fill="large"), twins, 1)
    harness.check(harness.Case(name, harness.dims_of(OP_OF[name], few | dict(BF16=1))), twins, 2)
    harness.check(harness.replace(small, acc=(1 << len(kernel.accs)) - 1, absent=True), twins, 3)
    harness.check(large, twins, 2)
    if any(arg.name == "p_drop" for arg in kernel.args):
        harness.check(harness.replace(small, p_drop=0.3), twins, 2)
test_bench.test_a_stream_touches_every_float_it_counts_once_a_round(twins, 2)
twins.peak_round(2)(1)
"""


def test_twins_are_plain_python_too(monkeypatch):
    """With NUMBA_DISABLE_JIT=1, for a debugger and for line coverage, they meet the same reference."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    done = harness.python("-W", "ignore", "-c", AS_PYTHON)
    assert done.returncode == 0, done.stderr[-3000:]
