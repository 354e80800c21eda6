"""llm.c's files to the byte, and hostile ones: what is wrong is refused before anything is allocated."""

import os
import random
import struct
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from gpt2flat.errors import CheckpointError, DataError, FormatError
from gpt2flat.formats import checkpoint, llmc
from gpt2flat.formats.choices import ChoiceFile
from gpt2flat.formats.debug_state import DebugState, write_debug_state

TINY = Path(__file__).parent / "llmc_tiny"
DIMS = {"maxT": 4, "V": 5, "L": 1, "NH": 2, "C": 4, "Vp": 8}
WORDS = {"maxT": 2, "V": 3, "L": 4, "NH": 5, "C": 6, "Vp": 7}
CAPS = {"maxT": 65536, "V": 2**20, "L": 1024, "NH": 1024, "C": 65536, "Vp": 2**20}
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
# version -> (bytes per number, rows of wte padded); the others are refused
VERSIONS = {1: (4, False), 3: (4, True), 5: (2, True)}


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
    with checkpoint.Checkpoint(path, parameters) as file:
        return file.dims


# name -> (bytes of a valid file, its reader)
def token_bytes(ids=(1, 2, 3)):
    return header({0: 20240520, 1: 1, 2: len(ids)}) + np.array(ids, "<u2").tobytes()


def tokenizer_bytes(tokens=(b"a", b"bc", b"<|endoftext|>"), words=None):
    words = {0: 20240328, 1: 2, 2: len(tokens), 3: len(tokens) - 1} | (words or {})
    return header(words) + b"".join(bytes([len(t)]) + t for t in tokens)


def read_tokens(path):
    file = llmc.open_tokens(path)
    file.close()
    return file.count


def batch_of(tokens, targets):
    return np.array([tokens, targets], "<i4").tobytes()


def debug_state_bytes(version=2, B=2, T=3, V=5, tokens=(0, 1, 2, 3, 4, 0), targets=(1, 2, 3, 4, 0, -1), loss=1.5):
    """Logits counting from 0, gradients from 1000 (without the padding of wte in version 1)."""
    grads = parameters(DIMS) - (0 if version > 1 else (DIMS["Vp"] - DIMS["V"]) * DIMS["C"])
    floats = np.concatenate([np.arange(B * T * V), [loss], 1000 + np.arange(grads)]).astype("<f4")
    return header({0: 20240327, 1: version, 2: B, 3: T}) + batch_of(tokens, targets) + floats.tobytes()


def read_debug_state(path):
    with DebugState(path, DIMS, parameters) as state:
        return state


def example_words(number, context=(7, 8), completions=((1,), (2, 3), (4,), (5, 6, 9)), **changes):
    body = [len(context), *context] + [word for c in completions for word in (len(c), *c)]
    size = 2 * (5 + len(body))
    words = dict(start=65535, size=size, index=number, label=1, count=len(completions)) | changes
    return [*words.values(), *body]


def choice_bytes(*examples, longest=None, **words):
    examples = examples or ({}, {"label": 3, "context": [11] * 9})
    rows = [example_words(i, **changes) for i, changes in enumerate(examples)]
    sizes = {0: 20240522, 1: 1, 2: len(rows), 3: longest or max(2 * len(row) for row in rows)}
    sizes |= {int(key[1:]): value for key, value in words.items()}
    return header(sizes) + np.concatenate(rows).astype("<u2").tobytes()


def read_choices(path, T=16):
    with ChoiceFile(path, T) as file:
        return list(file)


READERS = {
    "a debug state": (debug_state_bytes(), read_debug_state),
    "a multiple-choice evaluation file": (choice_bytes(), read_choices),
    "a model checkpoint": (checkpoint_bytes(), read),
    "a token file": (token_bytes(), read_tokens),
    "a tokenizer": (tokenizer_bytes(), llmc.read_tokenizer),
}
KINDS = {20240326: "a model checkpoint", 20240327: "a debug state", 20240328: "a tokenizer", 20240520: "a token file"}
KINDS |= {20240522: "a multiple-choice evaluation file", 20240527: "a training state", 20240801: "a Llama-3 token file"}


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


# --- hostile headers: accepted exactly when an independent check says so, and never another exception


def fits(d, size, version):
    itemsize, padded = VERSIONS[version]
    stored = d if padded else d | {"Vp": d["V"]}
    in_range = all(1 <= stored[name] <= CAPS[name] for name in CAPS) and (padded or d["Vp"] == 0)
    right = in_range and stored["C"] % stored["NH"] == 0 and stored["V"] <= stored["Vp"]
    return right and size == 1024 + itemsize * parameters(stored)


