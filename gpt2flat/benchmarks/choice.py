"""Which kernels are compared, and whose loops measure the memory."""

from collections.abc import Callable, Sequence

from ..errors import UnsupportedCPUError, UsageError
from ..kernels import available_isas, backend
from .machine import Machine

ALL = "all"


def open_machines(
    name: str | None,
    isas: Sequence[str] | None,
    threads: int,
    tell: Callable[[str], None],
    usual: Callable | None = None,
) -> list[Machine]:
    """The kernels of a backend ("c", "numba", "all", None: no wish) and of instruction sets of C, with their peaks
    measured.

    usual: makes the instruction sets from those that there are, where there is no wish; the twins are then left out
    unless there is no C. What cannot be had of all is told. Raises UnsupportedCPUError, UsageError."""
    wished = None if isas is None or ALL in isas else list(isas)
    if name == "numba" and wished:
        raise UsageError(f"{', '.join(wished)}: of the C kernels, Numba finds its own: leave --isa or GPT2FLAT_ISA out")

    def native() -> list:
        default = usual and isas is None
        return [backend("c", isa) for isa in wished or (usual(available_isas()) if default else available_isas())]

    ways = {"c": native, "numba": lambda: [_twins(tell)]}
    ways = {way: make for way, make in ways.items() if name in (None, ALL, way) and not (way == "numba" and wished)}
    found, missing = [], []
    for make in ways.values():
        if found and usual and name is None and isas is None:
            break
        try:
            found += make()
        except UnsupportedCPUError as problem:
            missing.append(str(problem))
    if not found:
        raise UnsupportedCPUError("; ".join(missing))
    for problem in missing:
        tell(f"left out: {problem}")
    machines = [Machine(kernels, threads) for kernels in found]
    for machine in machines:
        machine.measure_peaks()
    return machines


def _twins(tell: Callable[[str], None]):
    kernels = backend("numba")
    kernels.announce = tell
    return kernels


def best(have: list[str]) -> list[str]:
    return have[-1:]


def best_and_avx2(have: list[str]) -> list[str]:
    """The best, and what most laptops have."""
    return have[-1:] + ["avx2"] * ("avx2" in have[:-1])


def stream_kernels(machines: list[Machine]) -> list:
    """Whose loops measure memory: the two widest of C, whatever is compared, or else the twins."""
    try:
        return [backend("c", isa) for isa in available_isas()[-2:]]
    except UnsupportedCPUError:
        return [machine.kernels for machine in machines]
