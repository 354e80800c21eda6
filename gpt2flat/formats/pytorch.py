"""nanoGPT's ckpt.pt: an archive of torch.save (data.pkl and the numbers in data/N), read without running anything.

data.pkl is a program for Python's pickle machine. Here it is only looked at: pickletools names the opcodes, and a machine of
this file knows those that plain values and tensors need, and the globals of the table below; anything else is refused by name."""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from ..errors import CheckpointError, FormatError
from .checkpoint import check_dims
from .files import RegularFile
from .llmc import GPT2_VOCAB
from .safetensors import BYTES
from .strict_json import is_whole, told
from .tensors import Tensor, Weights
from .zip_members import MAGIC, Member, read_members

SUFFIXES = (".pt", ".pth", ".ckpt")
LONGEST = 1 << 22  # bytes of data.pkl; GPT-2 XL with AdamW's state takes a tenth
DIMS = {"maxT": "block_size", "V": "vocab_size", "L": "n_layer", "NH": "n_head", "C": "n_embd"}
PADDED = 50304  # nanoGPT's vocabulary for GPT-2's tokens, 47 rows of which are padding
COMPILED = "_orig_mod."  # what torch.compile puts before every name
STORAGES = {
    f"torch {name}Storage": dtype
    for name, dtype in dict(Float="F32", Half="F16", BFloat16="BF16", Double="F64", Long="I64", Int="I32", Short="I16",
                            Char="I8", Byte="U8", Bool="BOOL").items()
}  # fmt: skip
REBUILD, ORDERED = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    member: str
    count: int


@dataclass(frozen=True)
class _Rebuilt:
    """A tensor as data.pkl describes it; nothing of it has been checked."""

    storage: object
    offset: object
    size: object
    stride: object


class _Refused(Exception):
    """Why data.pkl is not looked at further."""


def is_archive(path) -> bool:
    """Whether a file is, or is named as, something that torch.save wrote. Raises CheckpointError if it cannot be opened."""
    if str(path).endswith(SUFFIXES):
        return True
    with RegularFile(path, CheckpointError) as file:
        return file.size >= len(MAGIC) and file.read(0, len(MAGIC)) == MAGIC


def open_nanogpt(path, layout) -> Weights:
    """The weights of a checkpoint of nanoGPT's; layout: the function from dims to the layout of the tensor table.

    Raises FormatError for any other file, CheckpointError if it cannot be opened."""
    file = RegularFile(path, CheckpointError, short=FormatError)
    try:
        found, members, folder = _read(file)
        if not (
            isinstance(found, dict)
            and isinstance(found.get("model"), dict)
            and isinstance(found.get("model_args"), dict)
        ):
            raise FormatError(f"{path}: is no checkpoint of nanoGPT's, expected a dict with its model and model_args")
        dims, biases = _dims(path, found["model_args"])
        tensors = {
            _name(path, name): _tensor(file, name, value, members, folder) for name, value in found["model"].items()
        }
        kinds, step = sorted({tensor.dtype for tensor in tensors.values()}), found.get("iter_num")
        after = f" after {step:,} updates" if is_whole(step, 0, 1 << 62) else ""
        about = f"nanoGPT's checkpoint{after}, {', '.join(kinds)} (its GELU by erf is computed by tanh here)"
        return Weights(path, [file], tensors, dims, layout, about, flips=False, biases=biases)
    except BaseException:
        file.close()
        raise


def _dims(path, args: dict) -> tuple[dict[str, int], bool]:
    """(dims, whether there are biases) of nanoGPT's model_args."""
    for name in (*DIMS.values(), "bias"):
        if type(args.get(name)) is not (bool if name == "bias" else int):
            raise FormatError(
                f"{path}: {name} of its model_args is {_kind(args.get(name))}, expected as nanoGPT writes it"
            )
    dims = {dim: args[name] for dim, name in DIMS.items()}
    dims["Vp"] = dims["V"]
    check_dims(path, dims)
    gpt2s = dims["V"] == PADDED
    return dims | ({"V": GPT2_VOCAB} if gpt2s else {"Vp": 0}), args["bias"]


