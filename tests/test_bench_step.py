"""bench step: the cost model, the step beside it, and the profile whose rows add up to the step."""

import json

import numpy as np
import pytest

import harness
from gpt2flat import bench
from gpt2flat.arch import gpt2
from gpt2flat.benchmarks import growth, machine, measure, profile, step
from gpt2flat.errors import CapacityError
from gpt2flat.kernels.ops import KERNELS, OP_OF, OPS
from gpt2flat.model import Model

BACKENDS = harness.backends()
TINY = ["step", "--init", "tiny", "-b", "2", "-t", "16", "--threads", "2", "--repeats", "2", "--seconds", "0"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(machine, "WINDOW", 0.001)
    monkeypatch.setattr(measure, "TOLERANCE", 10.0)  # two rounds of a busy machine are no measurement
    for name in ("GPT2FLAT_BACKEND", "GPT2FLAT_ISA"):
        monkeypatch.delenv(name, raising=False)


def rows_of(capsys, *argv) -> list[dict]:
    assert bench.main([*TINY, *argv, "--json"]) == 0
    first, *rows = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["machine"]["threads"] == 2
    return rows


def trainee_of(native, kernels=None) -> step.Trainee:
    trainee = step.Trainee(gpt2.config_of("tiny"), machine.Machine(native, 2), kernels=kernels)
    trainee.take(1, 8)
    return trainee


# --- the cost model


def test_the_cost_of_124m_is_the_published_one():
    cost = step.Cost.of(gpt2.config_of("d12"), 4, 64)
    assert cost.products == 6 * 123_568_128 * 256 and cost.attention == 7 * 768 * 12 * 65 * 256
    assert cost.parameters == 124_475_904 and cost.tokens == 256
    assert cost.roof(500e9, 100e9) == pytest.approx((cost.flops / 500 + 28 * cost.parameters / 100) / 1e9)
    assert sum(cost.parts(500e9, 100e9).values()) == pytest.approx(cost.roof(500e9, 100e9))


@pytest.mark.parametrize("name, B, T", [("tiny", 3, 5), ("tiny", 1, 64), ("d12", 2, 64)])
def test_the_cost_is_that_of_the_program(name, B, T):
    """The products and attention of a program, call by call, and what the model says."""
    cost, model = step.Cost.of(gpt2.config_of(name), B, T), Model(gpt2.config_of(name), kernels=BACKENDS[0])
    program, products, attention = model.program(B, T), 0, 0
    for call in program.body + program.train[0]:
        n, form = call.numbers, call.kernel.name.split("_")[-1]
        if call.op.name == "attention":
            attention += call.flops
        elif "BF16" in call.op.dims:
            products += {"forward": 2, "backward": 4, "train": 6}[form] * n["N"] * n["C"] * n.get("OC", n.get("Vp"))
    assert (cost.products, cost.attention) == (products, attention) and cost.parameters == model.config.num_parameters


# --- the step


def test_a_row_of_numbers_that_fit_together(capsys):
    rows = rows_of(capsys, "--isa", "all")
    assert [row["isa"] for row in rows] == [native.isa for native in BACKENDS]
    cost = step.Cost.of(gpt2.config_of("tiny"), 2, 16)
    for row in rows:
        assert 0 < row["ms_min"] <= row["ms_25"] <= row["ms"] <= row["ms_75"] <= row["ms_max"]
        assert row["tokens_per_s"] == pytest.approx(32e3 / row["ms"]) and row["threads"] == 2
        assert row["gflops"] == pytest.approx(cost.flops / row["ms"] / 1e6)
        roof = cost.flops / row["peak_gflops"] / 1e6 + 28 * cost.parameters / row["memory_gbytes_per_s"] / 1e6
        assert row["t_roof_ms"] == pytest.approx(roof) == pytest.approx(sum(row["t_roof_parts_ms"].values()))
        assert row["of_t_roof"] == pytest.approx(roof / row["ms"]) and row["peak_fp32_gflops"] == row["peak_gflops"]
        assert 4 * 4 * 850_688 < row["planned_bytes"] < 40e6


def test_bf16_has_its_own_peak(capsys):
    (row,) = rows_of(capsys, "--precision", "bf16", "--isa", BACKENDS[-2].isa)
    assert (row["peak_gflops"] != row["peak_fp32_gflops"]) == BACKENDS[-2].multiplies_bf16


def test_by_default_the_best_and_avx2_and_the_screen_is_no_wider_than_a_terminal(capsys):
    assert bench.main(TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    have = [native.isa for native in BACKENDS if native.name == "c"]
    expected = [have[-1]] + ["avx2"] * ("avx2" in have[:-1])
    assert [line.split()[0] for line in lines if line.startswith("  a")] == expected
    assert max(map(len, lines)) <= 120 and lines[1].startswith("step      tiny, B 2, T 16, fp32")


def test_an_impossible_share_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(measure, "TOLERANCE", 0.03)
    monkeypatch.setattr(step.Cost, "roof", lambda *_: 1e3)
    assert bench.main([*TINY, "--isa", "scalar"]) == bench.IMPOSSIBLE
    error = capsys.readouterr().err
    assert error.startswith("gpt2flat bench: the step (scalar) reaches ") and "of T_roof" in error


def test_weights_are_random_and_the_padding_is_zero():
    model = Model(gpt2.config_of("tiny"), kernels=BACKENDS[0])
    step.fill_weights(model)
    assert 0.015 < model.params["qkvw"].std() < 0.025 and (model.params["lnfw"] == 1).all()
    assert model.params["wte"][256].any() and not model.params["wte"][257:].any() and not model.params["qkvb"].any()


def test_the_stream_of_adamw_leaves_the_model_as_it_is():
    native = BACKENDS[-2]
    trainee = trainee_of(native)
    before = trainee.model.buffer.copy()
    stream = trainee.adamw_stream()
    stream.on(native, 2)(3)
    sections = [getattr(trainee.model, name).floats for name in ("grads", "params", "m", "v")]
    visited = [trainee.model.buffer[start : start + floats] for _what, start, floats in stream.ranges]
    assert [view.ctypes.data for view in visited] == [floats.ctypes.data for floats in sections]
    assert stream.bytes == 28 * trainee.model.config.num_parameters and np.array_equal(
        before.view(np.int32), trainee.model.buffer.view(np.int32)
    )  # as bits: scratch may hold NaN


# --- the profile


def test_the_rows_of_a_profile_add_up_to_the_step(capsys):
    for _ in range(3):  # other programs keep the threads of a step waiting for each other more than those of its parts
        first, *rows = rows_of(capsys, "--profile", "--isa", BACKENDS[-2].isa)
        share = sum(row["ms"] for row in rows) / first["ms"]
        if 0.2 < share < 3:
            break
    assert 0.2 < share < 3, "the rows are parts of the step"
    assert first["step"] and all(row["isa"] == first["isa"] for row in rows)
    calls = {name: sum(row["calls"] for row in rows if row["profile"] == name) for name in KERNELS}
    expected = harness.calls_of_a_step(gpt2.config_of("tiny"), 2, 16)
    assert {name: n for name, n in calls.items() if n} == expected | {"adamw": calls["adamw"]}, (
        "in ranges of parameters"
    )
    update = {row["profile"]: row["dims"]["P"] for row in rows if OP_OF[row["profile"]].update}
    assert update == {"grad_norm": 850_688, "adamw": 850_688}, "the ranges of AdamW are one row"
    for row in rows:
        op = OPS[OP_OF[row["profile"]].name]
        times = 1 if op.update else row["calls"]
        assert row["flops"] == times * op.count_flops(KERNELS[row["profile"]], row["dims"])
        at_peak, at_memory = row["flops"] / row["peak_gflops"] / 1e6, row["bytes"] / row["memory_gbytes_per_s"] / 1e6
        assert row["ideal_ms"] == pytest.approx(max(at_peak, at_memory))
        assert row["bound"] == ("peak" if at_peak >= at_memory else "memory")
        assert row["lost_ms"] == pytest.approx(row["ms"] - row["ideal_ms"])
    assert [row["lost_ms"] for row in rows] == sorted((row["lost_ms"] for row in rows), reverse=True)


def test_recompute_makes_more_calls_and_no_more_cost(capsys):
    once, again = (rows_of(capsys, "--profile", "--isa", "scalar", "-r", str(level)) for level in (0, 3))
    assert again[0]["flops"] == once[0]["flops"] and again[0]["planned_bytes"] < once[0]["planned_bytes"]
    forward = [sum(row["calls"] for row in rows[1:] if "forward" in row["profile"]) for rows in (once, again)]
    assert forward[0] < forward[1] <= 2 * forward[0]


def test_the_screen_of_a_profile(capsys):
    assert bench.main([*TINY, "--profile"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["calls", "ms"])
    assert max(map(len, lines)) <= 120
    end = next(i for i, line in enumerate(lines) if line.startswith("all "))
    *rows, outside, all_ = lines[start + 1 : end + 1]
    found = [float(line[56:65]) for line in (*rows, outside)]
    assert outside.startswith("outside of kernels") and sum(found) == pytest.approx(float(all_[56:65]), abs=0.2)
    assert lines[end + 1].startswith("the step in the same rounds, off the clock")
    assert any(line.startswith("linear_backward N32 C128 OC384 ") for line in rows)


def test_a_call_on_the_clock_is_the_call():
    """Bits do not change, and the streams of the rows leave parameters and AdamW state alone."""
    native = BACKENDS[-2]
    probe = profile.Probe(native)
    pair = [trainee_of(native, one) for one in (probe, None)]
    clocked = profile._Clocked(pair[0], probe)
    clocked.sample()
    for _ in range(2):
        pair[1].step()
    for group in clocked.groups.values():
        group.stream.on(native, 2)(1)
    for section in ("params", "m", "v"):
        assert np.array_equal(*(getattr(one.model, section).floats for one in pair)), section
    within = sum(group.seconds[0] for group in clocked.groups.values())
    assert probe.log is None and 0 < clocked.outside[0] == pytest.approx(clocked.totals[0] - within)


# --- growth


def test_the_shapes_of_growth():
    assert growth.shapes(16, 4096) == [
        (1, 64), (2, 64), (4, 64), (8, 64), (16, 64), (1, 128), (1, 256), (1, 512), (1, 1024), (1, 2048), (1, 4096),
    ]  # fmt: skip
    assert growth.shapes(1, 16) == [(1, 16)] and growth.shapes(5, 100) == [(1, 64), (2, 64), (4, 64)]


def test_growth_goes_beyond_the_block_size_and_says_where_memory_ends(monkeypatch, capsys):
    take = step.Trainee.take

    def full(self, B, T):
        if B == 2:
            raise CapacityError("the plan needs more")
        take(self, B, T)

    argv = ["growth", "--init", "tiny", "-b", "2", "-t", "128", *TINY[TINY.index("--threads") :]]
    monkeypatch.setattr(step.Trainee, "take", full)
    assert bench.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[[line.split()[:2] == ["B", "T"] for line in lines].index(True) + 1 :]
    assert [line.split()[:3] for line in table] == [["1", "64", "64"], ["2", "64", "128"], ["1", "128", "128"]]
    assert table[1].endswith("needs more memory than is free") and max(map(len, lines)) <= 120
    ms, per_token, roof, share = (float(table[2].split()[i].rstrip("%")) for i in (3, 6, 7, 8))
    assert per_token == pytest.approx(1e3 * ms / 128, rel=0.01) and share == pytest.approx(
        100 * roof / per_token, rel=0.05
    )
    assert bench.main([*argv, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(row["B"], row["T"], row["tokens"]) for row in rows] == [(1, 64, 64), (1, 128, 128)]


# --- decode


def test_decoding_beside_reads_and_prompts_beside_the_peak(capsys):
    argv = ["decode", "--init", "tiny", "-b", "3", "-t", "9", *TINY[TINY.index("--threads") :]]
    assert bench.main([*argv, "--json"]) == 0
    _, *rows = map(json.loads, capsys.readouterr().out.splitlines())
    steps, prompts = rows[:6], rows[6:]
    assert [(row["decode"], row["rows"]) for row in steps] == [(w, n) for w in ("fp32", "bf16", "int8") for n in (1, 3)]
    config = gpt2.config_of("tiny")
    matrices = config.n_layer * 12 * config.n_embd**2 + config.vocab_size * config.n_embd
    assert [row["bytes"] for row in steps[::2]] == [4 * matrices, 2 * matrices, matrices * 34 // 32]
    for row in steps:
        assert row["tokens_per_s"] == pytest.approx(1e3 * row["rows"] / row["ms"]) and 0 < row["of_memory"]
    assert [(row["prompt"], row["tokens"]) for row in prompts] == [("fp32", 9), ("bf16", 9)]
    squares = 9 * (12 * (config.n_layer - 1) + 3) + 9  # behind the last block's keys and values only one id goes on
    products = 2 * squares * config.n_embd**2 + 2 * config.vocab_size * config.n_embd
    for row in prompts:
        assert products < row["flops"] < 1.3 * products and row["of_peak"] > 0