def extremes(name):
    return (INT_MIN, -1, 0, 1, 2, 3, CAPS[name], CAPS[name] + 1, 2**15, 2**16, 2**30, INT_MAX)


HEADERS = [{name: value} for name in CAPS for value in extremes(name)]
HEADERS += [
    {a: x, b: y}
    for a, b in combinations(CAPS, 2)
    for x, y in product((CAPS[a] + 1, INT_MAX, -1, 1), (CAPS[b] + 1, INT_MAX, -1, 1))
]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_mutated_header(put, version):
    accepted, data = 0, versioned(version)
    base = DIMS | ({} if VERSIONS[version][1] else {"Vp": 0})
    for changes in HEADERS:
        dims = base | changes
        path = put(header(checkpoint_words(**dims) | {1: version}) + data[1024:])
        try:
            assert read(path) == dims
            assert fits(dims, path.stat().st_size, version), f"accepted {changes}"
            accepted += 1
        except FormatError as problem:
            assert not fits(dims, path.stat().st_size, version), f"refused {changes}: {problem}"
            assert str(path) in str(problem) and "\n" not in str(problem)
    assert len(HEADERS) > 300 and 1 <= accepted < 30, accepted


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
    first = {"a model checkpoint": 8, "a token file": 3, "a tokenizer": 5}.get(kind, 4)
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


def versioned(version, floats=None, **changes):
    """A checkpoint of a version as llm.c wrote it; floats: the numbers with wte padded, zeros by default."""
    itemsize, padded = VERSIONS.get(version, (4, True))
    dims = DIMS | changes
    floats = np.zeros(parameters(dims), np.float32) if floats is None else floats
    if not padded:
        floats = np.concatenate([floats[: dims["V"] * dims["C"]], floats[dims["Vp"] * dims["C"] :]])
        dims["Vp"] = 0
    words = {0: 20240326, 1: version} | {WORDS[name]: value for name, value in dims.items()}
    raw = floats.astype("<f4").tobytes()
    return header(words) + (raw if itemsize == 4 else np.frombuffer(raw, "<u2")[1::2].tobytes())


@pytest.mark.parametrize("version", [*range(-1, 11), INT_MAX])
def test_checkpoint_versions(put, version):
    path = put(versioned(version))
    if version in VERSIONS:
        with checkpoint.Checkpoint(path, parameters) as file:
            assert file.version == version and file.dims == DIMS | ({} if VERSIONS[version][1] else {"Vp": 0})
            assert file.stored == DIMS | ({} if VERSIONS[version][1] else {"Vp": 5})
    else:
        hint = {2: "bf16", 4: "mixed"}.get(version, "")
        with pytest.raises(FormatError, match=f"version {version}.*{hint}.*expected 1, 3, 5"):
            read(path)


def test_version_3_of_one_day_in_april(put):
    with pytest.raises(FormatError, match="version 3 .*without padded vocabulary.*bf16"):
        read(put(checkpoint_bytes(checkpoint_words(Vp=0))))


def test_version_1_has_no_padded_vocabulary(put):
    for vp in (5, 8, -1):
        with pytest.raises(FormatError, match=f"Vp .* is {vp}, expected 0 in version 1"):
            read(put(checkpoint_bytes(checkpoint_words(Vp=vp) | {1: 1})))


@pytest.mark.parametrize("version", VERSIONS)
def test_size_of_each_version(put, version):
    data = versioned(version)
    for wrong in (data[:-1], data[:-4], data + b"\0", data + bytes(4 * 3 * 4)):
        with pytest.raises(FormatError, match="cut short|followed"):
            read(put(wrong))


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


def old_tokens(ids):
    return np.array(ids, "<i4").tobytes()


OLD_IDS = [50256], [0, 7], [50256, *range(400)], [0] * 255 + [1], [1, 2, 3] * 1000, [9] * 256 + [-5, 60000]


@pytest.mark.parametrize("ids", OLD_IDS)
def test_token_files_without_header(put, ids):
    path = put(old_tokens(ids))
    assert llmc.kind_of(path) == "a token file without header"
    file = llmc.open_tokens(path)
    assert (file.count, file.dtype, file.start) == (len(ids), np.int32, 0)
    assert file.read(0, len(ids)).tolist() == ids and file.read(len(ids) - 1, 1).tolist() == ids[-1:]
    file.close()
    with pytest.raises(FormatError, match="has no header"):
        read(put(old_tokens([*ids, *[0] * 300])))


