"""python -m gpt2flat.bench [OP ...|step]: each kernel, or the whole training step, against the machine's limits."""

import json
import os
import sys
from contextlib import nullcontext

from .benchmarks import screen
from .benchmarks.cases import resize, select, step_cases
from .benchmarks.machine import Machine, faster_precision, measure_memory
from .benchmarks.measure import measure
from .benchmarks.profile import Probe, measure_profile
from .benchmarks.step import Trainee, measure_steps
from .command import Parser, number, open_kernels, run
from .errors import UnsupportedCPUError, UsageError
from .kernels import ISAS, MAX_THREADS, available_isas, backend, cpu_name, default_threads
from .kernels.ops import KERNELS, OPS
from .model import PRECISIONS, find_shape

BACKENDS = ("all", "c", "numba")
KINDS = ("all", *ISAS)
IMPOSSIBLE = 1
LARGEST = 1 << 40  # of a dim: far beyond any memory, far below where sizes overflow
KERNEL_SECONDS = 0.005


def parser() -> Parser:
    p = Parser(
        "gpt2flat bench",
        description="Times kernels, or the training step, beside the limits of this machine measured in the same rounds.",
    )
    p.add_argument("names", nargs="*", metavar="OP",
                   help="an op (linear), a kernel (linear_backward), or step: forward, backward and update; default: all ops")  # fmt: skip
    p.add_argument("--init", default="d12", metavar="MODEL",
                   help="whose shapes: a .bin checkpoint, a descriptor or a preset (d12)")  # fmt: skip
    p.add_argument("-b", "--batch-size", type=number("--batch-size", int, 1, 1 << 20), default=4, metavar="B")
    p.add_argument("-t", "--seq-len", type=number("--seq-len", int, 1, 1 << 20), metavar="T",
                   help="default 64, or the block size if that is smaller")  # fmt: skip
    p.add_argument("--precision", choices=(*PRECISIONS, "auto"), default="fp32",
                   help="bf16: of the products, beside their peak; auto: what is faster here")  # fmt: skip
    p.add_argument("--attention", default="flash", help="of step: flash or standard (flash)")
    p.add_argument("--profile", action="store_true", help="of step: where its time goes, kernel by kernel")
    p.add_argument("--dims", type=dims, default={}, metavar="N=256,C=768", help="other dims than the model's")
    p.add_argument("--backend", choices=BACKENDS, help="default: all there are; of step: C")
    p.add_argument("--isa", type=isas, metavar="ISA[,ISA]",
                   help=f"of the C kernels, leaves Numba out: {', '.join(KINDS)}; default of step: the best, and avx2")  # fmt: skip
    p.add_argument(
        "--threads", type=number("--threads", int, 1, MAX_THREADS), help="default: physical cores, or OMP_NUM_THREADS"
    )
    p.add_argument(
        "--repeats", type=number("--repeats", int, 1), default=9, help="rounds over the backends; the median counts (9)"
    )
    p.add_argument("--seconds", type=number("--seconds", float, 0, 3600),
                   help="of a kernel in a round, one call at least (0.005); of step: 0.1")  # fmt: skip
    p.add_argument("--json", nargs="?", const="-", metavar="FILE",
                   help="a JSON object a line, first of the machine, then of each row; into FILE or in place of the table")  # fmt: skip
    return p


def isas(text: str) -> tuple[str, ...]:
    """Reads "avx512,avx2". Raises UsageError."""
    found = tuple(dict.fromkeys(word.strip().lower() for word in text.split(",")))
    for word in found:
        if word not in KINDS:
            raise UsageError(f"--isa {text}: choose from {', '.join(KINDS)}")
    return ("all",) if "all" in found else found


def wish(variable: str, choices: tuple[str, ...]) -> str | None:
    """The choice that an environment variable makes. Raises UsageError."""
    word = os.environ.get(variable, "").strip().lower()
    if word not in ("", "auto", *choices):
        raise UsageError(f"{variable}={word}: expected one of {', '.join(choices)}")
    return None if word in ("", "auto") else word


