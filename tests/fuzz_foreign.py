"""The readers of other programs' files, for the fuzzer: {name: the fields of fuzz_readers.Reader}."""

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import foreign
import foreign_faults
import numpy as np
from foreign_oracles import SMALL, is_config, is_index, is_nanogpt, is_safetensors

from gpt2flat.arch.gpt2 import GPT2Config
from gpt2flat.model import Model
from gpt2flat.weights import open_weights, stored_layout

WHOLE, INDEX, LONGEST = "model.safetensors", "model.safetensors.index.json", 1 << 15
DIGITS = ((1, tuple(b'0123456789-."[]{},:\\tfnueE ')),)
VERSIONS = ({"dtype": "F32"}, {"dtype": "F16"}, {"dtype": "BF16"})


class Params:
    """Room for the tensors of open weights, as a section of the arena gives it."""

    def __init__(self, dims: dict[str, int]):
        self._layout = stored_layout(dims | {"Vp": GPT2Config.of_dims(dims).padded_vocab_size})

    def slot(self, name: str, index: int) -> np.ndarray:
        return np.zeros(self._layout[name].slot_shape, np.float32)


def weights(path, deep, of):
    """of: the path that is opened, by that of the file which is attacked."""
    with open_weights(of(path)) as found:
        yield
        found.fill(Params(found.dims))
    yield
    if deep:  # or NonFiniteError
        assert Model.load(of(path), threads=1).config.vocab_size == found.dims["V"]


in_folder = partial(weights, of=lambda path: path.parent)


def bytes_of(shards: int = 1, **how) -> dict[str, bytes]:
    """{name: contents} of a folder."""
    with tempfile.TemporaryDirectory() as place:
        folder = foreign.write_folder(Path(place) / "m", shards=shards, **SMALL, **how)
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def spoiled(file: str, faults: dict, shards: int = 1) -> Iterator[bytes]:
    """What the faults make of a file, where they make something small of it."""
    for fault, _ in faults.values():
        with tempfile.TemporaryDirectory() as place:
            folder = foreign.write_folder(Path(place) / "m", shards=shards, **SMALL)
            before = (folder / file).read_bytes()
            fault(folder)
            after = (folder / file).read_bytes() if (folder / file).is_file() else before
        if after != before and len(after) < LONGEST:
            yield after


def as_small(data: bytes) -> bytes:
    """A config.json of the table of faults with the dims of SMALL."""
    return data.replace(b'"n_layer": 2', b'"n_layer": 1').replace(b'"n_positions": 8', b'"n_positions": 300')


def with_room(text: bytes) -> bytes:
    """A JSON object with an entry that nobody reads, for changes that leave it valid."""
    return b'{"comment": "' + b"a comment, " * 300 + b'", ' + text[1:]


def beside(files: dict[str, bytes], *names: str) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, data) for name, data in files.items() if name not in names)


FOLDER, SHARDS = bytes_of(), bytes_of(shards=3)
TENSORS = foreign.tensors(**SMALL)
NANO_ARGS = foreign.ARGS | {"n_layer": SMALL["n_layer"], "block_size": SMALL["n_positions"]}
HEAD = TENSORS | {"lm_head.weight": TENSORS["transformer.wte.weight"]}
OTHER_HEAD = TENSORS | {"lm_head.weight": TENSORS["transformer.wte.weight"] + 1}
BARE = {name.removeprefix("transformer."): values for name, values in TENSORS.items()} | {
    "h.0.attn.bias": np.ones((1, 8))
}


def edited(name: str, **changes) -> bytes:
    return foreign.safetensors(TENSORS, header=lambda header: header[name].update(changes))


def shifted(by: int) -> bytes:
    """All tensors but the first lie `by` bytes further on: a hole, or an overlap."""

    def shift(header):
        for name in list(TENSORS)[1:]:
            header[name]["data_offsets"] = [at + by for at in header[name]["data_offsets"]]

    whole = foreign.safetensors(TENSORS, header=shift, tail=bytes(max(by, 0)))
    return whole[:by] if by < 0 else whole


