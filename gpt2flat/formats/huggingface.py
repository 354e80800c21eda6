"""Hugging Face's folders of a GPT-2: config.json, and model.safetensors or its shards (transformers' save_pretrained).

A folder is taken only where the model computes the same function: every switch of the config that changes it is checked."""

from contextlib import ExitStack
from pathlib import Path

from ..errors import CheckpointError, FormatError
from .checkpoint import check_dims
from .files import RegularFile
from .safetensors import read_tensors
from .strict_json import is_whole, read_object, told
from .tensors import Tensor, Weights

CONFIG, WHOLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SUFFIX = ".safetensors"
LONGEST_CONFIG, LONGEST_INDEX, MAX_SHARDS = 1 << 20, 1 << 24, 1000
DIMS = {"maxT": "n_positions", "V": "vocab_size", "L": "n_layer", "NH": "n_head", "C": "n_embd"}
GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # three names of one function, by tanh
# what else the function depends on: its value where config.json does not say, the values that this model computes
SWITCHES = {
    "activation_function": ("gelu_new", GELU),
    "layer_norm_epsilon": (1e-5, (1e-5,)),
    "scale_attn_weights": (True, (True,)),
    "scale_attn_by_inverse_layer_idx": (False, (False,)),
    "add_cross_attention": (False, (False,)),
    "quantization_config": (None, (None,)),
}
# weights in files that run code when they are read by their own programs, or that are not read here
OTHERS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


def is_folder(path) -> bool:
    """Whether a path is a folder that holds, or was meant to hold, a model of Hugging Face's."""
    try:
        return Path(path).is_dir() and any((Path(path) / name).exists() for name in (CONFIG, WHOLE, INDEX, *OTHERS))
    except (TypeError, ValueError, OSError):
        return False  # no path that could be: who opens it as a file says so


def open_folder(path, layout) -> Weights:
    """The weights of a folder; layout: the function from dims to the layout of the tensor table.

    Raises FormatError for a folder that is not whole or holds another model, CheckpointError for what cannot be opened."""
    path = Path(path)
    _require_whole(path)
    dims, tied = read_config(path / CONFIG)
    with ExitStack() as opened:
        files, tensors = _open_tensors(path, opened)
        kinds = sorted({tensor.dtype for tensor in tensors.values()})
        about = f"Hugging Face's folder, {', '.join(kinds)} in {len(files)} file{'s' if len(files) > 1 else ''}"
        weights = Weights(path, files, tensors, dims, layout, about, tied=tied)
        opened.pop_all()
        return weights


# --- config.json -----------------------------------------------------------------------------------------------------


def read_config(path: Path) -> tuple[dict[str, int], bool]:
    """(dims, whether the head is tied to the embedding) of a config.json. Raises FormatError, CheckpointError."""
    config = read_object(path, LONGEST_CONFIG)
    kind = config.get("model_type")
    if kind != "gpt2":
        raise FormatError(f"{path}: model_type is {told(kind)}, expected 'gpt2': no other architecture is read")
    for name, (default, computed) in SWITCHES.items():
        value = config.get(name, default)
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in computed):
            raise FormatError(
                f"{path}: {name} is {told(value)}, expected {_either(computed)}: this GPT-2 computes no other"
            )
    dims = {dim: config.get(name) for dim, name in DIMS.items()}
    for dim, name in DIMS.items():
        if type(dims[dim]) is not int or abs(dims[dim]) >= 1 << 62:
            raise FormatError(f"{path}: {name} is {told(dims[dim])}, expected a whole number")
    check_dims(path, dims | {"Vp": dims["V"]})
    inner, wide = config.get("n_inner"), 4 * dims["C"]
    if inner is not None and not is_whole(inner, wide, wide):
        raise FormatError(
            f"{path}: n_inner is {told(inner)}, expected null or {wide}, 4 n_embd: this GPT-2 has no other width"
        )
    return dims | {"Vp": 0}, config.get("tie_word_embeddings", True) is not False


def _either(values: tuple) -> str:
    return " or ".join("null" if value is None else told(value) for value in values)


# --- one file, or shards ---------------------------------------------------------------------------------------------


def _open_tensors(path: Path, opened: ExitStack) -> tuple[list[RegularFile], dict[str, Tensor]]:
    """The files and their tensors by name; `opened` closes the files."""
    if (path / WHOLE).exists() or not (path / INDEX).exists():
        file = opened.enter_context(RegularFile(path / WHOLE, CheckpointError, short=FormatError))
        return [file], read_tensors(file)
    places, files, tensors = _read_index(path / INDEX), [], {}
    for name in sorted(set(places.values())):
        if not (path / name).exists():
            raise FormatError(f"{path}: has no {name}, which {INDEX} names: copy or download the folder again")
        files.append(opened.enter_context(RegularFile(path / name, CheckpointError, short=FormatError)))
        for tensor, found in read_tensors(files[-1]).items():
            if places.get(tensor) != name:
                where = places.get(tensor)
                raise FormatError(
                    f"{path / name}: holds {told(tensor)}, which {INDEX} {f'puts into {where}' if where else 'does not name'}"
                )
            tensors[tensor] = found
    for tensor, name in places.items():
        if tensor not in tensors:
            raise FormatError(f"{path / name}: lacks {told(tensor)}, which {INDEX} puts there")
    return files, tensors


def _read_index(path: Path) -> dict[str, str]:
    """{tensor: name of its file}. A name is no path: nothing outside the folder is read."""
    places = read_object(path, LONGEST_INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise FormatError(f"{path}: weight_map is {told(places)}, expected the file of every tensor")
    for name in places.values():
        plain = isinstance(name, str) and name.endswith(SUFFIX) and not set(name) & set("/\\:\0\n")
        if not plain or name.startswith(".") or len(name) > 200:
            raise FormatError(
                f"{path}: names the file {told(name)}, expected the plain name of a .safetensors file beside it"
            )
    if len(set(places.values())) > MAX_SHARDS:
        raise FormatError(f"{path}: names {len(set(places.values()))} files, expected at most {MAX_SHARDS}")
    return places


def _require_whole(path: Path) -> None:
    if not (path / CONFIG).is_file():
        raise FormatError(f"{path}: has no {CONFIG}, expected the folder of a model with its {CONFIG} and {WHOLE}")
    if (path / WHOLE).exists() or (path / INDEX).exists():
        return
    there = next((name for name in OTHERS if (path / name).exists()), None)
    if there is None:
        raise FormatError(f"{path}: has no {WHOLE}, expected it beside {CONFIG}, or its shards with {INDEX}")
    raise FormatError(
        f"{path}: has {there} and no {WHOLE}: it is not read, as reading it can run code; where that is trusted, write the folder "
        "again with transformers' GPT2LMHeadModel.from_pretrained(FOLDER).save_pretrained(NEW)"
    )
