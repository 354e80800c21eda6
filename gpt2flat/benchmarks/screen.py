"""The tables of the bench command as text, and the same rows as records for machines."""

from collections.abc import Iterable

from ..kernels import cpu_name
from ..kernels import record as build
from ..kernels.ops import MODES
from ..memory.arena import human
from .cases import Case
from .decoding import DecodeRow, PromptRow
from .machine import Machine, Times
from .measure import Row
from .peers import PeerRow
from .profile import Profile, ProfileRow
from .step import StepRow

# --- kernels ---------------------------------------------------------------------------------------------------------

COLUMNS = f"{'':12}{'ms':>10}{'25%':>11}{'75%':>11}{'GFLOP/s':>11}{'of peak':>9}{'GB/s':>9}{'of memory':>11}"
KERNEL_NOTES = """\
peak      GFLOP/s of independent FMAs in registers: {peaks}
memory    GB/s beyond the caches: {speeds}
shapes    of {shapes}
timing    median and quartiles of {repeats} rounds over the backends; calls repeat on the same aligned arrays, so what
          fits into the caches stays there. of peak, of memory: share of the FMAs, and of the speed at which the
          kernel's own reads and writes go over the same arrays without its arithmetic, measured in the same rounds
"""


def kernel_notes(machines: list[Machine], speeds: dict[str, float], shapes: str, repeats: int) -> str:
    return KERNEL_NOTES.format(
        peaks=", ".join(map(peaks, machines)),
        speeds=", ".join(f"{pattern} {speed / 1e9:.0f}" for pattern, speed in speeds.items()),
        shapes=shapes, repeats=repeats,
    )  # fmt: skip


def title(case: Case) -> str:
    calls = f", {case.calls} call{'s' * (case.calls > 1)} a step" if case.calls else ""
    return f"{case.kernel.name} {case}{calls}"


def kernel_lines(rows: list[Row], others: list[PeerRow]) -> list[str]:
    """A line for each machine, with how much longer each peer takes, and one for each peer."""
    lines = []
    for row in rows:
        lines.append(f"  {row.isa:10}{_times(row.times, 10, 11, 3)}{row.flops_per_s / 1e9:11.1f}{row.of_peak:9.0%}"
                     f"{row.bytes_per_s / 1e9:9.1f}{row.of_memory:11.0%}{_ratios(row, others)}")  # fmt: skip
    for other in others:
        flops = rows[0].case.flops / other.times.median
        lines.append(f"  {other.name:10}{_times(other.times, 10, 11, 3)}{flops / 1e9:11.1f}")
    return lines


def _times(times: Times, first: int, width: int, digits: int) -> str:
    low, high = (f"{1e3 * seconds:{width}.{digits}f}" for seconds in (times.low, times.high))
    return f"{1e3 * times.median:{first}.{digits}f}{low}{high}"


def _ratios(row: Row | StepRow, others: list[PeerRow]) -> str:
    return "".join(f"{f'{ratio:.2f}x':>8}" for ratio in ratios(row, others).values())


def ratios(row: Row | StepRow, others: list[PeerRow]) -> dict[str, float]:
    """How many times as long as this row each peer takes."""
    return {other.name: other.times.median / row.seconds for other in others}


def columns(text: str, names: Iterable[str]) -> str:
    """A head with a column for each peer."""
    return text + "".join(f"{f'/{name}':>8}" for name in names)


def peer_record(other: PeerRow, **of_what) -> dict[str, object]:
    return {"peer": other.name, "version": other.label, **of_what, **times_record(other.times)}


def machine_record(machines: list[Machine]) -> dict[str, object]:
    """Threads, build and peaks of what is compared."""
    built = build.read()
    variants = built.get("variants", {})
    return {
        "threads": machines[0].threads, "compiler": built.get("compiler"),
        "flags": {m.kernels.isa: variants[m.kernels.isa].get("flags") for m in machines if m.kernels.isa in variants},
        "peak_gflops": {m.kernels.isa: m.peak() / 1e9 for m in machines},
        "peak_bf16_gflops": {m.kernels.isa: m.peak(True) / 1e9 for m in machines if True in m.timed},
    }  # fmt: skip


