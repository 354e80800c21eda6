"""nanoGPT's ckpt.pt: read without running it, and one line for each way in which it can be wrong or hostile."""

import os
import struct
import sys

import numpy as np
import pytest
from foreign import ARGS, Opcodes, archive, as_llmc, called, described, nano_tensors, nanogpt, pickled, stored
from foreign_faults import NANOGPT_FAULTS, WTE, program

from gpt2flat import Model
from gpt2flat.errors import CheckpointError, FormatError, NonFiniteError
from gpt2flat.generate import main as generate
from gpt2flat.info import main as info


@pytest.fixture
def load(tmp_path):
    """load(data) -> the model in a file of these bytes."""

    def read(data: bytes, **options) -> Model:
        (tmp_path / "ckpt.pt").write_bytes(data)
        return Model.load(tmp_path / "ckpt.pt", threads=1, **options)

    return read


def check(model: Model, found: dict[str, np.ndarray]) -> None:
    whole = {name: values * 0 for name, values in nano_tensors().items()} | found
    for name, expected in as_llmc(whole, flip=False).items():
        view = model.params[name]
        if name == "wte":
            assert not view[len(expected) :].any()
            view = view[: len(expected)]
        assert np.array_equal(view, expected), name


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_every_type_is_read_exactly(load, dtype, prefix):
    found = {name: (v.view("<u4") & 0xFFFF0000).view("<f4") if dtype == "BF16" else v.astype(np.float16).astype(np.float32)
             for name, v in nano_tensors().items()}  # fmt: skip
    check(load(nanogpt(found, dtype=dtype, prefix=prefix)), found)


def test_a_model_without_biases_has_zeros(load):
    found = nano_tensors(bias=False)
    model = load(nanogpt(found, ARGS | {"bias": False}))
    check(model, found)
    assert not model.params["qkvb"].any() and not model.params["lnfb"].any()


def test_the_padding_of_gpt2s_vocabulary_is_cut(load):
    rng = np.random.default_rng(0)
    found = nano_tensors() | {WTE: rng.standard_normal((50304, 4)).astype(np.float32)}
    model = load(nanogpt(found, ARGS | {"vocab_size": 50304}))
    assert (model.config.vocab_size, model.config.padded_vocab_size) == (50257, 50304)
    assert np.array_equal(model.params["wte"][:50257], found[WTE][:50257]) and not model.params["wte"][50257:].any()


@pytest.mark.parametrize("how", [{"zip64": ["x/data.pkl", "x/data/3"]}, {"big": True}, {"head": False},
                                 {"members": {"x/byteorder": None, "x/.format_version": b"1"}}], ids=str)  # fmt: skip
def test_archives_of_other_versions(load, how):
    check(load(nanogpt(**how)), nano_tensors())


def test_tensors_may_share_a_storage(load):
    """All of them in one, as views of a flat buffer are saved."""
    found, state, at = nano_tensors(), {}, 0
    count = sum(values.size for values in found.values())
    for name, values in found.items():
        state[name] = stored("torch FloatStorage", "0", count, at, values.shape)
        at += values.size
    numbers = {"x/data/0": b"".join(values.tobytes() for values in found.values())}
    whole = {"model": state, "model_args": ARGS}
    check(load(archive({"x/data.pkl": b"\x80\x02" + pickled(whole) + b".", **numbers})), found)


def test_newer_pickles_and_their_memo(load):
    """Protocol 4: frames, short texts, memo and names on the stack."""
    state, numbers = described(nano_tensors(), head=False)
    first = pickled(WTE)
    short = b"\x8c" + bytes([len(WTE)]) + WTE.encode() + b"\x94"
    ordered = b"\x8c\x0bcollections\x8c\x0bOrderedDict\x93)R"
    body = pickled({"model": Opcodes(ordered + pickled(state)[1:].replace(first, short, 1)), "model_args": ARGS})
    program = b"\x80\x04\x95" + struct.pack("<Q", len(body) + 1) + body + b"."
    check(load(nanogpt(program=program)), nano_tensors())


def test_a_smaller_block_size(load):
    assert np.array_equal(load(nanogpt(), block_size=3).params["wpe"], nano_tensors()["transformer.wpe.weight"][:3])


def test_info_and_generate(load, tmp_path, capsys):
    load(nanogpt())
    assert info([str(tmp_path / "ckpt.pt")]) == 0
    told = capsys.readouterr().out
    assert "nanoGPT's checkpoint after 5 updates, F32" in told and "vocabulary 11 (padded 128)" in told
    assert generate([str(tmp_path / "ckpt.pt"), "-n", "3"]) == 0 and len(capsys.readouterr().out.split()) == 3


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NANOGPT_FAULTS)
def test_a_checkpoint_that_is_wrong_is_told_in_one_line(load, tmp_path, name, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, said = NANOGPT_FAULTS[name]
    with pytest.raises((FormatError, NonFiniteError), match=said) as found:
        load(data)
    text = str(found.value)
    assert text.startswith(str(tmp_path / "ckpt.pt")) and "\n" not in text and len(text) < 500
    assert generate(["ckpt.pt"]) == found.value.code
    assert capsys.readouterr().err.count("\n") == 1
    assert os.listdir(tmp_path) == ["ckpt.pt"]


def test_members_that_lie_over_each_other(load):
    """An entry of the directory that points into another member: to a header in its numbers."""
    inner = struct.pack("<4s5H3I2H", b"PK\x03\x04", 0, 0, 0, 0, 0, 0, 4, 4, 1, 0) + b"a" + bytes(4)
    data = bytearray(nanogpt(members={"x/extra": bytes(30) + inner, "a": b"last"}))
    place = data.rindex(b"a", 0, len(data) - 22)  # the name of the last entry
    struct.pack_into("<I", data, place - 4, data.index(inner))
    with pytest.raises(FormatError, match="member 'a' is there twice or lies over another"):
        load(bytes(data))
    struct.pack_into("<I", data, place - 4, len(data))
    with pytest.raises(FormatError, match=r"a member begins at byte \d+, behind all of them"):
        load(bytes(data))


def test_a_name_that_is_there_twice(load):
    data = nanogpt(members={"x/data/a": b"", "x/data/b": b""}).replace(b"x/data/b", b"x/data/a")
    with pytest.raises(FormatError, match="member 'x/data/a' is there twice"):
        load(data)


def test_nothing_is_imported_and_no_file_written(load, tmp_path):
    """What a checkpoint asks for is never looked for, whatever it asks."""
    load(nanogpt())  # whatever is loaded at the first use
    seen, watching = [], True

    def audit(event, arguments):
        if watching and event in (
            "import",
            "exec",
            "compile",
            "os.system",
            "subprocess.Popen",
            "pickle.find_class",
            "socket.connect",
        ):
            seen.append((event, arguments[0]))

    sys.addaudithook(audit)
    for name in ("os system", "antigravity x", "torch.hub load", "numpy.f2py compile"):
        with pytest.raises(FormatError, match="asks for"):
            load(program(called(name, "x")))
    watching = False
    assert seen == []


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        Model.load(tmp_path / "ckpt.pt")
