"""Axes, layouts and the arena: the numbers of llm.c's files, views, re-planning, limits."""

import re
from pathlib import Path

import numpy as np
import pytest

import harness
from gpt2flat import GPT2Config, Model
from gpt2flat.arch import gpt2
from gpt2flat.errors import CapacityError, KernelArgError, UsageError
from gpt2flat.formats import checkpoint
from gpt2flat.memory import axes
from gpt2flat.memory import limits
from gpt2flat.memory.arena import HUGE_PAGE, Arena, human
from gpt2flat.memory.layout import Layout, Row

# byte offsets of the 124M checkpoint, and parameters with and without padding (formats of llm.c)
OFFSETS = dict(wte=1024, wpe=154_534_912, ln1w=157_680_640, ln1b=157_717_504, qkvw=157_754_368, qkvb=242_689_024,
               attprojw=242_799_616, attprojb=271_111_168, ln2w=271_148_032, ln2b=271_184_896, fcw=271_221_760,
               fcb=384_467_968, fcprojw=384_615_424, fcprojb=497_861_632, lnfw=497_898_496, lnfb=497_901_568)  # fmt: skip
SIZES = {"d6": (30_357_504, 30_339_456), "d12": (124_475_904, 124_439_808), "d24": (354_871_296, 354_823_168),
         "d36": (774_090_240, 774_030_080), "d48": (1_557_686_400, 1_557_611_200),
         "gpt3:c768": (125_262_336, 125_226_240)}  # fmt: skip


def test_offsets_of_the_124M_checkpoint():
    layout = Layout.plan(gpt2.PARAMS, GPT2Config().dims())
    assert {p.row.name: 1024 + 4 * p.offset for p in layout} == OFFSETS
    assert 1024 + 4 * layout.floats == 497_904_640


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts(name):
    config = gpt2.config_of(name)
    assert (config.num_parameters, config.num_parameters_unpadded) == SIZES[name]
    assert gpt2.config_of("gpt2:d12") == gpt2.config_of("d12")


@pytest.mark.parametrize(
    "bad",
    [
        dict(n_layer=0),
        dict(n_head=5),
        dict(vocab_size=-1),
        dict(block_size=1 << 20),
        dict(padded_vocab_size=10),
        dict(n_embd=1.5),
    ],
)
def test_config_refuses(bad):
    with pytest.raises(UsageError, match="expected|does not divide"):
        GPT2Config(**bad)


def test_unknown_descriptor():
    with pytest.raises(UsageError, match="no preset or descriptor 'd13'"):
        gpt2.config_of("d13")


def test_axes():
    dims = dict(N=6, C=4, NH=3, KVH=1, HS=5)
    assert axes.shape("N, 3*C", dims) == (6, 12) and axes.shape("N, (NH+2*KVH)*HS", dims) == (6, 25)
    assert axes.solve("x", {"a": "N, C", "b": "C"}, {"a": (2, 3), "b": (3,)}, dims)["N"] == 2
    for bad in ("N**2", "f(N)", "N.real", "N[0]", "1.5", "__import__('os')"):
        with pytest.raises(ValueError, match="only names|axis expression"):
            axes.size(bad, dims)
    with pytest.raises(KernelArgError, match="dim Q"):
        axes.size("Q", dims)
    with pytest.raises(KernelArgError, match=r"op: b is \(4,\), expected \(C\) = \(3,\)"):
        axes.solve("op", {"a": "N, C", "b": "C"}, {"a": (2, 3), "b": (4,)}, {})


def test_views_are_one_buffer():
    model = Model(GPT2Config(32, 97, 2, 2, 32))
    model.plan(2, 8)
    assert model.buffer.ctypes.data % HUGE_PAGE == 0
    model.params["qkvw"][1, 2, 3] = 5
    place = model.params.layout["qkvw"]
    assert model.buffer[256 + place.offset + 96 * 32 + 2 * 32 + 3] == 5
    for section in (model.params, model.grads, model.m, model.v, model.acts, model.dacts, model.scratch):
        for name, view in section.items():
            assert np.shares_memory(view, model.buffer), name
            assert view.flags.c_contiguous and view.ctypes.data % 4 == 0
    assert model.acts["tokens"].dtype == np.int32 and model.acts["stream"].shape == (3, 16, 32)
    assert np.shares_memory(model.dacts["mid"], model.dacts["stream"])
    with pytest.raises(KeyError, match="params has no tensor 'nope'"):
        model.params["nope"]


def test_replanning_keeps_the_state_and_gives_memory_back():
    model, rng = Model.init(GPT2Config(64, 97, 2, 2, 32), seed=1), np.random.default_rng(0)
    params = model.params["wte"]
    small, large = rng.integers(0, 97, (1, 3)), rng.integers(0, 97, (4, 64))
    first = model.forward(small, small)
    model.forward_backward(large, large)
    grads = model.grads.floats.copy()
    acts = model.acts["stream"].size
    assert model.forward(small, small) == first
    assert model.acts["stream"].size < acts
    assert np.array_equal(grads, model.grads.floats) and np.shares_memory(params, model.params["wte"])


