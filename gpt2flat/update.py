"""Update: AdamW on a model's parameters, its calls bound once to a plan of the arena."""

import math

import numpy as np

from .binding import bound_call
from .errors import FLOAT32_END, UsageError, require_number
from .kernels.ops import OPS
from .memory.arena import Section

LARGEST_NORM = 1e19  # of a gradient whose squares AdamW's v can hold


class Update:
    """norm: the call that leaves the Euclidean norm of all gradients; adamw[decay_all]: the calls that update every parameter."""

    def __init__(
        self, params: Section, grads: Section, m: Section, v: Section, scratch: Section, kernels, threads: int
    ):
        self._knobs = {name: scratch[name] for name in scratch.keys()}
        self._state = {"params": params, "grads": grads, "m": m, "v": v}
        self._kernels, self._threads = kernels, threads
        self.norm = self._call("grad_norm", ("grads",), 0, params.layout.floats)
        self.adamw = {all_: [self._adamw(*r) for r in ranges(params.layout, all_)] for all_ in (False, True)}

    def _adamw(self, begin: int, end: int, decay: bool):
        return self._call(
            "adamw", self._state, begin, end, weight_decay=self._knobs["weight_decay" if decay else "no_decay"]
        )

    def _call(self, op: str, names, begin: int, end: int, **knobs):
        views = {name: self._state[name].floats[begin:end] for name in names}
        numbers = {"P": end - begin, "NT": self._threads}
        return bound_call(OPS[op], {**self._knobs, **knobs, **views}, numbers, self._kernels)

    def put(self, t: int, norm: float, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
            grad_clip: float | None) -> None:  # fmt: skip
        """The numbers of update t, counted from 1, whose gradients have this norm."""
        # the corrections belong to the betas that the kernel sees: 0.999 in float32 moves 1 - beta2 by 1e-5
        beta1, beta2 = float(np.float32(beta1)), float(np.float32(beta2))
        values = dict(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, no_decay=0.0,
                      correction1=1.0 - beta1**t, correction2=1.0 - beta2**t,
                      grad_scale=min(1.0, grad_clip / norm) if grad_clip and norm else 1.0)  # fmt: skip
        for name, value in values.items():
            self._knobs[name][0] = value


def ranges(params, decay_all: bool) -> list[tuple[int, int, bool]]:
    """The parameters of a layout as ranges (begin, end, decayed), neighbours of one kind joined."""
    found = []
    for place in params:
        decay = decay_all or place.row.decay
        begin = found.pop()[0] if found and found[-1][2] == decay else place.offset
        found.append((begin, place.offset + place.floats, decay))
    return found


def check(lr, beta1, beta2, eps, weight_decay, grad_clip) -> None:
    """Raises UsageError for what would turn parameters into NaN; as float32 sees the numbers, and NaN is in no range."""
    end, clip = FLOAT32_END, 0 if grad_clip is None else grad_clip
    allowed = {"lr": (lr, 0, end), "beta1": (beta1, 0, 1), "beta2": (beta2, 0, 1), "eps": (eps, 1e-38, end),
               "weight_decay": (weight_decay, 0, end), "grad_clip": (clip, 0, end)}  # fmt: skip
    for name, (value, low, end) in allowed.items():
        require_number(f"update: {name}", value, low, end)
        if not np.float32(value) < end:
            raise UsageError(f"update: {name} = {value} is {end:g} in float32, expected less")


def unfit_norm(norm: float, grads: Section, grad_clip: float | None) -> str | None:
    """Why gradients of this norm must not be used, naming the tensor; None if they may."""
    if not math.isfinite(norm):
        off = (f"the gradient of {name} is not finite" for name, view in grads.items() if not np.isfinite(view).all())
        return f"the gradient norm is {norm}: {next(off, 'the sum of squares left the range of float32')}"
    if min(norm, grad_clip or norm) > LARGEST_NORM:
        return f"the gradient norm is {norm:g}: its square leaves the range of float32"
    return None
