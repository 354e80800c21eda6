"""Folders of Hugging Face's: every layout that is read, and one line for each way in which a folder can be wrong."""

import os
import shutil

import numpy as np
import pytest
from foreign import as_llmc, tensors, write_folder
from foreign_faults import FOLDER_FAULTS, LNF, SHARD, SHARD_FAULTS, WTE, cut, put

from gpt2flat import Model
from gpt2flat.errors import CheckpointError, FormatError, Gpt2FlatError, NonFiniteError
from gpt2flat.formats import tensors as readers
from gpt2flat.generate import main as generate
from gpt2flat.info import main as info
from gpt2flat.train import main as train


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


@pytest.mark.parametrize("name", FOLDER_FAULTS)
def test_a_folder_that_is_wrong_is_told_in_one_line(tmp_path, name, capsys):
    fault, said = FOLDER_FAULTS[name]
    folder = write_folder(tmp_path / "m")
    fault(folder)
    with pytest.raises(Gpt2FlatError, match=said) as found:
        load(folder)
    text = str(found.value)
    assert isinstance(found.value, FormatError | NonFiniteError) and text.startswith(str(folder)), text
    assert "\n" not in text and len(text) < 500
    assert generate([str(folder)]) == found.value.code
    assert capsys.readouterr().err == f"gpt2flat generate: {text}\n"


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
    with pytest.raises(CheckpointError, match="folder without config.json: name the file"):
        Model.load(tmp_path / "empty")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match="name the folder"):
        Model.load(folder / "model-00001-of-00002.safetensors")
    for name in (3, None, tmp_path / "missing"):
        with pytest.raises(CheckpointError):
            Model.from_pretrained(name)


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
    assert train([*flags, "--steps", "4", "--out", "whole"]) == 0
    shutil.rmtree("m.v1")
    assert train(["--resume", "runs/m.v1-t-001", "--steps", "4", "--threads", "1"]) == 0
    assert train(["--init", "whole", *flags[2:], "--steps", "1", "--out", "more"]) == 0  # from its newest checkpoint
    assert "step_00000004" in (tmp_path / "more/config.toml").read_text()
    last = "checkpoints/step_00000004/model.bin"
    assert (tmp_path / f"runs/m.v1-t-001/{last}").read_bytes() == (tmp_path / f"whole/{last}").read_bytes()
