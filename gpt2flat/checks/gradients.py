"""Analytic against numeric gradients: the kernels' along random directions against a float64 forward of the program.

A direction has +1 or -1 for every number of a tensor, so an error in any one shows; the mean square of what the two
derivatives differ by is the square of the gradient's error in the Euclidean norm (Hutchinson, 1990)."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..arch.gpt2 import GPT2Config
from ..errors import CapacityError
from ..kernels import float64
from ..model import Model
from ..program import Program

BOUND = 1e-4  # of a tensor's norm; float32 leaves 1e-7 to 1e-5
DIRECTIONS = 3
STEP = 1e-20  # times i: any size that underflows nowhere
LARGEST = 40_000_000  # parameters: with those of d6 one or two minutes, and a GB of NumPy arrays
EPSILON = 1e-7  # of all gradients: below it a tensor's own norm is rounding only


class Compared(NamedTuple):
    """A tensor's gradient: its norm, and how far the analytic one is from the numeric one, relative to that."""

    name: str
    norm: float
    error: float

    @property
    def ok(self) -> bool:
        return self.error <= BOUND


def compare(model: Model, tokens, targets, seed: int = 0) -> Iterator[Compared]:
    """The gradient of the mean loss of every tensor, in the order of the tensor table. tokens, targets: (B, T) ids.

    Raises CapacityError for a model that is too large for this."""
    require_small(model.config)
    model.forward_backward(tokens, targets)
    program = model.plan(*np.shape(tokens))
    params = {name: view.astype(np.float64) for name, view in model.params.items()}
    analytic = {name: view.astype(np.float64) for name, view in model.grads.items()}
    norms = {name: float(np.linalg.norm(gradient)) for name, gradient in analytic.items()}
    least = EPSILON * math.hypot(*norms.values()) or 1.0
    rng = np.random.default_rng(seed)
    for name, gradient in analytic.items():
        squares = []
        for _ in range(DIRECTIONS):
            direction = rng.integers(0, 2, gradient.shape) * 2.0 - 1.0
            moved = params | {name: params[name] + 1j * STEP * direction}
            numeric = loss(model, program, moved).imag / STEP
            squares.append((float((gradient * direction).sum()) - numeric) ** 2)
        error = math.sqrt(sum(squares) / DIRECTIONS) / max(norms[name], least)
        yield Compared(name, norms[name], error)


def require_small(config: GPT2Config) -> None:
    """Raises CapacityError for a model that is too large for numeric gradients."""
    if config.num_parameters > LARGEST:
        raise CapacityError(
            f"{config.num_parameters:,} parameters: numeric gradients are for models of at most {LARGEST:,}, such as "
            "tiny or d6; a larger one runs the same kernels, and a debug state checks it (gpt2flat check CHECKPOINT "
            "DEBUG_STATE)"
        )


def loss(model: Model, program: Program, params: dict[str, np.ndarray]) -> complex:
    """The mean loss of the batch in `model`, by the program's forward calls on float64 or complex128 `params`."""
    values = {}

    def read(ref):
        if ref.section == "params":
            return params[ref.name][ref.slot] if ref.stacked else params[ref.name]
        key = (ref.name, ref.slot)
        return values[key] if key in values else model.acts.slot(ref.name, ref.slot)  # tokens, targets, settings

    for call in program.forward:
        given = {arg.name: read(call.refs[arg.name]) for arg in call.kernel.args if arg.const and arg.name in call.refs}
        results = float64.run(call.kernel.name, given, call.numbers)
        values |= {(call.refs[arg.name].name, call.refs[arg.name].slot): results[arg.name] for arg in call.written}
    losses, targets = values[("losses", 0)], model.acts["targets"]
    return complex(losses.sum() / np.count_nonzero(targets >= 0))
