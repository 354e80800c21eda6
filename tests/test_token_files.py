"""Token files, with header and without, and the files of tokenizers: hostile ones, and what cannot be written."""

import numpy as np
import pytest

from gpt2flat.errors import DataError, FormatError
from gpt2flat.formats import llmc
from samples import INT_MAX, INT_MIN, header, old_tokens, read, read_tokens, token_bytes, tokenizer_bytes


# --- token files


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


# --- tokenizers


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


@pytest.mark.parametrize("tokens, eot", [([b"a", b""], 0), ([b"a" * 256], 0), ([], 0), ([b"a"], 1), ([b"a"], -1)])
def test_tokenizers_that_cannot_be_written(tmp_path, tokens, eot):
    with pytest.raises(FormatError):
        llmc.write_tokenizer(tmp_path / "t.bin", "char", tokens, eot)
    assert not list(tmp_path.iterdir())
