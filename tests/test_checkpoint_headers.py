"""Headers of checkpoints, hostile ones above all: what is wrong is refused before anything is allocated."""

import os
import tracemalloc
from itertools import combinations, product

import numpy as np
import pytest

from gpt2flat.errors import FormatError
from gpt2flat.formats import checkpoint, llmc
from gpt2flat.formats.files import RegularFile
from samples import (
    CAPS,
    DIMS,
    INT_MAX,
    INT_MIN,
    VERSIONS,
    WORDS,
    WRAPS_32_BITS,
    checkpoint_bytes,
    checkpoint_words,
    header,
    parameters,
    read,
    versioned,
    wraps_64_bits,
)


# --- accepted exactly when an independent check says so, and never another exception


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


def words_of(dims):
    return {0: 20240326, 1: 3} | {WORDS[name]: value for name, value in dims.items()}


def test_a_size_that_32_bits_would_wrap(put):
    path = put(header(words_of(WRAPS_32_BITS)) + bytes(4096))
    with pytest.raises(FormatError, match=f"found 5120 bytes, expected {5120 + 2**32}"):
        read(path)


@pytest.mark.parametrize("j", range(1, 7))
def test_a_size_that_64_bits_would_wrap(put, j):
    """Every dim is a positive int32 and V <= Vp, C % NH == 0; in size_t arithmetic, as C has it, 8 MiB hold the floats."""
    dims, size = wraps_64_bits(j), 1024 + 2**23
    assert 4 * parameters(dims) == j * 2**64 + 2**23 and all(0 < n <= INT_MAX for n in dims.values())
    path = put(header(words_of(dims)))
    os.truncate(path, size)  # sparse
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"L \(layers\) is .*expected 1 to 1024"):
            read(path)
        with pytest.raises(FormatError, match="cut short"):
            llmc.check_size(RegularFile(path, FormatError), 4 * parameters(dims), "it")  # were there no caps
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_wrapping_header_of_the_literature():
    assert wraps_64_bits(1) == {"maxT": 64, "V": 50257, "L": 357902108, "NH": 32, "C": 32768, "Vp": 328594}


def test_size_is_checked_before_anything_is_asked_for(put):
    path = put(checkpoint_bytes(checkpoint_words(C=65536, L=1024, NH=1, Vp=2**20, V=1, maxT=65536)))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="cut short"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_short_payload(put):
    with checkpoint.Checkpoint(put(checkpoint_bytes()), parameters) as file:
        file.read_into(parameters(DIMS), np.empty(0, np.float32))
        os.truncate(put(checkpoint_bytes()), 2000)
        with pytest.raises(FormatError, match="found 976 bytes at offset 1024, expected 980"):
            file.read_into(0, np.empty(245, np.float32))


# --- versions


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


# --- writing


def test_header_refuses_what_could_not_be_read():
    assert checkpoint.header(DIMS) == header(checkpoint_words())
    for name in CAPS:
        for value in (0, -1, CAPS[name] + 1):
            with pytest.raises(FormatError, match=name):
                checkpoint.header({**DIMS, name: value})
