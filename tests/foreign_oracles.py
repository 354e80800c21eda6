"""What files of other programs must be, said anew as conditions on their bytes: the fuzzer asks whether the readers agree."""

import io
import json
import math
import pickletools
import re
import struct

import foreign

FLOATS = ("F64", "F32", "F16", "BF16")
SIZES = dict.fromkeys(("U8", "I8", "BOOL", "F8_E4M3", "F8_E5M2"), 1) | dict.fromkeys(("F16", "BF16", "I16", "U16"), 2)
SIZES |= dict.fromkeys(("F32", "I32", "U32"), 4) | dict.fromkeys(("F64", "I64", "U64"), 8)
SMALL = {"n_layer": 1, "n_positions": 300}  # of the models that are attacked: most changes hit numbers
END = 1 << 62


def strict(text: bytes) -> dict | None:
    """A JSON object without anything twice, or None."""

    def once(pairs):
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError
        return dict(pairs)

    constants = []
    try:
        found = json.loads(text.decode(), object_pairs_hook=once, parse_constant=constants.append)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and not constants else None


def whole(*values) -> bool:
    return all(type(value) is int and 0 <= value <= END for value in values)


def is_gpt2(found: dict[str, tuple], expected: dict, biases: bool = True) -> bool:
    """Whether tensors {name: (dtype, shape)} are those of a model, of arrays by Hugging Face's names."""
    prefix = "transformer." if not any(name.startswith("transformer.") for name in found) else ""
    left = set(expected)
    for name, (dtype, shape) in found.items():
        home = "transformer.wte.weight" if name == "lm_head.weight" else prefix + name
        if re.fullmatch(r"transformer\.h\.\d+\.attn\.(masked_)?bias", home):
            continue
        if home not in expected or shape != expected[home].shape or dtype not in FLOATS:
            return False
        left -= {home} if name != "lm_head.weight" else set()
    return all(not biases and name.endswith(".bias") for name in left)


# --- Hugging Face's folder


def is_safetensors(data: bytes) -> bool:
    length = int.from_bytes(data[:8], "little")
    header = strict(data[8 : 8 + length]) if len(data) >= 10 and 2 <= length <= len(data) - 8 else None
    if header is None:
        return False
    header.pop("__metadata__", None)
    found, ranges = {}, []
    for name, entry in header.items():
        if not isinstance(entry, dict) or sorted(entry) != ["data_offsets", "dtype", "shape"]:
            return False
        dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(place, list) and len(place) == 2):
            return False
        if dtype not in SIZES or len(shape) > 8 or not whole(*shape, *place):
            return False
        if place[1] - place[0] != SIZES[dtype] * math.prod(shape):
            return False
        ranges.append(tuple(place))
        found[name] = (dtype, tuple(shape))
    at = 0
    for begin, stop in sorted(ranges):
        if begin != at:
            return False
        at = stop
    return 8 + length + at == len(data) and is_gpt2(found, foreign.tensors(**SMALL))


def is_config(data: bytes) -> bool:
    """A config.json of the model that lies beside it, which has no head of its own."""
    found = strict(data)
    if found is None or found.get("model_type") != "gpt2" or found.get("tie_word_embeddings", True) is False:
        return False
    shape = {name: foreign.CONFIG[name] for name in ("n_embd", "vocab_size")} | SMALL
    if any(type(found.get(name)) is not int or found[name] != value for name, value in shape.items()):
        return False
    if type(found.get("n_head")) is not int or found["n_head"] not in (1, 2, 4):
        return False
    inner, eps = found.get("n_inner"), found.get("layer_norm_epsilon", 1e-5)
    return (
        (inner is None or (type(inner) is int and inner == 16))
        and not isinstance(eps, bool) and eps == 1e-5
        and found.get("activation_function", "gelu_new") in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
        and found.get("scale_attn_weights", True) is True
        and found.get("scale_attn_by_inverse_layer_idx", False) is False
        and found.get("add_cross_attention", False) is False
        and found.get("quantization_config") is None
    )  # fmt: skip


def is_index(data: bytes, places: dict[str, str]) -> bool:
    found = strict(data)
    return found is not None and found.get("weight_map") == places


# --- nanoGPT's ckpt.pt


def members(data: bytes) -> dict[str, tuple[int, int]] | None:
    """{name: (where, bytes)} of an archive that only stores."""
    if len(data) < 22 or data[-22:-18] != b"PK\5\6" or data[-2:] != b"\0\0":
        return None
    count, size, start = struct.unpack_from("<H2I", data, len(data) - 12)
    end = len(data) - 22
    if (
        len(data) >= 98
        and data[-42:-38] == b"PK\6\7"
        and struct.unpack_from("<Q", data, len(data) - 34) == (len(data) - 98,)
    ):
        count, size, start = struct.unpack_from("<3Q", data, len(data) - 98 + 32)
        end = len(data) - 98 if data[-98:-94] == b"PK\6\6" else -1
    if not 0 < count <= size // 46 or size > 1 << 24 or start + size != end:
        return None
    found, at, last = {}, start, 0
    for _ in range(count):
        if at + 46 > end or data[at : at + 4] != b"PK\1\2":
            return None
        flags, method = struct.unpack_from("<2H", data, at + 8)
        packed, plain, named, extra, comment = struct.unpack_from("<2I3H", data, at + 20)
        (place,) = struct.unpack_from("<I", data, at + 42)
        name, more = data[at + 46 : at + 46 + named], data[at + 46 + named : at + 46 + named + extra]
        at += 46 + named + extra + comment
        if at > end:
            return None
        words = []
        while len(more) >= 4:
            kind, length = struct.unpack_from("<2H", more)
            if kind == 1:
                words = [
                    int.from_bytes(more[4 + i : 12 + i], "little") for i in range(0, min(length, len(more) - 4) - 7, 8)
                ]
            more = more[4 + length :]
        plain, packed, place = (
            words.pop(0) if field == 0xFFFFFFFF and words else field for field in (plain, packed, place)
        )
        if flags & 1 or method or packed != plain or place + 30 > start or data[place : place + 4] != b"PK\3\4":
            return None
        where = place + 30 + sum(struct.unpack_from("<2H", data, place + 26))
        name = name.decode("utf-8", "replace")
        if name in found or place < last or where + plain > start:
            return None
        found[name], last = (where, plain), where + plain
    return found if at == end else None


