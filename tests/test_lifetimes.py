"""Memory that others drop or close while kernels use it, and kernels called from several Python threads at once.

In processes of their own: the proof of a use after free is that the process dies."""

import pytest

import harness

BACKENDS = pytest.mark.parametrize("backend", ["c", "numba"])

COMMON = """
import gc, mmap, sys, threading
import numpy as np
from gpt2flat import GPT2Config, Model, kernels
from gpt2flat.errors import Gpt2FlatError

kernels = kernels.backend(sys.argv[1])
from gpt2flat.kernels import run

def make(seed, N=97, C=65, OC=33):
    rng = np.random.default_rng(seed)
    inp, weight, bias = (rng.standard_normal(s).astype(np.float32) for s in ((N, C), (OC, C), (OC,)))
    return dict(out=np.empty((N, OC), np.float32), inp=inp, weight=weight, bias=bias)

def linear(arguments, threads=2):
    run("linear_forward", threads=threads, kernels=kernels, **arguments)
    return arguments["out"].tobytes()
"""
VIEWS = """
config = GPT2Config(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8)
model = Model.init(config, threads=2, kernels=kernels)
tokens = np.arange(8).reshape(2, 4)
model.forward_backward(tokens, tokens)
weight, gradient, mlp = model.params["fcw"][1], model.grads["wte"], model.acts["fch"]
before = weight.tobytes(), gradient.tobytes(), mlp.tobytes()
calls = [call.run for call in model._program.body]
del model
gc.collect()
others = [Model.init(config, threads=1, kernels=kernels) for _ in range(20)]  # would take the place of what was freed
for other in others:
    other.forward_backward(tokens[:1], tokens[:1])
assert before == (weight.tobytes(), gradient.tobytes(), mlp.tobytes())
for call in calls:
    call()  # a bound program keeps its arena
assert mlp.tobytes() == before[2]
out = np.empty((5, 32), np.float32)
run("linear_forward", out=out, inp=np.ones((5, 8), np.float32), weight=weight, kernels=kernels)
weight[...] = 1
assert not np.array_equal(weight.tobytes(), before[0])
"""
CLOSED = """
region = mmap.mmap(-1, 1 << 20)
a = np.frombuffer(region, np.float32, 97 * 65).reshape(97, 65)
a[...] = 1
arguments = make(0) | {"inp": a}
expected = linear(arguments)
try:
    region.close()
    raise SystemExit("a map was closed under an array")
except BufferError:
    pass
del region
gc.collect()
assert linear(arguments) == expected
owner = np.ones(1 << 20, np.float32)
view = owner[: 97 * 65].reshape(97, 65)
del owner
gc.collect()
assert linear(arguments | {"inp": view}) == expected
from gpt2flat.kernels.ops import KERNELS, OP_OF
dims = dict(N=97, C=65, OC=33, NT=2, BF16=0)
scratch = np.empty(kernels.scratch(OP_OF["linear_forward"], dims), np.float32)
bound = kernels.bind(KERNELS["linear_forward"], {**make(0), "inp": np.ones((97, 65), np.float32), "scratch": scratch,
                                                "out": (out := arguments["out"])}, dims)
gc.collect()
out[...] = np.nan
np.full(97 * 65, np.nan, np.float32)  # takes the place of what was freed
bound()  # holds what it was bound to
assert out.tobytes() == expected
try:
    scratch.resize(3 * scratch.size)
    raise SystemExit("an array was resized under a kernel bound to it")
except ValueError:
    pass
"""
DROPPED = """
held = {}
stop = threading.Event()

def drop():
    while not stop.is_set():
        held.clear()
        gc.collect(0)
        np.full(97 * 65, np.nan, np.float32)  # takes the place of what was freed

dropper = threading.Thread(target=drop)
dropper.start()
expected = linear(make(0))
for round in range(300):
    held.update(make(0))
    arguments = dict(held)
    if len(arguments) == 4:
        result = []
        out = arguments["out"]
        caller = threading.Thread(target=lambda given=arguments: result.append(linear(given)))
        del arguments
        caller.start()
        held.clear()
        caller.join()
        assert result == [expected] and out.tobytes() == expected, round
stop.set()
dropper.join()
"""
AT_ONCE = """
expected = [linear(make(seed), threads=1) for seed in range(8)]
wrong = []

def work(seed):
    arguments = make(seed)
    for round in range(40):
        arguments["out"][...] = np.nan
        if linear(arguments, threads=1 + (seed + round) % 3) != expected[seed]:
            wrong.append((seed, round))

workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
assert not wrong, wrong

config = GPT2Config(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8)

def train(results, index):
    model = Model.init(config, seed=index % 2, threads=1 + index % 3, kernels=kernels)
    tokens = np.arange(8).reshape(2, 4)
    losses = []
    for _ in range(5):
        losses.append(model.forward_backward(tokens, tokens))
        model.update(lr=0.1)
    results[index] = losses, model.params.floats.tobytes()

results = {}
workers = [threading.Thread(target=train, args=(results, index)) for index in range(8)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
assert sorted(results) == list(range(8)) and all(results[i] == results[i % 2] for i in results)
"""


@BACKENDS
@pytest.mark.parametrize(
    "code", [VIEWS, CLOSED, DROPPED, AT_ONCE], ids=["views of a model that is gone", "closed", "dropped", "at once"]
)
def test_memory_outlives_its_users(code, backend):
    done = harness.python("-X", "faulthandler", "-c", COMMON + code, backend)
    assert done.returncode == 0, done.stderr[-3000:]
