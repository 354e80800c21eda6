"""The check command: PyTorch's stored numbers as a debug state, numeric gradients, and faults planted in both."""

import struct
from pathlib import Path

import numpy as np
import parity
import pytest

import harness
import truth
from gpt2flat import GPT2Config, Model
from gpt2flat.check import main
from gpt2flat.checks import gradients, unit
from gpt2flat.errors import CapacityError, KernelArgError
from gpt2flat.kernels import float64

TENSORS = ["wte", "wpe", "ln1w", "ln1b", "qkvw", "qkvb", "attprojw", "attprojb",
           "ln2w", "ln2b", "fcw", "fcb", "fcprojw", "fcprojb", "lnfw", "lnfb"]  # fmt: skip


@pytest.fixture(scope="module")
def stored():
    with np.load(Path(__file__).parent / "parity_numbers" / "small.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file}


def debug_state(stored, version=2) -> bytes:
    """A debug state of PyTorch's numbers, byte by byte as llm.c's train_gpt2.py writes it."""
    B, T, V = (int(stored[key]) for key in ("settings/B", "settings/T", "shape/V"))
    ids = parity.batch(B, T, V, float(stored["settings/ignored"]))
    grads = [stored[f"grads/{name}"] for name in TENSORS]
    if version == 1:
        grads[0] = grads[0][:V]
    floats = [stored["logits"], stored["losses"][:1], *grads]
    header = struct.pack("<256i", 20240327, version, B, T, *[0] * 252)
    parts = [*(x.astype("<i4") for x in ids), *(x.astype("<f4") for x in floats)]
    return header + b"".join(part.tobytes() for part in parts)


@pytest.fixture
def small(stored, tmp_path, monkeypatch):
    """The folder with small.bin and small_debug_state.bin; it is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPT2FLAT_DATA", raising=False)
    V, maxT, L, NH, C = (int(stored[f"shape/{key}"]) for key in ("V", "maxT", "L", "NH", "C"))
    model = Model(GPT2Config(maxT, V, L, NH, C), threads=2)
    parity.fill(model.params, V, float(stored["settings/std"]))
    model.save("small.bin")
    Path("small_debug_state.bin").write_bytes(debug_state(stored))
    return tmp_path


def failed(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines() if line.endswith("FAIL")]


# --- llm.c's unit test


@pytest.mark.parametrize("attention", ["flash", "standard"])
def test_pytorchs_numbers_are_met(small, stored, capsys, attention):
    assert main(["small.bin", "--attention", attention, "--threads", "2"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()[2:20]]
    assert [row[0] for row in rows] == ["logits", "loss", *("d" + name for name in TENSORS)]
    assert [row[2] for row in rows] == ["1e-02"] * 2 + ["2e-02"] * 16, "llm.c's tolerances"
    assert all(row[-1] == "ok" for row in rows) and "all 18 agree" in out
    assert max(float(row[3]) for row in rows) < 1e-5, "float32 against PyTorch's float64"
    assert "known for gpt2_124M.bin only" in out
    losses = [float(word) for word in out.splitlines()[21].split()]
    assert len(losses) == 10 and abs(losses[0] - stored["losses"][0]) < 1e-5 and losses == sorted(losses, reverse=True)


def test_version_1_of_both_files(small, stored, capsys):
    data, V, C = bytearray(Path("small.bin").read_bytes()), int(stored["shape/V"]), int(stored["shape/C"])
    data[4:8], data[28:32] = struct.pack("<i", 1), bytes(4)
    Path("old.bin").write_bytes(data[: 1024 + 4 * V * C] + data[1024 + 4 * 128 * C :])
    Path("old_debug_state.bin").write_bytes(debug_state(stored, version=1))
    assert main(["old.bin"]) == 0 and "all 18 agree" in capsys.readouterr().out


PLACES = ["logits", "loss", *("d" + name for name in TENSORS)]


def change(stored, place: str, spoil) -> dict:
    """The stored numbers with one tensor changed by spoil(copy)."""
    key = {"logits": "logits", "loss": "losses"}.get(place, f"grads/{place[1:]}")
    return stored | {key: spoil(stored[key].copy())}


def one_number(x):
    """A fiftieth of the norm on the last number of the first row; where gradients are small llm.c would not see it."""
    x.reshape(len(x), -1)[0, -1] += 0.02 * np.linalg.norm(x)
    return x


@pytest.mark.parametrize("place", PLACES)
def test_a_fault_in_any_tensor_is_named(small, stored, capsys, place):
    Path("small_debug_state.bin").write_bytes(debug_state(change(stored, place, one_number)))
    assert main(["small.bin"]) == 1
    out = capsys.readouterr().out
    assert failed(out) == [place] and f"1 of 18 differ by more than is allowed: {place}" in out


def test_nan_zero_and_large_faults(small, stored, capsys):
    for spoil in (lambda x: x * np.nan, lambda x: x * 0, lambda x: x + 1):
        Path("small_debug_state.bin").write_bytes(debug_state(change(stored, "dln2w", spoil)))
        assert main(["small.bin"]) == 1
        out = capsys.readouterr().out
        (row,) = (line.split() for line in out.splitlines() if line.startswith("dln2w"))
        assert failed(out) == ["dln2w"] and (row[1] == row[3] == "nan") == bool(np.isnan(spoil(1.0)))


def test_either_tolerance_alone_fails():
    assert unit.Compared("x", 1.0, 1.0, 1.0, 1.0).ok
    assert not unit.Compared("x", 1.1, 1.0, 0.0, 1.0).ok and not unit.Compared("x", 0.0, 1.0, 1.1, 1.0).ok
    assert not unit.Compared("x", np.nan, 1.0, 0.0, 1.0).ok and not unit.Compared("x", 0.0, 1.0, np.nan, 1.0).ok


def test_the_updates_are_pytorchs(small, stored, monkeypatch):
    settings = {key: float(stored[f"settings/{key}"]) for key in ("lr", "weight_decay")}
    monkeypatch.setattr(unit, "ADAMW", settings)
    model, state = unit.open_both("small.bin", "small_debug_state.bin")
    with state:
        list(unit.first_pass(model, state))
        assert np.abs(np.array(unit.updates(model, state)) - stored["losses"]).max() < 5e-5
    assert model.t == 10


def test_the_losses_of_gpt2_124m_are_checked_when_it_is_that(small, capsys, monkeypatch):
    """With this model's own losses in the place of those of gpt2_124M, and then with one of them wrong."""
    main(["small.bin"])
    losses = tuple(float(word) for word in capsys.readouterr().out.splitlines()[21].split())
    monkeypatch.setattr(unit, "PRESETS", {"d12": Model.load("small.bin").config})
    monkeypatch.setattr(unit, "EXPECTED", losses)
    monkeypatch.setattr(unit, "PORTS", losses)
    assert main(["small.bin"]) == 0 and "all 28 agree" in capsys.readouterr().out
    for table, shift in (("EXPECTED", 0.011), ("PORTS", 1.5e-3 * losses[7])):
        with monkeypatch.context() as patch:
            patch.setattr(unit, table, (*losses[:7], losses[7] + shift, *losses[8:]))
            assert main(["small.bin"]) == 1 and failed(capsys.readouterr().out) == ["loss"]
    for other in ({"EXPECTED": (losses[0] + 0.011, *losses[1:])}, {"PRESETS": {"d12": CONFIG}}):  # weights, or shape
        with monkeypatch.context() as patch:
            patch.setattr(unit, *next(iter(other.items())))
            assert main(["small.bin"]) == 0 and "known for gpt2_124M.bin only" in capsys.readouterr().out


def test_the_tables_of_gpt2_124m():
    assert len(unit.EXPECTED) == len(unit.PORTS) == unit.UPDATES == 10
    assert np.abs(np.subtract(unit.EXPECTED, unit.PORTS)).max() < 2e-3
    assert all(row.ok for row in unit.compare_losses(list(unit.PORTS)))
    # gpt2_update(&model, 1e-4f, 0.9f, 0.999f, 1e-8f, 0.01f, step+1), which decays every tensor
    assert unit.ADAMW == dict(lr=1e-4, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, decay_all=True)


def test_files_are_found_or_asked_for(small, stored, capsys, monkeypatch):
    assert main([]) == 2 and "data/gpt2_124M.bin: no such file" in capsys.readouterr().err
    assert main(["absent.bin"]) == 2 and "absent.bin: no such file" in capsys.readouterr().err
    Path("elsewhere").mkdir()
    Path("small.bin").rename("elsewhere/gpt2_124M.bin")
    monkeypatch.setenv("GPT2FLAT_DATA", "elsewhere")
    assert main([]) == 2 and "elsewhere/gpt2_124M_debug_state.bin: no such file" in capsys.readouterr().err
    Path("small_debug_state.bin").rename("elsewhere/gpt2_124M_debug_state.bin")
    assert main([]) == 0
    Model.load("elsewhere/gpt2_124M.bin").save("half.bin", dtype="bf16")
    assert main(["half.bin", "elsewhere/gpt2_124M_debug_state.bin"]) == 2 and "is in bf16" in capsys.readouterr().err
    Model.init("tiny").save("other.bin")
    assert main(["other.bin", "elsewhere/gpt2_124M_debug_state.bin"]) == 3 and "cut short" in capsys.readouterr().err
    assert main(["elsewhere/gpt2_124M_debug_state.bin", "half.bin"]) == 3
    assert "is a debug state" in capsys.readouterr().err


# --- numeric gradients


FORWARDS = harness.ops_with_backward()


@pytest.mark.parametrize("op", FORWARDS, ids=lambda op: op.name)
def test_formulas_are_those_of_the_tests(op):
    for p_drop in (0.0, 0.4) if any(arg.name == "p_drop" for arg in op.forward.args) else (0.0,):
        case = harness.Case(op.forward.name, harness.modest(op), p_drop=p_drop)
        given = {name: x if x.dtype.kind == "i" else x.astype(float) for name, x in harness.inputs(case).items()}
        given = {arg.name: given[arg.name] for arg in op.forward.args if arg.const}
        known, found = (run(op.forward.name, given, case.dims) for run in (truth.run, float64.run))
        for name in known:
            np.testing.assert_allclose(found[name], known[name].value, rtol=1e-12, atol=1e-13, err_msg=name)


def test_formulas_refuse_what_they_do_not_know():
    with pytest.raises(KernelArgError, match="adamw has no formula in float64; there are embedding_forward"):
        float64.run("adamw", {}, {})


CONFIG = GPT2Config(block_size=9, vocab_size=11, n_layer=2, n_head=3, n_embd=15)


def tiny_model(**options):
    model = Model(CONFIG, threads=2, **options)
    parity.fill(model.params, CONFIG.vocab_size, 0.3)
    return model, parity.batch(2, 7, CONFIG.vocab_size, 0.1)


def test_the_reference_is_the_model_and_its_derivative_is_exact():
    model, batch = tiny_model()
    found = model.forward(*batch)
    program = model.plan(2, 7)
    params = {name: view.astype(float) for name, view in model.params.items()}
    assert gradients.loss(model, program, params).real == pytest.approx(found, rel=1e-6)
    rng = np.random.default_rng(0)
    for name in TENSORS:
        d = rng.standard_normal(params[name].shape)
        exact = gradients.loss(model, program, params | {name: params[name] + 1e-20j * d}).imag / 1e-20
        sides = [gradients.loss(model, program, params | {name: params[name] + h * d}).real for h in (1e-5, -1e-5)]
        assert exact == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("attention", ["flash", "standard"])
def test_gradients_agree(attention):
    model, batch = tiny_model(attention=attention)
    rows = list(gradients.compare(model, *batch))
    assert [row.name for row in rows] == TENSORS and all(row.ok for row in rows)
    assert max(row.error for row in rows) < 1e-5 and all(row.norm > 0 for row in rows)


@pytest.mark.parametrize("tensor", TENSORS)
def test_a_wrong_gradient_is_the_worst(tensor, capsys, monkeypatch):
    """Off by a thousandth of the norm, in one number."""
    whole = Model.forward_backward

    def spoiled(model, *batch):
        value = whole(model, *batch)
        model.grads[tensor].reshape(-1)[-1] += 1e-3 * np.linalg.norm(model.grads[tensor])
        return value

    monkeypatch.setattr(Model, "forward_backward", spoiled)
    model, batch = tiny_model()
    rows = {row.name: row for row in gradients.compare(model, *batch)}
    assert [name for name, row in rows.items() if not row.ok] == [tensor]
    assert rows[tensor].error == pytest.approx(1e-3, rel=0.02)


def test_the_command_names_the_worst(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, _ = tiny_model()
    model.save("m.bin")
    assert main(["--gradients", "m.bin"]) == 0
    out = capsys.readouterr().out
    assert "worst: d" in out and "all 16 agree" in out and not failed(out)
    whole = Model.forward_backward

    def spoiled(model, *batch):
        value = whole(model, *batch)
        model.grads["fcb"][1, 3] = np.nan
        model.grads["lnfw"][...] *= 1.01
        return value

    monkeypatch.setattr(Model, "forward_backward", spoiled)
    assert main(["--gradients", "m.bin"]) == 1
    out = capsys.readouterr().out
    assert failed(out) == ["dfcb", "dlnfw"] and "worst: dfcb, nan" in out


def test_the_preset_by_default(capsys, monkeypatch):
    monkeypatch.setattr("gpt2flat.checks.gradients.DIRECTIONS", 1)
    assert main(["--gradients"]) == 0 and capsys.readouterr().out.startswith("tiny: gradients of B 2, T 16")


def test_models_that_are_too_large(capsys):
    assert main(["--gradients", "d12"]) == CapacityError.code
    assert "124,475,904 parameters: numeric gradients are for models of at most 40,000,000" in capsys.readouterr().err
    assert main(["--gradients", "d13"]) == 2 and main(["a.bin", "--gradients", "tiny"]) == 2
