"""llm.c's files to the byte, and hostile ones: what is wrong is refused before anything is allocated."""

import os
import random
import struct
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from gpt2flat.errors import CheckpointError, DataError, FormatError
from gpt2flat.formats import llmc

TINY = Path(__file__).parent / "llmc_tiny"
DIMS = {"maxT": 4, "V": 5, "L": 1, "NH": 2, "C": 4, "Vp": 8}
WORDS = {"maxT": 2, "V": 3, "L": 4, "NH": 5, "C": 6, "Vp": 7}
CAPS = {"maxT": 65536, "V": 2**20, "L": 1024, "NH": 1024, "C": 65536, "Vp": 2**20}
INT_MIN, INT_MAX = -(2**31), 2**31 - 1


def parameters(d):
    """The floats of a GPT-2 checkpoint, tensor by tensor (independent of the tensor table)."""
    C, L = d["C"], d["L"]
    block = [C, C, 3 * C * C, 3 * C, C * C, C, C, C, 4 * C * C, 4 * C, 4 * C * C, C]
    return d["Vp"] * C + d["maxT"] * C + L * sum(block) + C + C


def header(words):
    return struct.pack("<256i", *(words.get(i, 0) for i in range(256)))


def checkpoint_words(**changes):
    return {0: 20240326, 1: 3} | {WORDS[name]: value for name, value in {**DIMS, **changes}.items()}


def checkpoint_bytes(words=None, size=None):
    payload = bytes(4 * parameters(DIMS)) if size is None else bytes(size)
    return header(words or checkpoint_words()) + payload


def read(path):
    return llmc.read_checkpoint_header(path, parameters)


# name -> (bytes of a valid file, its reader)
def token_bytes(ids=(1, 2, 3)):
    return header({0: 20240520, 1: 1, 2: len(ids)}) + np.array(ids, "<u2").tobytes()


def tokenizer_bytes(tokens=(b"a", b"bc", b"<|endoftext|>"), words=None):
    words = {0: 20240328, 1: 2, 2: len(tokens), 3: len(tokens) - 1} | (words or {})
    return header(words) + b"".join(bytes([len(t)]) + t for t in tokens)


def read_tokens(path):
    file, count = llmc.open_tokens(path)
    file.close()
    return count


READERS = {
    "a model checkpoint": (checkpoint_bytes(), read),
    "a token file": (token_bytes(), read_tokens),
    "a tokenizer": (tokenizer_bytes(), llmc.read_tokenizer),
}
KINDS = {20240326: "a model checkpoint", 20240327: "a debug state", 20240328: "a tokenizer", 20240520: "a token file"}
KINDS |= {20240522: "a multiple-choice", 20240527: "a training state", 20240801: "a Llama-3 token file"}


