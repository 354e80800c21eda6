"""Folders of Hugging Face's: every layout that is read, and one line for each way in which a folder can be wrong."""

import json
import os
import struct

import numpy as np
import pytest
from foreign import CONFIG, as_llmc, safetensors, tensors, write_folder

from gpt2flat import Model
from gpt2flat.errors import CheckpointError, FormatError, Gpt2FlatError, NonFiniteError
from gpt2flat.formats import tensors as readers
from gpt2flat.generate import main as generate
from gpt2flat.info import main as info
from gpt2flat.train import main as train

WTE, WPE, LNF = "transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.bias"
FIRST = "transformer.h.0.attn.c_attn.weight"


def load(path, **options) -> Model:
    return Model.load(path, threads=1, **options)


def check(model: Model, found: dict[str, np.ndarray]) -> None:
    """Every parameter is the file's to the bit, and the padding 0."""
    for name, expected in as_llmc(found).items():
        view = model.params[name]
        if name == "wte":
            assert not view[len(expected) :].any()
            view = view[: len(expected)]
        assert np.array_equal(view, expected, equal_nan=True), name


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_every_type_is_read_exactly(tmp_path, dtype, shards):
    found = {name: values.astype(np.float16).astype(np.float32) for name, values in tensors().items()}
    if dtype == "BF16":
        found = {name: (values.view("<u4") & 0xFFFF0000).view("<f4") for name, values in found.items()}
    check(load(write_folder(tmp_path / "m", found, dtype=dtype, shards=shards)), found)


