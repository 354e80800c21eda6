"""The binder: the golden listing of a two-layer model, acc derivation, the program as code, and what it refuses."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gpt2flat import GPT2Config, Model
from gpt2flat.arch import gpt2
from gpt2flat.errors import KernelArgError
from gpt2flat.inspection.listing import as_code, is_again, listing
from gpt2flat.kernels import backend, run
from gpt2flat.kernels.ops import KERNELS, MODES
from gpt2flat.memory.arena import Arena
from gpt2flat.memory.layout import Layout, Row
from gpt2flat.program import Program, Step

GOLDEN = Path(__file__).parent / "golden_program.txt"
NO_MODES = dict.fromkeys(MODES, 0)
SHAPE = GPT2Config(block_size=24, vocab_size=97, n_layer=2, n_head=2, n_embd=32)


def batch(B=2, T=17, V=97, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, V, (B, T)), rng.integers(0, V, (B, T))


def name(call):
    return call.kernel.name + ("" if call.layer is None else f"[{call.layer}]")


def test_golden_listing():
    """Homes, acc flags, order and what recompute runs again in a two-layer model: a change of a derivation shows here in
    review."""
    program = Model(SHAPE, threads=2, fused=False).program(2, 17)
    lines = [listing(program), "# acc of later micro-batches", *(f"{name(c)} {c.accs}" for c in program.train[1])]
    lines += ["# row: recompute level", *(f"{row.name} {row.recompute}" for row in gpt2.ACTS if row.recompute)]
    for level in range(1, gpt2.RECOMPUTE + 1):
        calls = Model(SHAPE, threads=2, recompute=level, fused=False).program(2, 17).train[0]
        lines += [f"# backward with recompute {level}", *(name(c) + " again" * is_again(calls, c) for c in calls)]
    fused = listing(Model(SHAPE, threads=2, recompute=3).program(2, 17)).splitlines()
    lines += ["# layer 0 fused, with recompute 3", *(line for line in fused if "[0] -> " in line)]
    dropping = listing(Model(SHAPE, threads=2, dropout=0.1).program(2, 17)).splitlines()
    lines += ["# what drops, and what it drops from, with dropout"]
    lines += [line for line in dropping if line.startswith("dropout") or "_full" in line]
    assert "\n".join(lines) + "\n" == GOLDEN.read_text()


@pytest.mark.parametrize("options", [dict(fused=False), dict(attention="standard"), dict(recompute=3)], ids=str)
def test_program_as_code_gives_the_same_bits(options):
    model, (x, y) = Model.init(SHAPE, seed=3, threads=2, **options), batch()
    loss = model.forward_backward(x, y)
    acts = {name: view.copy() for name, view in model.acts.items()}
    grads = model.grads.floats.copy()
    for section in (model.grads.floats, model.dacts.floats):
        section[:] = np.nan
    kept = ("tokens", "targets", "p_drop", "key_drop")
    for name, view in model.acts.items():
        if name not in kept:
            view.reshape(-1)[:] = -7
    model.dacts["losses"][:] = np.float32(1 / x.size)
    kernels = {name: partial(run, name, threads=2, kernels=model.kernels) for name in KERNELS}
    code = as_code(model.program(*x.shape))
    sections = dict(params=model.params, grads=model.grads, acts=model.acts, dacts=model.dacts)
    exec(compile(code, "program", "exec"), {**kernels, **sections})  # our own listing, printed a line above
    assert np.isclose(model.acts["losses"].mean(), loss)
    assert np.array_equal(model.grads.floats, grads)
    for name in acts:
        assert np.array_equal(model.acts[name], acts[name], equal_nan=True), name


# -- other architectures through the same binder ------------------------------------------------------------------------


class Rig:
    """A program of any tables, bound to an arena of its own."""

    def __init__(self, head, block, tail, params, acts, dims, threads=1, recompute=0):
        self.kernels, dims = backend(), {**dims, **NO_MODES, "NT": threads}
        self.program = Program(head, block, tail, params, acts, dims, self.kernels, recompute)
        state = Layout.plan(params, dims)
        arena = Arena(state.floats)
        work = {
            "scratch": Layout.plan((Row("scratch", str(self.program.scratch)),), {}),
            "dacts": self.program.dacts,
            "acts": self.program.acts,
        }
        arena.plan_work({name: layout.floats for name, layout in work.items()})
        self.sections = {name: arena.section(name, state) for name in ("params", "grads")}
        self.sections |= {name: arena.section(name, layout) for name, layout in work.items()}
        self.program.bind(self.sections, self.kernels)

    def step(self, add=False):
        for call in self.program.body + self.program.train[add]:
            call()
        return float(self.sections["acts"]["losses"].mean())


DIMS = dict(SHAPE.dims(), B=2, T=17, N=34, R=34)
UNTIED = gpt2.PARAMS + (Row("headw", "Vp, C", init="normal"),)
UNTIED_TAIL = gpt2.TAIL[:1] + (Step("classifier", **{**gpt2.TAIL[1].names, "weight": "headw"}),)


def fill(rig, x, y, seed=1):
    rng = np.random.default_rng(seed)
    params, acts = rig.sections["params"], rig.sections["acts"]
    params.floats[:] = rng.standard_normal(params.floats.size) * 0.2
    acts["tokens"][:], acts["targets"][:] = x.reshape(-1), y.reshape(-1)
    rig.sections["dacts"]["losses"][:] = 1 / x.size


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [34, 13])
def test_nothing_needs_zeroing(tied, chunk):
    """All gradients start as NaN; T < maxT, tied and untied, one micro-batch and three, one chunk of rows and three."""
    params, tail = (gpt2.PARAMS, gpt2.TAIL) if tied else (UNTIED, UNTIED_TAIL)
    rig, (x, y) = Rig(gpt2.HEAD, gpt2.PLAIN, tail, params, gpt2.ACTS, {**DIMS, "R": chunk}), batch()
    fill(rig, x, y)
    grads, dacts = rig.sections["grads"].floats, rig.sections["dacts"]
    grads[:] = np.nan
    for name, view in dacts.items():
        if name != "losses":
            view[...] = np.nan
    rig.step()
    once = grads.copy()
    assert np.isfinite(once).all()
    wte, wpe = rig.sections["grads"]["wte"], rig.sections["grads"]["wpe"]
    assert not wte[97:].any() and not wpe[17:].any()
    if not tied:
        assert not wte[np.setdiff1d(np.arange(97), x)].any() and wte[x.ravel()].any()
    rig.step(add=True)
    rig.step(add=True)
    np.testing.assert_allclose(grads, 3 * once, rtol=2e-5, atol=1e-6 * abs(once).max())


def test_acc_of_a_tensor_with_two_readers():
    """A normalised row read by two projections (as in Llama): the second backward adds, and the gradient is right."""
    acts = gpt2.ACTS + (
        Row("gate", "N, C", slots="L"),
        Row("up", "N, C", slots="L"),
        Row("sum", "N, C", slots="L", grad="stream"),
    )
    block = (
        gpt2.PLAIN[0],
        Step("linear", out="gate", inp="ln1", weight="attprojw"),
        Step("linear", out="up", inp="ln1", weight="attprojw", bias="attprojb"),
        Step("residual", out="sum", inp1="gate", inp2="up"),
        Step("residual", out="stream[l+1]", inp1="stream[l]", inp2="sum"),
    )
    rig, (x, y) = Rig(gpt2.HEAD, block, gpt2.TAIL, gpt2.PARAMS, acts, DIMS), batch()
    flags = [c.accs for c in rig.program.train[0] if c.layer == 1]
    assert [f.get("acc_inp") for f in flags] == [
        None,
        0,
        1,
        1,
    ]  # residual, up, gate (adds to ln1), layernorm (adds to stream)
    assert flags[0] == {"acc_inp1": 0, "acc_inp2": 0}
    assert [f.get("acc_weight") for f in flags[1:3]] == [0, 1]
    fill(rig, x, y)
    rig.step()
    grad, weight = rig.sections["grads"]["attprojw"].copy(), rig.sections["params"]["attprojw"]
    direction = np.random.default_rng(5).standard_normal(weight.shape).astype(np.float32)
    losses = []
    for eps in (1e-3, -1e-3):
        weight += np.float32(eps) * direction
        losses.append(rig.step())
        weight -= np.float32(eps) * direction
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(float((grad.astype(float) * direction).sum()), rel=2e-3)


# -- what construction refuses: each message names step, argument and both shapes ------------------------------------------


def refuse(match, head=gpt2.HEAD, block=gpt2.PLAIN, tail=gpt2.TAIL, params=gpt2.PARAMS, acts=gpt2.ACTS):
    with pytest.raises(KernelArgError, match=match):
        Program(head, block, tail, params, acts, {**DIMS, **NO_MODES, "NT": 1}, backend())


def changed(index, **names):
    step = gpt2.PLAIN[index]
    return gpt2.PLAIN[:index] + (Step(step.op, **{**step.names, **names}),) + gpt2.PLAIN[index + 1 :]


def test_refuses_shapes_that_clash():
    refuse(r"step linear, layer 0: inp is \(34, 32\), expected \(N,C\)|weight is", block=changed(1, weight="fcprojw"))
    refuse(r"step layernorm, layer 0: weight is \(64, 32\)|weight", block=changed(0, weight="wpe"))
    rows = tuple(Row("mid", "N, F", slots="L") if r.name == "mid" else r for r in gpt2.ACTS)
    refuse(r"step residual, layer 0: .*\(34, 128\).*\(34, 32\)|\(34, 32\).*\(34, 128\)", acts=rows)


def test_refuses_unknown_and_missing_names():
    refuse("names 'nowhere'", block=changed(1, inp="nowhere"))
    step = Step("linear", out="qkv", inp="ln1", bias="qkvb")
    refuse("step linear: weight is not named", block=gpt2.PLAIN[:1] + (step,) + gpt2.PLAIN[2:])
    refuse(r"stream\[3\] is beyond its 3 slots", block=changed(9, out="stream[l+2]"))


def test_refuses_a_gradient_that_nobody_writes():
    refuse(r"backward of step layernorm, layer 1: no step writes dacts\[\"ln1\"\]", block=changed(1, inp="ln2"))


def test_a_gradient_that_lies_where_it_belongs_is_not_written():
    """Where homes coincide a residual passes the gradient on; where they differ it is written, with flags of its own."""
    apart = tuple(replace(row, grad="") if row.grad else row for row in gpt2.ACTS)
    found, flags = [], []
    for block, acts in ((gpt2.PLAIN, gpt2.ACTS), (gpt2.PLAIN, apart), (gpt2.FUSED, gpt2.ACTS), (gpt2.FUSED, apart)):
        rig, (x, y) = Rig(gpt2.HEAD, block, gpt2.TAIL, gpt2.PARAMS, acts, DIMS), batch()
        fill(rig, x, y)
        accs = [c.accs for c in rig.program.train[0] if c.layer == 1 and c.op.identity]
        found.append((rig.step(), rig.sections["grads"].floats.tobytes()))
        flags.append([{n: flag for n, flag in acc.items() if n[4:] not in ("weight", "bias")} for acc in accs])
    once = {"acc_inp": 0}
    assert flags == [[], [{"acc_inp1": 0, "acc_inp2": 0}] * 2, [once] * 2, [once | {"acc_added": 0}] * 2]
    assert all(other == found[0] for other in found[1:])
    half = tuple(replace(row, grad="") if row.name == "mid" else row for row in gpt2.ACTS)
    refuse("backward of step residual, layer 1: reads and writes the same gradient", acts=half)


def test_refuses_a_gradient_read_and_written_at_once():
    rows = tuple(Row("fch_gelu", "N, F", slots="L", grad="fch") if r.name == "fch_gelu" else r for r in gpt2.ACTS)
    refuse(r"backward of step gelu, layer 1: reads and writes the same gradient", acts=rows)


def test_refuses_one_slot_for_two_layers_at_once():
    slots = r"ln1\[0\]: read when the row's one slot cannot hold it"
    refuse(slots, block=changed(4, inp2="ln1[0]"), acts=one_slot("ln1"))  # in forward
    refuse(
        r"ln1_mean\[1\], ln1_rstd\[1\]: read when", acts=one_slot("stream", *LEVELS["blocks"])
    )  # stream[1] takes theirs


def one_slot(*names):
    return tuple(replace(row, slots="1") if row.name in names else row for row in gpt2.ACTS)


# -- recompute ------------------------------------------------------------------------------------------------------------

LEVELS = {"fch": ("fch",), "stream": ("stream",), "blocks": [row.name for row in gpt2.ACTS if row.recompute]}


@pytest.mark.parametrize("names", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("tied", [True, False])
def test_any_row_with_one_slot_is_made_again(names, tied):
    """Even the residual stream, from the embedding on; stale values are never read: all activations start as NaN."""
    params, tail = (gpt2.PARAMS, gpt2.TAIL) if tied else (UNTIED, UNTIED_TAIL)
    dims, (x, y), found = {**DIMS, "L": 3, "R": 13}, batch(), []
    for acts in (gpt2.ACTS, one_slot(*names)):
        rig = Rig(gpt2.HEAD, gpt2.PLAIN, tail, params, acts, dims)
        for name, view in rig.sections["acts"].items():
            if name not in ("p_drop", "key_drop", "held"):
                view[...] = np.nan if view.dtype == np.float32 else 0
        fill(rig, x, y)
        found.append([(rig.step(add), rig.sections["grads"].floats.copy()) for add in (False, True)])
    for (loss, grads), (again, others) in zip(*found, strict=True):
        assert loss == again and np.array_equal(grads, others) and np.isfinite(grads).all()


def test_each_step_is_made_again_once_and_only_where_it_must_be():
    for fused, level, wanted in ((0, 0, 0), (0, 1, 1), (0, 2, 3), (0, 3, 8), (1, 1, 0), (1, 2, 2), (1, 3, 6)):
        program = Model(replace(SHAPE, n_layer=4), recompute=level, fused=fused).program(2, 17)
        again = [call for call in program.train[0] if call in program.body]
        assert [call.layer for call in again] == [2] * wanted + [1] * wanted + [0] * wanted
        assert len({id(call) for call in again}) == len(again)
        assert program.flops() == Model(replace(SHAPE, n_layer=4), fused=fused).program(2, 17).flops()


def test_memory_shrinks_as_the_table_says():
    def planned(level):
        model = Model(gpt2.config_of("d12"), threads=2, recompute=level, fused=False)
        program = model.program(8, 1024)
        return program.acts, 4 * sum(layout.floats for layout in model.layouts(program).values())

    (plain, size), *others = map(planned, range(gpt2.RECOMPUTE + 1))
    assert size < 8e9
    for level, (acts, less) in enumerate(others, 1):
        rows = [place for place in plain if 0 < place.row.recompute <= level]  # each a multiple of a cache line
        assert size - less == 4 * sum(place.floats - place.floats // 12 for place in rows)
        assert all(acts[place.row.name].shape == (1, *place.slot_shape) for place in rows)
        assert [place.shape for place in plain if place not in rows] == [
            acts[place.row.name].shape for place in plain if place not in rows
        ]
    assert less < 3.5e9
    fused = {place.row.name for place in Model(SHAPE).program(2, 17).acts}
    assert {place.row.name for place in plain} - fused == {"attproj", "fch_gelu", "fcproj"}


def test_program_file_stays_small():
    source = Path(__file__).parents[1] / "gpt2flat" / "program.py"
    assert len(source.read_text().splitlines()) < 250