@pytest.fixture
def put(tmp_path):
    """put(data) -> path of a file that holds data."""

    def write(data, name="file.bin"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


# --- reading what llm.c wrote


def test_llmcs_own_checkpoint():
    assert read(TINY / "model.bin") == {"maxT": 64, "V": 97, "L": 2, "NH": 2, "C": 32, "Vp": 128}
    raw = (TINY / "model.bin").read_bytes()
    assert llmc.checkpoint_header(read(TINY / "model.bin")) == raw[:1024]
    wte = np.full((128, 32), np.nan, np.float32)
    llmc.read_payload_into(TINY / "model.bin", 1024, wte)
    assert wte.tobytes() == raw[1024 : 1024 + wte.nbytes] and not wte[97:].any() and wte[:97].all()
    lnfb = np.full(32, np.nan, np.float32)
    llmc.read_payload_into(TINY / "model.bin", len(raw) - 128, lnfb)
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


# --- hostile headers: accepted exactly when an independent check says so, and never another exception


def fits(d, size):
    in_range = all(1 <= d[name] <= CAPS[name] for name in CAPS)
    return in_range and d["C"] % d["NH"] == 0 and d["V"] <= d["Vp"] and size == 1024 + 4 * parameters(d)


def extremes(name):
    return (INT_MIN, -1, 0, 1, 2, 3, CAPS[name], CAPS[name] + 1, 2**15, 2**16, 2**30, INT_MAX)


HEADERS = [{name: value} for name in CAPS for value in extremes(name)]
HEADERS += [
    {a: x, b: y}
    for a, b in combinations(CAPS, 2)
    for x, y in product((CAPS[a] + 1, INT_MAX, -1, 1), (CAPS[b] + 1, INT_MAX, -1, 1))
]


def test_every_mutated_header(put):
    accepted = 0
    for changes in HEADERS:
        path = put(checkpoint_bytes(checkpoint_words(**changes)))
        dims = {**DIMS, **changes}
        try:
            assert read(path) == dims
            assert fits(dims, path.stat().st_size), f"accepted {changes}"
            accepted += 1
        except FormatError as problem:
            assert not fits(dims, path.stat().st_size), f"refused {changes}: {problem}"
            assert str(path) in str(problem) and "\n" not in str(problem)
    assert len(HEADERS) > 300 and 3 <= accepted < 30, accepted


def test_random_mutations_of_every_kind(put):
    rng = random.Random(5)
    words = (INT_MIN, -1, 0, 1, 2, 255, 256, 65536, 2**30, INT_MAX)
    outcomes = {"read": 0, "refused": 0}
    for data, reader in READERS.values():
        for _ in range(300):
            mutant = bytearray(data)
            for _ in range(rng.randint(1, 3)):
                at = rng.choice((rng.randrange(4, 40), rng.randrange(len(mutant))))
                mutant[at] ^= 1 << rng.randrange(8)
                if rng.random() < 0.5:
                    struct.pack_into("<i", mutant, 4 * rng.randrange(1, 8), rng.choice(words))
            try:
                reader(put(bytes(mutant)))
                outcomes["read"] += 1
            except FormatError:
                outcomes["refused"] += 1
    assert outcomes["read"] > 10 and outcomes["refused"] > 400, outcomes


def test_a_size_that_32_bits_would_wrap(put):
    dims = {"maxT": 1, "V": 1, "L": 1, "NH": 1, "C": 4096, "Vp": 1}
    size = 1024 + 4 * parameters(dims)
    words = {0: 20240326, 1: 3} | {WORDS[n]: v for n, v in {**dims, "Vp": 1 + 2**18}.items()}
    path = put(header(words))
    os.truncate(path, size)  # sparse
    with pytest.raises(FormatError, match=f"found {size} bytes, expected {size + 2**32}"):
        read(path)


def test_size_is_checked_before_anything_is_asked_for(put):
    words = checkpoint_words(C=65536, L=1024, NH=1, Vp=2**20, V=1, maxT=65536)
    with pytest.raises(FormatError, match="cut short"):
        read(put(checkpoint_bytes(words)))


@pytest.mark.parametrize("kind", READERS)
def test_truncated_and_longer_files(put, kind):
    data, reader = READERS[kind]
    reader(put(data))
    for size in [*range(0, 1024, 7), *range(1000, len(data))]:
        with pytest.raises(FormatError):
            reader(put(data[:size]))
    for more in (1, 2, 3, 4, 4096):
        with pytest.raises(FormatError):
            reader(put(data + bytes(more)))


@pytest.mark.parametrize("kind", READERS)
def test_reserved_words_are_zero(put, kind):
    data, reader = READERS[kind]
    first = {"a model checkpoint": 8, "a token file": 3, "a tokenizer": 5}[kind]
    for index in range(first, 256):
        mutant = bytearray(data)
        mutant[4 * index + index % 4] = 1
        with pytest.raises(FormatError, match=f"reserved header word {index}"):
            reader(put(bytes(mutant)))


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


@pytest.mark.parametrize("version", [*range(-1, 11), INT_MAX])
def test_checkpoint_versions(put, version):
    path = put(checkpoint_bytes(checkpoint_words() | {1: version}))
    hints = {1: "padded", 2: "bf16", 4: "mixed", 5: "bf16"}
    if version == 3:
        assert read(path) == DIMS
    else:
        with pytest.raises(FormatError, match=f"version {version}.*{hints.get(version, '')}.*expected.* 3"):
            read(path)


@pytest.mark.parametrize("version", [-1, 0, 2, 7])
def test_token_file_versions(put, version):
    with pytest.raises(FormatError, match="version"):
        read_tokens(put(header({0: 20240520, 1: version, 2: 1}) + b"\0\0"))


@pytest.mark.parametrize(
    "count, payload", [(0, 0), (0, 6), (2, 6), (4, 6), (INT_MIN, 6), (-1, 6), (2**30, 6), (INT_MAX, 6)]
)
def test_token_counts(put, count, payload):
    with pytest.raises(FormatError, match="expected at least 1" if count < 1 else "cut short|followed"):
        read_tokens(put(header({0: 20240520, 1: 1, 2: count}) + bytes(payload)))


def test_a_token_file_without_header_is_explained(put):
    with pytest.raises(FormatError, match="has no header"):
        read_tokens(put(np.array([50256, *range(400)], "<i4").tobytes()))


TOKENIZER_FAULTS = {
    "of 0 tokens": tokenizer_bytes(words={2: 0}),
    "of -1 tokens": tokenizer_bytes(words={2: -1}),
    "of 2147483647 tokens": tokenizer_bytes(words={2: INT_MAX}),
    "token 3 of 4 is cut short": tokenizer_bytes(words={2: 4}),
    "found 14 bytes behind the last of 2": tokenizer_bytes(words={2: 2, 3: 1}),
    "end-of-text is token 3, expected 0 to 2": tokenizer_bytes(words={3: 3}),
    "end-of-text is token -1": tokenizer_bytes(words={3: -1}),
    "of kind 4": tokenizer_bytes(words={4: 4}),
    "of kind -1": tokenizer_bytes(words={4: -1}),
    "version 1 with 3 tokens": tokenizer_bytes(words={1: 1, 3: 0}),
    "version 3": tokenizer_bytes(words={1: 3}),
    "cannot hold 10 tokens": tokenizer_bytes(words={2: 10}),
    "token 1 of 3 is empty": header({0: 20240328, 1: 2, 2: 3, 3: 0}) + b"\1a\0\2bcd",
    "token 1 of 2 is cut short": header({0: 20240328, 1: 2, 2: 2, 3: 0}) + b"\1a\xffbc",
}


@pytest.mark.parametrize("fault", TOKENIZER_FAULTS)
def test_hostile_tokenizers(put, fault):
    with pytest.raises(FormatError, match=fault):
        llmc.read_tokenizer(put(TOKENIZER_FAULTS[fault]))


def test_tokenizer_version_1(put):
    tokens = [b"%d" % i for i in range(50257)]
    kind, read_back, eot = llmc.read_tokenizer(put(tokenizer_bytes(tokens, {1: 1, 3: 0})))
    assert (kind, read_back, eot) == ("llm.c", tokens, 50256)


# --- things that are not regular files


@pytest.mark.parametrize(
    "reader, error", [(read, CheckpointError), (read_tokens, DataError), (llmc.read_tokenizer, DataError)]
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


def test_no_file_stays_open(put):
    before = len(os.listdir("/proc/self/fd"))
    for data, reader in READERS.values():
        reader(put(data))
        with pytest.raises(FormatError):
            reader(put(data[:-1]))
    assert len(os.listdir("/proc/self/fd")) == before


def test_short_payload(put):
    path = put(bytes(2000))
    with pytest.raises(FormatError, match="found 976 bytes at offset 1024, expected 980"):
        llmc.read_payload_into(path, 1024, np.empty(245, np.float32))
    llmc.read_payload_into(path, 1024, np.empty((0, 4), np.float32))


# --- writing


def test_header_refuses_what_could_not_be_read():
    assert llmc.checkpoint_header(DIMS) == header(checkpoint_words())
    for name in CAPS:
        for value in (0, -1, CAPS[name] + 1):
            with pytest.raises(FormatError, match=name):
                llmc.checkpoint_header({**DIMS, name: value})


def test_token_ids_are_checked(tmp_path):
    path = tmp_path / "t.bin"
    llmc.write_tokens(path, [0, 65535, 7])
    assert path.read_bytes() == token_bytes([0, 65535, 7])
    before = path.read_bytes()
    for ids, why in [
        ([0, 1, 65536], "token 2 is id 65536"),
        (np.array([5, -1]), "token 1 is id -1"),
        ([], "shape"),
        (np.empty(0, np.int32), "0 tokens"),
        ([0.5], "float64"),
        ([[1]], "shape"),
        (np.broadcast_to(np.uint16(0), 2**31), "several shards"),
    ]:
        with pytest.raises(DataError, match=why):
            llmc.write_tokens(path, ids)
    assert path.read_bytes() == before


@pytest.mark.parametrize("tokens, eot", [([b"a", b""], 0), ([b"a" * 256], 0), ([], 0), ([b"a"], 1), ([b"a"], -1)])
def test_tokenizers_that_cannot_be_written(tmp_path, tokens, eot):
    with pytest.raises(FormatError):
        llmc.write_tokenizer(tmp_path / "t.bin", "char", tokens, eot)
    assert not list(tmp_path.iterdir())