def _name(path, name) -> str:
    if not isinstance(name, str):
        raise FormatError(f"{path}: a tensor of its model is called {_kind(name)}, expected a name")
    return name.removeprefix(COMPILED)


def _tensor(file: RegularFile, name: str, value, members: dict[str, Member], folder: str) -> Tensor:
    """Where the numbers of a tensor lie. Raises FormatError unless its storage is there, whole, and holds it row by row."""
    where = f"{file.path}: {told(name)}"
    if not isinstance(value, _Rebuilt):
        raise FormatError(f"{where} is {_kind(value)}, expected a tensor")
    storage, offset, size, stride = value.storage, value.offset, value.size, value.stride
    sizes = isinstance(size, tuple) and len(size) <= 8 and all(is_whole(n, 0, 1 << 62) for n in size)
    if not (sizes and isinstance(stride, tuple) and is_whole(offset, 0, 1 << 62)):
        raise FormatError(f"{where} has no shape that could be")
    rows = [prod(size[axis + 1 :]) for axis in range(len(size))]
    if len(stride) != len(size) or any(n > 1 and step != row for n, step, row in zip(size, stride, rows, strict=True)):
        raise FormatError(f"{where} does not lie row by row: save it again from contiguous tensors")
    member, width = members.get(f"{folder}/data/{storage.member}"), BYTES[storage.dtype]
    if member is None or member.size != width * storage.count:
        found = "missing" if member is None else f"of {member.size} bytes"
        raise FormatError(
            f"{where}: its numbers in data/{storage.member} are {found}, expected {width * storage.count} bytes"
        )
    if offset + prod(size) > storage.count:
        raise FormatError(f"{where} of shape {told(size)} from number {offset} on leaves its {storage.count} numbers")
    return Tensor(file, member.offset + width * offset, storage.dtype, size)


# --- data.pkl --------------------------------------------------------------------------------------------------------


def _read(file: RegularFile) -> tuple[object, dict[str, Member], str]:
    """What data.pkl describes, the members of the archive, and the folder that they are in."""
    if file.size < len(MAGIC) or file.read(0, len(MAGIC)) != MAGIC:
        raise FormatError(
            f"{file.path}: is no archive of torch.save: written by PyTorch before 1.6, or damaged; save it again"
        )
    members = read_members(file)
    name = next((name for name in members if name.endswith("/data.pkl")), None)
    if name is None or members[name].size > LONGEST:
        found = "no data.pkl" if name is None else f"a data.pkl of {members[name].size} bytes"
        raise FormatError(f"{file.path}: has {found}, expected what torch.save writes, of at most {LONGEST} bytes")
    folder = name.removesuffix("/data.pkl")
    order = members.get(f"{folder}/byteorder")
    if order and file.read(order.offset, min(order.size, 16)) != b"little":
        raise FormatError(f"{file.path}: was written on a big-endian machine: save it again on a little-endian one")
    try:
        return _look_at(file.read(*members[name])), members, folder
    except _Refused as problem:
        raise FormatError(f"{file.path}: its data.pkl {problem}") from None


def _look_at(program: bytes) -> object:
    """The value that a pickle describes. Nothing is imported and nothing called. Raises _Refused."""
    machine, stream, name = _Machine(), io.BytesIO(program), ""
    while name != "STOP":
        at, code = stream.tell(), stream.read(1)
        opcode = pickletools.code2op.get(code.decode("latin-1"))
        name = opcode.name if opcode else told(code)
        if name not in _OPCODES:  # its argument is not even read
            raise _Refused(
                f"has the opcode {name} at byte {at}, which plain values and tensors do not need"
                if code
                else "has no end"
            )
        try:
            _OPCODES[name](machine, opcode.arg.reader(stream) if opcode.arg else None)
        except (IndexError, KeyError, TypeError, ValueError):
            raise _Refused(f"is damaged: {name} at byte {at} does not fit what stands around it") from None
    if len(machine.stack) != 1:
        raise _Refused(f"describes {len(machine.stack)} values, expected one")
    return machine.stack[0]


