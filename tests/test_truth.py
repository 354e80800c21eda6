"""The float64 references: one for every kernel, and each backward is the derivative of its forward."""

import numpy as np
import pytest

import harness
import truth
from gpt2flat.kernels.ops import OPS
from gpt2flat.memory import axes as ax

STEP = 1e-5
TINY = dict(B=2, T=3, N=3, C=5, OC=4, KVH=2, group=2, HS=3, V=6, pad=2, extra=1, R=2, P=7)
SMALL = dict(B=2, T=9, N=11, C=13, OC=7, KVH=2, group=2, HS=5, V=19, pad=3, extra=2, R=4, P=50)


def arguments(op, dims, dropout: bool) -> dict[str, np.ndarray]:
    case = harness.Case(op.forward.name, dims)
    known = {a.name: harness.numbers(case, a) for a in op.args("read", "index", "knob", "weight")}
    known = {n: x if x.dtype.kind == "i" else x.astype(np.float64) for n, x in known.items()}
    if dropout:
        known["p_drop"] = np.float64([0.3])
    return known


def loss(op, known, dims, upstream) -> float:
    out = truth.run(op.forward.name, known, dict(dims))
    return sum(float((upstream[name] * out[name].value).sum()) for name in upstream)


def analytic(op, known, dims, upstream) -> dict[str, np.ndarray]:
    forward = truth.run(op.forward.name, known, dict(dims))
    saved = {a.name: forward[a.name].value for a in op.args("written", "saved")}
    every = known | saved | {"d" + name: x for name, x in upstream.items()}
    wanted = [a.name for a in op.backward.args if a.const and a.role not in ("work", "scratch")]
    given = {name: every[name] for name in wanted}
    return {name: value.value for name, value in truth.run(op.backward.name, given, dict(dims)).items()}


def numeric(op, known, dims, upstream, name, direction) -> float:
    """The derivative of the loss along `direction` in argument `name`, by central differences."""
    moved = ({name: known[name] + sign * STEP * direction} for sign in (1, -1))
    ahead, behind = (loss(op, known | there, dims, upstream) for there in moved)
    return (ahead - behind) / (2 * STEP)


VARIANTS = [
    pytest.param(op, dropout, id=op.name + "-dropout" * dropout)
    for op in harness.ops_with_backward()
    for dropout in (False, True)
    if not dropout or any(arg.name == "p_drop" for arg in op.args("knob"))
]


def upstream_of(op, dims, rng):
    return {a.name: rng.normal(size=ax.shape(a.axes, dict(dims))) for a in op.args("written")}


def check_direction(op, dropout) -> None:
    rng = np.random.default_rng(7)
    dims = harness.dims_of(op, SMALL)
    known, upstream = arguments(op, dims, dropout), upstream_of(op, dims, rng)
    gradients = analytic(op, known, dims, upstream)
    for arg in op.differentiable:
        direction = rng.normal(size=known[arg.name].shape)
        found = numeric(op, known, dims, upstream, arg.name, direction)
        want = float((gradients["d" + arg.name] * direction).sum())
        size = np.linalg.norm(gradients["d" + arg.name]) * np.linalg.norm(direction)
        assert abs(found - want) <= 1e-7 * size, f"{op.name}: d{arg.name} gives {want}, differences give {found}"


def test_every_kernel_has_a_reference():
    assert truth.missing() == []


@pytest.mark.parametrize("op, dropout", VARIANTS)
def test_backward_is_the_derivative_along_a_random_direction(op, dropout):
    check_direction(op, dropout)


@pytest.mark.parametrize("op, dropout", VARIANTS)
def test_backward_is_the_whole_jacobian_of_a_tiny_case(op, dropout):
    rng = np.random.default_rng(3)
    dims = harness.dims_of(op, TINY)
    known, upstream = arguments(op, dims, dropout), upstream_of(op, dims, rng)
    gradients = analytic(op, known, dims, upstream)
    for arg in op.differentiable:
        gradient, size = gradients["d" + arg.name], known[arg.name].size
        unit = np.eye(size).reshape(size, *known[arg.name].shape)
        found = np.array([numeric(op, known, dims, upstream, arg.name, e) for e in unit])
        assert abs(found - gradient.ravel()).max() <= 1e-8 * max(1.0, abs(gradient).max()), f"{op.name}: d{arg.name}"


WRONG = [("gelu_backward", -1.0), ("linear_backward", 1.001), ("classifier_backward", 1.001)]


@pytest.mark.parametrize("name, wrong", WRONG)
def test_a_wrong_backward_is_seen(monkeypatch, name, wrong):
    right = getattr(truth, name)
    monkeypatch.setattr(truth, name, lambda **given: {k: v * wrong for k, v in right(**given).items()})
    with pytest.raises(AssertionError, match="differences give"):
        check_direction(OPS[name.removesuffix("_backward")], False)


def test_bounds_hold_for_float32_and_are_not_idle():
    """The bound of a float32 matrix product holds in any order of the sum, and is less than 1000 times the error."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(20, 300)).astype(np.float32), rng.normal(size=(300, 20)).astype(np.float32)
    want = truth.num(a) @ truth.num(b)
    for order in (np.arange(300), np.arange(300)[::-1], rng.permutation(300)):
        total = np.zeros((20, 20), np.float32)
        for k in order:
            total = total + a[:, k : k + 1] * b[k : k + 1]
        error = abs(total - want.value)
        assert (error <= want.err).all() and want.err.max() < 1000 * error.max()


def test_whole_numbers_have_no_error_until_they_could_round():
    small, large = np.full((2, 2), 3.0), np.full((2, 2), 2.0**12)
    assert not (truth.num(small) @ truth.num(small)).err.any()
    assert (truth.num(large) @ truth.num(large)).err.all()
