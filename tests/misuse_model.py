"""Wrong arguments to every method of a Model: each raises one of the family, in one line, and changes nothing.

Run as a program it prints how many there were and what went wrong, as JSON; see misuse.py."""

import hashlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gpt2flat import GPT2Config, Model
from gpt2flat.errors import Gpt2FlatError
from misuse import report

V, LONGEST = 11, 8
GOOD = np.arange(6).reshape(2, 3)
NOT_IDS = {
    "None": None, "text": "ab", "bytes": b"ab", "a number": 3, "a row": [1, 2], "a cube": [[[1]]],
    "ragged": [[1, 2], [3]], "floats": [[1.0]], "NaN": [[float("nan")]], "texts": [["1"]], "objects": [[object()]],
    "nothing": [], "no rows": np.empty((0, 3), int),
    "no columns": np.empty((2, 0), int), "bools": [[True]], "complex": [[1j]],
    "times": np.zeros((1, 2), "M8[s]"), "durations": np.zeros((1, 2), "m8[s]"), "a dict": {}, "a set": {1},
    "an object": object(), "a generator": (x for x in ()), "structs": np.zeros((1, 2), "i4,i4"),
    "float16": np.ones((1, 2), "f2"), "V": [[V]], "-3": [[-3]], "int8 -3": np.full((1, 2), -3, np.int8),
    "2^31": [[1 << 31]], "2^32": [[1 << 32]], "2^63": [[1 << 63]], "2^64 - 1": [[(1 << 64) - 1]], "2^70": [[1 << 70]],
    "-2^63": [[-(1 << 63)]], "too long": np.zeros((1, LONGEST + 1), int), "big-endian": np.full((1, 2), V, ">i8"),
    "masked": np.ma.masked_array([[V]], [[1]]), "a matrix": np.array([[V]]).view(np.matrix),
}  # fmt: skip
NOT_NUMBERS = {
    "text": "1", "bytes": b"1", "a list": [1.0], "a tuple": (1.0,), "a dict": {}, "an object": object(), "complex": 1j,
    "arrays": np.ones(2), "NaN": float("nan"), "infinite": float("inf"), "-infinite": -float("inf"), "1e39": 1e39,
    "10^400": 10**400, "10^5000": 10**5000, "True": True,
}  # fmt: skip
NOT_WHOLE = {k: v for k, v in NOT_NUMBERS.items() if k != "10^400"} | {
    "1.5": 1.5,
    "1.0": 1.0,
    "-1": -1,
    "-2^63": -(1 << 63),
}
NOT_PATHS = {
    "None": None, "a number": 5, "bytes": b"x", "a list": ["x"], "empty": "", "a folder": ".", "the root": "/",
    "NUL": "a\0b", "surrogates": "\ud800", "absent": "absent/model.bin", "an object": object(), "too long": "x" * 5000,
}  # fmt: skip


