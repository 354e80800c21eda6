"""python -m gpt2flat.bench [OP ...|step|growth|decode]: kernels, the training step or generation against the machine's limits."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass

from .arch.gpt2 import RECOMPUTE, GPT2Config
from .benchmarks import screen
from .benchmarks.cases import resize, select, step_cases
from .benchmarks.choice import best, best_and_avx2, open_machines, stream_kernels
from .benchmarks.decoding import measure_decoding, measure_prompts
from .benchmarks.growth import LONGEST, MOST_ROWS, measure_growth, shapes, stretched
from .benchmarks.machine import WINDOW, Machine, faster_precision, measure_memory
from .benchmarks.measure import measure
from .benchmarks.peers import PEERS, Peer, PeerRow
from .benchmarks.plot import (
    Point,
    check_plot,
    draw,
    kernel_points,
    memory_roofs,
    peaks_of,
    profile_points,
    step_points,
)
from .benchmarks.profile import Probe, measure_profile
from .benchmarks.step import STEP_WINDOW, StepRow, Trainee, measure_steps, remote_steps
from .command import Parser, number, run, surroundings
from .errors import UsageError
from .kernels import ISAS, MAX_THREADS, backend, cpu_name, default_threads
from .kernels.ops import KERNELS, OPS
from .model import PRECISIONS
from .weights import find_shape

BACKENDS = ("all", "c", "numba")
KINDS = ("all", *ISAS)
IMPOSSIBLE = 1
WRONG = "a timing is wrong (on a busy machine take more --repeats) or the cost in kernels/ops.py is"
LARGEST = 1 << 40  # of a dim: far beyond any memory, far below where sizes overflow
ROUNDS, GROWTH_ROUNDS = 9, 5
DECODE_ROWS, PROMPT = 8, 400


def parser() -> Parser:
    p = Parser(
        "gpt2flat bench",
        description="Times kernels, or the training step, beside the limits of this machine measured in the same rounds.",
    )
    p.add_argument("names", nargs="*", metavar="OP",
                   help="an op (linear), a kernel (linear_backward); step: forward, backward and update; growth: steps of "
                        "many batch shapes; decode: generation; default: all ops")  # fmt: skip
    p.add_argument("--init", default="d12", metavar="MODEL",
                   help="whose shapes: a .bin checkpoint, a descriptor or a preset (d12)")  # fmt: skip
    p.add_argument("-b", "--batch-size", type=number("--batch-size", int, 1, 1 << 20), metavar="B",
                   help="default 4; of growth the most, 16; of decode the rows beside one, 8")  # fmt: skip
    p.add_argument("-t", "--seq-len", type=number("--seq-len", int, 1, 1 << 20), metavar="T",
                   help="default 64, or the block size if that is smaller; of growth the longest, 4096; of decode the prompt, 400")  # fmt: skip
    p.add_argument("--precision", choices=(*PRECISIONS, "auto"), default="fp32",
                   help="bf16: of the products, beside their peak; auto: what is faster here")  # fmt: skip
    p.add_argument("--attention", default="flash", help="of step and growth: flash, flash:QxK or standard (flash)")
    p.add_argument("-r", "--recompute", type=number("--recompute", int, 0, RECOMPUTE), default=0, metavar="N",
                   help="of step and growth: what backward makes again, as in train (0)")  # fmt: skip
    p.add_argument("--profile", action="store_true", help="of step: where its time goes, kernel by kernel")
    p.add_argument("--vs", type=peers, default=(), metavar="torch,numpy",
                   help="the same work by PyTorch (step, kernels) or NumPy (linear), in turn, in processes of their own")  # fmt: skip
    p.add_argument("--plot", metavar="FILE.png", help="also draw the roofline picture")
    p.add_argument("--dims", type=dims, default={}, metavar="N=256,C=768", help="other dims than the model's")
    p.add_argument("--backend", choices=BACKENDS, help="default: all there are; of step: C")
    p.add_argument("--isa", type=isas, metavar="ISA[,ISA]",
                   help=f"of the C kernels, leaves Numba out: {', '.join(KINDS)}; default of step: the best, and avx2")  # fmt: skip
    p.add_argument(
        "--threads", type=number("--threads", int, 1, MAX_THREADS), help="default: physical cores, or OMP_NUM_THREADS"
    )
    p.add_argument("--repeats", type=number("--repeats", int, 1),
                   help="rounds over all that is compared; the median counts (9, of growth 5)")  # fmt: skip
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


def peers(text: str) -> tuple[str, ...]:
    """Reads "torch,numpy". Raises UsageError."""
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for word in found:
        if word not in PEERS:
            raise UsageError(f"--vs {text}: choose from {', '.join(PEERS)}")
    return found


def environment_wish(variable: str, choices: tuple[str, ...]) -> str | None:
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


def machines_of(args: Namespace, usual: Callable | None = None) -> list[Machine]:
    """Raises UnsupportedCPUError, UsageError."""
    name = args.backend or environment_wish("GPT2FLAT_BACKEND", BACKENDS)
    isa = environment_wish("GPT2FLAT_ISA", KINDS)
    return open_machines(name, args.isa or (isa and (isa,)), default_threads(args.threads).count, tell, usual)


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
        print(f"gpt2flat bench: {'; '.join(found)}: {WRONG}", file=sys.stderr)
    return IMPOSSIBLE if found else 0


# --- what is timed ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What the flags ask for, and where it goes."""

    args: Namespace
    config: GPT2Config
    B: int
    T: int
    precision: str
    out: Output

    @property
    def shape(self) -> str:
        return f"{self.args.init}, B {self.B}, T {self.T}, {self.precision}"

    def repeats(self, usual: int) -> int:
        return self.args.repeats or usual

    def window(self, usual: float) -> float:
        return usual if self.args.seconds is None else self.args.seconds

    @property
    def options(self) -> dict[str, object]:
        """Of Model."""
        return {"attention": self.args.attention, "precision": self.precision, "recompute": self.args.recompute}

    @property
    def step(self) -> str:
        again = f", recompute {self.args.recompute}" * bool(self.args.recompute)
        return f"step      {self.shape}, attention {self.args.attention}{again}: forward, backward, update"

    @property
    def machine(self) -> str:
        count = default_threads(self.args.threads).count
        return f"{cpu_name()}, {count} thread{'s' * (count > 1)}"

    def begin(self, machines: list[Machine], peers: list[Peer], **more) -> None:
        """The first line of the screen and of the JSON."""
        self.out.show(f"machine   {self.machine} ({default_threads(self.args.threads).why})")
        for peer in peers:
            self.out.show(f"versus    {peer.label}, in a process of its own with as many threads, in turn")
        self.out.write({"machine": surroundings() | screen.machine_record(machines) | more})

    def plot(self, machines: list[Machine], points: list[Point], memory: dict[str, float]) -> None:
        if self.args.plot:
            title = f"{', '.join(self.args.names) or 'kernels'} of {self.shape}; {self.machine}"
            draw(self.args.plot, title, points, peaks_of(machines, points), memory)
            self.out.show(f"plot      {self.args.plot}")


