"""What the build of the C kernels left beside them: build.json, and the hash of the sources that each extension carries.

csrc/build.py writes it and runs this file by its path, before anything is installed: only the standard library here."""

import hashlib
import json
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAME = "build.json"
# the compiler's words -> what is missing, what helps; the first that fits. {0} is the group of the pattern
CAUSES = (
    (r"Python\.h|pyconfig\.h", "Python.h missing", "apt install python3-dev"),
    (r"libgomp|lgomp|lomp|fopenmp", "OpenMP missing", "apt install gcc, which brings libgomp"),
    (r"(?:unrecognized|unknown|unsupported).*?(-m[\w.-]+)", "the compiler rejects {0}", "install a newer gcc"),
    (r"^\[Errno 2\]|^command .* failed: No such file", "no C compiler", "apt install gcc"),
)


def sources(csrc: Path) -> list[Path]:
    """What an extension is built from."""
    whole = csrc / "kernels.c"
    return [csrc / "build.py", whole, *(csrc / name for name in re.findall(r'#include "(.*?)"', whole.read_text()))]


def source_hash(csrc: Path) -> int:
    """60 bits that say which sources and flags an extension was built from."""
    found = hashlib.sha256()
    for path in sources(csrc):
        content = path.read_bytes()
        found.update(f"{path.name} {len(content)}\n".encode() + content)
    return int(found.hexdigest()[:15], 16)


def read(folder: Path = HERE) -> dict:
    """The record: {"sources": hash, "compiler": its version line, "variants": {isa: {"flags", "openmp", "error"}}}.

    `error` is the compiler's first complaint, None if there was none. Empty where no build has left a record."""
    try:
        found = json.loads((folder / NAME).read_text())
        variants = found["variants"].values()
        return found if type(found["sources"]) is int and all(isinstance(v, dict) for v in variants) else {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return {}


def expected_hash() -> int | None:
    """What the extensions must carry: the hash of csrc/ in a source tree, else the one in the record."""
    return source_hash(ROOT / "csrc") if in_source_tree() else read().get("sources")


def in_source_tree() -> bool:
    return (ROOT / "csrc" / "build.py").exists()


def rebuild() -> str:
    """The command that builds the kernels again."""
    return f"pip install -e {ROOT}" if in_source_tree() else "pip install --force-reinstall ."


def cause(error: str) -> tuple[str, str]:
    """What a compiler's complaint means, and what to install against it ("" if unknown)."""
    for pattern, problem, cure in CAUSES:
        if found := re.search(pattern, error, re.IGNORECASE):
            return problem.format(*found.groups()), cure
    return error, ""


def why_missing(isa: str, what: str = "built") -> str:
    """Why a variant was not built, or (what = "openmp") why without OpenMP, in a few words with the cure; "" if it was, or
    if the record does not know."""
    variant = read().get("variants", {}).get(isa, {})
    error = variant.get("error")
    if not isinstance(error, str) or variant.get(what):
        return ""
    problem, cure = cause(error)
    return f"{problem}: {cure}, then {rebuild()}" if cure else f"{problem}; afterwards {rebuild()}"