def calls(model: Model) -> Iterator[tuple[str, Callable]]:
    """(what is wrong, the call)"""

    def after_forward(**wrong):
        model.forward(GOOD, GOOD)
        model.backward(**wrong)

    def after_gradients(**wrong):
        model.forward_backward(GOOD, GOOD)
        model.update(**wrong)

    for what, ids in NOT_IDS.items():
        yield f"forward of {what}", lambda: model.forward(ids)
        yield f"logits of {what}", lambda: model.logits(ids)
        yield f"forward with targets of {what}", lambda: model.forward(ids, GOOD)
        if what != "a row":
            yield f"generate from {what}", lambda: model.generate(ids, 1) if what != "too long" else model.forward(ids)
        for name in ("forward", "forward_backward", "losses"):
            if ids is not None or name != "forward":
                yield f"{name} towards {what}", lambda: getattr(model, name)(GOOD, ids)
        yield f"forward_backward of {what}", lambda: model.forward_backward(ids, GOOD)
    yield "targets of another shape", lambda: model.forward_backward(GOOD, GOOD[:, :2])
    yield "targets transposed", lambda: model.forward_backward(GOOD, GOOD.T)
    yield "nothing to learn", lambda: model.forward_backward(GOOD, np.full_like(GOOD, -1))
    for what, value in (NOT_NUMBERS | {"None": None}).items():
        for name in ("lr", "beta1", "beta2", "eps", "weight_decay", "grad_clip"):
            if (name, what) != ("grad_clip", "None"):
                yield f"update with {name} {what}", lambda: after_gradients(**{name: value})
        yield f"dropout {what}", lambda: Model(model.config, dropout=value)
        yield f"backward with scale {what}", lambda: after_forward(scale=value)
        yield f"forward_backward with scale {what}", lambda: model.forward_backward(GOOD, GOOD, scale=value)
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            if what != "None" or name in ("temperature", "repetition_penalty"):
                yield f"generate with {name} {what}", lambda: model.generate(GOOD, 1, **{name: value})
        yield f"generate with length_penalty {what}", lambda: model.generate(GOOD, 1, num_beams=2, length_penalty=value)
    for what, value in NOT_WHOLE.items():
        yield f"logits at {what}", lambda: model.logits(GOOD, at=value)
        yield f"generate {what} tokens", lambda: model.generate(GOOD, max_new_tokens=value)
        for name in ("top_k", "seed", "repetition_window", "num_samples", "num_beams", "n_best", "batch", "weights"):
            if what != "None" or name not in ("top_k", "repetition_window"):
                yield f"generate with {name} {what}", lambda: model.generate(GOOD, 1, **{name: value})
        yield f"generate up to {what}", lambda: model.generate(GOOD, 1, stop=value)
        yield f"recompute {what}", lambda: Model(model.config, recompute=value)
        for name in ("forward", "forward_backward"):
            if what != "None":
                yield f"{name} with dropout_key {what}", lambda: getattr(model, name)(GOOD, GOOD, dropout_key=value)
        yield f"load with block size {what}", lambda: Model.load("model.bin", block_size=value)
        yield f"plan of {what} rows", lambda: model.plan(value, 3)
        yield f"plan of {what} columns", lambda: model.plan(2, value)
        if what != "10^5000":
            yield f"{what} threads", lambda: Model(model.config, threads=value)
    for value in (-1e-9, 1.0, 0.99999999, 1):
        yield f"dropout {value}", lambda: Model(model.config, dropout=value)
    yield "dropout_key 2^64", lambda: model.forward_backward(GOOD, GOOD, dropout_key=1 << 64)
    yield "logits behind the end", lambda: model.logits(GOOD, at=3)
    for name in ("top_p", "min_p", "repetition_penalty"):
        for value in (-0.1, 1.1) if name != "repetition_penalty" else (0, -1):
            yield f"generate with {name} {value}", lambda: model.generate(GOOD, 1, **{name: value})
    for name in ("top_k", "num_samples", "num_beams", "n_best", "batch"):
        yield f"generate with {name} 0", lambda: model.generate(GOOD, 1, **{name: 0})
    yield "generate with more best beams than beams", lambda: model.generate(GOOD, 1, num_beams=2, n_best=3)
    yield "generate with beams that are drawn", lambda: model.generate(GOOD, 1, num_beams=2, top_k=3)
    yield "generate up to V", lambda: model.generate(GOOD, 1, stop=V)
    yield "block size 0", lambda: Model.load("model.bin", block_size=0)
    yield "too many rows", lambda: model.plan((1 << 20) + 1, LONGEST)
    for what, path in NOT_PATHS.items():
        yield f"save to {what}", lambda: model.save(path)
        yield f"load of {what}", lambda: Model.load(path)
    for what, value in {"None": None, "a list": [], "a number": 5, "f2": "f2"}.items():
        yield f"save as {what}", lambda: model.save("model.bin", dtype=value)
        yield f"attention {what}", lambda: Model(model.config, attention=value)
        yield f"config {what}", lambda: Model.init(value)
        yield f"Model of {what}", lambda: Model(value)


def state(model: Model) -> str:
    parts = (section.floats.tobytes() for section in (model.params, model.m, model.v))
    return hashlib.sha256(
        b"".join(parts) + Path("model.bin").read_bytes() + str(sorted(os.listdir())).encode()
    ).hexdigest()


def try_all() -> dict:
    counts, problems = Counter(), []
    model = Model.init(GPT2Config(LONGEST, V, 1, 2, 4), threads=1)
    model.save("model.bin")
    before = state(model)
    for what, call in calls(model):
        print(what, file=sys.stderr)
        counts["refused"] += 1
        try:
            call()
            problems.append(f"{what}: was taken")
        except Gpt2FlatError as error:
            if "\n" in str(error):
                problems.append(f"{what}: several lines: {error}")
        except BaseException as error:  # a panic of another language is no Exception
            problems.append(f"{what}: raised {type(error).__name__}: {error}")
        if state(model) != before:
            problems.append(f"{what}: changed the model or a file")
            before = state(model)
    return report(counts, problems)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        print(json.dumps(try_all()))
        os.chdir("/")
