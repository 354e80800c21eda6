"""What all tests share: a hypothesis profile, the full tier (--full), a last line that counts the parity tests left out."""

import ast
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent
os.environ.setdefault("NUMBA_NUM_THREADS", "8")  # read when numba is imported; so many threads the tests ask for
PARITY = {"test_parity.py": ("torch", "transformers")}  # test file -> what it imports beyond the `test` extra

FULL = "takes minutes or tools that few machines have; run by pytest --full"

settings.register_profile("gpt2flat", derandomize=True, deadline=None, max_examples=25, database=None, print_blob=True)
settings.load_profile("gpt2flat")


def left_out(found=find_spec) -> dict[str, list[str]]:
    """{test file: the modules it lacks here}, for the files that cannot run."""
    lacks = {name: [module for module in modules if found(module) is None] for name, modules in PARITY.items()}
    return {name: modules for name, modules in lacks.items() if modules and (HERE / name).exists()}


def count_tests(path: Path) -> int:
    """Test functions of a file that cannot be imported."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return sum(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in nodes)


def advice(lacks: dict[str, list[str]]) -> str:
    tests = sum(count_tests(HERE / name) for name in lacks)
    modules = sorted({module for modules in lacks.values() for module in modules})
    return f"{tests} parity tests left out: no {' and no '.join(modules)}; to run them: pip install -e '.[parity]'"


collect_ignore = list(left_out())


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run what takes minutes: sanitizers, seeded faults, old CPUs")


def pytest_configure(config):
    config.addinivalue_line("markers", f"full: {FULL}")


def pytest_collection_modifyitems(config, items):
    """The full tier is left out unless asked for, or named by -m."""
    if config.getoption("--full") or config.getoption("-m"):
        return
    slow = [item for item in items if item.get_closest_marker("full")]
    if slow:
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=slow)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    """Prints behind pytest's own last line, so that nobody takes a shorter suite for the whole."""
    result = yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter and collect_ignore:
        reporter.write_line(advice(left_out()), yellow=True)
    return result
