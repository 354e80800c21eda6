"""Each way in which the files of other programs can be wrong: what makes it so, and what must be said about it."""

import json
import os
import struct

import numpy as np
from foreign import (
    ARGS,
    CONFIG,
    Opcodes,
    archive,
    called,
    described,
    nano_tensors,
    nanogpt,
    pickled,
    safetensors,
    stored,
    tensors,
)

WTE, WPE, LNF, LNFW = ("transformer." + name for name in ("wte.weight", "wpe.weight", "ln_f.bias", "ln_f.weight"))
FIRST = "transformer.h.0.attn.c_attn.weight"

# --- a folder of Hugging Face's: a fault is a function that spoils the folder of foreign.write_folder


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
FOLDER_FAULTS = {
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


# --- nanoGPT's ckpt.pt: a fault is a whole file


def args(**changes):
    return nanogpt(args={name: value for name, value in (ARGS | changes).items() if value is not None})


def tensor(*how, **more):
    """A checkpoint whose embedding is described otherwise."""
    state, _ = described(nano_tensors(), head=False)
    return nanogpt(more={"model": state | {WTE: stored(*how, **more)}})


def program(*opcodes: bytes):
    return nanogpt(program=b"\x80\x02" + b"".join(opcodes) + b".")


def nano_without(*names):
    return nanogpt({name: values for name, values in nano_tensors().items() if name not in names})


def nano_odd(value):
    return nanogpt(nano_tensors() | {LNFW: np.array([1, value, 1, 1], np.float32)})


NANO, FLOATS = nanogpt(), "torch FloatStorage"
END = NANO[-22:]
DEEP = b"".join(
    b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(200)
)  # a tuple of itself, twice, 200 times
NANOGPT_FAULTS = {
    "empty": (b"", r"is no archive of torch.save"),
    "before 1.6": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", r"written by PyTorch before 1.6"),
    "a llm.c file": (struct.pack("<2i", 20240326, 3) + bytes(2000), r"is no archive of torch.save"),
    "cut": (NANO[:-1], r"does not end as a zip archive does"),
    "cut in the middle": (NANO[: len(NANO) // 2], r"does not end as a zip"),
    "more bytes": (NANO + b"\0", r"does not end as a zip"),
    "a comment": (nanogpt(comment=b"hello"), r"does not end as a zip"),
    "packed": (nanogpt(method=8), r"member 'x/data.pkl' is packed or encrypted"),
    "encrypted": (nanogpt(flags=1), r"is packed or encrypted"),
    "a directory of nothing": (b"PK\x03\x04" + bytes(40) + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0, 0, 0, 44, 0), r"directory of 0 members"),
    "a huge directory": (NANO[:-14] + struct.pack("<2H2IH", 9, 9, 1 << 31, 0, 0), r"takes 2147483648 bytes"),
    "a directory elsewhere": (NANO[:-6] + struct.pack("<IH", 3, 0), r"from 3 on"),
    "an entry less": (NANO[:-14] + struct.pack("<2H", 3, 3) + NANO[-10:], r"bytes are left behind its directory of 3"),
    "an entry more": (NANO[:-14] + struct.pack("<2H", 33, 33) + NANO[-10:], r"the entry at byte \d+ of its directory is damaged"),
    "an entry damaged": (NANO.replace(b"PK\x01\x02", b"PK\x01\x03", 1), r"the entry at byte 0 of its directory"),
    "a member damaged": (NANO[:-22].replace(b"PK\x03\x04", b"PK\x03\x05").replace(b"PK\x03\x05", b"PK\x03\x04", 1) + END, r"no member begins at"),
    "no data.pkl": (archive({"x/data/0": b"abcd"}), r"has no data.pkl"),
    "a huge data.pkl": (archive({"x/data.pkl": bytes(1 << 23)}), r"a data.pkl of 8388608 bytes"),
    "a big-endian machine": (nanogpt(members={"x/byteorder": b"big"}), r"on a big-endian machine"),
    "an empty program": (nanogpt(program=b""), r"data.pkl has no end"),
    "no end": (nanogpt(program=b"\x80\x02}"), r"data.pkl has no end"),
    "no opcode": (program(b"\xff"), r"has the opcode b'.xff' at byte 2"),
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
    "a bias less": (nano_without("transformer.ln_f.bias"), r"lacks the tensor transformer.ln_f.bias of shape \(4,\)"),
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
    "NaN": (nano_odd(np.nan), r"lnfw holds nan at flat index 1"),
}  # fmt: skip