@pytest.mark.parametrize(
    "data, why",
    [
        (old_tokens([1, 2, 3]) + b"\0", "found 13 bytes, expected a multiple of 4"),
        (old_tokens([1, 50257, 3]), "found 50257 as token 1, expected ids from 0 to 50256"),
        (old_tokens([*range(255), -1]), "found -1 as token 255"),
        (bytes(4), "nothing but zeros"),
        (bytes(1 << 16), "nothing but zeros"),
    ],
)
def test_what_is_no_old_token_file(put, data, why):
    path = put(data)
    assert llmc.kind_of(path) is None
    with pytest.raises(FormatError, match=f"has no header, and is no token file of before June 2024: .*{why}"):
        read_tokens(path)


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


# --- debug states


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


# --- multiple-choice evaluation files


def test_multiple_choice(put):
    first, second = read_choices(put(choice_bytes()))
    assert first.context.tolist() == [7, 8] and first.label == 1 and second.label == 3
    assert [c.tolist() for c in first.completions] == [[1], [2, 3], [4], [5, 6, 9]]
    assert second.context.tolist() == [11] * 9
    with ChoiceFile(put(choice_bytes()), 16) as file:
        assert file.count == 2 and len(list(file)) == len(list(file)) == 2


@pytest.mark.parametrize(
    "data, why",
    [
        (choice_bytes(_1=2), "version 2, expected 1"),
        (choice_bytes(_2=0), "says 0 examples"),
        (choice_bytes(_2=65535), "says 65535 examples"),
        (choice_bytes(_2=1), "bytes behind the last of 1 examples"),
        (choice_bytes(_2=3), "example 2 of 3: the file ends within it"),
        (choice_bytes(_3=0), "the longest example has 0 bytes"),
        (choice_bytes(_3=160), "has 160 bytes, expected fewer than 160 for rows of 16"),
        (choice_bytes(_3=40), "example 1 of 2: has 52 bytes, expected an even number from 12 to 40"),
        (choice_bytes(dict(start=65534)), "the start marker is 65534, expected 65535"),
        (choice_bytes(dict(index=1)), "its number is 1, expected 0"),
        (choice_bytes({}, dict(index=0)), "example 1 of 2: its number is 0, expected 1"),
        (choice_bytes(dict(label=4)), "the right completion is 4, expected 0 to 3"),
        (choice_bytes(dict(count=3)), "the count of completions is 3"),
        (choice_bytes(dict(size=33)), "has 33 bytes"),
        (choice_bytes(dict(size=10)), "has 10 bytes"),
        (choice_bytes(dict(size=40), longest=60), "the file ends within it"),
        (choice_bytes(dict(size=36)), "completion 3 has 3 of the 2 tokens"),
        (choice_bytes(dict(size=38 + 12), {}, longest=60), "found 6 words behind the last completion"),
        (choice_bytes(dict(context=())), "the context has 0"),
        (choice_bytes(dict(context=[1] * 13)), "have 16 tokens, expected fewer than 16"),
        (choice_bytes(dict(context=[1] * 12)), None),
    ],
)
def test_hostile_multiple_choice(put, data, why):
    if why is None:
        read_choices(put(data))
    else:
        with pytest.raises(FormatError, match=why):
            read_choices(put(data))


# --- things that are not regular files


@pytest.mark.parametrize(
    "reader, error",
    [
        (read, CheckpointError), (read_tokens, DataError), (llmc.read_tokenizer, DataError),
        (read_debug_state, CheckpointError), (read_choices, DataError),
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


def test_no_file_stays_open(put):
    before = len(os.listdir("/proc/self/fd"))
    for data, reader in READERS.values():
        reader(put(data))
        with pytest.raises(FormatError):
            reader(put(data[:-1]))
    assert len(os.listdir("/proc/self/fd")) == before


def test_short_payload(put):
    with checkpoint.Checkpoint(put(checkpoint_bytes()), parameters) as file:
        file.read_into(parameters(DIMS), np.empty(0, np.float32))
        os.truncate(put(checkpoint_bytes()), 2000)
        with pytest.raises(FormatError, match="found 976 bytes at offset 1024, expected 980"):
            file.read_into(0, np.empty(245, np.float32))


# --- writing


def test_header_refuses_what_could_not_be_read():
    assert checkpoint.header(DIMS) == header(checkpoint_words())
    for name in CAPS:
        for value in (0, -1, CAPS[name] + 1):
            with pytest.raises(FormatError, match=name):
                checkpoint.header({**DIMS, name: value})


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
