"""What all tests share: a hypothesis profile, two processes, the full tier (--full), last lines that count what was left out."""

import ast
import os
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

HERE = Path(__file__).parent
os.environ["PYTHONSAFEPATH"] = "1"  # a clone without kernels must not hide the installed copy that is being tested
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))  # for scripts there
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it, and so would its children
os.environ.setdefault("NUMBA_NUM_THREADS", "8")  # read when numba is imported; so many threads the tests ask for
# test file -> what it needs beyond the `test` extra: modules, programs; and what brings them
NEEDS = {
    "test_parity.py": (("torch", "transformers"), "pip install -e '.[parity]'"),
    "test_generation_parity.py": (("torch", "transformers"), "pip install -e '.[parity]'"),
    "test_bench_torch.py": (("torch",), "pip install -e '.[torch]'"),
    "test_bench_plot.py": (("matplotlib",), "pip install -e '.[plot]'"),
    "test_plot.py": (("matplotlib",), "pip install -e '.[plot]'"),
    "test_hub.py": (("huggingface_hub",), "pip install -e '.[hub]'"),
    "test_bpe_learned.py": (("tokenizers",), "pip install -e '.[bpe]'"),
    "test_lm_eval.py": (("lm_eval",), "pip install -e '.[harness]'"),
    "test_tensorboard.py": (("tensorboard",), "pip install -e '.[tensorboard]'"),
    "test_build.py": (("gcc",), "apt install gcc python3-dev"),
}

# A second process takes these, where the whole suite runs on two CPUs or more: they keep one core busy for half of the time, and
# none has a clock in it that a busy core would upset. The first of them compiles all twins; those of BEHIND find them compiled.
BESIDE = ("test_kernels.py", "test_misuse.py", "test_guard_pages.py", "test_build.py", "test_faults.py", "test_fuzz.py")
BEHIND = {f"test_{name}.py" for name in ("bench", "bench_step", "decoder", "dropout", "install", "lifetimes", "model", "openmp",
          "order_of_sums", "packed", "process", "stored_parity", "team", "twins")}  # fmt: skip
STEP_BACK = 5  # nice: that process gets a quarter of a CPU that the other wants, so teams of threads there wait little for it

FULL = "takes minutes or tools that few machines have; run by pytest --full"

settings.register_profile("gpt2flat", derandomize=True, deadline=None, max_examples=25, database=None, print_blob=True)
settings.load_profile("gpt2flat")


def present(name: str) -> bool:
    return bool(shutil.which(name) or find_spec(name))


def left_out(present=present) -> dict[str, list[str]]:
    """{test file: the modules and programs it lacks here}, for the files that cannot run."""
    lacks = {file: [name for name in names if not present(name)] for file, (names, _) in NEEDS.items()}
    return {file: names for file, names in lacks.items() if names and (HERE / file).exists()}


def count_tests(path: Path) -> int:
    """Test functions of a file that cannot be imported."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return sum(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in nodes)


def advice(lacks: dict[str, list[str]]) -> list[str]:
    """One line a file that was left out."""
    return [
        f"{file}: {count_tests(HERE / file)} tests left out: no {' and no '.join(names)}; to run them: {NEEDS[file][1]}"
        for file, names in lacks.items()
    ]


collect_ignore = list(left_out())


@pytest.fixture
def put(tmp_path):
    """put(data) -> path of a file that holds data."""

    def write(data, name="file.bin"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current directory, where no data are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT2FLAT_DATA", raising=False)
    return tmp_path


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run what takes minutes: sanitizers, seeded faults, old CPUs")


def pytest_configure(config):
    config.addinivalue_line("markers", f"full: {FULL}")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Two processes for the whole of the fast tier, by pytest-xdist; what is named by file, debugged or slow runs in one (-n 0 or 2
    says so for any)."""
    if hasattr(config, "workerinput") or getattr(config.option, "numprocesses", 0) is not None:
        return  # one of the two, or somebody has said how many, or there is no pytest-xdist
    plain = config.args_source is pytest.Config.ArgsSource.TESTPATHS and config.getoption("capture") != "no"
    if plain and not any(map(config.getoption, ("full", "markexpr", "keyword", "usepdb", "collectonly", "trace"))):
        from gpt2flat.memory.limits import affinity  # here, where coverage sees it

        config.option.numprocesses = 2 if len(affinity()) > 1 else 0


def is_beside(nodeid: str) -> bool:
    return Path(nodeid.partition("::")[0]).name in BESIDE


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Two(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return is_beside(nodeid)

    return Two(config, log)


def pytest_runtest_setup(item):
    if hasattr(item.config, "workerinput") and is_beside(item.nodeid) and hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, 0, max(STEP_BACK, os.getpriority(os.PRIO_PROCESS, 0)))


def order(item) -> int:
    name = item.path.name
    return BESIDE.index(name) if name in BESIDE else len(BESIDE) + (name in BEHIND)


def pytest_collection_modifyitems(config, items):
    """The full tier is left out unless asked for, or named by -m."""
    if hasattr(config, "workerinput"):
        items.sort(key=order)
    if config.getoption("--full") or config.getoption("-m"):
        return
    slow = [item for item in items if item.get_closest_marker("full")]
    if slow:
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=slow)
        if hasattr(config, "workeroutput"):
            config.workeroutput["slow"] = [item.nodeid for item in slow]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Both processes have left out the same tests, which are counted here once."""
    if node.gateway.id == "gw0" and (slow := getattr(node, "workeroutput", {}).get("slow")):
        node.config.hook.pytest_deselected(items=[SimpleNamespace(nodeid=nodeid) for nodeid in slow])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    """Prints behind pytest's own last line, so that nobody takes a shorter suite for the whole."""
    result = yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    for line in advice(left_out()) if reporter else ():
        reporter.write_line(line, yellow=True)
    return result