def dims(text: str) -> dict[str, int]:
    """Reads "N=256,C=768". Raises UsageError."""
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if not name.strip().isidentifier() or not value.strip().isdecimal() or not 1 <= int(value) <= LARGEST:
            raise UsageError(f"--dims {part}: expected a dim and a whole number from 1, such as N=256")
        found[name.strip()] = int(value)
    return found


# --- the machines ----------------------------------------------------------------------------------------------------


def open_machines(args, step: bool = False) -> list[Machine]:
    """The kernels to compare, the best of C first for a step. What cannot be had of `all` is said on stderr. Raises
    UnsupportedCPUError, UsageError."""
    name = args.backend or wish("GPT2FLAT_BACKEND", BACKENDS)
    isa = args.isa or ((word,) if (word := wish("GPT2FLAT_ISA", KINDS)) else None)
    if name == "numba" and isa not in (None, ("all",)):
        raise UsageError(
            f"{', '.join(isa)}: instruction sets of the C kernels, Numba finds its own: leave --isa or GPT2FLAT_ISA out"
        )
    ways = {
        "c": lambda: [backend("c", one) for one in chosen_isas(isa, step, args.profile)],
        "numba": lambda: [open_kernels("numba")],
    }
    everything = name in (None, "all") and isa in (None, ("all",))
    chosen = [name] if name not in (None, "all") else list(ways) if everything else ["c"]
    found, missing = [], []
    for way in chosen:
        if step and name is None and isa is None and found:
            break  # the twins only where there is no C
        try:
            found += ways[way]()
        except UnsupportedCPUError as problem:
            missing.append(str(problem))
    if not found:
        raise UnsupportedCPUError("; ".join(missing))
    for problem in missing:
        print(f"left out: {problem}", file=sys.stderr)
    machines = [Machine(kernels, default_threads(args.threads).count) for kernels in found]
    for machine in machines:
        machine.measure_peaks()
    return machines


def chosen_isas(isa: tuple[str, ...] | None, step: bool, best_only: bool) -> list[str]:
    """The instruction sets to open, for a step in falling order: by default the best, and what most laptops have."""
    have = available_isas()
    if isa is None and step:
        return have[-1:] + ["avx2"] * (not best_only and "avx2" in have[:-1])
    if isa in (None, ("all",)):
        return have[::-1] if step else have
    return list(isa)


def stream_kernels(machines: list[Machine]) -> list:
    """Whose loops measure memory: the two widest of C, whatever is compared, or else the twins."""
    try:
        return [backend("c", isa) for isa in available_isas()[-2:]]
    except UnsupportedCPUError:
        return [machine.kernels for machine in machines]


def machine_line(args, team: int) -> str:
    why = default_threads(args.threads).why
    return f"machine   {cpu_name()}, {team} thread{'s' * (team > 1)} ({why})"


class Output:
    """The table on the screen, and JSON lines beside or in place of it."""

    def __init__(self, target: str | None):
        self.table = target != "-"
        self._json = (open(target, "w") if self.table else nullcontext(sys.stdout)) if target else nullcontext()

    def __enter__(self) -> "Output":
        self._out = self._json.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._json.__exit__(*error)

    def show(self, text: str) -> None:
        if self.table:
            print(text, flush=True)

    def write(self, *records: dict) -> None:
        for record in records if self._out else ():
            print(json.dumps(record), file=self._out, flush=True)


def finish(impossible: list[str]) -> int:
    found = [text for text in impossible if text]
    if found:
        print(f"gpt2flat bench: {'; '.join(found)}: the timing or the cost in kernels/ops.py is wrong", file=sys.stderr)
    return IMPOSSIBLE if found else 0


# --- what is timed ---------------------------------------------------------------------------------------------------