def bench_kernels(wish: Wish, peers: list[Peer]) -> int:
    args = wish.args
    machines = machines_of(args)
    streams, window = stream_kernels(machines), wish.window(WINDOW)
    cases = step_cases(wish.config, wish.B, wish.T, machines[-1].kernels, wish.precision)
    cases = resize(select(cases, args.names), args.dims)
    for peer in peers:
        if not any(case.kernel.name in peer.knows for case in cases):
            raise UsageError(f"--vs {peer.name}: it is compared in {', '.join(peer.knows)} only")
    speeds = measure_memory(streams[-1], machines[0].threads)
    wish.begin(machines, peers, memory_gbytes_per_s={name: speed / 1e9 for name, speed in speeds.items()})
    other = "".join(f", {dim} {size}" for dim, size in args.dims.items())
    notes = screen.kernel_notes(machines, speeds, wish.shape + other, wish.repeats(ROUNDS))
    wish.out.show(f"{notes}\n{screen.columns(screen.COLUMNS, args.vs)}")
    rows, points = [], []
    for case in cases:
        found, others = measure(case, machines, streams, wish.repeats(ROUNDS), window, peers)
        rows += found
        points += kernel_points(found, others)
        wish.out.show("\n".join([screen.title(case), *screen.kernel_lines(found, others)]))
        wish.out.write(*(screen.record(row, others) for row in found))
        wish.out.write(*(screen.peer_record(other, kernel=case.kernel.name, dims=case.dims) for other in others))
    if not args.names and not args.dims:
        wish.out.show(f"\n{screen.step_table(rows)}")
    wish.plot(machines, points, memory_roofs(speeds["adamw"], rows))
    return finish([row.impossible for row in rows])