def peaks(machine: Machine) -> str:
    """ "avx2 262", "avx512bf16 525 and 1050 of bf16"."""
    found = [f"{machine.peak(bf16) / 1e9:.0f}{' of bf16' * bf16}" for bf16 in machine.timed]
    return f"{machine.kernels.isa} {' and '.join(found)}"


def step_table(rows: list[Row]) -> str:
    """The calls of a step times their ms, by op and machine."""
    isas = list(dict.fromkeys(row.isa for row in rows))
    ops = list(dict.fromkeys(row.case.op.name for row in rows if row.case.calls))
    took = dict.fromkeys(((op, isa) for op in [*ops, "all"] for isa in isas), 0.0)
    for row in rows:
        for op in (row.case.op.name, "all") if row.case.calls else ():
            took[op, row.isa] += 1e3 * row.case.calls * row.seconds
    lines = [f"{'a step, ms':12}" + "".join(f"{isa:>16}" for isa in isas)]
    for op in [*ops, "all"]:
        lines.append(
            f"{op:12}" + "".join(f"{took[op, isa]:10.1f} {took[op, isa] / took['all', isa]:5.0%}" for isa in isas)
        )
    return "\n".join(lines)


def times_record(times: Times) -> dict[str, float]:
    names = {"ms": times.median, "ms_25": times.low, "ms_75": times.high, "ms_min": times.least, "ms_max": times.most}
    return {name: 1e3 * seconds for name, seconds in names.items()}


def record(row: Row, others: list[PeerRow]) -> dict[str, object]:
    """A row for machines: times in ms, rates in 10^9 a second, shares as fractions."""
    case = row.case
    return {
        "kernel": case.kernel.name, "op": case.op.name, "dims": case.dims, "accs": case.accs,
        "calls_per_step": case.calls,
        "backend": row.backend, "isa": row.isa, "threads": row.threads, "cpu": cpu_name(),
        **times_record(row.times), "array_bytes": row.arrays,
        "flops": case.flops, "gflops": row.flops_per_s / 1e9, "peak_gflops": row.peak / 1e9, "of_peak": row.of_peak,
        "bytes": row.moved, "gbytes_per_s": row.bytes_per_s / 1e9, "memory_gbytes_per_s": row.memory / 1e9,
        "of_memory": row.of_memory, "times_of": ratios(row, others),
    }  # fmt: skip


# --- the step --------------------------------------------------------------------------------------------------------

STEP_COLUMNS = f"{'':12}{'ms':>9}{'25%':>9}{'75%':>9}{'tokens/s':>10}{'GFLOP/s':>9}{'T_roof':>9}{'of roof':>9}{'peak':>8}{'GB/s':>7}"
STEP_NOTES = """\
T_roof    {parts}
          products and attention at the peak of FMAs in registers (GFLOP/s, {precision}), AdamW at the speed (GB/s) of its 4
          reads and 3 writes of every parameter: the best windows of the same rounds. ms: median and quartiles of {repeats}
memory    {memory}\
"""


def step_lines(rows: list[StepRow], others: list[PeerRow]) -> list[str]:
    """As kernel_lines."""
    lines, cost = [], rows[0].cost
    for row in rows:
        lines.append(f"  {row.isa:10}{_times(row.times, 9, 9, 2)}{row.tokens_per_s:10.0f}{row.flops_per_s / 1e9:9.1f}"
                     f"{1e3 * row.roof:9.2f}{row.of_roof:9.1%}{row.peak / 1e9:8.0f}{row.memory / 1e9:7.1f}"
                     f"{_ratios(row, others)}")  # fmt: skip
    for other in others:
        tokens, flops = cost.tokens / other.times.median, cost.flops / other.times.median
        lines.append(f"  {other.name:10}{_times(other.times, 9, 9, 2)}{tokens:10.0f}{flops / 1e9:9.1f}")
    return lines


