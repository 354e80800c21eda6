"""What this machine and this installation are: CPU, threads, memory, kernels, the record of their build, OpenMP."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import kernels
from ..errors import UnsupportedCPUError
from ..kernels import openmp, record
from ..memory.arena import human
from ..memory.limits import affinity, available_memory, cpu_quota

PACKAGES = ("gpt2flat", "numpy", "cffi", "numba", "tiktoken")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def lines() -> list[tuple[str, str]]:
    """(label, text), in the order of interest."""
    threads = kernels.default_threads()
    room, limit = available_memory()
    quota = cpu_quota()
    try:
        chosen = kernels.backend()
        use = chosen.label
    except UnsupportedCPUError as problem:
        use = f"none: {problem}"
    found = [
        ("machine", f"{platform.platform()}, {platform.machine()}"),
        ("cpu", f"{kernels.cpu_name()}; {_instructions()}"),
        ("threads", f"{threads.count} ({threads.why}); {len(affinity())} of {os.cpu_count()} logical CPUs may be used"
                    + (f", cgroup quota {quota:.2f}" if quota is not None else "")),
        ("memory", f"{human(room)} available ({limit}); transparent huge pages: {_huge_pages()}"),
        ("python", f"{platform.python_version()}, {sys.executable}"),
        ("packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES)),
        ("kernels", use),
    ]  # fmt: skip
    return found + [("build", text) for text in build()] + [("openmp", text) for text in _runtimes()]


def build() -> list[str]:
    """The record of the build of the C kernels, one line a variant."""
    found = record.read()
    if not found:
        return [f"no record in {record.HERE}: {record.rebuild()}"]
    stale = "" if found.get("sources") == record.expected_hash() else f"; OTHER SOURCES than these: {record.rebuild()}"
    told = [f"{found.get('compiler') or 'no compiler'}, sources {found.get('sources', 0):015x}{stale}"]
    for isa, variant in found["variants"].items():
        if variant.get("built"):
            how = "" if variant.get("openmp") else " without OpenMP"
            told.append(f"{isa}{how}: {variant.get('flags')}")
        if variant.get("error"):
            told.append(f"{isa}{'' if variant.get('built') else ' not built'}: {variant['error']}")
    return told


def _instructions() -> str:
    try:
        best, built = kernels.best_isa(), kernels.available_isas()
    except UnsupportedCPUError:
        return "instruction sets unknown without C kernels"
    return f"instruction sets up to {best}, built here for it: {', '.join(built)}"


def _runtimes() -> list[str]:
    found = openmp.loaded()
    if len(found) > 1:
        return [f"{path} (one of {len(found)}: two runtimes slow each other down)" for path in found]
    return found or ["none loaded"]


def _huge_pages() -> str:
    try:
        words = HUGE_PAGES.read_text().split()
    except OSError:
        return "unknown"
    return next((word.strip("[]") for word in words if word.startswith("[")), "unknown")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
