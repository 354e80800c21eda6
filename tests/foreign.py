"""Small models in the files of other programs, made byte by byte: what the formats are, said once more without the package."""

import json
import struct

import numpy as np

CONFIG = {
    "model_type": "gpt2", "n_positions": 8, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 4, "n_inner": None,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "scale_attn_weights": True, "add_cross_attention": False,
    "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False, "tie_word_embeddings": True,
}  # fmt: skip
# of a block: llm.c's name, Hugging Face's, the shape there in channels
BLOCK = [
    ("ln1w", "ln_1.weight", (1,)), ("ln1b", "ln_1.bias", (1,)), ("qkvw", "attn.c_attn.weight", (1, 3)),
    ("qkvb", "attn.c_attn.bias", (3,)), ("attprojw", "attn.c_proj.weight", (1, 1)), ("attprojb", "attn.c_proj.bias", (1,)),
    ("ln2w", "ln_2.weight", (1,)), ("ln2b", "ln_2.bias", (1,)), ("fcw", "mlp.c_fc.weight", (1, 4)),
    ("fcb", "mlp.c_fc.bias", (4,)), ("fcprojw", "mlp.c_proj.weight", (4, 1)), ("fcprojb", "mlp.c_proj.bias", (1,)),
]  # fmt: skip


def tensors(seed=0, **changes) -> dict[str, np.ndarray]:
    """{Hugging Face's name: float32} of a config's shape, normal."""
    c = CONFIG | changes
    C, shapes = c["n_embd"], {}
    shapes["transformer.wte.weight"] = (c["vocab_size"], C)
    shapes["transformer.wpe.weight"] = (c["n_positions"], C)
    for layer in range(c["n_layer"]):
        shapes |= {f"transformer.h.{layer}.{name}": tuple(C * n for n in shape) for _, name, shape in BLOCK}
    shapes |= {"transformer.ln_f.weight": (C,), "transformer.ln_f.bias": (C,)}
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def as_llmc(found: dict[str, np.ndarray], flip=True) -> dict[str, np.ndarray]:
    """The same by llm.c's names: layers stacked, matrices (out, in); flip: they lie as in Hugging Face's Conv1D."""
    out = {name[12:-7]: found[name] for name in ("transformer.wte.weight", "transformer.wpe.weight")}
    layers = sorted({int(name.split(".")[2]) for name in found if ".h." in name})
    for ours, theirs, shape in BLOCK:
        parts = [found[f"transformer.h.{layer}.{theirs}"] for layer in layers]
        out[ours] = np.stack([part.T if flip and len(shape) == 2 else part for part in parts])
    return out | {"lnfw": found["transformer.ln_f.weight"], "lnfb": found["transformer.ln_f.bias"]}


