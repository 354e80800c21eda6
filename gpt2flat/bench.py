"""python -m gpt2flat.bench [OP ...]: each kernel on each backend and instruction set, against the machine's limits."""

import json
import os
import sys
from contextlib import nullcontext

from .benchmarks.cases import Case, resize, select, step_cases
from .benchmarks.machine import Machine, measure_memory
from .benchmarks.measure import Row, measure
from .command import Parser, number, open_kernels, run
from .errors import UnsupportedCPUError, UsageError
from .kernels import ISAS, MAX_THREADS, available_isas, backend, cpu_name, default_threads
from .kernels.ops import KERNELS, OPS
from .model import PRECISIONS, find_shape

BACKENDS = ("all", "c", "numba")
KINDS = ("all", *ISAS)
IMPOSSIBLE = 1
LARGEST = 1 << 40  # of a dim: far beyond any memory, far below where sizes overflow


def parser() -> Parser:
    p = Parser(
        "gpt2flat bench",
        description="Times kernels, each beside the limits of this machine measured in the same rounds.",
    )
    p.add_argument("names", nargs="*", metavar="OP", help="an op (linear) or a kernel (linear_backward); default: all")
    p.add_argument(
        "--init",
        default="d12",
        metavar="MODEL",
        help="whose shapes: a .bin checkpoint, a descriptor or a preset (d12)",
    )
    p.add_argument("-b", "--batch-size", type=number("--batch-size", int, 1, 1 << 20), default=4, metavar="B")
    p.add_argument("-t", "--seq-len", type=number("--seq-len", int, 1, 1 << 20), metavar="T",
                   help="default 64, or the block size if that is smaller")  # fmt: skip
    p.add_argument("--precision", choices=PRECISIONS, default="fp32", help="bf16: of the products, beside their peak")
    p.add_argument("--dims", type=dims, default={}, metavar="N=256,C=768", help="other dims than the model's")
    p.add_argument(
        "--backend", choices=BACKENDS, default=wish("GPT2FLAT_BACKEND", BACKENDS), help="default: all there are"
    )
    p.add_argument(
        "--isa",
        choices=KINDS,
        default=wish("GPT2FLAT_ISA", KINDS),
        help="of the C kernels; one of them leaves Numba out",
    )
    p.add_argument(
        "--threads", type=number("--threads", int, 1, MAX_THREADS), help="default: physical cores, or OMP_NUM_THREADS"
    )
    p.add_argument(
        "--repeats", type=number("--repeats", int, 1), default=9, help="rounds over the backends; the median counts (9)"
    )
    p.add_argument(
        "--seconds",
        type=number("--seconds", float, 0, 3600),
        default=0.005,
        help="of a kernel in a round, one call at least (0.005)",
    )
    p.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="one JSON object a line for each row, into FILE or in place of the table",
    )
    return p


def wish(variable: str, choices: tuple[str, ...]) -> str:
    """The choice that an environment variable makes. Raises UsageError."""
    word = os.environ.get(variable, "").strip().lower()
    if word not in ("", "auto", *choices):
        raise UsageError(f"{variable}={word}: expected one of {', '.join(choices)}")
    return "all" if word in ("", "auto") else word


def dims(text: str) -> dict[str, int]:
    """Reads "N=256,C=768". Raises UsageError."""
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if not name.strip().isidentifier() or not value.strip().isdecimal() or not 1 <= int(value) <= LARGEST:
            raise UsageError(f"--dims {part}: expected a dim and a whole number from 1, such as N=256")
        found[name.strip()] = int(value)
    return found


def open_machines(name: str, isa: str, threads: int) -> list[Machine]:
    """The kernels to compare. What cannot be had of `all` is said on stderr. Raises UnsupportedCPUError, UsageError."""
    if name == "numba" and isa != "all":
        raise UsageError(
            f"{isa} is an instruction set of the C kernels, Numba finds its own: leave --isa or GPT2FLAT_ISA out"
        )
    ways = {
        "c": lambda: [backend("c", one) for one in (available_isas() if isa == "all" else [isa])],
        "numba": lambda: [open_kernels("numba")],
    }
    chosen = [name] if name != "all" else ["c"] if isa != "all" else list(ways)
    found, missing = [], []
    for way in chosen:
        try:
            found += ways[way]()
        except UnsupportedCPUError as problem:
            missing.append(str(problem))
    if not found:
        raise UnsupportedCPUError("; ".join(missing))
    for problem in missing:
        print(f"left out: {problem}", file=sys.stderr)
    return [Machine(kernels, threads) for kernels in found]


def stream_kernels(machines: list[Machine]) -> list:
    """Whose loops measure memory: the two widest of C, whatever is compared, or else the twins."""
    try:
        return [backend("c", isa) for isa in available_isas()[-2:]]
    except UnsupportedCPUError:
        return [machine.kernels for machine in machines]


# --- the screen ------------------------------------------------------------------------------------------------------


