"""PyTorch as a peer, in a process of its own: every kernel it knows, and the same GPT-2 as ours."""

import json
import math

import pytest

import harness
from gpt2flat import bench
from gpt2flat.arch import gpt2
from gpt2flat.benchmarks import machine, measure, peers
from gpt2flat.kernels.ops import KERNELS, OP_OF

MODEL = """
import math, runpy, sys, torch
peer = runpy.run_path(sys.argv[1])
torch.manual_seed(0)
model = peer["gpt2"](torch, layers=4, heads=4, channels=128, vocabulary=384, block_size=64)
print(sum(p.numel() for p in model.parameters()))
for precision in ("fp32", "bf16"):
    run = peer["Torch"](1).step(2, 2, 32, 384, 16, 2, 8, precision)
    losses = [run() for _ in range(100)]
    print(losses[0], losses[-1])
"""


def test_the_model_is_ours_and_learns():
    ran = harness.python("-c", MODEL, str(peers.SCRIPT))
    assert ran.returncode == 0, ran.stderr
    parameters, *losses = ran.stdout.splitlines()
    assert int(parameters) == gpt2.config_of("tiny").num_parameters
    fp32, bf16 = ([float(loss) for loss in line.split()] for line in losses)
    for first, last in (fp32, bf16):
        assert abs(first - math.log(384)) < 0.1 and last < first - 0.1
    assert fp32 != bf16


def test_every_kernel_runs():
    with peers.Peer("torch", 1) as peer:
        missing = {name for name in KERNELS if name not in peer.knows}
        decode = {name for name in KERNELS if OP_OF[name].decode}
        assert missing == {"residual_backward", "attention_standard_forward", "attention_standard_backward"} | decode
        for name in [name for name in KERNELS if name in peer.knows]:
            for mode in (0, 1):
                dims = dict(harness.modest(OP_OF[name])) | {"BF16": mode}
                (remote,) = peers.remotes([peer], name, dims, 0.0)
                remote.sample()
                assert remote.best > 0, name


def test_a_step_beside_pytorch(monkeypatch, capsys):
    monkeypatch.setattr(machine, "WINDOW", 0.001)
    monkeypatch.setattr(measure, "TOLERANCE", 10.0)
    argv = [
        "step",
        "--init",
        "tiny",
        "-b",
        "1",
        "-t",
        "8",
        "--threads",
        "1",
        "--repeats",
        "2",
        "--vs",
        "torch",
        "--isa",
        "scalar",
    ]
    assert bench.main([*argv, "--seconds", "0", "--json"]) == 0
    _, ours, torch = map(json.loads, capsys.readouterr().out.splitlines())
    assert torch["peer"] == "torch" and torch["version"].startswith("torch ") and torch["step"] == "tiny"
    assert ours["times_of"] == {"torch": pytest.approx(torch["ms"] / ours["ms"])}
