"""A model with dropout: what decides its masks and what must not, its gradients, evaluation without it; the keys."""

import numpy as np
import pytest

import harness
from gpt2flat.arch import gpt2
from gpt2flat.checks.gradients import compare, loss
from gpt2flat.data import splitmix
from gpt2flat.inspection.listing import listing
from gpt2flat.kernels import available_isas, backend, run
from test_model import ODD, batch, random_model, trained

PLACES = ("key_drop", "key_drop_emb", "key_drop_attproj", "key_drop_fcproj")


def test_without_dropout_the_program_is_the_same_and_a_key_changes_nothing():
    x, y = batch()
    plain, none, one = random_model(), random_model(dropout=0), random_model(dropout=0.1)
    assert listing(none.program(*x.shape)) == listing(plain.program(*x.shape)) != listing(one.program(*x.shape))
    assert not any(name in one.program(3, 37).acts for name in ("attproj", "fcproj", "fch_gelu"))
    losses = [plain.forward_backward(x, y), *(none.forward_backward(x, y, dropout_key=key) for key in (0, 1, 1 << 63))]
    assert len(set(losses)) == 1 and np.array_equal(plain.grads.floats, none.grads.floats)


@pytest.mark.parametrize("kernels", harness.backends(), ids=lambda kernels: kernels.isa)
def test_evaluation_drops_nothing(kernels):
    """forward, logits and generate give the bits of a model without dropout, and backward after forward its gradients."""
    x, y = batch()
    plain, model = (random_model(dropout=p, kernels=kernels) for p in (0, 0.3))
    assert model.forward_backward(x, y) != plain.forward_backward(x, y)
    assert model.forward(x, y) == plain.forward(x, y)
    model.backward(), plain.backward()
    assert np.array_equal(model.grads.floats, plain.grads.floats)
    assert np.array_equal(model.logits(x), plain.logits(x))
    assert np.array_equal(model.generate(x[:, :5], 4, seed=3), plain.generate(x[:, :5], 4, seed=3))


# --- what must not change a mask

SAME = [
    dict(attention="flash:16x48"),
    dict(threads=1),
    dict(threads=5),
    dict(threads=8, recompute=3),
    dict(fused=False),
]
SAME += [dict(fused=False, recompute=level) for level in (1, 2, 3)]


def test_masks_depend_on_nothing_but_the_key():
    """Tiles, threads, recompute and the plain program; other levels and backends in test_model.py."""
    kept = trained(*batch())
    for options in SAME:
        assert trained(*batch(), **options) == kept, options
    assert trained(*batch(), dropout=0.0) != kept != trained(*batch(), dropout=0.24)


def test_avx2_and_avx512_drop_the_same():
    isas = [isa for isa in available_isas() if isa != "scalar"]
    found = [trained(*batch(), kernels=backend("c", isa)) for isa in isas]
    assert all(one == found[0] for one in found)


def test_scalar_and_numba_drop_the_same_within_tolerance():
    x, y = batch()
    found = []
    for kernels in (harness.natives()[-1], backend("c", "scalar"), backend("numba")):
        model = random_model(kernels=kernels, dropout=0.3)
        found.append((model.forward_backward(x, y, dropout_key=5), model.grads.floats))
    for value, grads in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-6)
        assert np.linalg.norm(grads - found[0][1]) < 1e-5 * np.linalg.norm(grads)


# --- what must


def seen(model, x, y, key):
    value = model.forward_backward(x, y, dropout_key=key)
    return value, [model.acts[name].reshape(-1).tolist() for name in PLACES]


def test_each_key_and_each_place_has_a_mask_of_its_own():
    model, (x, y) = random_model(dropout=0.2), batch()
    found = [seen(model, x, y, key) for key in (0, 1, 2, (1 << 64) - 1)]
    assert len({value for value, _ in found}) == len(found)
    words = [word for _, places in found for place in places for word in place]
    assert len(set(words)) == len(words) == len(found) * (3 * ODD.n_layer + 1)
    assert seen(random_model(dropout=0.2), x, y, 1) == found[1]


