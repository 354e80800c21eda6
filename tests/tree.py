"""A copy of the source tree that a test may change, build and test in processes of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from gpt2flat.kernels import available_isas

ROOT = Path(__file__).parents[1]
PARTS = ("csrc", "gpt2flat", "tests", "setup.py", "pyproject.toml", "README.md")
BUILT = shutil.ignore_patterns("__pycache__", "_*.c", "*.so", "build.json")
WHERE = "import gpt2flat; from gpt2flat import kernels; print(gpt2flat.__file__, *kernels.available_isas())"


class Tree:
    def __init__(self, folder: Path, **environment: str):
        self.folder, self.environment = folder, environment
        folder.mkdir(parents=True)
        for name in PARTS:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=BUILT)
            else:
                shutil.copy2(ROOT / name, folder)

    def replace(self, file: str, old: str, new: str) -> None:
        """Changes the one place in a file that reads `old`."""
        text = (self.folder / file).read_text()
        assert text.count(old) == 1, f"{file} holds {text.count(old)} times, expected once: {old}"
        (self.folder / file).write_text(text.replace(old, new))

    def restore(self, file: str) -> None:
        shutil.copy(ROOT / file, self.folder / file)

    def python(self, *words: str, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess:
        """Python in this tree, not measured for coverage. Byte code is not kept: a file changed twice in a second would
        look unchanged."""
        foreign = ("PYTHON", "PYTEST", "NUMBA_CACHE", "COV")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        here = {
            "PYTHONPATH": os.pathsep.join(map(str, (self.folder, self.folder / "tests"))),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        wanted = inherited | here | self.environment | environment
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=self.folder, env=wanted, capture_output=True, text=True, timeout=timeout)

    def build(self, **environment: str) -> None:
        """Compiles the C kernels here, all that the tree under test has. AssertionError with the compiler's words."""
        for old in (self.folder / "gpt2flat/kernels").glob("_*.so"):
            old.unlink()
        done = self.python("setup.py", "-q", "build_ext", "--inplace", "--force", **environment)
        found = {path.name.split(".")[0] for path in (self.folder / "gpt2flat/kernels").glob("_*.so")}
        assert found >= {f"_{isa}" for isa in available_isas()}, (
            f"only {found} were built\n{done.stdout}\n{done.stderr}"
        )

    def check(self, **environment: str) -> None:
        """What is imported here is what was built here, on every instruction set."""
        found = self.python("-c", WHERE, **environment)
        file, *isas = found.stdout.split() or [""]
        assert Path(file).is_relative_to(self.folder) and isas == available_isas(), found.stdout + found.stderr

    def pytest(self, *words: str, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess:
        return self.python("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *words, timeout=timeout, **environment)
