"""nanoGPT's ckpt.pt: read without running it, and one line for each way in which it can be wrong or hostile."""

import os
import struct
import sys

import numpy as np
import pytest
from foreign import ARGS, Opcodes, archive, as_llmc, called, described, nano_tensors, nanogpt, pickled, stored

from gpt2flat import Model
from gpt2flat.errors import CheckpointError, FormatError, NonFiniteError
from gpt2flat.generate import main as generate
from gpt2flat.info import main as info

WTE, LNF = "transformer.wte.weight", "transformer.ln_f.weight"


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


def args(**changes):
    return nanogpt(args={name: value for name, value in (ARGS | changes).items() if value is not None})


def tensor(*how, **more):
    """A checkpoint whose embedding is described otherwise."""
    state, _ = described(nano_tensors(), head=False)
    return nanogpt(more={"model": state | {WTE: stored(*how, **more)}})


def program(*opcodes: bytes):
    return nanogpt(program=b"\x80\x02" + b"".join(opcodes) + b".")


def without(*names):
    return nanogpt({name: values for name, values in nano_tensors().items() if name not in names})


def odd(value):
    return nanogpt(nano_tensors() | {LNF: np.array([1, value, 1, 1], np.float32)})


WHOLE, FLOATS = nanogpt(), "torch FloatStorage"
END = WHOLE[-22:]
DEEP = b"".join(
    b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(200)
)  # a tuple of itself, twice, 200 times
FAULTS = {
    "empty": (b"", r"is no archive of torch.save"),
    "before 1.6": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", r"written by PyTorch before 1.6"),
    "a llm.c file": (struct.pack("<2i", 20240326, 3) + bytes(2000), r"is no archive of torch.save"),
    "cut": (WHOLE[:-1], r"does not end as a zip archive does"),
    "cut in the middle": (WHOLE[: len(WHOLE) // 2], r"does not end as a zip"),
    "more bytes": (WHOLE + b"\0", r"does not end as a zip"),
    "a comment": (nanogpt(comment=b"hello"), r"does not end as a zip"),
    "packed": (nanogpt(method=8), r"member 'x/data.pkl' is packed or encrypted"),
    "encrypted": (nanogpt(flags=1), r"is packed or encrypted"),
    "a directory of nothing": (b"PK\x03\x04" + bytes(40) + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0, 0, 0, 44, 0), r"directory of 0 members"),
    "a huge directory": (WHOLE[:-14] + struct.pack("<2H2IH", 9, 9, 1 << 31, 0, 0), r"takes 2147483648 bytes"),
    "a directory elsewhere": (WHOLE[:-6] + struct.pack("<IH", 3, 0), r"from 3 on"),
    "an entry less": (WHOLE[:-14] + struct.pack("<2H", 3, 3) + WHOLE[-10:], r"bytes are left behind its directory of 3"),
    "an entry more": (WHOLE[:-14] + struct.pack("<2H", 33, 33) + WHOLE[-10:], r"the entry at byte \d+ of its directory is damaged"),
    "an entry damaged": (WHOLE.replace(b"PK\x01\x02", b"PK\x01\x03", 1), r"the entry at byte 0 of its directory"),
    "a member damaged": (WHOLE[:-22].replace(b"PK\x03\x04", b"PK\x03\x05").replace(b"PK\x03\x05", b"PK\x03\x04", 1) + END, r"no member begins at"),
    "no data.pkl": (archive({"x/data/0": b"abcd"}), r"has no data.pkl"),
    "a huge data.pkl": (archive({"x/data.pkl": bytes(1 << 23)}), r"a data.pkl of 8388608 bytes"),
    "a big-endian machine": (nanogpt(members={"x/byteorder": b"big"}), r"on a big-endian machine"),
    "an empty program": (nanogpt(program=b""), r"data.pkl is damaged"),
    "no end": (nanogpt(program=b"\x80\x02}"), r"pickle exhausted before seeing STOP"),
    "no opcode": (program(b"\xff"), r"data.pkl is damaged: .*at position 2, opcode .* unknown"),
    "a system call": (program(called("os system", "touch hacked")), r"asks for 'os.system', which plain values"),
    "another system call": (program(called("posix system", "touch hacked")), r"asks for 'posix.system'"),
    "eval": (program(called("builtins eval", "1")), r"asks for 'builtins.eval'"),
    "eval by the stack": (program(b"\x8c\x08builtins\x8c\x04eval\x93"), r"asks for 'builtins.eval'"),
    "an instance": (program(b"(i__builtin__\neval\n"), r"has the opcode INST at byte 3"),
    "an extension": (program(b"\x82\x01"), r"has the opcode EXT1"),
    "a class made": (program(b"}}\x81"), r"has the opcode NEWOBJ"),
    "bytes": (program(b"U\x01a"), r"has the opcode SHORT_BINSTRING"),
    "a numpy scalar": (nanogpt(more={"loss": called("numpy._core.multiarray scalar", 1)}), r"asks for 'numpy._core.multiarray.scalar'"),
    "a call of text": (program(pickled("a"), pickled(()), b"R"), r"calls 'a', expected only OrderedDict"),
    "a dictionary of pairs": (program(called("collections OrderedDict", [("a", 1)])), r"calls collections.OrderedDict"),
    "a storage called": (program(called(FLOATS, 4)), r"calls torch.FloatStorage"),
    "an empty stack": (program(b"R"), r"REDUCE at byte 2 does not fit"),
    "no mark": (program(b"t"), r"TUPLE at byte 2 does not fit"),
    "no memo": (program(b"h\x05"), r"BINGET at byte 2 does not fit"),
    "two values": (program(b"}}"), r"describes 2 values, expected one"),
    "half an item": (program(b"}(K\x01u"), r"SETITEMS at byte 6 does not fit"),
    "a list as key": (program(b"}]K\x01s"), r"SETITEM at byte \d does not fit"),
    "items for a list": (program(b"]K\x01K\x01s"), r"does not fit"),
    "a list in a dict": (program(b"}K\x01a"), r"APPEND at byte \d does not fit"),
    "a state for a list": (program(b"]}b"), r"BUILD at byte \d does not fit"),
    "a tuple as storage": (program(pickled(()), b"Q"), r"BINPERSID at byte 4 does not fit"),
    "a storage of text": (program(pickled(("storage", "a", "0", "cpu", 4)), b"Q"), r"numbers of the type 'a'"),
    "a storage elsewhere": (program(pickled(("storage", Opcodes(b"ctorch\nFloatStorage\n"), "../0", "cpu", 4)), b"Q"), r"BINPERSID at"),
    "a tensor of nothing": (program(called("torch._utils _rebuild_tensor_v2", 1, 0, (1,), (1,))), r"REDUCE at byte \d+ does not fit"),
    "itself in itself": (program(pickled({"model": Opcodes(b"]" + DEEP)})), r"expected a dict with its model and model_args"),
    "another dict": (program(b"}"), r"is no checkpoint of nanoGPT's"),
    "a model alone": (nanogpt(program=b"\x80\x02" + pickled(described(nano_tensors())[0]) + b"."), r"is no checkpoint of nanoGPT's"),
    "no args": (nanogpt(more={"model_args": None}), r"is no checkpoint of nanoGPT's"),
    "args without layers": (args(n_layer=None), r"n_layer of its model_args is None"),
    "args without bias": (args(bias=None), r"bias of its model_args is None"),
    "layers in words": (args(n_layer="2"), r"n_layer of its model_args is '2'"),
    "true heads": (args(n_head=True), r"n_head of its model_args is True"),
    "no layers": (args(n_layer=-1), r"L \(layers\) is -1"),
    "more layers": (args(n_layer=3), r"lacks the tensor transformer.h.2.ln_1.weight"),
    "another vocabulary": (args(vocab_size=12), r"wte.weight has the shape \(11, 4\), expected \(12, 4\)"),
    "a bias less": (without("transformer.ln_f.bias"), r"lacks the tensor transformer.ln_f.bias of shape \(4,\)"),
    "Hugging Face's matrices": (nanogpt(nano_tensors() | {"transformer.h.0.mlp.c_fc.weight": np.ones((4, 16), np.float32)}), r"\(4, 16\), expected \(16, 4\)"),
    "a name of a number": (nanogpt(more={"model": {5: stored(FLOATS, "0", 44, 0, (11, 4))}}), r"a tensor of its model is called 5"),
    "a tensor of text": (nanogpt(more={"model": {WTE: "a"}}), rf"'{WTE}' is 'a', expected a tensor"),
    "a shape of text": (tensor(FLOATS, "0", 44, 0, ("a",), (1,)), r"has no shape that could be"),
    "an offset below": (tensor(FLOATS, "0", 44, -4, (11, 4)), r"has no shape that could be"),
    "too few numbers": (tensor(FLOATS, "0", 44, 1, (11, 4)), r"from number 1 on leaves its 44 numbers"),
    "a transposed tensor": (tensor(FLOATS, "0", 44, 0, (11, 4), (1, 11)), r"does not lie row by row"),
    "a stride less": (tensor(FLOATS, "0", 44, 0, (11, 4), (4,)), r"does not lie row by row"),
    "numbers that are missing": (tensor(FLOATS, "77", 44, 0, (11, 4)), r"in data/77 are missing"),
    "another size": (tensor(FLOATS, "0", 45, 0, (11, 4)), r"in data/0 are of 176 bytes, expected 180 bytes"),
    "whole numbers": (tensor("torch IntStorage", "0", 44, 0, (11, 4)), r"wte.weight is I32, expected one of F32"),
    "NaN": (odd(np.nan), r"lnfw holds nan at flat index 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_checkpoint_that_is_wrong_is_told_in_one_line(load, tmp_path, name, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, said = FAULTS[name]
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