def test_without_a_key_each_pass_has_the_next():
    x, y = batch()
    model, other = random_model(dropout=0.2), random_model(dropout=0.2)
    values = [model.forward_backward(x, y) for _ in range(3)]
    assert values == [other.forward_backward(x, y, dropout_key=key) for key in range(3)] and len(set(values)) == 3


def test_forward_with_a_key_is_the_forward_of_forward_backward():
    model, (x, y) = random_model(dropout=0.2), batch()
    value, grads = model.forward_backward(x, y, dropout_key=9), model.grads.floats.copy()
    model.grads.floats[:] = np.nan
    assert model.forward(x, y, dropout_key=9) == value != model.forward(x, y)
    model.forward(x, y, dropout_key=9)
    model.backward()
    assert np.array_equal(model.grads.floats, grads)


# --- the numbers


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("attention", gpt2.ATTENTION)
def test_loss_and_gradients_are_those_of_a_float64_model_with_the_same_masks(attention, fused):
    """The program in NumPy and float64, and its derivative without differences (checks/gradients.py)."""
    x, y = batch(2, 11)
    y[0, 3] = -1
    model = random_model(dropout=0.3, attention=attention, fused=fused)
    value = model.forward_backward(x, y, dropout_key=0)  # as compare, whose pass is the first without a key
    wanted = loss(model, model.program(*x.shape), {n: view.astype(np.float64) for n, view in model.params.items()})
    assert value == pytest.approx(wanted.real, rel=1e-6) and wanted.imag == 0
    rows = list(compare(model, x, y))
    assert len(rows) == 16 and all(row.error < 2e-6 for row in rows), max(rows, key=lambda row: row.error)
    model.acts["key_drop_fcproj"][1] += 1
    other = loss(model, model.program(*x.shape), {n: view.astype(np.float64) for n, view in model.params.items()})
    assert abs(other.real - wanted.real) > 1e-4  # another mask shows


def test_the_mean_over_many_keys_is_what_nothing_dropped_gives():
    """Attention and the residual stream, each number within six standard errors."""
    rng, keys = np.random.default_rng(2), 400
    inp, added = rng.standard_normal((2, 13, 24)).astype(np.float32)
    dims = dict(B=1, T=13, NH=2, KVH=2, HS=4)
    makers = {"dropout_forward": (dict(inp=inp, added=added), {}), "attention_forward": (dict(inp=inp), dims)}
    for name, (given, dims) in makers.items():
        outs = []
        for p, key in [(0.0, 0)] + [(0.3, key) for key in splitmix.words(1, keys)]:
            out, lse = np.empty((13, 8 if dims else 24), np.float32), np.empty((1, 2, 13), np.float32)
            written = dict(out=out, lse=lse) if dims else dict(out=out)
            run(name, **written, **given, **dims, p_drop=np.float32([p]), key_drop=np.int32([key]))
            outs.append(out.astype(float))
        plain, dropped = outs[0], np.array(outs[1:])
        spread = dropped.std(0) / np.sqrt(keys)
        assert (abs(dropped.mean(0) - plain) < 6 * spread + 1e-6).all() and dropped.std(0).min() > 0, name


# --- keys


def test_splitmix_is_the_published_one():
    first = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [word & 0xFFFFFFFF for word in splitmix.words(1234567, 5).tolist()] == [word >> 32 for word in first]


def test_keys_of_numbers_differ_in_every_number_and_in_order():
    numbers = [(seed, update, part) for seed in (0, 1, 42, -1) for update in range(40) for part in range(8)]
    keys = {splitmix.key_of(*some) for some in numbers} | {splitmix.key_of(*some[:2]) for some in numbers}
    assert len(keys) == len(numbers) + 160 and all(0 <= key < 1 << 64 for key in keys)
    assert splitmix.key_of(1, 2) != splitmix.key_of(2, 1)
    starts = np.concatenate([splitmix.words(splitmix.key_of(42, update, 0), 37) for update in range(1000)])
    assert len(np.unique(starts)) > 0.999 * len(starts)