def safetensors_faults() -> Iterator[bytes]:
    wte, wpe = foreign_faults.WTE, foreign_faults.WPE
    yield from (edited(wte, **changes) for changes in (
        {"data_offsets": [176, 0]}, {"data_offsets": [176]}, {"data_offsets": [0, 176.0]}, {"shape": [12, 4]}, {"shape": None},
        {"shape": [-11, -4]}, {"shape": [1] * 9}, {"shape": [1 << 62, 11, 4]}, {"dtype": "F4"}, {"dtype": []}, {"more": 1}))  # fmt: skip
    yield from (shifted(by) for by in (4, -4, 1, -8))
    stop = 176 + TENSORS[wpe].nbytes
    yield from (edited(wpe, data_offsets=[at, stop]) for at in (172, 180))
    yield from (foreign.safetensors({k: v for k, v in TENSORS.items() if k != name}) for name in (wte, wpe))
    yield from (
        foreign.safetensors(TENSORS | {wte: np.ones(shape, np.float32)}) for shape in [(4, 11), (44,), (12, 4)] * 2
    )
    yield from [foreign.safetensors(TENSORS | {"score.weight": np.ones((2, 4))})] * 4
    yield from [foreign.safetensors(TENSORS, dtype={wpe: "I64"})] * 4
    yield foreign.safetensors(TENSORS, header=lambda header: header | {wte: 3})
    yield foreign.safetensors(TENSORS, tail=b"\0")
    yield foreign.safetensors({}, header=b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":1}')
    yield foreign.safetensors({}, header=b'{"a": NaN, "b": -Infinity}')
    yield foreign.safetensors({}, header=b'{"a":' + b"[" * 20_000)
    yield from (bytes(8), (1 << 62).to_bytes(8, "little") + bytes(64), b"", *[bytes([2]) + bytes(7) + b"[]"] * 8)


def nano(**how) -> bytes:
    found = foreign.nano_tensors(how.pop("bias", True), **SMALL)
    args = NANO_ARGS | {"bias": "transformer.ln_f.bias" in found}
    return foreign.nanogpt(found, args, **how)


def nano_faults() -> Iterator[bytes]:
    """The table's, which are of two layers, and some of them anew with one."""
    table = (data for data, _ in foreign_faults.NANOGPT_FAULTS.values())
    yield from (data for data in table if len(data) < LONGEST and not is_nanogpt(data))  # NaN is found later
    yield from [b"PK\3\4 cut"] * 4
    state, _ = foreign.described(foreign.nano_tensors(**SMALL), head=False)
    wte, args = foreign_faults.WTE, NANO_ARGS
    for how in (
        ("0", 44, 1, (11, 4)),
        ("0", 44, 0, (11, 4), (1, 11)),
        ("77", 44, 0, (11, 4)),
        ("0", 45, 0, (11, 4)),
        ("0", 44, -1, (11, 4)),
    ):
        broken = state | {wte: foreign.stored("torch FloatStorage", *how)}
        yield foreign.nanogpt(foreign.nano_tensors(**SMALL), args, more={"model": broken})
    yield foreign.nanogpt(foreign.nano_tensors(**SMALL), args, more={"model": state | {wte: "a"}})
    yield foreign.nanogpt(foreign.nano_tensors(**SMALL), args, more={"model": {5: "a"}})
    yield from (
        foreign.nanogpt(foreign.nano_tensors(**SMALL), args | {name: None}) for name in args if name != "dropout"
    )


FOREIGN = {
    "safetensors": dict(
        read=in_folder, fits=is_safetensors,
        seeds=(*[foreign.safetensors(TENSORS, **how) for how in VERSIONS] * 10, foreign.safetensors(HEAD),
               *[foreign.safetensors(OTHER_HEAD)] * 4, foreign.safetensors(BARE, dtype={"h.0.attn.bias": "U8"})),
        functions=("safetensors.read_tensors", "safetensors._offsets", "safetensors._tensor", "tensors.Weights.fill",
                   "tensors.Weights._refuse", "tensors.Weights._refuse_shape", "strict_json.parse_object"),
        share=9, start=0, spots=(*range(8), *range(9, 700, 3)), units=DIGITS, file=WHOLE, beside=beside(FOLDER, WHOLE),
        hostile=(*safetensors_faults(), *[(2).to_bytes(8, "little") + b"[]"] * 12),
    ),
    "config.json": dict(
        read=in_folder, fits=is_config, seeds=(FOLDER["config.json"], *[with_room(FOLDER["config.json"].replace(b'"gelu_new"', b'"gelu_fast"'))] * 20),
        functions=("huggingface.read_config", "tensors.Weights.__init__"),
        share=5, start=0, spots=tuple(range(0, 420, 2)), units=DIGITS, file="config.json", beside=beside(FOLDER, "config.json"),
        hostile=(*(data for data in map(as_small, spoiled("config.json", foreign_faults.FOLDER_FAULTS)) if not is_config(data)),
                 *[FOLDER["config.json"].replace(b'"tie_word_embeddings": true', b'"tie_word_embeddings": false')] * 4),
    ),
    "index of shards": dict(
        read=in_folder, fits=partial(is_index, places=json.loads(SHARDS[INDEX])["weight_map"]), seeds=(SHARDS[INDEX], *[with_room(SHARDS[INDEX])] * 10),
        functions=("huggingface._read_index", "huggingface._open_tensors"),
        share=5, start=0, spots=(0, 1, 40), units=DIGITS, file=INDEX, beside=beside(SHARDS, INDEX),
        hostile=(*spoiled(INDEX, foreign_faults.SHARD_FAULTS, shards=3),
                 *[json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(1001)}}).encode()] * 12,
                 *[SHARDS[INDEX].replace(b'"weight_map": {', b'"weight_map": {"x": "model-00001-of-00003.safetensors", ')] * 12),
    ),
    "nanoGPT's": dict(
        read=partial(weights, of=lambda path: path), fits=is_nanogpt,
        seeds=(nano(), nano(bias=False, prefix="_orig_mod."), nano(dtype="F16", head=False, big=True), nano(dtype="BF16", zip64=["x/data/3"]),
               *[nano(lead={"x/.note": b"a note " * 200})] * 30),
        functions=("zip_members.read_members", "zip_members._directory", "zip_members._entry", "zip_members._data_offset",
                   "pytorch.open_nanogpt", "pytorch._dims", "pytorch._name", "pytorch._tensor", "pytorch._read"),
        share=12, start=0, spots=(*range(40, 600, 3), *range(1500, 5000, 11)), file="ckpt.pt", hostile=tuple(nano_faults()),
        units=((1, tuple(b"\0\1\2Kst.}](cRQb\x85\x86\x88uaeqhXJ0128")), (2, (0, 1, 8, 0xFFFF)), (4, (0, 0xFFFFFFFF, 44, 176, 0x04034B50))),
    ),
}  # fmt: skip
# refusals that no content of a file can cause, or that end in a reason and no error: function -> the tests that cause them
FOREIGN_ELSEWHERE = {
    "strict_json.read_object": "test_huggingface",
    "strict_json._once": "test_huggingface, by way of parse_object",
    "strict_json._no_number": "test_huggingface, by way of parse_object",
    "huggingface._require_whole": "test_huggingface",
    "hub.repository": "test_hub",
    "hub.fetch": "test_hub",
    "pytorch._look_at": "test_nanogpt, by way of _read",
    "pytorch._Machine.put_items": "test_nanogpt, by way of _read",
    "pytorch._Machine.append": "test_nanogpt, by way of _read",
    "pytorch._Machine.pop": "test_nanogpt, by way of _read",
    "pytorch._Machine.persistent": "test_nanogpt, by way of _read",
    "pytorch._Machine.call": "test_nanogpt, by way of _read",
    "pytorch._Machine.build": "test_nanogpt, by way of _read",
    "pytorch._global": "test_nanogpt, by way of _read",
    "huggingface_tokenizer._of_json": "test_huggingface_tokenizer",
    "huggingface_tokenizer._of_pair": "test_huggingface_tokenizer",
    "huggingface_tokenizer._object": "test_huggingface_tokenizer",
    "huggingface_tokenizer._tokenizer": "test_huggingface_tokenizer",
    "huggingface_tokenizer._bytes": "test_huggingface_tokenizer",
    "huggingface_tokenizer._end_of_text": "test_huggingface_tokenizer",
    "huggingface_tokenizer._check_merges": "test_huggingface_tokenizer",
}