def test_work_that_cannot_fit_is_refused_with_a_breakdown():
    arena = Arena(1000)
    arena.plan_work(dict(scratch=10, dacts=10, acts=10))
    end = arena.end
    with pytest.raises(CapacityError, match=r"needs .* TB more.*available.*params .*acts"):
        arena.plan_work(dict(scratch=10, dacts=10, acts=1 << 40))
    assert arena.end == end


SMALLER = "a smaller --batch-size or --seq-len, or a smaller model"


@pytest.mark.parametrize("have, recompute, advice", [
    (1_000_000, 0, "a smaller model"),  # not even parameters, 1.65 MB
    (4_000_000, 0, SMALLER),            # of 18.55 MB recompute would save 13.88
    (5_000_000, 0, f"--recompute 3, {SMALLER}"),
    (4_000_000, 3, SMALLER),            # it is on already
])  # fmt: skip
def test_the_advice_is_what_can_help(have, recompute, advice, monkeypatch):
    monkeypatch.setattr("gpt2flat.memory.arena.available_memory", lambda: (have, "a test"))
    with pytest.raises(CapacityError, match=re.escape(f"available (a test): take {advice} (params 1.6 MB")):
        Model(GPT2Config(64, 97, 8, 4, 64), recompute=recompute, threads=1, fused=False).plan(8, 64)


def test_what_training_touches_is_admitted_at_once(monkeypatch):
    """Half of the plan would fit, and then the other half: nothing of either is touched between the two looks at free memory."""
    model = Model(GPT2Config(64, 97, 8, 4, 64), threads=1)
    whole = 4 * sum(layout.floats for name, layout in model.layouts(model.program(8, 64)).items() if name != "params")
    monkeypatch.setattr("gpt2flat.memory.arena.available_memory", lambda: (whole - 1, "a test"))
    with pytest.raises(CapacityError, match="are available"):
        model.plan(8, 64, training=True)
    model.plan(8, 64)  # to evaluate, it does fit
    monkeypatch.setattr("gpt2flat.memory.arena.available_memory", lambda: (whole + 1, "a test"))
    Model(GPT2Config(64, 97, 8, 4, 64), threads=1).plan(8, 64, training=True)


def test_address_space_limit_is_one_clear_error():
    code = """
import resource, sys
from gpt2flat import Model
from gpt2flat.errors import CapacityError
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), used + (400 << 20)))
try:
    Model(__import__("gpt2flat").GPT2Config())
except CapacityError as error:
    print("capacity:", error)
    sys.exit(0)
sys.exit(1)
"""
    done = harness.python("-c", code)
    assert done.returncode == 0 and "cannot reserve 2.0 GB" in done.stdout, done.stderr


def test_memory_is_touched_only_where_used():
    """Inference touches neither gradients nor AdamW state: far less than four times the parameters becomes resident."""
    code = """
import numpy as np, resource
from gpt2flat import Model, GPT2Config
before = int(open("/proc/self/statm").read().split()[1]) * 4096
model = Model(GPT2Config(64, 50257, 2, 4, 256))
model.params.floats[:] = 0.01
model.forward(np.zeros((1, 8), int), np.zeros((1, 8), int))
grown = int(open("/proc/self/statm").read().split()[1]) * 4096 - before
print(grown / (4 * model.config.num_parameters))
"""
    done = harness.python("-c", code)
    assert done.returncode == 0, done.stderr
    assert 1.0 < float(done.stdout) < 1.7


def resident(model) -> int:
    """Bytes of the model's memory that are there, as the kernel counts them, huge pages included."""
    at, inside, found = model.buffer.ctypes.data, False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= at < int(span[2], 16)
        elif inside and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


@pytest.mark.parametrize("recompute", [0, 3])
def test_what_is_planned_becomes_resident(recompute):
    model = Model.init(GPT2Config(128, 3000, 6, 4, 192), threads=2, recompute=recompute)
    x, y = np.random.default_rng(0).integers(0, 3000, (2, 8, 128))
    model.plan(*x.shape, training=True)
    assert resident(model) < 0.3 * model.buffer.nbytes  # nothing but the parameters is touched before it is used
    for _ in range(2):
        model.forward_backward(x, y)
        model.update()
    assert resident(model) == pytest.approx(model.buffer.nbytes, rel=0.05)


def test_helpers():
    assert (
        human(497_904_640) == "497.9 MB"
        and human(12) == "12 B"
        and human(2.2e9) == "2.2 GB"
        and human(3.2e12) == "3.20 TB"
    )
    have, why = limits.available_memory()
    assert 0 < have < 1 << 50 and why
    assert Row("a", "N, C", slots="L").label() == "L x (N, C)"