def test_every_half_is_converted_exactly():
    bits = np.arange(1 << 16, dtype=np.uint16)
    floats = np.empty(bits.size, np.float32)
    readers.TYPES["F16"][1](bits, floats)
    assert np.array_equal(floats.view(np.uint32), bits.view(np.float16).astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("piece, strip", [(1, 1), (7, 3), (64, 16), (1 << 18, 16)])
@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_blocks_of_any_size_give_the_same(tmp_path, monkeypatch, piece, strip, dtype):
    monkeypatch.setattr(readers, "PIECE", piece)
    monkeypatch.setattr(readers, "STRIP", strip)
    found = {n: v.astype(np.float16).astype(np.float32) for n, v in tensors(n_embd=6, vocab_size=29).items()}
    check(load(write_folder(tmp_path / "m", found, n_embd=6, vocab_size=29, dtype=dtype)), found)


@pytest.mark.parametrize("layers", [1, 6])
def test_names_without_their_prefix_and_buffers(tmp_path, layers):
    found = tensors(n_layer=layers)
    bare = {name.removeprefix("transformer."): values for name, values in found.items()}
    bare |= {"h.0.attn.bias": np.ones((1, 1, 8, 8)), "h.0.attn.masked_bias": np.float32(-1e4)}
    path = write_folder(tmp_path / "m", bare, n_layer=layers, dtype={"h.0.attn.bias": "U8"})
    check(load(path), found)


def test_a_head_that_is_the_embedding(tmp_path):
    found = tensors()
    both = write_folder(tmp_path / "m", found | {"lm_head.weight": found[WTE]}, tie_word_embeddings=False)
    check(load(both), found)
    half = write_folder(tmp_path / "h", found | {"lm_head.weight": found[WTE]}, dtype={WTE: "F64"})
    check(load(half), found)


@pytest.mark.parametrize("name, value", [
    ("activation_function", "gelu_pytorch_tanh"), ("reorder_and_upcast_attn", True), ("n_inner", 16), ("attn_pdrop", 0.3),
])  # fmt: skip
def test_switches_that_change_nothing(tmp_path, name, value):
    check(load(write_folder(tmp_path / "m", **{name: value})), tensors())


def test_a_smaller_block_size_keeps_the_first_positions(tmp_path):
    whole = load(write_folder(tmp_path / "m"))
    part = load(tmp_path / "m", block_size=3)
    assert np.array_equal(part.params["wpe"], whole.params["wpe"][:3])
    assert np.array_equal(part.logits([[1, 2, 3]]), whole.logits([[1, 2, 3]]))


def test_it_is_the_same_model_as_a_checkpoint(tmp_path):
    model = load(write_folder(tmp_path / "m"))
    model.save(tmp_path / "m.bin")
    assert np.array_equal(load(tmp_path / "m.bin").buffer, model.buffer)


# --- what is refused --------------------------------------------------------------------------------------------------


def put(name, data):
    """A fault: a file of the folder is written anew, or with None taken away."""
    return lambda folder: (folder / name).unlink() if data is None else (folder / name).write_bytes(data)


def change(**changes):
    return put("config.json", json.dumps(CONFIG | changes).encode())


def weights(found, **how):
    return put("model.safetensors", safetensors(found, **how))


def edit(name, **changes):
    """A fault: an entry of the header says something else."""
    return weights(tensors(), header=lambda header: header[name].update(changes))


def without(*names):
    return {name: values for name, values in tensors().items() if name not in names}


def odd(name, *values):
    """The tensors with the first number of one replaced."""
    found = tensors()
    found[name].reshape(-1)[: len(values)] = values
    return found


def cut(count):
    return lambda folder: os.truncate(
        folder / "model.safetensors", (folder / "model.safetensors").stat().st_size + count
    )


WHOLE = safetensors(tensors())
TWICE = safetensors({}, header=b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":1}')
FAULTS = {
    "no config": (put("config.json", None), r"m: has no config.json"),
    "no JSON": (put("config.json", b"{"), r"config.json: is no JSON"),
    "no UTF-8": (put("config.json", b"\xff"), r"config.json: is no JSON"),
    "no object": (put("config.json", b"[1]"), r"found a JSON list, expected an object"),
    "a config without end": (put("config.json", b"[" * 100_000), r"is no JSON"),
    "a key twice": (put("config.json", b'{"n_embd": 4, "n_embd": 8}'), r"the key 'n_embd' is there twice"),
    "a large config": (put("config.json", b" " * (1 << 21)), r"expected at most 1048576"),
    "another architecture": (change(model_type="llama"), r"model_type is 'llama', expected 'gpt2'"),
    "no architecture": (change(model_type=None), r"model_type is None"),
    "relu": (change(activation_function="relu"), r"activation_function is 'relu', expected 'gelu_new'"),
    "another eps": (change(layer_norm_epsilon=1e-6), r"layer_norm_epsilon is 1e-06, expected 1e-05"),
    "attention by layer": (change(scale_attn_by_inverse_layer_idx=True), r"scale_attn_by_inverse_layer_idx is True"),
    "attention unscaled": (change(scale_attn_weights=False), r"scale_attn_weights is False, expected True"),
    "cross attention": (change(add_cross_attention=True), r"add_cross_attention is True"),
    "another width": (change(n_inner=20), r"n_inner is 20, expected null or 16"),
    "quantised by config": (change(quantization_config={"bits": 4}), r"quantization_config is .*, expected null"),
    "a head of its own": (change(tie_word_embeddings=False), r"has no lm_head.weight"),
    "a number in words": (change(n_embd="4"), r"n_embd is '4', expected a whole number"),
    "true layers": (change(n_layer=True), r"n_layer is True, expected a whole number"),
    "no layers": (change(n_layer=0), r"L \(layers\) is 0"),
    "a huge number": (change(n_embd=10**4000), r"n_embd is a number beyond"),
    "heads that do not share": (change(n_head=3), r"not a multiple of NH 3"),
    "more layers": (change(n_layer=3), r"lacks the tensor transformer.h.2.ln_1.weight of shape \(4,\) and 11 others"),
    "fewer layers": (change(n_layer=1), r"holds the tensor 'transformer.h.1.ln_1.weight' .* of 1 layers does not have"),
    "another vocabulary": (change(vocab_size=12), r"wte.weight has the shape \(11, 4\), expected \(12, 4\)"),
    "other positions": (change(n_positions=9), r"wpe.weight has the shape \(8, 4\), expected \(9, 4\)"),
    "a tensor is missing": (weights(without(FIRST)), rf"lacks the tensor {FIRST} of shape \(4, 12\)"),
    "a tensor too many": (weights(tensors() | {"score.weight": np.ones((2, 4))}), r"holds the tensor 'score.weight'"),
    "a matrix as in llm.c": (weights(tensors() | {FIRST: tensors()[FIRST].T}), r"c_attn.weight has the shape \(12, 4\)"),
    "another head": (weights(tensors() | {"lm_head.weight": tensors(1)[WTE]}), r"lm_head.weight is not the embedding"),
    "a short head": (weights(tensors() | {"lm_head.weight": tensors()[WTE][1:]}), r"lm_head.weight has the shape \(10, 4\)"),
    "NaN": (weights(odd(LNF, 1, np.nan)), r"lnfb holds nan at flat index 1"),
    "infinity": (weights(odd(WTE, -np.inf)), r"wte holds -inf at flat index 0"),
    "whole numbers": (weights(tensors(), dtype={LNF: "I64"}), r"ln_f.bias is I64, expected one of F32"),
    "no weights": (put("model.safetensors", None), r"has no model.safetensors, expected it beside"),
    "empty weights": (put("model.safetensors", b""), r"found 0 bytes, expected a safetensors"),
    "no header": (put("model.safetensors", struct.pack("<Q", 0)), r"says its header has 0 bytes"),
    "a huge header": (put("model.safetensors", struct.pack("<Q", 1 << 62) + bytes(64)), r"says its header has 4611686018427387904"),
    "a header beyond the end": (put("model.safetensors", struct.pack("<Q", 65) + bytes(64)), r"at most 100000000"),
    "a header of noise": (put("model.safetensors", struct.pack("<Q", 64) + bytes(64)), r"is no JSON"),
    "a header without end": (weights({}, header=b'{"a":' + b"[" * 50_000), r"is no JSON"),
    "a name twice": (put("model.safetensors", TWICE), r"the key 'a' is there twice"),
    "a cut file": (cut(-1), r"the file is cut short"),
    "a cut header": (lambda folder: os.truncate(folder / "model.safetensors", 100), r"it is cut short or no safetensors"),
    "more bytes": (weights(tensors(), tail=b"\0"), r"followed by other bytes"),
    "no offsets": (weights(tensors(), header=lambda h: h[WTE].pop("data_offsets") and None), r"expected dtype, shape and data"),
    "offsets back": (edit(WTE, data_offsets=[176, 0]), r"has the data_offsets \[176, 0\]"),
    "offsets below 0": (edit(WTE, data_offsets=[-1, 175]), r"data_offsets \[-1, 175\]"),
    "one offset": (edit(WTE, data_offsets=[176]), r"expected a begin and an end"),
    "offsets with a fraction": (edit(WTE, data_offsets=[0, 176.0]), r"expected a begin and an end"),
    "a hole": (edit(WPE, data_offsets=[180, 304]), r"wpe.weight' begins at byte 180 of the data, expected 176"),
    "an overlap": (edit(WPE, data_offsets=[172, 304]), r"wpe.weight' begins at byte 172 of the data, expected 176"),
    "a shape that lies": (edit(WTE, shape=[12, 4]), r"has 176 bytes, expected another length"),
    "a shape of nothing": (edit(WTE, shape=None), r"has the shape None"),
    "a shape below 0": (edit(WTE, shape=[-11, -4]), r"has the shape \[-11, -4\]"),
    "a shape of many": (edit(WTE, shape=[1] * 9), r"expected a list of sizes"),
    "a shape that wraps": (edit(WTE, shape=[1 << 62, 11, 4]), r"expected another length"),
    "a type that is none": (edit(WTE, dtype="F4"), r"is of dtype 'F4'"),
    "a type of no text": (edit(WTE, dtype=[]), r"is of dtype \[\]"),
    "an entry of no object": (weights(tensors(), header=lambda h: h | {WTE: 3}), r"is 3, expected dtype"),
    "pickled only": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), r"can run code.*save_pretrained"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_folder_that_is_wrong_is_told_in_one_line(tmp_path, name, capsys):
    fault, said = FAULTS[name]
    folder = write_folder(tmp_path / "m")
    fault(folder)
    with pytest.raises(Gpt2FlatError, match=said) as found:
        load(folder)
    text = str(found.value)
    assert isinstance(found.value, FormatError | NonFiniteError) and text.startswith(str(folder)), text
    assert "\n" not in text and len(text) < 500
    assert generate([str(folder)]) == found.value.code
    assert capsys.readouterr().err == f"gpt2flat generate: {text}\n"


def index(change):
    """A fault: the index of three shards says something else."""

    def fault(folder):
        path = folder / "model.safetensors.index.json"
        found = json.loads(path.read_text())
        path.write_text(json.dumps(change(found["weight_map"]) or found))

    return fault


SHARD = "model-00002-of-00003.safetensors"
SHARD_FAULTS = {
    "no map": (index(lambda places: {"metadata": {}}), r"weight_map is None"),
    "an empty map": (index(lambda places: places.clear()), r"weight_map is \{\}"),
    "a path": (index(lambda places: places.update({WTE: "../m/" + SHARD})), r"names the file '../m/"),
    "a path of Windows": (index(lambda places: places.update({WTE: "c:" + SHARD})), r"expected the plain name"),
    "a hidden file": (index(lambda places: places.update({WTE: ".safetensors"})), r"expected the plain name"),
    "a file of no text": (index(lambda places: places.update({WTE: None})), r"names the file None"),
    "another kind of file": (index(lambda places: places.update({WTE: "config.json"})), r"names the file 'config.json'"),
    "a shard that is not there": (index(lambda places: places.update({WTE: "a.safetensors"})), r"has no a.safetensors"),
    "a shard taken away": (put(SHARD, None), rf"has no {SHARD}, which"),
    "a tensor elsewhere": (index(lambda places: places.update({WTE: SHARD})), r"wte.weight', which .* puts into model-00002"),
    "a tensor not named": (index(lambda places: places.pop(WTE) and None), r"wte.weight', which .* does not name"),
    "a tensor not there": (index(lambda places: places.update({"x": SHARD})), rf"{SHARD}: lacks 'x'"),
    "a shard that is cut": (lambda folder: os.truncate(folder / SHARD, 300), rf"{SHARD}: "),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARD_FAULTS)
def test_shards_that_are_wrong(tmp_path, name):
    fault, said = SHARD_FAULTS[name]
    folder = write_folder(tmp_path / "m", shards=3)
    fault(folder)
    with pytest.raises(FormatError, match=said):
        load(folder)


def test_a_double_beyond_float32(tmp_path):
    found = {name: values.astype(np.float64) for name, values in tensors().items()}
    found[LNF][2] = 1e39
    with pytest.raises(NonFiniteError, match="lnfb holds inf at flat index 2"):
        load(write_folder(tmp_path / "m", found, dtype="F64"))


def test_files_that_are_none(tmp_path):
    folder = write_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="found a directory"):
        load(folder)
    (tmp_path / "empty").mkdir()
    assert generate([str(tmp_path / "empty")]) == CheckpointError.code


def test_a_file_cut_short_underneath(tmp_path, monkeypatch):
    """It is an error when the numbers are read, and no signal."""
    folder = write_folder(tmp_path / "m")
    whole = readers.Weights.fill
    monkeypatch.setattr(readers.Weights, "fill", lambda self, params: (cut(-8)(folder), whole(self, params)))
    with pytest.raises(FormatError, match="was cut short, perhaps while in use"):
        load(folder)


def test_files_are_closed(tmp_path):
    folder, before = write_folder(tmp_path / "m", shards=3), set(os.listdir("/proc/self/fd"))
    load(folder)
    put(SHARD, b"")(folder)
    with pytest.raises(FormatError):
        load(folder)
    assert set(os.listdir("/proc/self/fd")) == before


# --- the commands -----------------------------------------------------------------------------------------------------


def test_info_tells_a_folder(tmp_path, capsys):
    folder = write_folder(tmp_path / "m", dtype="F16", shards=3)
    assert info([str(folder)]) == 0
    told = capsys.readouterr().out
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert f"{folder}: Hugging Face's folder, F16 in 3 files, {size:,} bytes; no tokenizer beside it" in told
    assert "2 layers, 2 heads, 4 channels, block size 8, vocabulary 11 (padded 128)" in told
    assert info([str(folder), "--tensors"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 16


def test_a_run_starts_from_a_folder_and_goes_on(tmp_path, monkeypatch, capsys):
    from gpt2flat.formats import llmc

    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "m.v1")
    llmc.write_tokens("t_train.bin", np.arange(400) % 11)
    llmc.write_tokens("t_val.bin", np.arange(100) % 11)
    flags = ["--init", "m.v1", "--train-data", "t_train.bin", "--threads", "1", "--batch-size", "2"]
    assert train([*flags, "--steps", "2"]) == 0
    assert "m.v1: 2 layers" in capsys.readouterr().out
    assert train(["--resume", "--steps", "4", "--threads", "1"]) == 0  # also when the folder is gone
    assert train([*flags, "--steps", "4", "--out", "whole"]) == 0
    last = "checkpoints/step_00000004/model.bin"
    assert (tmp_path / f"runs/m.v1-t-001/{last}").read_bytes() == (tmp_path / f"whole/{last}").read_bytes()
