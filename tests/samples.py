"""Small valid files of every kind, made byte by byte: what the formats are, said once more without the package.

A sample is for a model of the dims DIMS; READERS maps a kind's name to a sample and to what reads it whole."""

import struct

import numpy as np

from gpt2flat.formats import checkpoint, llmc
from gpt2flat.formats.choices import ChoiceFile
from gpt2flat.formats.debug_state import DebugState

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
DIMS = {"maxT": 4, "V": 5, "L": 1, "NH": 2, "C": 4, "Vp": 8}
WORDS = {"maxT": 2, "V": 3, "L": 4, "NH": 5, "C": 6, "Vp": 7}  # of the header
CAPS = {"maxT": 65536, "V": 2**20, "L": 1024, "NH": 1024, "C": 65536, "Vp": 2**20}
VERSIONS = {1: (4, False), 3: (4, True), 5: (2, True)}  # bytes per number, rows of wte padded; the others are refused
ROW = 16  # the longest row of the multiple-choice samples
KINDS = {20240326: "a model checkpoint", 20240327: "a debug state", 20240328: "a tokenizer", 20240520: "a token file"}
KINDS |= {20240522: "a multiple-choice evaluation file", 20240527: "a training state", 20240801: "a Llama-3 token file"}
KINDS |= {20261121: "an optimizer state"}


def header(words):
    return struct.pack("<256i", *(words.get(i, 0) for i in range(256)))


# --- checkpoints


def parameters(d):
    """The floats of a GPT-2 checkpoint, tensor by tensor (independent of the tensor table)."""
    C, L = d["C"], d["L"]
    block = [C, C, 3 * C * C, 3 * C, C * C, C, C, C, 4 * C * C, 4 * C, 4 * C * C, C]
    return d["Vp"] * C + d["maxT"] * C + L * sum(block) + C + C


def checkpoint_words(**changes):
    return {0: 20240326, 1: 3} | {WORDS[name]: value for name, value in {**DIMS, **changes}.items()}


def checkpoint_bytes(words=None, size=None):
    payload = bytes(4 * parameters(DIMS)) if size is None else bytes(size)
    return header(words or checkpoint_words()) + payload


def versioned(version, floats=None, **changes):
    """A checkpoint of a version as llm.c wrote it; floats: the numbers with wte padded, zeros by default."""
    itemsize, padded = VERSIONS.get(version, (4, True))
    dims = DIMS | changes
    floats = np.zeros(parameters(dims), np.float32) if floats is None else floats
    if not padded:
        floats = np.concatenate([floats[: dims["V"] * dims["C"]], floats[dims["Vp"] * dims["C"] :]])
        dims["Vp"] = 0
    words = {0: 20240326, 1: version} | {WORDS[name]: value for name, value in dims.items()}
    raw = floats.astype("<f4").tobytes()
    return header(words) + (raw if itemsize == 4 else np.frombuffer(raw, "<u2")[1::2].tobytes())


def wraps_64_bits(j):
    """Dims whose floats take j * 2^64 + 2^23 bytes: in 64-bit arithmetic a file of 8 MiB would hold them."""
    C, maxT = 32768, 64
    units = j * 2**47 + 2**6 - maxT - 2  # of 4 C bytes, for the layers and the vocabulary
    L, Vp = divmod(units, 12 * C + 13)
    return {"maxT": maxT, "V": 50257, "L": L, "NH": 32, "C": C, "Vp": Vp}


WRAPS_32_BITS = {"maxT": 990, "V": 2000, "L": 85, "NH": 16, "C": 1024, "Vp": 2000}  # to 4 KiB; within every cap


def read(path):
    with checkpoint.Checkpoint(path, parameters) as file:
        return file.dims


# --- token files and tokenizers


def token_bytes(ids=(1, 2, 3)):
    return header({0: 20240520, 1: 1, 2: len(ids)}) + np.array(ids, "<u2").tobytes()


def old_tokens(ids):
    return np.array(ids, "<i4").tobytes()


def read_tokens(path):
    file = llmc.open_tokens(path)
    file.close()
    return file.count


def tokenizer_bytes(tokens=(b"a", b"bc", b"<|endoftext|>"), words=None):
    words = {0: 20240328, 1: 2, 2: len(tokens), 3: len(tokens) - 1} | (words or {})
    return header(words) + b"".join(bytes([len(t)]) + t for t in tokens)


# --- debug states


def debug_state_bytes(version=2, B=2, T=3, V=5, tokens=(0, 1, 2, 3, 4, 0), targets=(1, 2, 3, 4, 0, -1), loss=1.5):
    """Logits counting from 0, gradients from 1000 (without the padding of wte in version 1)."""
    grads = parameters(DIMS) - (0 if version > 1 else (DIMS["Vp"] - DIMS["V"]) * DIMS["C"])
    floats = np.concatenate([np.arange(B * T * V), [loss], 1000 + np.arange(grads)]).astype("<f4")
    batch = np.array([tokens, targets], "<i4")
    return header({0: 20240327, 1: version, 2: B, 3: T}) + batch.tobytes() + floats.tobytes()


def read_debug_state(path):
    with DebugState(path, DIMS, parameters) as state:
        return state


# --- multiple-choice evaluation files


def example_words(number, context=(7, 8), completions=((1,), (2, 3), (4,), (5, 6, 9)), **changes):
    body = [len(context), *context] + [word for c in completions for word in (len(c), *c)]
    size = 2 * (5 + len(body))
    words = dict(start=65535, size=size, index=number, label=1, count=len(completions)) | changes
    return [*words.values(), *body]


def choice_bytes(*examples, longest=None, **words):
    examples = examples or ({}, {"label": 3, "context": [11] * 9})
    rows = [example_words(i, **changes) for i, changes in enumerate(examples)]
    sizes = {0: 20240522, 1: 1, 2: len(rows), 3: longest or max(2 * len(row) for row in rows)}
    sizes |= {int(key[1:]): value for key, value in words.items()}
    return header(sizes) + np.concatenate(rows).astype("<u2").tobytes()


def read_choices(path, T=ROW):
    with ChoiceFile(path, T) as file:
        return list(file)


READERS = {
    "a debug state": (debug_state_bytes(), read_debug_state),
    "a multiple-choice evaluation file": (choice_bytes(), read_choices),
    "a model checkpoint": (checkpoint_bytes(), read),
    "a token file": (token_bytes(), read_tokens),
    "a tokenizer": (tokenizer_bytes(), llmc.read_tokenizer),
}