def bench_step(wish: Wish, peers: list[Peer]) -> int:
    machines = machines_of(wish.args, best_and_avx2)
    memory, window = stream_kernels(machines), wish.window(STEP_WINDOW)
    trainees = []
    for machine in machines:
        trainees.append(Trainee(wish.config, machine, window, **wish.options))
        trainees[-1].take(wish.B, wish.T)
    others = remote_steps(peers, wish.config, wish.B, wish.T, wish.precision, window)
    wish.begin(machines, peers)
    wish.out.show(wish.step)
    rows, found = measure_steps(trainees, memory, wish.repeats(ROUNDS), others)
    show_steps(wish, rows, found)
    wish.plot(machines, step_points(rows, found), memory_roofs(rows[0].memory))
    return finish([row.impossible for row in rows])


def show_steps(wish: Wish, rows: list[StepRow], others: list[PeerRow]) -> None:
    notes = screen.step_notes(rows, wish.precision, wish.repeats(ROUNDS))
    head = screen.columns(screen.STEP_COLUMNS, (other.name for other in others))
    wish.out.show("\n".join([notes, "", head, *screen.step_lines(rows, others)]))
    wish.out.write(*(screen.step_record(row, others) for row in rows))
    wish.out.write(*(screen.peer_record(other, step=wish.args.init) for other in others))


def bench_profile(wish: Wish, peers: list[Peer]) -> int:
    machines = machines_of(wish.args, best)
    memory = stream_kernels(machines)
    wish.begin(machines, peers)
    wish.out.show(wish.step)
    profiles = []
    for machine in machines:
        probe = Probe(machine.kernels)
        trainee = Trainee(wish.config, machine, wish.window(STEP_WINDOW), probe, **wish.options)
        trainee.take(wish.B, wish.T)
        profile = measure_profile(trainee, probe, memory, wish.repeats(ROUNDS))
        profiles.append(profile)
        show_steps(wish, [profile.step], [])
        wish.out.show(f"\n{screen.profile_table(profile)}\n{screen.PROFILE_NOTES.format(repeats=wish.repeats(ROUNDS))}")
        wish.out.write(*(screen.profile_record(row, profile.step.isa) for row in profile.rows))
    rows = [row for profile in profiles for row in profile.rows]
    points = [point for profile in profiles for point in profile_points(profile)]
    wish.plot(machines, points, memory_roofs(profiles[0].step.memory, rows))
    return finish([one.impossible for one in [*(profile.step for profile in profiles), *rows]])


def bench_growth(wish: Wish, peers: list[Peer]) -> int:
    args = wish.args
    machine = machines_of(args, best)[-1]
    batches = shapes(args.batch_size or MOST_ROWS, args.seq_len or LONGEST)
    config = stretched(wish.config, max(T for _, T in batches))
    trainee = Trainee(config, machine, wish.window(STEP_WINDOW), **wish.options)
    wish.begin([machine], peers)
    wish.out.show(screen.GROWTH_NOTES.format(
        model=f"{args.init} with block size {config.block_size}, {wish.precision}, {machine.kernels.isa}",
        repeats=wish.repeats(GROWTH_ROUNDS)) + f"\n{screen.GROWTH_COLUMNS}")  # fmt: skip
    rows = []
    for B, T, row in measure_growth(trainee, batches, stream_kernels([machine]), wish.repeats(GROWTH_ROUNDS)):
        wish.out.show(screen.growth_line(B, T, row))
        if row:
            rows.append(row)
            wish.out.write({"B": B, "T": T} | screen.step_record(row, []))
    return finish([row.impossible for row in rows])


