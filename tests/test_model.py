"""The whole model: routes to the gradients, accumulation, threads and instruction sets to the bit, updates, files, errors."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import harness
from gpt2flat import GPT2Config, Model
from gpt2flat.arch import gpt2
from gpt2flat.errors import DataError, FormatError, KernelArgError, NonFiniteError, UsageError
from gpt2flat.kernels import available_isas, backend

ODD = GPT2Config(block_size=40, vocab_size=97, n_layer=3, n_head=3, n_embd=39)  # nothing here is a multiple of a vector


def random_model(config=ODD, seed=0, **options):
    model = Model(config, **{"threads": 2, **options})
    rng = np.random.default_rng(seed)
    for name, view in model.params.items():
        view[...] = rng.standard_normal(view.shape) * 0.1 + (name in ("ln1w", "ln2w", "lnfw"))
    model.params["wte"][config.vocab_size :] = 0
    return model


def batch(B=3, T=37, V=97, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, V, (B, T)), rng.integers(0, V, (B, T))


def gradients(model, x, y):
    model.grads.floats[:] = np.nan
    loss = model.forward_backward(x, y)
    return loss, model.grads.floats.copy()


def test_every_route_gives_the_same_bits(monkeypatch):
    x, y = batch()
    model = random_model()
    loss, grads = gradients(model, x, y)
    for chunk in (1024, x.size, 40, 7):
        monkeypatch.setattr(gpt2, "CHUNK_ROWS", chunk)
        other = random_model()
        assert gradients(other, x, y)[0] == loss and np.array_equal(other.grads.floats, grads)
        other.grads.floats[:] = np.nan
        assert other.forward(x, y) == loss
        other.backward()
        assert np.array_equal(other.grads.floats, grads)


def test_the_gradients_are_the_derivative():
    """Central differences along one random direction per tensor, for both forms of attention."""
    x, y = batch()
    for attention in gpt2.ATTENTION:
        model = random_model(attention=attention)
        model.forward_backward(x, y)
        rng = np.random.default_rng(1)
        for name, view in model.params.items():
            grad = model.grads[name].astype(float)
            direction = np.sign(grad) + rng.standard_normal(
                view.shape
            )  # along the gradient: the difference stands out of float32
            direction = (direction / np.linalg.norm(direction) * 0.02).astype(np.float32)
            old, losses = view.copy(), []
            for sign in (1, -1):
                view[...] = old + sign * direction
                losses.append(model.forward(x, y))
            view[...] = old
            assert losses[0] - losses[1] == pytest.approx(2 * float((grad * direction).sum()), rel=2e-2, abs=1e-6), (
                attention,
                name,
            )


def test_flash_and_standard_agree():
    x, y = batch()
    (a, ga), (b, gb) = (gradients(random_model(attention=name), x, y) for name in gpt2.ATTENTION)
    assert a == pytest.approx(b, rel=1e-6)
    assert np.linalg.norm(ga - gb) < 1e-5 * np.linalg.norm(ga)
    standard = random_model(attention="standard")
    standard.forward(x, y)
    att = standard.acts["att"]
    assert att.shape == (3, 3, 3, 37, 37)
    np.testing.assert_allclose(att.sum(-1), 1, rtol=1e-5)
    assert not np.triu(att, 1).any()


@pytest.mark.parametrize("kernels", harness.backends(), ids=lambda kernels: kernels.isa)
def test_same_bits_for_every_thread_count(kernels):
    x, y = batch()
    seen = {}
    for threads in (1, 2, 3, 8):
        model = random_model(threads=threads, kernels=kernels, adapt=False)
        losses = []
        for _ in range(3):
            losses.append(model.forward_backward(x, y))
            model.update(lr=1e-2, weight_decay=0.1, grad_clip=0.5)
        assert model.kernels.last_team() == (threads if model.kernels.openmp() else 1)
        seen[threads] = losses, model.params.floats.tobytes(), model.grads.floats.tobytes(), model.v.floats.tobytes()
    assert len(set(map(str, [s[0] for s in seen.values()]))) == 1
    assert all(s == seen[1] for s in seen.values())


def test_avx2_and_avx512_give_the_same_bits():
    isas = [isa for isa in available_isas() if isa != "scalar"]
    x, y = batch()
    results = []
    for isa in isas:
        model = random_model(kernels=backend("c", isa))
        for _ in range(3):
            model.forward_backward(x, y)
            model.update(lr=1e-2)
        results.append(model.buffer[: model.arena.state_end].tobytes())
    assert len(set(results)) <= 1


@pytest.mark.parametrize("kernels", harness.backends(), ids=lambda kernels: kernels.isa)
def test_bf16_is_near_fp32_and_has_its_own_bits_for_any_thread_count(kernels):
    x, y = batch()
    plain, whole = gradients(random_model(kernels=kernels), x, y)
    (loss, grads), *others = [
        gradients(random_model(kernels=kernels, precision="bf16", threads=threads), x, y) for threads in (1, 2, 3)
    ]
    assert all(other[0] == loss and (other[1] == grads).all() for other in others)
    assert 0 < abs(loss - plain) < 2e-3 * plain
    error = np.linalg.norm(grads - whole) / np.linalg.norm(whole)
    assert 2**-12 < error < 2**-5  # inputs are rounded to 2^-9 of their size, several times in a row


def test_the_logits_are_those_of_the_precision():
    x, y = batch()
    for precision in ("fp32", "bf16"):
        model = random_model(precision=precision)
        loss = model.forward(x, y)
        logits = model.logits(x).astype(np.float64)
        lse = np.log(np.exp(logits).sum(-1))
        picked = np.take_along_axis(logits, np.maximum(y, 0)[..., None], -1)[..., 0]
        assert loss == pytest.approx(((lse - picked) * (y >= 0)).sum() / (y >= 0).sum(), rel=1e-6)
    with pytest.raises(UsageError, match="fp32, bf16"):
        random_model(precision="fp16")


@pytest.mark.parametrize("other", [("c", "scalar"), ("numba",)], ids=lambda other: other[-1])
def test_scalar_and_numba_agree_within_tolerance(other):
    x, y = batch()
    both = backend(*other), harness.natives()[-1]
    (a, ga), (b, gb) = (gradients(random_model(kernels=kernels), x, y) for kernels in both)
    assert a == pytest.approx(b, rel=1e-6) and np.linalg.norm(ga - gb) < 1e-5 * np.linalg.norm(ga)


def test_accumulation_is_the_gradient_of_the_larger_batch():
    x, y = batch(B=6)
    model = random_model()
    loss, whole = gradients(model, x, y)
    model.grads.floats[:] = np.nan
    parts = [model.forward_backward(x[i : i + 2], y[i : i + 2], scale=1 / 3, accumulate=i > 0) for i in (0, 2, 4)]
    assert sum(parts) / 3 == pytest.approx(loss, rel=1e-6)
    assert np.linalg.norm(model.grads.floats - whole) < 1e-5 * np.linalg.norm(whole)


def trained(x, y, **options):
    """The bits of losses, gradients and state of a few updates with dropout, on every route and over micro-batches."""
    model, found = random_model(**{"dropout": 0.25, **options}), []
    for step in range(2):
        found.append(model.forward_backward(x, y, scale=0.5, dropout_key=2 * step))
        model.forward(y)  # an evaluation between micro-batches
        found.append(model.forward(y, x, dropout_key=2 * step + 1))
        model.backward(scale=0.5, accumulate=True)
        found.append(model.grads.floats.tobytes())
        found.append(model.update(lr=1e-2, weight_decay=0.1, grad_clip=0.5))
    return found + [section.floats.tobytes() for section in (model.params, model.m, model.v)]


@pytest.mark.parametrize("attention, precision", [("flash", "fp32"), ("standard", "fp32"), ("flash", "bf16")])
def test_recompute_changes_no_bit(attention, precision, monkeypatch):
    monkeypatch.setattr(gpt2, "CHUNK_ROWS", 40)  # three chunks of rows
    options, batches = dict(attention=attention, precision=precision), batch()
    kept = trained(*batches, **options)
    for level in range(1, gpt2.RECOMPUTE + 1):
        assert trained(*batches, recompute=level, fused=level != 2, **options) == kept


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kernels", harness.backends(), ids=lambda kernels: kernels.isa)
def test_fused_and_plain_are_the_same_bits(kernels, precision):
    plain, fused = (trained(*batch(), kernels=kernels, precision=precision, fused=fused) for fused in (False, True))
    assert plain == fused


def test_views_of_rows_with_one_slot():
    model, (x, y) = random_model(recompute=2), batch()
    assert model.plan(*x.shape) and model.acts["ln1"].shape == (1, x.size, 39) and model.acts["qkv"].shape[0] == 3
    whole = random_model()
    for m in (model, whole):
        m.forward(x, y)
    assert np.array_equal(model.acts["ln1"][0], whole.acts["ln1"][2])  # the last block's after forward
    model.backward()
    assert np.array_equal(model.acts["ln1"][0], whole.acts["ln1"][0])
    for level in (-1, 4, 1.0, True, "1", None):
        with pytest.raises(UsageError, match="recompute = "):
            random_model(recompute=level)


def test_ignored_targets():
    x, y = batch()
    hidden = y.copy()
    hidden[:, 20:] = -1
    model = random_model()
    loss, grads = gradients(model, x, hidden)
    short, short_grads = gradients(random_model(), x[:, :20], y[:, :20])
    assert loss == pytest.approx(short, rel=1e-6)  # causal: what follows the last target does not matter
    assert np.linalg.norm(grads - short_grads) < 1e-5 * np.linalg.norm(grads)
    with pytest.raises(DataError, match="every target is -1"):
        model.forward(x, np.full_like(y, -1))


def test_logits_match_the_loss_and_leave_gradients_alone(monkeypatch):
    monkeypatch.setattr(gpt2, "CHUNK_ROWS", 50)
    model, (x, y) = random_model(), batch()
    loss, grads = gradients(model, x, y)
    logits = model.logits(x).astype(float)
    assert logits.shape == (3, 37, 97)
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, y[..., None], -1)[..., 0]
    assert nll.mean() == pytest.approx(loss, rel=1e-6)
    np.testing.assert_array_equal(model.logits(x, last=True), logits[:, -1].astype(np.float32))
    np.testing.assert_array_equal(model.logits(x, at=5), logits[:, 5].astype(np.float32))
    assert np.array_equal(model.grads.floats, grads)


def adamw_reference(p, g, m, v, t, lr, b1, b2, eps, decay):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    return p - lr * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * p), m, v


@pytest.mark.parametrize("decay_all", [False, True])
def test_update_is_adamw(decay_all):
    model, (x, y) = random_model(), batch()
    hyper = dict(lr=3e-3, beta1=0.8, beta2=0.95, eps=1e-6)
    for t in (1, 2, 3):
        model.forward_backward(x, y)
        before = {
            n: tuple(s[n].astype(float) for s in (model.params, model.grads, model.m, model.v)) for n in model.params
        }
        norm = model.update(**hyper, weight_decay=0.3, grad_clip=0.2, decay_all=decay_all)
        assert (
            norm == pytest.approx(math.sqrt(sum((g**2).sum() for _, g, _, _ in before.values())), rel=1e-6)
            and model.t == t
        )
        for name, (p, g, m, v) in before.items():
            decay = 0.3 if decay_all or model.params.layout[name].row.decay else 0.0
            expected = adamw_reference(p, g * min(1, 0.2 / norm), m, v, t, *hyper.values(), decay)
            for section, wanted in zip((model.params, model.m, model.v), expected):
                np.testing.assert_allclose(section[name], wanted, rtol=2e-5, atol=1e-7, err_msg=name)
    assert {p.row.name for p in model.params.layout if p.row.decay} == {
        "wte",
        "wpe",
        "qkvw",
        "attprojw",
        "fcw",
        "fcprojw",
    }


def test_a_nonfinite_gradient_changes_nothing_and_is_named():
    model, (x, y) = random_model(), batch()
    model.forward_backward(x, y)
    model.update()
    model.forward_backward(x, y)
    model.grads["fcw"][1, 2, 3] = np.nan
    before = [s.floats.tobytes() for s in (model.params, model.m, model.v)]
    with pytest.raises(NonFiniteError, match="the gradient of fcw"):
        model.update()
    assert [s.floats.tobytes() for s in (model.params, model.m, model.v)] == before and model.t == 1


def test_what_is_not_finite_is_not_saved(tmp_path):
    model = random_model()
    model.save(tmp_path / "a.bin")
    before = (tmp_path / "a.bin").read_bytes()
    model.params["wpe"][3, 4] = np.inf
    with pytest.raises(NonFiniteError, match="wpe holds inf at flat index 121; nothing was saved"):
        model.save(tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == before


@pytest.mark.parametrize(
    "bad",
    [
        dict(lr=math.inf),
        dict(lr=math.nan),
        dict(lr=1e39),
        dict(weight_decay=-1e39),
        dict(eps=math.inf),
        dict(eps=0),
        dict(beta1=1.0),
        dict(beta2=0.99999999),
        dict(lr=-1),
        dict(grad_clip=-1),
        dict(grad_clip=math.nan),
    ],
)
def test_numbers_that_float32_cannot_hold_are_refused(bad):
    model, (x, y) = random_model(), batch()
    model.forward_backward(x, y)
    before = model.params.floats.copy()
    with pytest.raises(UsageError, match="update: .* = .*expected"):
        model.update(**bad)
    assert np.array_equal(model.params.floats, before) and model.t == 0


def test_trace_names_the_first_tensor():
    model, (x, y) = random_model(trace=True), batch()
    model.forward_backward(x, y)
    model.params["fcprojw"][1, 0, 0] = np.inf
    with pytest.raises(NonFiniteError, match=r"gelu_linear_forward, layer 1, writing acts\[\"stream\"\]\[2\]: out"):
        model.forward_backward(x, y)


def test_nan_in_the_weights_reaches_the_loss():
    model, (x, y) = random_model(), batch()
    model.params["qkvw"][0, 0, 0] = np.nan
    assert math.isnan(model.forward(x, y))


def test_save_load_round_trip(tmp_path):
    model, (x, y) = random_model(), batch()
    model.save(tmp_path / "a.bin")
    again = Model.load(tmp_path / "a.bin", threads=1)
    assert again.config == model.config and np.array_equal(again.params.floats, model.params.floats)
    assert again.forward(x, y) == model.forward(x, y)
    again.save(tmp_path / "a.bin")  # over the file it came from
    assert (tmp_path / "a.bin").stat().st_size == 1024 + 4 * model.config.num_parameters
    cropped = Model.load(tmp_path / "a.bin", block_size=20)
    assert cropped.config.block_size == 20 and np.array_equal(cropped.params["wpe"], model.params["wpe"][:20])
    assert np.array_equal(cropped.params["lnfb"], model.params["lnfb"])
    assert cropped.forward(x[:, :20], y[:, :20]) == model.forward(x[:, :20], y[:, :20])
    with pytest.raises(UsageError, match="block size 41 is larger than the 40"):
        Model.load(tmp_path / "a.bin", block_size=41)


def test_load_refuses_damage(tmp_path):
    path, model = tmp_path / "a.bin", random_model()
    model.save(path)
    whole = bytearray(path.read_bytes())
    index = model.params.layout["fcb"].offset + 161
    whole[1024 + 4 * index : 1028 + 4 * index] = np.float32(np.nan).tobytes()
    path.write_bytes(whole)
    with pytest.raises(NonFiniteError, match="fcb holds nan at flat index 161; the file is damaged"):
        Model.load(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FormatError, match="cut short"):
        Model.load(path)


def test_batches_are_checked():
    model, (x, y) = random_model(), batch()
    cases = [
        (KernelArgError, "expected integers of shape", x.astype(float), y),
        (KernelArgError, "expected integers of shape", x[0], y[0]),
        (KernelArgError, "targets are", x, y[:, :5]),
        (
            KernelArgError,
            "expected 1 to 1048576 rows of 1 to 40 tokens",
            np.zeros((1, 41), int),
            np.zeros((1, 41), int),
        ),
        (DataError, "tokens hold ids from .* to 97, expected 0 to 96", np.full((1, 3), 97), np.zeros((1, 3), int)),
        (DataError, "tokens hold ids from -1", np.full((1, 3), -1), np.zeros((1, 3), int)),
        (DataError, "targets hold ids from -2", np.zeros((1, 3), int), np.full((1, 3), -2)),
    ]
    for error, match, tokens, targets in cases:
        with pytest.raises(error, match=match):
            model.forward_backward(tokens, targets)
    with pytest.raises(UsageError, match="run forward_backward first"):
        random_model().update()
    model.forward_backward(x, y)
    with pytest.raises(UsageError, match="backward needs a forward"):
        model.backward()
    with pytest.raises(UsageError, match="attention 'fast': choose from flash, standard"):
        Model(ODD, attention="fast")


def test_tiles_are_chosen_by_name():
    x, y = batch()
    _loss, wanted = gradients(random_model(), x, y)
    model = random_model(attention="flash:16x48")
    assert [(c.numbers["QB"], c.numbers["KB"]) for c in model.program(*x.shape).calls if "QB" in c.numbers][0] == (
        16,
        48,
    )
    assert np.array_equal(gradients(model, x, y)[1].view(np.int32), wanted.view(np.int32))
    for name in ("flash:", "flash:64", "flash:0x64", "flash:64x208", "flash:63x64", "flash:QxK"):
        with pytest.raises(UsageError, match=f"attention '{name}': .* multiples of 16, at most flash:512x192"):
            Model(ODD, attention=name)
    with pytest.raises(UsageError, match="choose from flash, standard, flash:QxK"):
        Model(ODD, attention="standard:64x64")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(2, 60),
    st.integers(1, 3),
    st.integers(1, 30),
    st.data(),
)
def test_any_shape_works(layers, heads, head_size, vocab, B, T, data):
    """Finite losses near ln(V) for fresh weights, all gradients defined, two threads equal one."""
    config = GPT2Config(
        block_size=data.draw(st.integers(T, 40)),
        vocab_size=vocab,
        n_layer=layers,
        n_head=heads,
        n_embd=heads * head_size,
    )
    x, y = batch(B, T, vocab)
    results = []
    for threads in (1, 2):
        model = Model.init(config, seed=5, threads=threads)
        results.append(gradients(model, x, y))
        assert abs(results[-1][0] - math.log(vocab)) < 1.5 and np.isfinite(model.grads.floats).all()
        assert not model.grads["wpe"][T:].any() and not model.grads["wte"][vocab:].any()
    assert results[0][0] == results[1][0] and np.array_equal(results[0][1], results[1][1])


def test_forward_without_targets_fills_the_activations_only():
    model, (x, y) = random_model(), batch()
    model.forward_backward(x, y)
    before, stream = model.grads.floats.copy(), model.acts["stream"].copy()
    model.acts["stream"][...] = np.nan
    assert model.forward(x) is None
    assert np.array_equal(model.acts["stream"], stream) and np.array_equal(model.grads.floats, before)
    with pytest.raises(UsageError, match="backward needs a forward with targets"):
        model.backward()


def test_gradients_too_large_for_their_norm_change_nothing():
    model, (x, y) = random_model(), batch()
    model.forward_backward(x, y)
    model.grads["wte"][3, 4] = 1e30  # finite, but not its square
    before = model.params.floats.copy(), model.m.floats.copy()
    with pytest.raises(NonFiniteError, match="the gradient norm is inf: the sum of squares left the range of float32"):
        model.update()
    assert np.array_equal(model.params.floats, before[0]) and np.array_equal(model.m.floats, before[1]) and model.t == 0


def test_a_model_says_what_it_is():
    assert re.fullmatch(
        r"<Model: 3 layers, 3 heads, .* vocabulary \d+, [\d,]+ parameters, fp32, (c|numba) \w+, threads \d+>",
        repr(random_model()),
    )
