"""The bench command: a row for every kernel on every backend, numbers that fit together, and shares that cannot be."""

import json
from dataclasses import replace
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest

import harness
from gpt2flat import bench
from gpt2flat.arch import gpt2
from gpt2flat.benchmarks import cases, choice, machine, measure
from gpt2flat.errors import KernelArgError, UnsupportedCPUError
from gpt2flat.kernels.ops import KERNELS, MODES, OP_OF, OPS, READ, UPDATE, WRITE, Move
from gpt2flat.memory import axes as ax

BACKENDS = harness.backends()
SMALL = ["--init", "tiny", "-b", "1", "-t", "4", "--threads", "2", "--repeats", "2", "--seconds", "0"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small buffers and few windows; every backend whatever the environment says."""
    monkeypatch.setattr(machine, "LEAST_STREAM", 1 << 20)
    monkeypatch.setattr(machine, "last_cache", lambda: 0)
    monkeypatch.setattr(machine, "WINDOW", 0.001)
    for name in ("GPT2FLAT_BACKEND", "GPT2FLAT_ISA"):
        monkeypatch.delenv(name, raising=False)


def case_of(name: str, **numbers) -> cases.Case:
    op, kernel = OP_OF[name], KERNELS[name]
    dims = {dim: numbers.get(dim, 0) if dim in MODES else numbers[dim] for dim in op.dims.split()}
    return cases.Case(op, kernel, dims, {acc: numbers.get(acc, 0) for acc in kernel.accs}, 0)


# --- the command


def test_every_kernel_has_a_row_on_every_backend(tmp_path, capsys):
    assert bench.main([*SMALL, "--json", str(tmp_path / "rows")]) == 0
    screen, lines = capsys.readouterr(), (tmp_path / "rows").read_text().splitlines()
    first, *rows = map(json.loads, lines)
    check_machine(first["machine"], [native.isa for native in BACKENDS])
    assert first["machine"]["memory_gbytes_per_s"].keys() == machine.PATTERNS.keys()
    isas = [native.isa for native in BACKENDS]
    assert {(row["kernel"], row["isa"]) for row in rows} == {(name, isa) for name in KERNELS for isa in isas}
    assert [row["isa"] for row in rows] == isas * (len(rows) // len(isas)), "in turn"
    for row in rows:
        op = OPS[row["op"]]
        assert list(row["dims"]) == op.dims.split() and list(row["accs"]) == list(KERNELS[row["kernel"]].accs)
        assert row["backend"] == ("numba" if row["isa"] == "numba" else "c") and row["threads"] == 2
        assert 0 < row["ms_min"] <= row["ms_25"] <= row["ms"] <= row["ms_75"] <= row["ms_max"]
        assert row["gflops"] == pytest.approx(row["flops"] / row["ms"] / 1e6)
        assert row["gbytes_per_s"] == pytest.approx(row["bytes"] / row["ms"] / 1e6)
        assert row["of_peak"] == pytest.approx(row["gflops"] / row["peak_gflops"])
        assert row["of_memory"] == pytest.approx(row["gbytes_per_s"] / row["memory_gbytes_per_s"])
        assert row["array_bytes"] >= 4 * sum(ax.floats(a.axes, row["dims"]) for a in op.args("read", "weight"))
        if row["kernel"] == "linear_backward":
            assert row["flops"] == 4 * row["dims"]["N"] * row["dims"]["C"] * row["dims"]["OC"]
    numba = [row for row in rows if row["isa"] == "numba"]
    calls = {name: sum(row["calls_per_step"] for row in numba if row["kernel"] == name) for name in KERNELS}
    assert calls == dict.fromkeys(KERNELS, 0) | harness.calls_of_a_step(gpt2.config_of("tiny"), 1, 4)
    table = screen.out.splitlines()
    assert sum(line.startswith("  ") and line.split()[0] in isas for line in table) == len(rows)
    assert "linear_forward N4 C128 OC384, 4 calls a step" in table and not any(" 0 calls" in line for line in table)
    step = table[[line.startswith("a step") for line in table].index(True) :]
    called = {OP_OF[name].name for name, count in calls.items() if count}
    assert [line.split()[0] for line in step[1:]] == [op for op in OPS if op in called] + ["all"]


def check_machine(found: dict, isas: list[str]) -> None:
    """The first line of JSON: on what, with what and how all of it was measured."""
    assert found["cpu"] and found["threads"] == 2 and found["platform"] and found["command"]
    assert set(found["versions"]) >= {"python", "numpy", "gpt2flat"} and datetime.fromisoformat(found["started"])
    assert found["commit"] is None or len(found["commit"]) == 40
    assert list(found["peak_gflops"]) == isas and all(peak > 0 for peak in found["peak_gflops"].values())
    native = [isa for isa in isas if isa != "numba"]
    assert list(found["flags"]) == native and all("-O3" in flags for flags in found["flags"].values())
    assert list(found["peak_bf16_gflops"]) == [isa for isa in native if isa == "avx512bf16"]


def rows_of(capsys) -> list[dict]:
    """The JSON in place of the table, without the machine."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()[1:]]


def test_json_in_place_of_the_table_for_one_kernel_at_other_dims(capsys):
    assert bench.main([*SMALL, "linear_forward", "--dims", "N=5,C=7,OC=3", "--isa", "scalar", "--json"]) == 0
    (row,) = rows_of(capsys)
    assert row["dims"] == {"N": 5, "C": 7, "OC": 3, "BF16": 0} and row["flops"] == 2 * 5 * 7 * 3
    assert row["isa"] == "scalar"
    assert row["bytes"] == 4 * (5 * 7 + 3 * 7 + 3 + 5 * 3) and row["calls_per_step"] == 0


def test_bf16_has_a_peak_of_its_own_and_only_for_products(capsys):
    argv = [*SMALL, "linear_forward", "gelu_forward", "--precision", "bf16", "--dims", "N=4,C=64"]
    assert bench.main([*argv, "--backend", "c"]) == 0
    titles = [line for line in capsys.readouterr().out.splitlines() if line.startswith("linear")]
    assert titles[0] == "linear_forward N4 C64 OC384 BF16"
    assert bench.main([*argv, "--backend", "c", "--json"]) == 0
    rows = rows_of(capsys)
    assert {row["kernel"]: row["dims"].get("BF16") for row in rows} == {"linear_forward": 1, "gelu_forward": None}
    native = BACKENDS[-2]
    fp32, bf16 = (native.flops_of_peak_round(mode) for mode in (False, True))
    assert bf16 == fp32 * (2 if native.multiplies_bf16 else 1)
    assert BACKENDS[0].flops_of_peak_round(True) == BACKENDS[0].flops_of_peak_round()


@pytest.mark.parametrize(
    "argv, code, words",
    [
        (["softmax"], 2, "no op or kernel 'softmax'; the ops are embedding, layernorm"),
        (["gelu", "--dims", "OC=3"], 2, "OC=3: no such dim here; there are N, C"),
        (["gelu", "--dims", "N=0"], 2, "expected a dim and a whole number from 1"),
        (["gelu", "--dims", "N"], 2, "expected a dim and a whole number from 1"),
        (["gelu", "--dims", "N=1000000000,C=1000000"], 7, "gelu_forward N1000000000 C1000000 needs 8000.00 TB"),
        (["attention", "--dims", "NH=5,KVH=3"], 8, "KVH = 3 does not divide NH = 5"),
        (["embedding", "--isa", "avx2,sse"], 2, "--isa avx2,sse: choose from all, scalar"),
        (["--backend", "numba", "--isa", "avx2"], 2, "Numba finds its own"),
        (["--json", "gelu"], 2, "--json gelu: name a file"),
        (["--json", "step"], 2, "--json step: name a file"),
        (["step", "gelu"], 2, "step gelu: step is timed alone"),
        (["step", "--dims", "N=3"], 2, "--dims resizes single kernels"),
        (["gelu", "--attention", "standard"], 2, "--recompute and --attention are flags of step and growth"),
        (["-r", "1"], 2, "--recompute and --attention are flags of step and growth"),
        (["step", "--attention", "local"], 2, "attention 'local': choose from flash, standard"),
        (["step", "-t", "65"], 8, "batch (1, 65): expected 1 to"),
        (["--profile"], 2, "--profile is a flag of step"),
        (["growth", "--profile"], 2, "--profile is a flag of step"),
        (["growth", "--vs", "numpy"], 2, "--vs compares steps and kernels"),
        (["decode", "--plot", "a.png"], 2, "decode is a table"),
        (["decode", "-r", "1"], 2, "it is timed in all its forms"),
        (["growth", "--plot", "a.png"], 2, "growth is a table"),
        (["step", "--plot", "no/a.png"], 2, "--plot no/a.png: there is no directory no"),
        (["step", "--plot", "a.svg"], 2, "--plot a.svg: expected the name of a PNG file"),
        (["step", "--vs", "jax"], 2, "--vs jax: choose from torch, numpy"),
        (["step", "--vs", "numpy"], 2, "--vs numpy: no training step there, only linear_forward"),
        (["gelu", "--vs", "numpy"], 2, "--vs numpy: it is compared in linear_forward"),
        (["--init", "nothing.bin"], 5, "nothing.bin: cannot be opened"),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_is_one_line(argv, code, words, capsys):
    one = [] if {"--isa", "--backend"} & {*argv} else ["--isa", "scalar"]  # whose peak alone is measured before some of them
    assert bench.main([*SMALL, *one, *argv]) == code
    error = capsys.readouterr().err
    assert words in error and error.startswith("gpt2flat bench: ") and error.count("\n") == 1


def test_the_environment_chooses_too(monkeypatch, capsys):
    monkeypatch.setenv("GPT2FLAT_ISA", "scalar")
    assert bench.main([*SMALL, "gelu_forward", "--json"]) == 0
    assert [row["isa"] for row in rows_of(capsys)] == ["scalar"]
    monkeypatch.setenv("GPT2FLAT_ISA", "sse")
    assert bench.main(SMALL) == 2 and "GPT2FLAT_ISA=sse: expected one of all, scalar" in capsys.readouterr().err


def test_without_numba_or_without_c(monkeypatch, capsys):
    def missing(*_args):
        raise UnsupportedCPUError("it is not there")

    with monkeypatch.context() as change:
        change.setattr(choice, "_twins", missing)
        assert bench.main([*SMALL, "gelu_forward", "--json"]) == 0
        screen = capsys.readouterr()
        assert screen.out.count("\n") == 1 + len(BACKENDS) - 1 and screen.err == "left out: it is not there\n"
    monkeypatch.setattr(choice, "available_isas", missing)
    assert bench.main([*SMALL, "gelu_forward", "--json"]) == 0
    screen = capsys.readouterr()
    assert json.loads(screen.out.splitlines()[1])["isa"] == "numba" and screen.err == "left out: it is not there\n"
    assert bench.main([*SMALL, "--backend", "c"]) == UnsupportedCPUError.code
    assert bench.main([*SMALL, "step", "--json"]) == 0, "the twins make steps where there is no C"
    assert [row["isa"] for row in rows_of(capsys)] == ["numba"]


# --- shares that cannot be


def test_an_impossible_cost_is_an_error_that_names_the_kernel(monkeypatch, capsys):
    monkeypatch.setitem(OPS, "gelu", replace(OPS["gelu"], flops="1000000000*N*C"))
    assert bench.main([*SMALL, "gelu", "residual", "--isa", "scalar"]) == bench.IMPOSSIBLE
    screen = capsys.readouterr()
    assert screen.err.count("\n") == 1 and screen.err.endswith(f": {bench.WRONG}\n")
    for kernel in ("gelu_forward", "gelu_backward"):
        assert f"{kernel} N4 C512 (scalar) reaches" in screen.err
    assert "of the measured peak" in screen.err and "residual" not in screen.err
    assert screen.out.count("residual_forward") == 1, "the other rows are there"


def row_of(**more) -> measure.Row:
    """A row of 40 flops and 16 bytes in a second; the limits are 50 and 20."""
    case = case_of("gelu_forward", N=1, C=2)
    values = dict(backend="c", isa="x", threads=1, arrays=0, times=machine.Times(*[1.0] * 5), moved=16)
    return measure.Row(case, **(values | {"peak": 50.0, "memory": 20.0} | more))


def test_what_counts_as_impossible():
    assert row_of().of_peak == row_of().of_memory == 0.8 and not row_of().impossible
    assert not row_of(peak=40 / 1.02, memory=16 / 1.02).impossible, "clocks and neighbours change"
    assert row_of(peak=40 / 1.04).impossible == "gelu_forward N1 C2 (x) reaches 104% of the measured peak"
    assert row_of(memory=16 / 1.04).impossible == "gelu_forward N1 C2 (x) reaches 104% of the measured memory speed"


def test_a_share_that_is_too_large_is_measured_again():
    """The peak seems a millionth at first. The rounds go on and the limits are measured anew until it is right."""
    native, asked = BACKENDS[0], []

    class Doubtful(machine.Machine):
        def measure_peak(self, bf16=False, windows=20):
            self.timed[bf16].sample()

        def peak(self, bf16=False):
            asked.append(super().peak(bf16))
            return asked[-1] * (1e-6 if len(asked) <= 2 else 1)

    doubtful = Doubtful(native, 1)
    (row,), _ = measure.measure(case_of("linear_forward", N=64, C=64, OC=64), [doubtful], [native], 2, 0.0)
    assert len(asked) == 3 and len(doubtful.timed[False].samples) == 3 * 2 + 2 and not row.impossible


# --- what is moved, and what is streamed


@pytest.mark.parametrize(
    "name, numbers, floats",
    [
        ("adamw", dict(P=100), 7 * 100 + 8),
        ("grad_norm", dict(P=100), 100 + 1),
        ("residual_forward", dict(N=3, C=5), 3 * 15),
        ("linear_forward", dict(N=3, C=5, OC=7), 15 + 35 + 7 + 21),
        ("linear_backward", dict(N=3, C=5, OC=7), 21 + 15 + 35 + 15 + 35 + 7),
        ("linear_backward", dict(N=3, C=5, OC=7, acc_weight=1, acc_bias=1), 21 + 15 + 35 + 15 + 2 * 35 + 2 * 7),
        ("embedding_forward", dict(N=6, T=3, C=5, Vp=99, maxT=50), 6 + 30 + 15 + 30),
        ("embedding_forward", dict(N=6, T=3, C=5, Vp=4, maxT=50), 6 + 20 + 15 + 30),
        ("embedding_backward", dict(N=6, T=3, C=5, Vp=99, maxT=50), 6 + 30 + 99 * 5 + 50 * 5),
        ("embedding_backward", dict(N=6, T=3, C=5, Vp=99, maxT=50, acc_wte=1), 6 + 30 + 2 * 30 + 50 * 5),
        ("classifier_train", dict(N=6, C=5, V=9, Vp=10, R=2), 6 + 30 + 50 + 6 + 6 + 30 + 6 + 50),
        ("attention_standard_forward", dict(B=2, T=3, NH=4, KVH=2, HS=5), 120 + 2 * 72 + 240 + 2),
    ],
    ids=str,
)  # fmt: skip
def test_bytes_that_a_kernel_moves(name, numbers, floats):
    case = case_of(name, **numbers)
    assert sum(move.bytes for move in case.moves) == 4 * floats


@pytest.mark.parametrize("name", KERNELS)
def test_no_call_moves_more_than_its_arrays(name):
    case = case_of(name, **dict(harness.modest(OP_OF[name])))
    for numbers in (case.dims, case.dims | dict.fromkeys(case.kernel.accs, 1)):
        axes = {arg.name: arg.axes for arg in case.kernel.args}
        assert all(0 < m.floats <= ax.floats(axes[m.name], case.dims) for m in case.op.moves(case.kernel, numbers))


MIXES = [(1, 0, 0), (1, 0, 1), (1, 0, 2), (2, 0, 1), (1, 1, 0), (1, 2, 0), (1, 3, 0), (2, 1, 0), (3, 0, 0), (0, 1, 1),
         (0, 0, 2), (3, 2, 1), (0, 2, 0), (2, 2, 2)]  # fmt: skip


def streamed(data: np.ndarray, mixes, rounds: int, factor: int) -> float:
    """What stream does to whole numbers, with the factors (factor, 1). Returns the sum of what is only read."""
    total = 0.0
    for _ in range(rounds):
        for reads, updates, writes in mixes:
            read = sum(data[start : start + floats] for start, floats in reads)
            total += np.sum(read) if not updates + writes else 0.0
            for i, (start, floats) in enumerate(updates + writes):
                x = data[start : start + floats]
                x[:] = (x * factor if i < len(updates) else factor) + (read if i == 0 else 0)
    return total


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("native", BACKENDS, ids=lambda native: native.isa)
def test_a_stream_touches_every_float_it_counts_once_a_round(native, threads):
    """Every mix side by side, each with another length; with other factors than 1 and 0 all of it can be seen."""
    data = np.random.default_rng(0).integers(-3, 4, 40000).astype(np.float32)
    places, parts, at, count = [], [], 5, 0
    for mix, floats in zip(MIXES, (1003, 17, 700, 64, 65, 15, 3000, 48, 1, 333, 100, 16, 1200, 31)):
        groups = ([], [], [])
        for what, group in enumerate(groups):
            for _ in range(mix[what]):
                group.append((at, floats))
                parts.append((Move("", what, floats), at))
                at, count = at + floats + 3, count + floats * (2 if what == UPDATE else 1)
        places.append(groups)
    stream, out = machine.Stream(data, reversed(parts)), np.full(16 * threads, np.nan, np.float32)
    wanted = data.copy()
    total = streamed(wanted, places, 3, 2)
    native.stream_round(out, data, stream.ranges, threads, factors=(2, 1))(3)
    assert at < data.size and np.array_equal(data, wanted) and out.sum() == total and stream.bytes == 4 * count
    native.stream_round(out, data, stream.ranges, threads)(1)
    wrote = np.concatenate([np.arange(start, start + n) for _r, _u, writes in places for start, n in writes])
    wanted[wrote] = 1
    assert np.array_equal(data, wanted), "by default what is updated stays as it is"


def test_a_stream_stays_in_its_buffer():
    data = np.zeros(100, np.float32)
    machine.Stream(data, [(Move("", READ, 100), 0)])
    for move, start in ((Move("", READ, 100), 1), (Move("", WRITE, 1), 100), (Move("", READ, 5), -1)):
        with pytest.raises(KernelArgError, match="leaves its 100 floats"):
            machine.Stream(data, [(move, start)])


def test_memory_is_measured_in_every_pattern():
    speeds = machine.measure_memory(BACKENDS[0], 2)
    assert speeds.keys() == machine.PATTERNS.keys() and all(speed > 0 for speed in speeds.values())


# --- timing


def test_windows_are_filled_and_what_wakes_the_threads_is_not_timed(monkeypatch):
    clock, ran = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock.now)

    def run_rounds(rounds):
        ran.append(rounds)
        clock.now += 3.0 * rounds

    timed = machine.Timed(run_rounds, window=10.0)
    timed.sample()
    assert ran == [1, 2, 4] and timed.samples == [3.0]
    timed.sample()
    assert ran[3:] == [1, 4] and timed.samples == [3.0, 3.0]
    timed.samples += [2.0, 9.0, 4.0]
    assert timed.best == 2.0 and timed.middle == 3.0


def test_arguments_are_what_a_model_would_pass():
    case = case_of("classifier_backward", N=6, C=5, V=9, Vp=16, R=4)
    views = cases.Arguments(case, [machine.Machine(BACKENDS[0], 2)]).views
    assert all(view.ctypes.data % 64 == 0 for view in views.values())
    assert 0 <= views["targets"].min() and views["targets"].max() < 9 and views["held"] == 0
    assert abs(views["weight"]).max() < 0.2 < abs(views["inp"]).max()
    v = cases.Arguments(case_of("adamw", P=cases.SPREAD + 70), [machine.Machine(BACKENDS[0], 2)]).views["v"]
    assert v.min() >= 0 and np.array_equal(v[-70:], v[:70])