def bench_kernels(args, config, B: int, T: int, precision: str, out: Output) -> int:
    machines = open_machines(args)
    streams = stream_kernels(machines)
    cases = step_cases(config, B, T, machines[-1].kernels, precision)
    cases = resize(select(cases, args.names), args.dims)
    speeds = measure_memory(streams[-1], machines[0].threads)
    other = "".join(f", {dim} {size}" for dim, size in args.dims.items())
    out.show(machine_line(args, machines[0].team))
    out.show(
        screen.KERNEL_NOTES.format(
            peaks=", ".join(map(screen.peaks, machines)),
            speeds=", ".join(f"{pattern} {speed / 1e9:.0f}" for pattern, speed in speeds.items()),
            shapes=f"{args.init}, B {B}, T {T}, {precision}{other}",
            repeats=args.repeats,
        )
        + f"\n{screen.COLUMNS}"
    )
    rows = []
    for case in cases:
        found = measure(case, machines, streams, args.repeats, KERNEL_SECONDS if args.seconds is None else args.seconds)
        rows += found
        out.show("\n".join([screen.title(case), *map(screen.line, found)]))
        out.write(*map(screen.record, found))
    if not args.names and not args.dims:
        out.show(f"\n{screen.step_table(rows)}")
    return finish([row.impossible for row in rows])


def bench_step(args, config, B: int, T: int, precision: str, out: Output) -> int:
    machines = open_machines(args, step=True)
    memory = stream_kernels(machines)
    options = dict(attention=args.attention, precision=precision)
    probes = [Probe(machine.kernels) if args.profile else None for machine in machines]
    trainees = [Trainee(config, B, T, *pair, **options) for pair in zip(machines, probes)]
    for trainee in trainees:
        trainee.timed.window = trainee.timed.window if args.seconds is None else args.seconds
    out.show(machine_line(args, trainees[0].threads))
    out.show(f"step      {args.init}, B {B}, T {T}, {precision}, attention {args.attention}: forward, backward, update")
    if args.profile:
        profiles = [measure_profile(*pair, memory, args.repeats) for pair in zip(trainees, probes)]
        rows = [profile.step for profile in profiles]
    else:
        profiles, rows = [], measure_steps(trainees, memory, args.repeats)
    out.show(
        "\n".join(
            [screen.step_notes(rows, precision, args.repeats), "", screen.STEP_COLUMNS, *map(screen.step_line, rows)]
        )
    )
    out.write(*map(screen.step_record, rows))
    for profile in profiles:
        out.show(f"\n{screen.profile_table(profile)}\n{screen.PROFILE_NOTES.format(repeats=args.repeats)}")
        out.write(*(screen.profile_record(row, profile.step.isa) for row in profile.rows))
    return finish([one.impossible for one in [*rows, *(row for profile in profiles for row in profile.rows)]])


def body(argv: list[str]) -> int:
    args = parser().parse(argv)
    if args.json in (*OPS, *KERNELS, "step"):
        raise UsageError(f"--json {args.json}: name a file, or put the flag last for JSON in place of the table")
    step = "step" in args.names
    if step and len(args.names) > 1:
        raise UsageError(f"{' '.join(args.names)}: step is timed alone, a run for it and a run for kernels")
    if step and args.dims:
        raise UsageError("--dims resizes single kernels: give step another --init, -b or -t")
    if args.profile and not step:
        raise UsageError("--profile is a flag of step: gpt2flat bench step --profile")
    config = find_shape(args.init)[0]
    B, T = args.batch_size, args.seq_len or min(64, config.block_size)
    precision = args.precision
    if precision == "auto":
        precision = faster_precision(backend(), default_threads(args.threads).count)
    with Output(args.json) as out:
        return (bench_step if step else bench_kernels)(args, config, B, T, precision, out)


def main(argv: list[str] | None = None) -> int:
    return run("bench", body, argv)


if __name__ == "__main__":
    sys.exit(main())