def encode(values: np.ndarray, dtype: str) -> bytes:
    if dtype == "BF16":  # values that bfloat16 holds, or cut
        return (np.ascontiguousarray(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(
        values, {"F32": "<f4", "F16": "<f2", "F64": "<f8", "U8": "u1", "I64": "<i8"}[dtype]
    ).tobytes()


def safetensors(found: dict[str, np.ndarray], dtype="F32", header=None, tail=b"") -> bytes:
    """The file of some tensors; dtype: of all, or {name: dtype}; header: a function that changes the header's object, or bytes
    in its place."""
    entries, data = {"__metadata__": {"format": "pt"}}, b""
    for name, values in found.items():
        kind = dtype.get(name, "F32") if isinstance(dtype, dict) else dtype
        raw = encode(values, kind)
        entries[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    if callable(header):
        entries = header(entries) or entries
    text = header if isinstance(header, bytes) else json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data + tail


def write_folder(path, found=None, config=None, dtype="F32", shards=1, **changes):
    """A folder as save_pretrained leaves it; returns its path. changes: of the config."""
    path.mkdir(exist_ok=True)
    found = tensors(**changes) if found is None else found
    (path / "config.json").write_text(json.dumps(CONFIG | changes if config is None else config))
    if shards == 1:
        (path / "model.safetensors").write_bytes(safetensors(found, dtype))
        return path
    names, places = list(found), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: found[name] for name in names[shard::shards]}
        places |= dict.fromkeys(part, file)
        (path / file).write_bytes(safetensors(part, dtype))
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
    )
    return path


# --- nanoGPT's ckpt.pt: a zip archive with a pickle in it


class Opcodes(bytes):
    """Opcodes that stand where a value would."""


STORAGES = {"F32": "Float", "F16": "Half", "BF16": "BFloat16", "F64": "Double", "I64": "Long"}


def pickled(value) -> bytes:
    """The opcodes of a plain value, as torch.save's pickle of protocol 2 has them, without its memo."""
    if isinstance(value, Opcodes):
        return value
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(pickled, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(pickled, value)) + b"e"
    return b"}(" + b"".join(pickled(key) + pickled(item) for key, item in value.items()) + b"u"


def called(name: str, *arguments) -> Opcodes:
    """A call of "module function"."""
    return Opcodes(b"c" + name.replace(" ", "\n").encode() + b"\n" + pickled(arguments) + b"R")


def stored(kind: str, member: str, count: int, offset: int, shape: tuple, stride: tuple | None = None) -> Opcodes:
    """A tensor as torch.save describes it; kind: "torch FloatStorage"."""
    stride = stride or tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    numbers = Opcodes(
        pickled(("storage", Opcodes(b"c" + kind.replace(" ", "\n").encode() + b"\n"), member, "cpu", count)) + b"Q"
    )
    hooks = called("collections OrderedDict")
    return called("torch._utils _rebuild_tensor_v2", numbers, offset, shape, stride, False, hooks)


def archive(members: dict[str, bytes], zip64=(), big=False, method=0, flags=2056, comment=b"") -> bytes:
    """A zip archive; zip64: members whose sizes and place are in the extra field; big: the directory's place too."""
    data, entries = b"", b""
    for name, content in members.items():
        place, n, far = len(data), len(content), name in zip64
        data += struct.pack("<4s5H3I2H", b"PK\x03\x04", 0, flags, method, 0, 0, 0, n, n, len(name), 4) + name.encode()
        data += struct.pack("<2H", 0x4246, 0) + content  # an extra field, as torch pads with
        extra = struct.pack("<2HB2H3Q", 9, 1, 0, 1, 24, n, n, place) if far else b""
        sizes = (0xFFFFFFFF, 0xFFFFFFFF) if far else (n, n)
        entries += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 0, 0, flags, method, 0, 0, 0, *sizes, len(name), len(extra), 0, 0, 0, 0,
                               0xFFFFFFFF if far else place) + name.encode() + extra  # fmt: skip
    start, count, size = len(data), len(members), len(entries)
    tail = b""
    if big:
        tail = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 0, 0, 0, 0, count, count, size, start)
        tail += struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
    end = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF) if big else (count, count, size, start)
    return data + entries + tail + struct.pack("<4s2H2H2IH", b"PK\x05\x06", 0, 0, *end, len(comment)) + comment


ARGS = {"n_layer": 2, "n_head": 2, "n_embd": 4, "block_size": 8, "bias": True, "vocab_size": 11, "dropout": 0.0}


def nano_tensors(bias=True, seed=0, **changes) -> dict[str, np.ndarray]:
    """{nanoGPT's name: float32}: matrices are (out, in)."""
    found = {name: v.T.copy() if v.ndim == 2 and ".h." in name else v for name, v in tensors(seed, **changes).items()}
    return {name: values for name, values in found.items() if bias or not name.endswith(".bias")}


def described(found: dict[str, np.ndarray], dtype="F32", prefix="", head=True) -> tuple[dict, dict[str, bytes]]:
    """(the model's state for the pickle, the members with its numbers)."""
    state, members = {}, {}
    for number, (name, values) in enumerate(found.items()):
        state[prefix + name] = stored(f"torch {STORAGES[dtype]}Storage", str(number), values.size, 0, values.shape)
        members[f"x/data/{number}"] = encode(values, dtype)
    if head:
        state[prefix + "lm_head.weight"] = state[prefix + "transformer.wte.weight"]
    return state, members


def nanogpt(
    found=None, args=None, dtype="F32", prefix="", head=True, more=None, program=None, members=None, lead=None, **how
) -> bytes:
    """A ckpt.pt; more: other entries of the checkpoint, or others of the model's state by Opcodes; program: the whole pickle."""
    state, numbers = described(nano_tensors() if found is None else found, dtype, prefix, head)
    whole = {"model": Opcodes(called("collections OrderedDict") + pickled(state)[1:] + b"}b"), "model_args": ARGS if args is None else args,
             "iter_num": 5, "best_val_loss": 1.5, "config": {"out_dir": "out", "batch": [1, None, (True, -300)]}}  # fmt: skip
    program = b"\x80\x02" + pickled(whole | (more or {})) + b"." if program is None else program
    files = (
        (lead or {})
        | {"x/data.pkl": program, "x/byteorder": b"little", **numbers, "x/version": b"3\n"}
        | (members or {})
    )
    return archive({name: data for name, data in files.items() if data is not None}, **how)
