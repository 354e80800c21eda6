"""What holds for llm.c's files of every kind: its own are read to the byte; cut, swapped and mistaken ones refused."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

import harness
from gpt2flat.errors import CheckpointError, DataError, FormatError
from gpt2flat.formats import checkpoint, llmc
from samples import KINDS, READERS, parameters, read, read_choices, read_debug_state, read_tokens

TINY = Path(__file__).parent / "llmc_tiny"


# --- reading what llm.c wrote


def test_llmcs_own_checkpoint():
    assert read(TINY / "model.bin") == {"maxT": 64, "V": 97, "L": 2, "NH": 2, "C": 32, "Vp": 128}
    raw = (TINY / "model.bin").read_bytes()
    assert checkpoint.header(read(TINY / "model.bin")) == raw[:1024]
    wte, lnfb = np.full(128 * 32, np.nan, np.float32), np.full(32, np.nan, np.float32)
    with checkpoint.Checkpoint(TINY / "model.bin", parameters) as file:
        file.read_into(0, wte)
        file.read_into((len(raw) - 1024) // 4 - 32, lnfb)
    assert wte.tobytes() == raw[1024 : 1024 + wte.nbytes] and not wte[97 * 32 :].any() and wte[: 97 * 32].all()
    assert lnfb.tobytes() == raw[-128:]


def test_the_124M_file_size():
    d12 = {"maxT": 1024, "V": 50257, "L": 12, "NH": 12, "C": 768, "Vp": 50304}
    assert 1024 + 4 * parameters(d12) == 497_904_640


def test_llmcs_own_token_files_and_tokenizer(tmp_path):
    assert read_tokens(TINY / "tokens_train.bin") == 10800 and read_tokens(TINY / "tokens_val.bin") == 1200
    kind, tokens, eot = llmc.read_tokenizer(TINY / "tokenizer.bin")
    assert (kind, len(tokens), eot) == ("llm.c", 97, 96) and tokens[:2] + tokens[-1:] == [b"0 ", b"1 ", b"96 "]
    llmc.write_tokenizer(tmp_path / "t.bin", kind, tokens, eot)
    assert (tmp_path / "t.bin").read_bytes() == (TINY / "tokenizer.bin").read_bytes()
    ids = np.fromfile(TINY / "tokens_val.bin", "<u2")[512:]
    llmc.write_tokens(tmp_path / "v.bin", ids.astype(np.int64))
    assert (tmp_path / "v.bin").read_bytes() == (TINY / "tokens_val.bin").read_bytes()


def test_what_a_file_is(put):
    assert llmc.kind_of(TINY / "model.bin") == "a model checkpoint"
    assert llmc.kind_of(TINY / "tokens_val.bin") == "a token file"
    for other in (b"", b"ab", b"some text"):
        assert llmc.kind_of(put(other)) is None


# --- what is no whole file of its kind


@pytest.mark.parametrize("kind", READERS)
def test_truncated_and_longer_files(put, kind):
    data, reader = READERS[kind]
    path = put(data)
    reader(path)
    for size in reversed(range(len(data))):
        os.truncate(path, size)
        with pytest.raises(FormatError):
            reader(path)
    for more in (1, 2, 3, 4, 4096):
        with pytest.raises(FormatError):
            reader(put(data + bytes(more)))


@pytest.mark.parametrize("kind", READERS)
def test_reserved_words_are_zero(put, kind):
    data, reader = READERS[kind]
    first = {"a model checkpoint": 8, "a token file": 3, "a tokenizer": 5}.get(kind, 4)
    with open(put(data), "r+b", buffering=0) as file:
        for index in range(first, 256):
            os.pwrite(file.fileno(), b"\1", 4 * index + index % 4)
            with pytest.raises(FormatError, match=f"reserved header word {index}"):
                reader(file.name)
            os.pwrite(file.fileno(), b"\0", 4 * index + index % 4)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("magic", KINDS)
def test_another_kind_of_file_is_named(put, kind, magic):
    data, reader = READERS[kind]
    path = put(struct.pack("<i", magic) + data[4:])
    if KINDS[magic] == kind:
        reader(path)
    else:
        with pytest.raises(FormatError, match=f"is {KINDS[magic]}.*, expected {kind}"):
            reader(path)


@pytest.mark.parametrize("kind", READERS)
def test_byte_swapped_files_are_named(put, kind):
    data, reader = READERS[kind]
    with pytest.raises(FormatError, match=f"is {kind}, but byte-swapped"):
        reader(put(np.frombuffer(data[:1024], ">i4").astype("<i4").tobytes() + data[1024:]))


# --- things that are not regular files


@pytest.mark.parametrize(
    "reader, error",
    [
        (read, CheckpointError),
        (read_tokens, DataError),
        (llmc.read_tokenizer, DataError),
        (read_debug_state, CheckpointError),
        (read_choices, DataError),
    ],  # fmt: skip
)
def test_what_cannot_be_opened(tmp_path, reader, error):
    os.mkfifo(tmp_path / "pipe")
    for path, why in {
        tmp_path / "absent": "no such file",
        tmp_path: "a directory",
        tmp_path / "pipe": "a pipe",
        Path("/dev/zero"): "a device",
        "nul\0byte": "null",
    }.items():
        with pytest.raises(error, match=why):
            reader(path)


def test_a_big_endian_machine_is_refused():
    code = "import sys, numpy; sys.byteorder = 'big'; import gpt2flat.formats.llmc"
    done = harness.python("-c", code)
    assert done.returncode == 1 and "UnsupportedCPUError: this machine is big-endian" in done.stderr


def test_no_file_stays_open(put):
    before = len(os.listdir("/proc/self/fd"))
    for data, reader in READERS.values():
        reader(put(data))
        with pytest.raises(FormatError):
            reader(put(data[:-1]))
    assert len(os.listdir("/proc/self/fd")) == before
