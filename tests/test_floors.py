"""The floors of the package: imports point down, never up; no cycles; nothing that runs data or needs a framework."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gpt2flat"
FLOORS = {
    "errors": 0, "kernels": 0, "memory": 0, "binding": 1, "program": 1, "arch": 2, "weights": 3, "update": 3, "model": 3, "formats": 3, "data": 3,
    "training": 4, "generation": 4, "evaluation": 4, "checks": 4, "inspection": 4, "benchmarks": 4,
}  # fmt: skip
COMMANDS = 5  # every other file directly in gpt2flat/, and the package itself
APART = "benchmarks.peer"  # run by its path as a process of its own, where torch may be: no module imports it
BANNED = {"torch", "transformers", "pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
RUNS_DATA = {"eval", "exec", "compile", "__import__"}


def modules(package: Path) -> dict[str, Path]:
    """{dotted name below the package ("kernels.ops", "" for the package): file}."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def floor(module: str) -> int:
    return FLOORS.get(module.split(".")[0], COMMANDS)


def imports(module: str, path: Path, known) -> set[str]:
    """Modules of the package that `module` imports, wherever in the file."""
    above = module.split(".") if path.name == "__init__.py" and module else module.split(".")[:-1]
    targets = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "gpt2flat"]
            targets |= {name.partition(".")[2] for name in names}
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "gpt2flat"):
            if node.level:
                base = above[: len(above) - node.level + 1] + (node.module or "").split(".")
            else:
                base = node.module.split(".")[1:]
            start = ".".join(part for part in base if part)
            inner = {".".join(filter(None, (start, alias.name))) for alias in node.names}
            targets |= (inner & known.keys()) | ({start} if inner - known.keys() else set())
    return targets - {module}


def graph(package: Path) -> dict[str, set[str]]:
    known = modules(package)
    return {module: imports(module, path, known) for module, path in known.items()}


def upward(edges: dict[str, set[str]]) -> list[str]:
    pairs = [(a, b) for a in edges for b in edges[a] if floor(b) > floor(a)]
    return [f"{a or 'gpt2flat'} (floor {floor(a)}) imports {b or 'gpt2flat'} (floor {floor(b)})" for a, b in pairs]


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """One import cycle, or nothing."""
    done, path = set(), []

    def visit(module) -> list[str]:
        if module in path:
            return path[path.index(module) :] + [module]
        if module in done:
            return []
        path.append(module)
        for target in sorted(edges.get(module, ())):
            if found := visit(target):
                return found
        done.add(path.pop())
        return []

    return next((found for module in sorted(edges) if (found := visit(module))), [])


def dangers(package: Path) -> list[str]:
    found = []
    for module, path in modules(package).items():
        banned = BANNED - {"torch"} if module == APART else BANNED
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                found += [f"{path.name}:{node.lineno} imports {name}" for name in names if name.split(".")[0] in banned]
            elif isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else ""
                pickled = any(k.arg == "allow_pickle" and getattr(k.value, "value", True) for k in node.keywords)
                found += [f"{path.name}:{node.lineno} calls {called}"] * (called in RUNS_DATA)
                found += [f"{path.name}:{node.lineno} allows pickle"] * pickled
    return found


def test_imports_point_down():
    assert upward(graph(PACKAGE)) == []


def test_there_is_no_import_cycle():
    assert cycle(graph(PACKAGE)) == []


def test_nothing_runs_data_or_needs_a_framework():
    assert dangers(PACKAGE) == []


def test_what_runs_apart_is_apart():
    edges = graph(PACKAGE)
    assert not edges[APART] and not any(APART in targets for targets in edges.values())


def test_the_walk_sees_the_package():
    edges = graph(PACKAGE)
    assert {"kernels.ops", "kernels.native", "kernels.checked", "errors"} <= edges["kernels"] | edges["kernels.native"]
    assert "memory.axes" in edges["kernels.checked"]
    assert {name.split(".")[0] for name in edges} >= {"errors", "kernels", "memory"}


GOOD = {
    "errors.py": "",
    "kernels/__init__.py": "from . import ops\nfrom ..errors import X",
    "kernels/ops.py": "from ..memory.axes import split",
    "memory/__init__.py": "",
    "memory/axes.py": "import ast",
    "model.py": "from .memory import axes\nfrom gpt2flat.kernels import ops",
    "train.py": "from gpt2flat import model\nimport re\nre.compile('a')",
    "__init__.py": "from .model import Model",
}
BAD = [
    ("errors.py", "from .model import Model", upward),
    ("kernels/ops.py", "def f():\n    from .. import model", upward),
    ("memory/axes.py", "import gpt2flat.train", upward),
    ("model.py", "from gpt2flat import Model", upward),
    ("memory/axes.py", "from ..kernels.ops import OPS", cycle),
    ("kernels/ops.py", "from ..kernels import run", cycle),
]
RISKY = [
    "import torch", "from torch import nn", "def f():\n    import pickle", "from transformers.models import gpt2",
    "eval('1')", "exec(compile('1', '', 'exec'))", "np.load(f, allow_pickle=True)", "__import__('os')",
]  # fmt: skip


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_sound_package_passes(tmp_path):
    package = write(tmp_path, GOOD)
    assert upward(graph(package)) == [] and cycle(graph(package)) == [] and dangers(package) == []
    assert graph(package)["model"] == {"memory.axes", "kernels.ops"}


@pytest.mark.parametrize("name, text, rule", BAD, ids=[f"{rule.__name__}-{name}" for name, _text, rule in BAD])
def test_a_wrong_import_is_seen(tmp_path, name, text, rule):
    assert rule(graph(write(tmp_path, GOOD | {name: text})))


@pytest.mark.parametrize("text", RISKY)
def test_a_danger_is_seen(tmp_path, text):
    assert dangers(write(tmp_path, GOOD | {"train.py": text}))
