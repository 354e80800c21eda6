"""The whole training step of a model: its cost, its limit on a machine, and how long it takes on several in turn.

The limit is the cost model T_roof: the products and causal attention at the peak of FMAs, AdamW at the speed of its own
4 reads and 3 writes, one after the other. Everything else a step does is free there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..arch import gpt2
from ..errors import UsageError
from ..kernels.ops import OPS, READ, UPDATE, Move
from ..memory.layout import Layout
from ..memory.limits import resident_memory
from ..model import Model
from .cases import SPREAD, spread
from .machine import Machine, Stream, Timed, Times, repeated
from .measure import ATTEMPTS, beyond
from .peers import Peer, PeerRow, Remote, remotes

UPDATE_SETTINGS = dict(lr=1e-4, weight_decay=0.1, grad_clip=1.0)
STEP_WINDOW = 0.1  # seconds of a sample: small models make several steps in it
PEAK_WINDOWS = 5  # of each peak in a round


@dataclass(frozen=True)
class Cost:
    """What a training step has to do. products: flops of the matrices; attention: flops below the diagonal, with the one
    product that backward repeats; parameters: floats that AdamW visits; tokens: of the batch."""

    products: int
    attention: int
    parameters: int
    tokens: int

    @classmethod
    def of(cls, config: gpt2.GPT2Config, B: int, T: int) -> "Cost":
        layout, M = Layout.plan(gpt2.PARAMS, config.dims()), B * T
        steps = [step for some in gpt2.steps() for step in some]
        weights = {step.names["weight"] for step in steps if "BF16" in OPS[step.op].dims and "weight" in step.names}
        matrices = sum(layout[name].floats for name in weights)
        return cls(6 * matrices * M, 7 * config.n_embd * config.n_layer * (T + 1) * M, layout.floats, M)

    @property
    def flops(self) -> int:
        return self.products + self.attention

    def parts(self, peak: float, memory: float) -> dict[str, float]:
        """Seconds of the products, of attention and of AdamW at the limits of a machine."""
        found = {"products": self.products / peak, "attention": self.attention / peak}
        return found | {"AdamW": 28 * self.parameters / memory}

    def roof(self, peak: float, memory: float) -> float:
        """T_roof in seconds."""
        return sum(self.parts(peak, memory).values())


@dataclass(frozen=True)
class StepRow:
    """The step on one machine. peak, peak32: flops per second in the precision of the step and in fp32; memory: bytes
    per second of AdamW's reads and writes; planned, resident: bytes of the arena and of what the process got for it."""

    cost: Cost
    backend: str
    isa: str
    threads: int
    times: Times
    peak: float
    peak32: float
    memory: float
    planned: int
    resident: int

    @property
    def seconds(self) -> float:
        return self.times.median

    @property
    def tokens_per_s(self) -> float:
        return self.cost.tokens / self.seconds

    @property
    def flops_per_s(self) -> float:
        return self.cost.flops / self.seconds

    @property
    def roof(self) -> float:
        return self.cost.roof(self.peak, self.memory)

    @property
    def of_roof(self) -> float:
        return self.roof / self.seconds

    @property
    def impossible(self) -> str:
        return beyond(f"the step ({self.isa})", {"T_roof": self.of_roof})


class Trainee:
    """A model with random weights and a batch of random tokens, and one training step after the other on a machine.

    The team is the whole one at every moment. options: of Model. kernels: other than the machine's. Raises CapacityError,
    UsageError."""

    def __init__(self, config: gpt2.GPT2Config, machine: Machine, window: float = STEP_WINDOW, kernels=None, **options):
        self.machine, self.window, self._before = machine, window, resident_memory()
        self.bf16 = options.get("precision") == "bf16"
        self.model = Model(config, threads=machine.threads, kernels=kernels or machine.kernels, adapt=False, **options)
        fill_weights(self.model)

    def take(self, B: int, T: int) -> None:
        """A batch of this shape from now on; makes the first step, untimed. Raises CapacityError, KernelArgError."""
        self.cost = Cost.of(self.model.config, B, T)
        self.batch = np.random.default_rng(1).integers(0, self.model.config.vocab_size, (2, B, T))
        self.step()
        self.threads = self.machine.team
        self.planned, self.resident = 4 * self.model.buffer.size, resident_memory() - self._before
        self.timed = Timed(repeated(self.step), self.window)

    def step(self) -> None:
        self.model.forward_backward(*self.batch)
        self.model.update(**UPDATE_SETTINGS)

    def adamw_stream(self) -> Stream:
        """AdamW's reads and writes on the model's own arrays, which stay as they are."""
        moves = {"grads": READ, "params": UPDATE, "m": UPDATE, "v": UPDATE}
        starts, floats = self.model.arena.starts, self.cost.parameters
        return Stream(self.model.buffer, [(Move(name, what, floats), starts[name]) for name, what in moves.items()])

    def row(self, memory: float) -> StepRow:
        machine, peaks = self.machine, [self.machine.peak(bf16) for bf16 in (self.bf16, False)]
        return StepRow(self.cost, machine.kernels.name, machine.kernels.isa, self.threads, self.timed.times, *peaks,
                       memory, self.planned, self.resident)  # fmt: skip


def remote_steps(
    peers: list[Peer], config: gpt2.GPT2Config, B: int, T: int, precision: str, window: float
) -> list[Remote]:
    """The same step of each peer. Raises UsageError for one that has none."""
    for peer in peers:
        if "step" not in peer.knows:
            raise UsageError(f"--vs {peer.name}: no training step there, only {', '.join(peer.knows)}")
    shape = dict(layers=config.n_layer, heads=config.n_head, channels=config.n_embd, vocabulary=config.padded_vocab_size,
                 block_size=config.block_size, B=B, T=T, precision=precision)  # fmt: skip
    return remotes(peers, "step", shape, window)


def fill_weights(model: Model) -> None:
    """Random weights of the right size in little time: the same numbers again and again, the padding of wte 0."""
    drawn = np.random.default_rng(0).standard_normal(SPREAD, np.float32) * np.float32(gpt2.INIT_STD)
    for row in gpt2.PARAMS:
        view = model.params[row.name]
        if row.init in ("normal", "scaled"):
            spread(view[: model.config.vocab_size] if row.name == "wte" else view, drawn)
        elif row.init == "ones":
            view[...] = 1.0


def measure_steps(
    trainees: list[Trainee], memory: list, repeats: int, others: Sequence[Remote] = ()
) -> tuple[list[StepRow], list[PeerRow]]:
    """The rows after `repeats` rounds over all trainees and peers, each with windows of the peaks and of AdamW's
    stream; the limits are the best windows. memory: the kernels whose streams count."""
    stream = trainees[0].adamw_stream()
    streams = [Timed(stream.on(kernels, trainees[0].machine.threads)) for kernels in memory]
    for _ in range(ATTEMPTS):
        for _ in range(repeats):
            for trainee in trainees:
                trainee.timed.sample()
                trainee.machine.measure_peaks(PEAK_WINDOWS)
            for timed in (*others, *streams):
                timed.sample()
        speed = stream.bytes / min(timed.best for timed in streams)
        rows = [trainee.row(speed) for trainee in trainees]
        if not any(row.impossible for row in rows):
            break
        for trainee in trainees:
            trainee.machine.measure_peaks()
    return rows, [other.row for other in others]
