"""Peers of the benchmarks: their process and its protocol, NumPy's kernels, ratios, and what goes wrong."""

import json
import os
import runpy

import numpy as np
import pytest

import harness
from gpt2flat import bench
from gpt2flat.benchmarks import machine, measure, peers
from gpt2flat.errors import UsageError
from gpt2flat.kernels.ops import KERNELS

SMALL = [
    "--init",
    "tiny",
    "-b",
    "1",
    "-t",
    "4",
    "--threads",
    "2",
    "--repeats",
    "2",
    "--seconds",
    "0",
    "--isa",
    "scalar",
]
PEER = runpy.run_path(str(peers.SCRIPT))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(machine, "LEAST_STREAM", 1 << 20)
    monkeypatch.setattr(machine, "last_cache", lambda: 0)
    monkeypatch.setattr(machine, "WINDOW", 0.001)
    monkeypatch.setattr(measure, "TOLERANCE", 10.0)


def alive(peer) -> bool:
    return peer._process.poll() is None


def test_a_peer_answers_one_line_a_question_and_ends_with_its_pipe():
    with peers.Peer("numpy", 1) as peer:
        assert peer.label == f"numpy {np.__version__}" and set(peer.knows) < KERNELS.keys()
        assert peer.start("linear_forward", dict(N=3, C=5, OC=7, BF16=0)) and alive(peer)
        assert not peer.start("linear_forward", dict(N=3, C=5, OC=7, BF16=1)), "there is no bf16"
        assert not peer.start("gelu_forward", dict(N=3, C=5))
        (remote,) = peers.remotes([peer], "residual_forward", dict(N=3, C=5), 0.001)
        remote.sample()
        remote.sample()
        assert remote.rounds > 1 and 0 < remote.best < 0.001 and remote.row.name == "numpy"
        assert remote.row.times.least <= remote.row.times.median <= remote.row.times.most
    assert peer._process.returncode == 0


def test_a_peer_has_our_threads_and_not_our_spin_count(monkeypatch):
    seen = []

    def start(command, env, **_more):
        seen.append((command, env))
        raise OSError

    monkeypatch.setattr(peers.subprocess, "Popen", start)
    monkeypatch.setitem(os.environ, "GOMP_SPINCOUNT", "1000")
    with pytest.raises(OSError):
        peers.Peer("numpy", 3)
    ((command, env),) = seen
    assert command[-2:] == ["numpy", "3"] and "GOMP_SPINCOUNT" not in env
    assert env["OMP_NUM_THREADS"] == env["OPENBLAS_NUM_THREADS"] == "3"


def test_what_goes_wrong_in_a_peer_is_told():
    with peers.Peer("numpy", 1) as peer:
        with pytest.raises(UsageError, match="--vs numpy: its process failed: (ValueError|.*MemoryError)"):
            peer.start("residual_forward", dict(N=1 << 40, C=1 << 20))
        assert peer.start("residual_forward", dict(N=1, C=1)), "it goes on"


@pytest.mark.parametrize(
    "code, words",
    [
        ("raise ImportError('gone')", "--vs torch: torch cannot be imported: pip install 'gpt2flat[torch]' (gone)"),
        (
            "import os, sys; sys.stderr.write('out of luck\\n'); sys.stderr.flush(); os._exit(3)",
            "exit code 3, out of luck",
        ),
        ("import os; os._exit(4)", "its process failed: exit code 4, nothing said"),
    ],
    ids=["missing", "dies", "dies in silence"],
)
def test_a_peer_that_cannot_be_had_is_one_line(code, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert bench.main([*SMALL, "gelu", "--vs", "torch"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpt2flat bench: --vs torch") and words in error and error.count("\n") == 1


def test_numpy_computes_what_the_kernels_do():
    made = []

    class Seen(PEER["NumPy"]):
        def arrays(self, *shapes):
            made[:] = super().arrays(*shapes)
            return made

    work = Seen(1).work
    work["linear_forward"](N=3, C=5, OC=7)()
    x, w, b, y = made
    assert np.allclose(y, x @ w.T + b)
    work["linear_backward"](N=3, C=5, OC=7)()
    x, w, dy, dx, dw, db = made
    assert np.allclose(dx, dy @ w) and np.allclose(dw, dy.T @ x) and np.allclose(db, dy.sum(0))
    work["residual_forward"](N=3, C=5)()
    assert np.array_equal(made[2], made[0] + made[1])


def test_a_row_for_the_peer_and_its_ratio(capsys):
    assert bench.main([*SMALL, "linear_forward", "gelu_forward", "--vs", "numpy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("versus    numpy ") and max(map(len, lines)) <= 120
    start = next(i for i, line in enumerate(lines) if line.startswith("linear_forward"))
    ours, numpy = lines[start + 1].split(), lines[start + 2].split()
    assert (ours[0], numpy[0]) == ("scalar", "numpy") and lines[start - 1].endswith("/numpy")
    ratio = float(numpy[1]) / float(ours[1])
    assert float(ours[-1].rstrip("x")) == pytest.approx(ratio, abs=0.01 + 0.6 * ratio), "of three digits"
    gelu = [line for line in lines if line.startswith("  ")][-1]
    assert gelu.split()[0] == "scalar" and "x" not in gelu.split()[-1]


def test_json_of_a_peer(capsys):
    assert bench.main([*SMALL, "linear_backward", "--dims", "N=9,C=8,OC=7", "--vs", "numpy", "--json"]) == 0
    _, ours, numpy = map(json.loads, capsys.readouterr().out.splitlines())
    assert ours["times_of"] == {"numpy": pytest.approx(numpy["ms"] / ours["ms"])}
    assert numpy["peer"] == "numpy" and numpy["kernel"] == "linear_backward" and numpy["dims"] == ours["dims"]
    assert numpy["ms_min"] <= numpy["ms_25"] <= numpy["ms"] <= numpy["ms_75"] <= numpy["ms_max"]


def test_rounds_are_taken_in_turn(monkeypatch):
    """Ours, the peer, ours, the peer."""
    order = []
    monkeypatch.setattr(measure, "Timed", _noting(machine.Timed, "ours", order))
    monkeypatch.setattr(peers, "Remote", _noting(peers.Remote, "peer", order))
    op_case = next(c for c in _cases() if c.kernel.name == "linear_forward")
    with peers.Peer("numpy", 1) as peer:
        measure.measure(op_case, [machine.Machine(harness.backends()[0], 1)], [harness.backends()[0]], 3, 0.0, [peer])
    assert order == ["ours", "peer", "ours"] * 3, "the kernel, the peer, the stream"


def _noting(kind, name, order):
    class Noting(kind):
        def sample(self):
            order.append(name)
            super().sample()

    return Noting


def _cases():
    from gpt2flat.arch import gpt2
    from gpt2flat.benchmarks.cases import step_cases

    return step_cases(gpt2.config_of("tiny"), 1, 4, harness.backends()[0])