COLUMNS = f"{'':12}{'ms':>10}{'least':>11}{'most':>11}{'GFLOP/s':>11}{'of peak':>9}{'GB/s':>9}{'of memory':>11}"
SCREEN = """\
machine   {machine}
peak      GFLOP/s of independent FMAs in registers: {peaks}
memory    GB/s beyond the caches: {speeds}
shapes    of {shapes}
timing    median, least and most of {repeats} rounds over the backends; calls repeat on the same aligned arrays, so what
          fits into the caches stays there. of peak, of memory: share of the FMAs, and of the speed at which the
          kernel's own reads and writes go over the same arrays without its arithmetic, measured in the same rounds
"""


def title(case: Case) -> str:
    calls = f", {case.calls} call{'s' * (case.calls > 1)} a step" if case.calls else ""
    return f"{case.kernel.name} {case}{calls}"


def line(row: Row) -> str:
    times = "".join(f"{1e3 * seconds:11.3f}" for seconds in (row.fastest, row.slowest))
    return (f"  {row.isa:10}{1e3 * row.seconds:10.3f}{times}{row.flops_per_s / 1e9:11.1f}{row.of_peak:9.0%}"
            f"{row.bytes_per_s / 1e9:9.1f}{row.of_memory:11.0%}")  # fmt: skip


def record(row: Row) -> dict[str, object]:
    """A row for machines: times in ms, rates in 10^9 a second, shares as fractions."""
    case = row.case
    return {
        "kernel": case.kernel.name, "op": case.op.name, "dims": case.dims, "accs": case.accs,
        "calls_per_step": case.calls,
        "backend": row.backend, "isa": row.isa, "threads": row.threads, "cpu": cpu_name(),
        "ms": 1e3 * row.seconds, "ms_min": 1e3 * row.fastest, "ms_max": 1e3 * row.slowest, "array_bytes": row.arrays,
        "flops": case.flops, "gflops": row.flops_per_s / 1e9, "peak_gflops": row.peak / 1e9, "of_peak": row.of_peak,
        "bytes": row.moved, "gbytes_per_s": row.bytes_per_s / 1e9, "memory_gbytes_per_s": row.memory / 1e9,
        "of_memory": row.of_memory,
    }  # fmt: skip


def peaks(machine: Machine) -> str:
    """ "avx2 262", "avx512bf16 525 and 1050 of bf16"."""
    found = [f"{machine.peak(bf16) / 1e9:.0f}{' of bf16' * bf16}" for bf16 in machine.timed]
    return f"{machine.kernels.isa} {' and '.join(found)}"


def first_screen(args, machines: list[Machine], speeds: dict[str, float], shapes: str) -> str:
    count = machines[0].team
    return SCREEN.format(
        machine=f"{cpu_name()}, {count} thread{'s' * (count > 1)} ({default_threads(args.threads).why})",
        peaks=", ".join(map(peaks, machines)),
        speeds=", ".join(f"{pattern} {speed / 1e9:.0f}" for pattern, speed in speeds.items()),
        shapes=shapes,
        repeats=args.repeats,
    )


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


def body(argv: list[str]) -> int:
    args = parser().parse(argv)
    if args.json in OPS or args.json in KERNELS:
        raise UsageError(f"--json {args.json}: name a file, or put the flag last for JSON in place of the table")
    config = find_shape(args.init)[0]
    B, T = args.batch_size, args.seq_len or min(64, config.block_size)
    machines = open_machines(args.backend, args.isa, default_threads(args.threads).count)
    streams = stream_kernels(machines)
    cases = step_cases(config, B, T, machines[-1].kernels, args.precision)
    cases = resize(select(cases, args.names), args.dims)
    for machine in machines:
        for bf16 in machine.timed:
            machine.measure_peak(bf16)
    table = args.json != "-"
    if table:
        speeds = measure_memory(streams[-1], machines[0].threads)
        other = "".join(f", {dim} {size}" for dim, size in args.dims.items())
        print(
            f"{first_screen(args, machines, speeds, f'{args.init}, B {B}, T {T}, {args.precision}{other}')}\n{COLUMNS}",
            flush=True,
        )
    rows = []
    with open(args.json, "w") if args.json and table else nullcontext(sys.stdout) as out:
        for case in cases:
            found = measure(case, machines, streams, args.repeats, args.seconds)
            rows += found
            if table:
                print("\n".join([title(case), *map(line, found)]), flush=True)
            if args.json:
                print("\n".join(json.dumps(record(row)) for row in found), file=out, flush=True)
    if table and not args.names and not args.dims:
        print(f"\n{step_table(rows)}")
    impossible = [row.impossible for row in rows if row.impossible]
    if impossible:
        print(
            f"gpt2flat bench: {'; '.join(impossible)}: the timing or the cost in kernels/ops.py is wrong",
            file=sys.stderr,
        )
    return IMPOSSIBLE if impossible else 0


def main(argv: list[str] | None = None) -> int:
    return run("bench", body, argv)


if __name__ == "__main__":
    sys.exit(main())