def bench_decode(wish: Wish, peers: list[Peer]) -> int:
    args = wish.args
    machine = machines_of(args, best)[-1]
    tokens, repeats = min(args.seq_len or PROMPT, wish.config.block_size), wish.repeats(ROUNDS)
    wish.begin([machine], peers)
    wish.out.show(screen.DECODE_NOTES.format(model=args.init, isa=machine.kernels.isa, repeats=repeats) + f"\n{screen.DECODE_COLUMNS}")
    rows, alone = [], None
    counts = tuple(dict.fromkeys((1, args.batch_size or DECODE_ROWS)))
    for row in measure_decoding(wish.config, machine, stream_kernels([machine]), counts, repeats):
        alone = row if row.rows == 1 else alone
        wish.out.show(screen.decode_line(row, alone))
        wish.out.write(screen.decode_record(row))
        rows.append(row)
    wish.out.show(f"\n{screen.PROMPT_COLUMNS}")
    for row in measure_prompts(wish.config, machine, tokens, repeats):
        wish.out.show(screen.prompt_line(row))
        wish.out.write(screen.prompt_record(row))
        rows.append(row)
    return finish([row.impossible for row in rows])


def body(argv: list[str]) -> int:
    args = parser().parse(argv)
    what = check(args)
    config = find_shape(args.init)[0]
    threads = default_threads(args.threads).count
    B, T = args.batch_size or 4, args.seq_len or min(64, config.block_size)
    precision = faster_precision(backend(), threads) if args.precision == "auto" else args.precision
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(name, threads)) for name in args.vs]
        out = stack.enter_context(Output(args.json))
        return what(Wish(args, config, B, T, precision, out), peers)


def check(args: Namespace) -> Callable[[Wish, list[Peer]], int]:
    """What to time. Raises UsageError for flags that do not go together."""
    words = [word for word in args.names if word in WHOLE]
    if args.json in (*OPS, *KERNELS, *WHOLE):
        raise UsageError(f"--json {args.json}: name a file, or put the flag last for JSON in place of the table")
    if words and len(args.names) > 1:
        raise UsageError(f"{' '.join(args.names)}: {words[0]} is timed alone, in a run of its own")
    if words and args.dims:
        raise UsageError(f"--dims resizes single kernels: give {words[0]} another --init, -b or -t")
    if not words and (args.recompute or args.attention != "flash"):
        raise UsageError("--recompute and --attention are flags of step and growth: kernels are timed in all their forms")
    if args.profile and words != ["step"]:
        raise UsageError("--profile is a flag of step: gpt2flat bench step --profile")
    if args.vs and (args.profile or words in (["growth"], ["decode"])):
        raise UsageError("--vs compares steps and kernels: leave it out of --profile, growth and decode")
    if args.plot and words in (["growth"], ["decode"]):
        raise UsageError(f"--plot draws steps, profiles and kernels: {words[0]} is a table")
    if words == ["decode"] and (args.recompute or args.attention != "flash" or args.precision != "fp32"):
        raise UsageError("decode takes no --recompute, --attention and --precision: it is timed in all its forms")
    if args.plot:
        check_plot(args.plot)
    return bench_profile if args.profile else WHOLE[words[0]] if words else bench_kernels


WHOLE = {"step": bench_step, "growth": bench_growth, "decode": bench_decode}


def main(argv: list[str] | None = None) -> int:
    return run("bench", body, argv)


if __name__ == "__main__":
    sys.exit(main())
