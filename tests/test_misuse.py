"""Misuse ends in one line of the right class, with nothing changed, and never in a signal: kernels, and a Model.

Cases come from the op table (misuse.py) and from tables of values (misuse_model.py), and are tried in processes of
their own. Here besides: values that a shape cannot show, and messages."""

import json

import numpy as np
import pytest

import harness
import misuse
import misuse_faults
import misuse_model
from gpt2flat import kernels
from gpt2flat.errors import KernelArgError, UsageError
from gpt2flat.kernels.ops import KERNELS

BY_KERNEL = pytest.mark.parametrize("name", KERNELS)


def tried(*words: str) -> dict:
    """What a program that tries misuse found; a signal fails the test and shows the case."""
    done = harness.python("-X", "faulthandler", *words)
    assert done.returncode == 0, f"ended with {done.returncode} at {done.stderr[-3000:]}"
    return json.loads(done.stdout)


@pytest.mark.parametrize("backend", ["c", "numba"])
def test_no_misuse_of_a_kernel_goes_through(backend):
    found = tried(misuse.__file__, backend)
    assert found["shown"] == [] and found["problems"] == 0
    assert found["counts"]["refused"] >= 3000 and found["counts"]["runs"] >= 500, found["counts"]


def test_no_misuse_of_a_model_goes_through():
    found = tried(misuse_model.__file__)
    assert found["shown"] == [] and found["problems"] == 0 and found["counts"]["refused"] >= 500, found


def test_seeded_faults_are_seen():
    found = tried(misuse_faults.__file__)
    assert found.keys() == misuse_faults.FAULTS.keys() and all(found.values()), found


def test_a_crash_is_seen_and_its_case_named():
    with pytest.raises(AssertionError, match="(?s)embedding_forward: out is None.*Segmentation fault"):
        tried(misuse_faults.__file__, "crash")


def test_every_argument_of_every_kernel_is_tried():
    for name, kernel in KERNELS.items():
        tried_here = {case.argument for case in misuse.cases(name)}
        assert tried_here == {a.name for a in kernel.args} | {*kernel.dims, *kernel.accs, "more"}, name


def refused(name: str, arrays: dict, dims: dict, match: str) -> None:
    before = misuse.contents(arrays)
    with pytest.raises(KernelArgError, match=match) as caught:
        kernels.run(name, **arrays, **dims)
    assert "\n" not in str(caught.value)
    assert before == misuse.contents(arrays)


@BY_KERNEL
def test_what_is_valid_runs(name):
    arrays, dims = misuse.valid(name)
    kernels.run(name, threads=2, **arrays, **dims)


def test_a_message_names_kernel_argument_and_what_was_expected():
    arrays, dims = misuse.valid("linear_forward")
    for change, says in {
        "out": (arrays["out"].astype(float), "out is float64 array, expected a NumPy array of float32"),
        "inp": (arrays["inp"][:, :-1].copy(), r"weight is \(7, 6\), expected \(OC,C\) = \(7, 5\)"),
        "weight": (None, "weight is missing"),
        "bias": (arrays["bias"].tolist(), "bias is list, expected a NumPy array"),
        "scratch": (np.zeros(1, np.float32), r"scratch holds 1 floats, expected \d+ \(or leave it out\)"),
    }.items():
        refused("linear_forward", arrays | {change: says[0]}, {}, f"linear_forward: {says[1]}")


@pytest.mark.parametrize("name", [None, 5, [], "gelu", b"gelu_forward", {}, "gelu_forward\n"])
def test_what_is_no_kernel_is_refused(name):
    refused(name, {}, {}, "no kernel .*; there are embedding_forward")


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, [], 1025, 1 << 63, float("nan")])
def test_what_is_no_number_of_threads_is_refused(threads):
    x = np.ones((2, 3), np.float32)
    with pytest.raises(UsageError, match="threads = .*: expected a whole number from 1 to 1024"):
        kernels.run("gelu_forward", out=x.copy(), inp=x, threads=threads)


def test_an_unknown_kernel_or_argument_is_refused():
    arrays, dims = misuse.valid("gelu_forward")
    refused("gelu", arrays, dims, "no kernel 'gelu'")
    refused("gelu_forward", arrays | {"weight": arrays["inp"]}, dims, "no argument weight")


@pytest.mark.parametrize("name, index", [(n, a.name) for n in KERNELS for a in KERNELS[n].args if a.role == "index"])
def test_an_id_out_of_range_is_refused(name, index):
    arrays, dims = misuse.valid(name)
    limit = {"targets": dims.get("V"), "tokens": dims.get("Vp"), "positions": dims.get("S", dims.get("maxT"))}[index]
    for wrong in (-2, limit, 2**31 - 1, -(2**31)):
        ids = arrays[index].copy()
        ids[-1] = wrong
        refused(name, arrays | {index: ids}, dims, f"{index} reach")


@pytest.mark.parametrize(
    "name, wrong",
    [("embedding_forward", {"T": 0}), ("embedding_forward", {"T": 4}), ("embedding_forward", {"T": 42}),
     ("attention_forward", {"KVH": 3}), ("attention_forward", {"HS": 4}), ("attention_forward", {"KVH": 0}),
     ("classifier_forward", {"V": 14}), ("classifier_forward", {"V": 0}), ("classifier_forward", {"V": -1}),
     ("decode_cache", {"S": 15}), ("decode_cache", {"T": 17}), ("decode_linear", {"W": 7}), ("decode_linear", {"PACK": 3}),
     ("gelu_forward", {"NT": 0}), ("linear_forward", {"NT": -1000})],
)  # fmt: skip
def test_a_dim_that_cannot_be_is_refused(name, wrong):
    arrays, dims = misuse.valid(name)
    refused(name, arrays, dims | wrong, f"{next(iter(wrong))}|targets")


def test_a_dim_that_contradicts_the_shapes_is_refused():
    arrays, dims = misuse.valid("gelu_forward")
    refused("gelu_forward", arrays, dims | {"N": dims["N"] + 1}, "N")


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, np.nan])
@pytest.mark.parametrize("name", [n for n in KERNELS if any(a.name == "p_drop" for a in KERNELS[n].args)])
def test_a_dropout_that_is_no_probability_is_refused(name, p):
    arrays, dims = misuse.valid(name)
    refused(name, arrays | {"p_drop": np.float32([p])}, dims, "p_drop")


def test_a_dim_that_no_shape_tells_is_asked_for():
    arrays, dims = misuse.valid("embedding_forward")
    del dims["T"]
    refused("embedding_forward", arrays, dims, "the shapes do not tell T; pass T=")