KNOWN = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}
TYPES = {"Float": "F32", "Half": "F16", "BFloat16": "BF16", "Double": "F64", "Long": "I64", "Int": "I32", "Short": "I16",
         "Char": "I8", "Byte": "U8", "Bool": "BOOL"}  # fmt: skip
TYPES = {f"torch {name}Storage": dtype for name, dtype in TYPES.items()}


class Thing:
    """A name, a storage or a tensor in a pickle."""

    def __init__(self, kind, *parts):
        self.kind, self.parts = kind, parts


def of_pickle(program: bytes):
    """The value of a pickle of plain values and tensors. Raises ValueError, IndexError, KeyError, TypeError for any other."""
    stack, marks, memo = [], [], {}

    def take(count):
        if count > len(stack):
            raise IndexError
        taken = [stack.pop() for _ in range(count)]
        return taken[::-1]

    def since():
        mark = marks.pop()
        return take(max(len(stack) - mark, 0))

    def name(text):
        if text not in KNOWN and text not in TYPES:
            raise ValueError
        stack.append(Thing("name", text))

    for op, value, _ in pickletools.genops(io.BytesIO(program)):
        match op.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "NONE":
                stack.append(value)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(op.name == "NEWTRUE")
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[op.name])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(take(int(op.name[-1]))))
            case "TUPLE":
                stack.append(tuple(since()))
            case "MARK":
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if value is None else value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "SETITEM" | "SETITEMS":
                items = take(2) if op.name == "SETITEM" else since()
                if type(stack[-1]) is not dict or len(items) % 2 or {type(key) for key in items[::2]} - {str, int}:
                    raise TypeError
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "APPEND" | "APPENDS":
                items = take(1) if op.name == "APPEND" else since()
                if type(stack[-1]) is not list:
                    raise TypeError
                stack[-1].extend(items)
            case "GLOBAL":
                name(value)
            case "STACK_GLOBAL":
                module, attribute = take(2)
                name(f"{module} {attribute}")
            case "BINPERSID":
                ((word, kind, member, _, count),) = take(1)
                if word != "storage" or kind.kind != "name" or not member.isdecimal() or not whole(count):
                    raise TypeError
                stack.append(Thing("storage", TYPES[kind.parts[0]], member, count))
            case "REDUCE":
                function, arguments = take(2)
                if function.kind != "name" or type(arguments) is not tuple:
                    raise TypeError
                if function.parts[0] == "collections OrderedDict" and arguments == ():
                    stack.append({})
                elif (
                    function.parts[0] == "torch._utils _rebuild_tensor_v2"
                    and arguments[3:]
                    and arguments[0].kind == "storage"
                ):
                    stack.append(Thing("tensor", *arguments[:4]))
                else:
                    raise TypeError
            case "BUILD":
                target, _ = take(2)
                if type(target) is not dict:
                    raise TypeError
                stack.append(target)
            case _:
                raise ValueError
    (found,) = stack
    return found


def is_nanogpt(data: bytes) -> bool:
    if data[:4] != b"PK\3\4" or (found := members(data)) is None:
        return False
    folder = next((name.removesuffix("/data.pkl") for name in found if name.endswith("/data.pkl")), None)
    if folder is None or found[f"{folder}/data.pkl"][1] > 1 << 22:
        return False
    part = lambda name: data[found[name][0] : sum(found[name])]
    if f"{folder}/byteorder" in found and part(f"{folder}/byteorder") != b"little":
        return False
    try:
        value = of_pickle(part(f"{folder}/data.pkl"))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError):
        return False
    if not isinstance(value, dict) or not all(isinstance(value.get(key), dict) for key in ("model", "model_args")):
        return False
    args = value["model_args"]
    names = {
        "n_layer": "n_layer",
        "n_head": "n_head",
        "n_embd": "n_embd",
        "block_size": "n_positions",
        "vocab_size": "vocab_size",
    }
    shape = {theirs: args.get(name) for name, theirs in names.items()}
    if (
        any(type(size) is not int or not 1 <= size <= 400 for size in shape.values())
        or type(args.get("bias")) is not bool
    ):
        return False
    if shape["n_embd"] % shape["n_head"]:
        return False
    tensors = {}
    for name, thing in value["model"].items():
        if not isinstance(name, str) or not isinstance(thing, Thing) or thing.kind != "tensor":
            return False
        storage, offset, size, stride = thing.parts
        dtype, member, count = storage.parts
        if not (
            type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= 8 and whole(offset, *size)
        ):
            return False
        rows = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
        if any(n > 1 and step != row for n, step, row in zip(size, stride, rows, strict=True)):
            return False
        stored = found.get(f"{folder}/data/{member[:20]}")
        if not stored or stored[1] != count * SIZES[dtype] or offset + math.prod(size) > count:
            return False
        tensors[name.removeprefix("_orig_mod.")] = (dtype, size)
    return is_gpt2(tensors, foreign.nano_tensors(**shape), args["bias"])