@pytest.mark.parametrize("batch, limit", [((4, 64), 2.3e9), ((8, 1024), 9e9)])
def test_plans_of_124M_fit_the_promise(batch, limit):
    """llm.c's C program needs 2.6 and 38.9 GB; layouts touch no memory."""
    model = Model(GPT2Config(), threads=2)
    assert 4 * sum(layout.floats for layout in model.layouts(model.program(*batch)).values()) < limit


def test_caps_of_shapes_and_files_agree():
    assert {"maxT": gpt2.CAPS["block_size"], "V": gpt2.CAPS["vocab_size"], "L": gpt2.CAPS["n_layer"], "NH": gpt2.CAPS["n_head"],
            "C": gpt2.CAPS["n_embd"], "Vp": gpt2.CAPS["vocab_size"]} == {n: d.cap for n, d in checkpoint.DIMS.items()}  # fmt: skip


def test_cgroup_limits(tmp_path, monkeypatch):
    """The least of all cgroups above the process counts; pages of files that nobody uses are not taken."""
    leaf = tmp_path / "a/b"
    leaf.mkdir(parents=True)
    (tmp_path / "a/memory.max").write_text("3000\n")
    (tmp_path / "a/memory.current").write_text("2500\n")
    (tmp_path / "a/memory.stat").write_text("anon 1\ninactive_file 700\n")
    (leaf / "memory.max").write_text("max\n")
    (leaf / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "a/cpu.max").write_text("max 100000\n")
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    monkeypatch.setattr(
        limits, "_read", lambda path, read=limits._read: "0::/a/b" if str(path) == "/proc/self/cgroup" else read(path)
    )
    assert limits.available_memory() == (1200, "memory limit of the cgroup")
    assert limits.cpu_quota() == 1.5


def test_training_is_admitted_apart_from_inference(monkeypatch):
    """A model that only reads is not charged for gradients and AdamW state; a foreign use of memory is no room."""
    from gpt2flat.memory import arena

    model = Model(GPT2Config(64, 50257, 2, 4, 256))
    tokens = np.zeros((1, 8), int)
    monkeypatch.setattr(arena, "available_memory", lambda: (60 << 20, "test"))
    model.forward(tokens, tokens)
    with pytest.raises(CapacityError, match="needs .* more, but only 62.9 MB are available"):
        model.forward_backward(tokens, tokens)
    monkeypatch.setattr(arena, "available_memory", lambda: (300 << 20, "test"))
    model.forward_backward(tokens, tokens)
    monkeypatch.setattr(arena, "available_memory", lambda: (0, "test"))
    model.forward_backward(tokens, tokens)  # admitted once
    with pytest.raises(CapacityError):
        Model(GPT2Config(64, 97, 1, 1, 8))


def test_free_memory_is_asked_for_once_and_not_in_every_step(monkeypatch):
    from gpt2flat.memory import arena

    model, tokens, asked = Model.init("tiny"), np.ones((1, 8), np.int64), []
    model.forward_backward(tokens, tokens)
    monkeypatch.setattr(arena, "available_memory", lambda: asked.append(1) or (1 << 40, "test"))
    for _ in range(3):
        model.forward_backward(tokens, tokens)
        model.update()
    assert not asked
    model.forward_backward(tokens[:, :4], tokens[:, :4])
    assert asked, "a new plan asks"


def test_axes_leave_no_garbage():
    import gc

    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            axes.size("(NH+2*KVH)*HS", dict(NH=3, KVH=1, HS=5))
        assert gc.collect() < 50
    finally:
        gc.enable()


def test_a_section_is_a_mapping():
    model = Model(GPT2Config(32, 97, 2, 2, 32))
    model.plan(2, 8)
    for section in (model.params, model.dacts):
        names = list(section)
        assert names == list(section.keys()) == [name for name, _ in section.items()]
        assert all(name in section for name in names) and "nope" not in section


def test_half_of_a_limited_address_space_is_left_to_others():
    """With RLIMIT_AS the arena takes what it needs and half of the rest; what does not fit is said, with the cure."""
    code = """
import resource
import numpy as np
from gpt2flat import Model
from gpt2flat.errors import CapacityError
model = Model.init("tiny", threads=1)  # NumPy, kernels and all are loaded
del model
used = int(open("/proc/self/statm").read().split()[0]) * 4096
room = 1 << 30
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
model = Model.init("tiny", threads=2)
x = np.zeros((2, 64), int)
assert np.isfinite(model.forward_backward(x, x))
np.ones(room // 4, np.uint8)  # there is room for others
try:
    model.plan(1 << 9, 64)
except CapacityError as error:
    print(error)
"""
    done = harness.python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "of address space that could be reserved: raise the limit (ulimit -v)" in done.stdout
