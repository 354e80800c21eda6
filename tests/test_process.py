"""Kernels and their process: the float environment stays, a forked child is told that they cannot run, threads are
as many as there are cores and quota."""

import ctypes
import platform

import numpy as np
import pytest

import harness
from gpt2flat import kernels
from gpt2flat.errors import UnsupportedCPUError
from gpt2flat.kernels import threads
from gpt2flat.kernels.ops import KERNELS, OP_OF

# --- the float environment


def control_word() -> int:
    """MXCSR without its sticky flags: rounding mode, masks, flush-to-zero, denormals-are-zero."""
    environment = ctypes.create_string_buffer(64)
    ctypes.CDLL("libm.so.6").fegetenv(environment)
    return int.from_bytes(environment.raw[28:32], "little") & 0xFFC0


GLIBC_X86 = platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_leave_the_float_environment_alone(name):
    before = control_word() if GLIBC_X86 else None
    for native in harness.backends():
        harness.execute(harness.Case(name, harness.modest(OP_OF[name])), native, 3)
    assert (control_word() if GLIBC_X86 else None) == before
    assert np.float32(1e-40) * np.float32(0.5) > 0 and np.float32(1) + np.float32(2**-24) == 1


IMPORT = "import numpy as np, gpt2flat.kernels as k; k.available_isas(); assert np.float32(1e-40) * np.float32(0.5) > 0"


def test_import_leaves_the_float_environment_alone():
    assert harness.python("-c", IMPORT).returncode == 0


# --- fork

FORK = """
import os, sys
import numpy as np
from gpt2flat import kernels
from gpt2flat.errors import ForkError

x = np.ones((40, 50), np.float32)
kernels.run("gelu_forward", out=x.copy(), inp=x, threads=2)
child = os.fork()
if child == 0:
    try:
        kernels.run("gelu_forward", out=x.copy(), inp=x, threads=2)
    except ForkError as error:
        os._exit(7 if "spawn" in str(error) else 8)
    os._exit(9)
_, status = os.waitpid(child, 0)
kernels.run("gelu_forward", out=x.copy(), inp=x, threads=2)  # the parent goes on
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("backend", ["c", "numba"])
def test_a_forked_child_gets_an_error_and_does_not_hang(backend, monkeypatch):
    monkeypatch.setenv("GPT2FLAT_BACKEND", backend)
    assert harness.python("-W", "ignore", "-c", FORK).returncode == 7


# --- how many threads, and what the CPU is called


def test_threads_are_physical_cores_within_the_quota(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "affinity", lambda: [0, 1, 2, 3, 4, 5])
    monkeypatch.setattr(threads, "_core_of", lambda cpu: cpu // 2)
    for quota, count, why in ((None, 3, "physical"), (8.0, 3, "physical"), (2.5, 2, "2.5 CPUs"), (0.3, 1, "0.3 CPUs")):
        monkeypatch.setattr(threads, "cpu_quota", lambda quota=quota: quota)
        chosen = kernels.default_threads()
        assert chosen.count == count and why in chosen.why
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    assert kernels.default_threads() == kernels.Threads(5, "OMP_NUM_THREADS")
    for nonsense in ("0", "-1", "many", "2.5", ""):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert kernels.default_threads().count == 1


class Team:
    """Kernels whose threads are 10 (the caller), 11, 12."""

    def team(self, count):
        return [10, 11, 12][:count]

    def ready(self):
        pass


def test_each_worker_has_a_core_of_its_own_and_the_caller_is_free(monkeypatch):
    bound = []
    monkeypatch.setattr(threads, "_cores", lambda: [{0, 1}, {2, 3}, {4, 5}])
    monkeypatch.setattr(threads.os, "sched_setaffinity", lambda who, cpus: bound.append((who, cpus)), raising=False)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda who: {0, 1, 2, 3, 4, 5}, raising=False)
    for name in threads.BINDING:
        monkeypatch.delenv(name, raising=False)
    kernels = Team()
    placement = threads.Placement(kernels, 3)
    assert not bound
    with placement:
        assert bound == [(11, {2, 3}), (12, {4, 5}), (0, {0, 1})]
    assert placement.workers == {11: {2, 3}, 12: {4, 5}} and bound[3:] == [(0, {0, 1, 2, 3, 4, 5})]
    with placement:  # the workers are bound already
        assert bound[4:] == [(0, {0, 1})]
    with pytest.raises(KeyboardInterrupt), placement:
        raise KeyboardInterrupt
    assert bound[-1] == (0, {0, 1, 2, 3, 4, 5})
    bound.clear()
    for count in (1, 2):  # cores to spare: the system knows better
        with threads.Placement(kernels, count):
            assert not bound
    with monkeypatch.context() as narrowed:
        narrowed.setattr(threads.os, "sched_getaffinity", lambda who: {4, 5}, raising=False)
        with threads.Placement(kernels, 3):  # another took the caller's core away since
            assert not bound
    bound.clear()
    monkeypatch.setenv("OMP_PROC_BIND", "false")
    with threads.Placement(kernels, 3):  # the user's word
        assert not bound
    monkeypatch.delenv("OMP_PROC_BIND")

    def forbidden(*_):
        raise PermissionError("no")

    monkeypatch.setattr(threads.os, "sched_setaffinity", forbidden, raising=False)
    with threads.Placement(kernels, 3):
        assert not bound


TEAM = """
import os, threading
from gpt2flat import Model
from gpt2flat.kernels import backend, threads
free = os.sched_getaffinity(0)
threads._cores = lambda: [{min(free)}, {max(free)}]
kernels, first = backend(), Model.init("tiny", threads=2)
os.sched_setaffinity(0, {max(free)}), os.sched_setaffinity(0, free)  # where the caller happens to be counts for nothing
models = [first, Model.init("tiny", threads=2)]
if (child := os.fork()) == 0:  # no kernel has run
    os._exit(0 if first.forward([[1, 2]], [[2, 3]]) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def masks():
    return [os.sched_getaffinity(thread) for thread in kernels.team(2)]

def use():
    for model in [*models, first]:
        with model._team:
            assert masks() == [{min(free)}, {max(free)}], masks()
        assert masks() == [free, {max(free)}], masks()
    assert kernels.team(2)[0] == threading.get_native_id()

failed = []
threading.excepthook = failed.append
use()
thread = threading.Thread(target=use)  # has workers of its own
thread.start(), thread.join()
use()
assert not failed, failed
"""


def test_a_model_binds_the_workers_of_its_team(monkeypatch):
    for name in threads.BINDING:
        monkeypatch.delenv(name, raising=False)
    said = harness.python("-W", "ignore", "-c", TEAM)
    assert said.returncode == 0, said.stderr


def test_without_the_systems_word_every_cpu_is_a_core(monkeypatch):
    def absent(*_):
        raise OSError("no such file")

    monkeypatch.setattr(threads.Path, "read_text", absent)
    assert threads._core_of(7) == 7 and kernels.cpu_name()


def test_a_backend_that_is_not_known_is_refused():
    with pytest.raises(UnsupportedCPUError, match="backend 'fortran' is not known here; choose from auto, c, numba"):
        kernels.backend("fortran")