def step_notes(rows: list[StepRow], precision: str, repeats: int) -> str:
    best = max(rows, key=lambda row: row.peak)
    parts = best.cost.parts(best.peak, best.memory)
    memory = ", ".join(f"{row.isa} {human(row.planned)} planned, {human(row.resident)} resident" for row in rows)
    return STEP_NOTES.format(
        parts=" + ".join(f"{name} {1e3 * seconds:.2f}" for name, seconds in parts.items())
        + f" = {1e3 * best.roof:.2f} ms ({best.isa})",
        precision=precision, repeats=repeats, memory=memory,
    )  # fmt: skip


def step_record(row: StepRow, others: list[PeerRow]) -> dict[str, object]:
    parts = row.cost.parts(row.peak, row.memory)
    return {
        "step": row.isa, "backend": row.backend, "isa": row.isa, "threads": row.threads, **times_record(row.times),
        "tokens": row.cost.tokens, "tokens_per_s": row.tokens_per_s, "flops": row.cost.flops,
        "gflops": row.flops_per_s / 1e9, "parameters": row.cost.parameters, "t_roof_ms": 1e3 * row.roof,
        "t_roof_parts_ms": {name: 1e3 * seconds for name, seconds in parts.items()}, "of_t_roof": row.of_roof,
        "peak_gflops": row.peak / 1e9, "peak_fp32_gflops": row.peak32 / 1e9, "memory_gbytes_per_s": row.memory / 1e9,
        "planned_bytes": row.planned, "resident_bytes": row.resident, "times_of": ratios(row, others),
    }  # fmt: skip


# --- the profile -----------------------------------------------------------------------------------------------------

PROFILE_COLUMNS = f"{'':50}{'calls':>6}{'ms':>9}{'share':>7}{'ideal':>9}{'lost':>9}{'of ideal':>9}{'rate':>17}"
PROFILE_NOTES = """\
ideal: the flops at the peak of FMAs, or the kernel's own reads and writes without arithmetic on its own arrays, one
call repeated; whichever takes longer, its rate is shown. Calls in their order within real steps, medians of {repeats} rounds
"""
UNTOLD = (*MODES, "V", "KVH", "R", "maxT")  # dims that a row of the profile leaves out: others tell as much


def profile_table(profile: Profile) -> str:
    total, lost = profile.total, profile.total - profile.ideal
    return "\n".join([
        PROFILE_COLUMNS,
        *(_profile_line(row, total) for row in profile.rows),
        _sum_line("outside of kernels: Python, batch, mean loss", profile.outside, total, 0.0, profile.outside),
        _sum_line("all", total, total, profile.ideal, lost),
        f"{'the step in the same rounds, off the clock':56}{1e3 * profile.step.seconds:9.2f}",
    ])  # fmt: skip


def _profile_line(row: ProfileRow, total: float) -> str:
    rate, unit = (row.flops_per_s, "GFLOP/s") if row.bound == "peak" else (row.bytes_per_s, "GB/s")
    return (f"{short_name(row.case):50}{row.count:6}{1e3 * row.seconds:9.2f}{row.seconds / total:7.1%}"
            f"{1e3 * row.ideal:9.2f}{1e3 * row.lost:9.2f}{row.ideal / row.seconds:9.0%}{rate / 1e9:9.1f} {unit}")  # fmt: skip


def short_name(case: Case) -> str:
    """ "linear_backward N256 C768 OC2304 +weight": what is added to is named."""
    sizes = [f"{dim}{size}" for dim, size in case.dims.items() if dim not in UNTOLD]
    return " ".join([case.kernel.name, *sizes, *(acc.replace("acc_", "+") for acc, on in case.accs.items() if on)])


def _sum_line(name: str, seconds: float, total: float, ideal: float, lost: float) -> str:
    return (f"{name:56}{1e3 * seconds:9.2f}{seconds / total:7.1%}{1e3 * ideal:9.2f}{1e3 * lost:9.2f}"
            f"{ideal / seconds:9.0%}")  # fmt: skip


def profile_record(row: ProfileRow, isa: str) -> dict[str, object]:
    case = row.case
    return {
        "profile": case.kernel.name, "isa": isa, "dims": case.dims, "accs": case.accs, "calls": row.count,
        "ms": 1e3 * row.seconds, "flops": row.flops, "gflops": row.flops_per_s / 1e9,
        "bytes": row.bytes, "gbytes_per_s": row.bytes_per_s / 1e9, "ideal_ms": 1e3 * row.ideal,
        "bound": row.bound, "lost_ms": 1e3 * row.lost, "peak_gflops": row.peak / 1e9,
        "memory_gbytes_per_s": row.memory / 1e9,
    }  # fmt: skip