class _Machine:
    """The stack of a pickle, its marks and memo; values are Python's plain ones and the three kinds above."""

    def __init__(self):
        self.stack, self.marks, self.memo = [], [], {}

    def above_mark(self) -> list:
        mark = self.marks.pop()
        above = self.stack[mark:]
        del self.stack[mark:]
        return above

    def put_items(self, items: list) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2 or any(type(key) not in (str, int) for key in items[::2]):
            raise TypeError
        target.update(zip(items[::2], items[1::2], strict=True))

    def append(self, items: list) -> None:
        if not isinstance(self.stack[-1], list):
            raise TypeError
        self.stack[-1].extend(items)

    def pop(self, count: int) -> list:
        if len(self.stack) < count:
            raise IndexError
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def persistent(self) -> _Storage:
        ((kind, stored, member, _place, count),) = self.pop(1)
        if kind != "storage" or not isinstance(stored, _Global) or stored.name not in STORAGES:
            raise _Refused(f"has numbers of the type {_kind(stored)}, expected one of PyTorch's storages")
        if not (isinstance(member, str) and member.isdecimal() and is_whole(count, 0, 1 << 62)):
            raise TypeError
        return _Storage(STORAGES[stored.name], member[:20], count)

    def call(self):
        function, arguments = self.pop(2)
        if function == _Global(ORDERED) and arguments == ():
            return {}
        if function == _Global(REBUILD) and isinstance(arguments, tuple) and len(arguments) >= 4:
            if not isinstance(arguments[0], _Storage):
                raise TypeError
            return _Rebuilt(*arguments[:4])
        raise _Refused(f"calls {_kind(function)}, expected only OrderedDict and _rebuild_tensor_v2 to be called")

    def build(self) -> None:
        target, _state = self.pop(2)  # such as the _metadata of a state_dict
        if not isinstance(target, dict):
            raise TypeError
        self.stack.append(target)


def _global(name: str) -> _Global:
    if name not in (REBUILD, ORDERED, *STORAGES):
        raise _Refused(
            f"asks for {told(name.replace(' ', '.'))}, which plain values and tensors do not need: it is not trusted"
        )
    return _Global(name)


def _kind(value) -> str:
    """What a value is, for a message: containers by their type, for one that holds itself has no end."""
    if isinstance(value, _Global):
        return value.name.replace(" ", ".")
    return told(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__.strip('_')}"


def _push(make: Callable) -> Callable:
    return lambda m, argument: m.stack.append(make(m, argument))


def _stack_global(m: _Machine, _argument) -> _Global:
    module, name = m.pop(2)
    return _global(f"{module} {name}")


def _memoize(m: _Machine, index: int | None) -> None:
    m.memo[len(m.memo) if index is None else index] = m.stack[-1]


_constant = _push(lambda m, argument: argument)
_OPCODES = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, argument: None),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _constant),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _memoize),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _push(lambda m, index: m.memo[index])),
    "NONE": _constant,
    "NEWTRUE": _push(lambda m, _: True),
    "NEWFALSE": _push(lambda m, _: False),
    "EMPTY_DICT": _push(lambda m, _: {}),
    "EMPTY_LIST": _push(lambda m, _: []),
    "EMPTY_TUPLE": _push(lambda m, _: ()),
    "TUPLE1": _push(lambda m, _: tuple(m.pop(1))),
    "TUPLE2": _push(lambda m, _: tuple(m.pop(2))),
    "TUPLE3": _push(lambda m, _: tuple(m.pop(3))),
    "TUPLE": _push(lambda m, _: tuple(m.above_mark())),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "SETITEM": lambda m, _: m.put_items(m.pop(2)),
    "SETITEMS": lambda m, _: m.put_items(m.above_mark()),
    "APPEND": lambda m, _: m.append(m.pop(1)),
    "APPENDS": lambda m, _: m.append(m.above_mark()),
    "GLOBAL": _push(lambda m, name: _global(name)),
    "STACK_GLOBAL": _push(_stack_global),
    "BINPERSID": _push(lambda m, _: m.persistent()),
    "REDUCE": _push(lambda m, _: m.call()),
    "BUILD": lambda m, _: m.build(),
}
