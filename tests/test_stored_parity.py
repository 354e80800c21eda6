"""gpt2flat against numbers that PyTorch left in parity_numbers/ (python tests/reference.py store): no torch needed."""

from pathlib import Path

import numpy as np
import parity
import pytest

import harness
from gpt2flat import GPT2Config, Model

UPDATE = ("lr", "weight_decay")


@pytest.fixture(scope="module")
def stored():
    """The numbers by group: truth (float64 PyTorch), distance (of its float32 from that), shape, settings."""
    groups = {"truth": {}, "distance": {}, "shape": {}, "settings": {}}
    with np.load(Path(__file__).parent / "parity_numbers" / "small.npz", allow_pickle=False) as file:
        for key in file:
            group, _, name = key.partition("/")
            if group in groups:
                groups[group][name] = file[key].item() if file[key].ndim == 0 else file[key]
            else:
                groups["truth"][key] = file[key]
    return groups


@pytest.mark.parametrize("attention", ["flash", "standard"])
@pytest.mark.parametrize("kernels", harness.backends(), ids=lambda kernels: kernels.isa)
def test_small_model_agrees(stored, kernels, attention):
    shape, settings, truth = stored["shape"], stored["settings"], stored["truth"]
    config = GPT2Config(shape["maxT"], shape["V"], shape["L"], shape["NH"], shape["C"])
    model = Model.init(config, attention=attention, threads=2, kernels=kernels)
    parity.fill(model.params, shape["V"], settings["std"])
    batch = parity.batch(settings["B"], settings["T"], shape["V"], settings["ignored"])
    found = parity.numbers_of(model, *batch, {name: settings[name] for name in UPDATE}, settings["updates"])
    assert not parity.beyond_bounds(found, truth)
    for key in ("logits", *(key for key in truth if key.startswith("grads/"))):
        error, size = (np.linalg.norm(x) for x in parity.distances(key, found, truth))
        allowed = parity.FACTOR * stored["distance"][key] + parity.CHAIN
        assert error <= allowed * size, f"{key}: further from float64 than PyTorch"


def spoil_row(x):
    x.reshape(-1, x.shape[-1])[-1] *= 1 + 3e-4


def spoil_tensor(x):
    x *= 1 + 2e-5


def spoil_nan(x):
    x.reshape(-1)[0] = np.nan


def spoil_order(x):
    x[...] = x[..., ::-1].copy()


FAULTS = [
    (spoil_row, "logits"), (spoil_row, "grads/qkvw"), (spoil_row, "grads/lnfb"), (spoil_row, "params1/fcw"),
    (spoil_tensor, "logits"), (spoil_tensor, "grads/wpe"), (spoil_tensor, "params10/ln1w"), (spoil_tensor, "losses"),
    (spoil_nan, "losses"), (spoil_nan, "grads/wte"), (spoil_nan, "params10/qkvb"), (spoil_order, "params1/qkvb"),
]  # fmt: skip


@pytest.mark.parametrize("spoil, key", FAULTS)
def test_bounds_see_faults(stored, spoil, key):
    truth = stored["truth"]
    found = {name: value.copy() for name, value in truth.items()}
    assert not parity.beyond_bounds(found, truth) and not parity.beyond_torch(found, truth, truth)
    spoil(found[key])
    assert parity.beyond_bounds(found, truth)[0].startswith(f"{key}:")
    assert bool(parity.beyond_torch(found, truth, truth)) == (key == "logits" or key.startswith("grads/"))