# --- growth ----------------------------------------------------------------------------------------------------------

GROWTH_COLUMNS = (f"{'B':>4}{'T':>6}{'tokens':>8}{'ms':>11}{'25%':>10}{'75%':>10}{'us/token':>10}{'T_roof':>10}{'of roof':>9}"
                  f"{'attention':>11}{'AdamW':>8}{'peak':>7}{'GB/s':>6}")  # fmt: skip
GROWTH_NOTES = """\
growth    {model}: whole updates, medians and quartiles of {repeats} rounds
          T_roof: the least us of a token, products and attention at the peak (GFLOP/s), AdamW at the speed of its reads
          and writes (GB/s), measured in the same rounds. attention, AdamW: their parts of it
"""


def growth_line(B: int, T: int, row: StepRow | None) -> str:
    if row is None:
        return f"{B:4}{T:6}{B * T:8}   needs more memory than is free"
    tokens, parts = row.cost.tokens, row.cost.parts(row.peak, row.memory)
    return (f"{B:4}{T:6}{tokens:8}{_times(row.times, 11, 10, 2)}{1e6 * row.seconds / tokens:10.1f}"
            f"{1e6 * row.roof / tokens:10.1f}{row.of_roof:9.1%}{parts['attention'] / row.roof:11.1%}"
            f"{parts['AdamW'] / row.roof:8.1%}{row.peak / 1e9:7.0f}{row.memory / 1e9:6.1f}")  # fmt: skip


# --- decode ----------------------------------------------------------------------------------------------------------

DECODE_COLUMNS = f"{'weights':10}{'rows':>6}{'ms/step':>10}{'25%':>10}{'75%':>10}{'tokens/s':>10}{'of 1 row':>10}{'GB/s':>8}{'of memory':>11}"
PROMPT_COLUMNS = f"{'precision':10}{'ids':>6}{'ms':>10}{'25%':>10}{'75%':>10}{'tokens/s':>10}{'GFLOP/s':>10}{'of peak':>8}"
DECODE_NOTES = """\
decode    {model}, {isa}: steps of 1 and of several rows against a cache; medians and quartiles of {repeats} rounds
          GB/s: of the matrices, which a step reads once. of memory: share of the speed at which they are read without
          arithmetic, in turn with the steps. Below: reading a prompt, with the logits of what follows
"""


def decode_line(row: DecodeRow, alone: DecodeRow) -> str:
    """alone: the same weights with one row."""
    return (f"{row.weights:10}{row.rows:6}{_times(row.times, 10, 10, 3)}{row.tokens_per_s:10.1f}"
            f"{row.tokens_per_s / alone.tokens_per_s:9.2f}x{row.bytes / row.times.median / 1e9:8.1f}{row.of_memory:11.1%}")  # fmt: skip


def prompt_line(row: PromptRow) -> str:
    return (f"{row.precision:10}{row.tokens:6}{_times(row.times, 10, 10, 2)}{row.tokens_per_s:10.0f}"
            f"{row.flops / row.times.median / 1e9:10.1f}{row.of_peak:8.1%}")  # fmt: skip


def decode_record(row: DecodeRow) -> dict[str, object]:
    return {
        "decode": row.weights, "rows": row.rows, "isa": row.isa, "threads": row.threads, **times_record(row.times),
        "tokens_per_s": row.tokens_per_s, "bytes": row.bytes, "memory_gbytes_per_s": row.memory / 1e9, "of_memory": row.of_memory,
    }  # fmt: skip


def prompt_record(row: PromptRow) -> dict[str, object]:
    return {
        "prompt": row.precision, "tokens": row.tokens, "isa": row.isa, "threads": row.threads, **times_record(row.times),
        "tokens_per_s": row.tokens_per_s, "flops": row.flops, "peak_gflops": row.peak / 1e9, "of_peak": row.of_peak,
    }  # fmt: skip
