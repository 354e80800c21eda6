"""Debug states: read and written to the byte, hostile ones refused."""

import os
import struct

import numpy as np
import pytest

from gpt2flat.errors import FormatError
from gpt2flat.formats.debug_state import DebugState, write_debug_state
from samples import DIMS, debug_state_bytes, header, parameters, read_debug_state


@pytest.mark.parametrize("version", [1, 2])
def test_debug_states(put, tmp_path, version):
    grads = parameters(DIMS) - (0 if version > 1 else 12)
    with DebugState(put(debug_state_bytes(version)), DIMS, parameters) as state:
        assert (state.version, state.loss, state.stored["Vp"]) == (version, 1.5, 8 if version > 1 else 5)
        assert state.tokens.tolist() == [[0, 1, 2], [3, 4, 0]] and state.targets.tolist() == [[1, 2, 3], [4, 0, -1]]
        logits, tail = np.empty((2, 5), np.float32), np.empty(3, np.float32)
        state.read_into("logits", 15, logits)
        assert logits.ravel().tolist() == list(range(15, 25))
        state.read_into("grads", grads - 3, tail)
        assert tail.tolist() == [1000 + grads - 3, 1000 + grads - 2, 1000 + grads - 1]
        os.truncate(tmp_path / "file.bin", 1100)
        with pytest.raises(FormatError, match="cut short"):
            state.read_into("grads", 0, tail)


@pytest.mark.parametrize("version", [1, 2])
def test_debug_states_are_written(tmp_path, version):
    logits = np.arange(30.0).reshape(2, 3, 5)
    every = 1000 + np.arange(parameters(DIMS), dtype=np.float32)
    if version == 1:
        every[20:] -= 12  # what follows the padding counts on without it
    grads = [every[:32].reshape(8, 4), every[32:48].reshape(4, 4), every[48:]]
    tokens, targets = np.array([[0, 1, 2], [3, 4, 0]]), np.array([[1, 2, 3], [4, 0, -1]])
    write_debug_state(tmp_path / "s.bin", tokens, targets, logits, 1.5, grads, version)
    assert (tmp_path / "s.bin").read_bytes() == debug_state_bytes(version)
    flat = dict(tokens=tokens[0], targets=targets[0])
    for wrong in [dict(version=3), dict(targets=targets[:1]), dict(logits=logits[0]), flat]:
        given = dict(tokens=tokens, targets=targets, logits=logits, loss=1.5, grads=grads, version=version) | wrong
        with pytest.raises(FormatError, match="version 3|expected .B, T."):
            write_debug_state(tmp_path / "s.bin", **given)
    assert (tmp_path / "s.bin").read_bytes() == debug_state_bytes(version)


def test_the_124M_debug_state_is_as_large_as_llmcs(put):
    d12 = {"maxT": 1024, "V": 50257, "L": 12, "NH": 12, "C": 768, "Vp": 50304}
    path = put(header({0: 20240327, 1: 2, 2: 4, 3: 64}))
    os.truncate(path, 549_369_860)  # sparse
    with DebugState(path, d12, parameters) as state:
        assert state.tokens.shape == (4, 64)


@pytest.mark.parametrize(
    "wrong, why",
    [
        (dict(version=0), "version 0, expected 1 or 2"),
        (dict(version=3), "version 3, expected 1 or 2"),
        (dict(tokens=(0, 1, 2, 3, 4, 5)), "token 5 is id 5, expected 0 to 4"),
        (dict(tokens=(0, -1, 2, 3, 4, 0)), "token 1 is id -1"),
        (dict(targets=(0, 1, 5, 3, 4, 0)), "target 2 is id 5, expected -1 to 4"),
        (dict(targets=(0, 1, -2, 3, 4, 0)), "target 2 is id -2"),
        (dict(loss=np.nan), "the loss is nan"),
        (dict(loss=np.inf), "the loss is inf"),
        (dict(V=6), "cut short|followed by other"),
        (dict(T=4, tokens=(0,) * 8, targets=(0,) * 8, B=3), "cut short|followed by other"),
        (dict(T=5, B=1, tokens=(0,) * 5, targets=(0,) * 5), "1 x 5 tokens.*1 to 4"),
        (dict(B=0, T=3, tokens=(), targets=()), "batch of 0 x 3"),
        (dict(B=2**20 + 1), "batch of 1048577 x 3"),
    ],
)
def test_hostile_debug_states(put, wrong, why):
    data = debug_state_bytes(**({} if "B" in wrong and wrong["B"] > 3 else wrong))
    if wrong.get("B", 0) > 3:
        data = data[:8] + struct.pack("<i", wrong["B"]) + data[12:]
    with pytest.raises(FormatError, match=why):
        read_debug_state(put(data))
