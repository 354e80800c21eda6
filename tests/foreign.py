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
