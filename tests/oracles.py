"""What a file of each kind must be, said anew as conditions on its bytes: the fuzzer asks whether the readers agree."""

import json
import math
import struct
import tomllib

import numpy as np

import samples

GPT2_VOCAB, GPT2_EOT = 50257, 50256
BYTES = [bytes([b]) for b in range(256)]


def words_of(data: bytes, magic: int, used: int) -> tuple[int, ...] | None:
    """The header words of a file of this kind, or None."""
    words = struct.unpack_from("<256i", data) if len(data) >= 1024 else (0,)
    return words if words[0] == magic and not any(words[used:]) else None


def stored_dims(data: bytes) -> tuple[int, dict[str, int]] | None:
    words = struct.unpack_from("<8i", data) if len(data) >= 32 else None
    if not words or words[1] not in samples.VERSIONS:
        return None
    itemsize, padded = samples.VERSIONS[words[1]]
    dims = {name: words[index] for name, index in samples.WORDS.items()}
    return itemsize, dims if padded else dims | {"Vp": dims["V"]}


def checkpoint_size(data: bytes) -> int | None:
    found = stored_dims(data)
    return 1024 + found[0] * samples.parameters(found[1]) if found else None


def is_checkpoint(data: bytes) -> bool:
    words, found = words_of(data, 20240326, 8), stored_dims(data)
    if not words or not found or (words[1] == 1 and words[7]):
        return False
    dims = found[1]
    in_range = all(1 <= dims[name] <= cap for name, cap in samples.CAPS.items())
    return in_range and dims["C"] % dims["NH"] == 0 and dims["V"] <= dims["Vp"] and len(data) == checkpoint_size(data)


def token_size(data: bytes) -> int | None:
    return 1024 + 2 * struct.unpack_from("<i", data, 8)[0] if len(data) >= 12 else None


def is_tokens(data: bytes) -> bool:
    if words := words_of(data, 20240520, 3):
        return words[1] == 1 and words[2] >= 1 and len(data) == token_size(data)
    first = np.frombuffer(data[: min(1024, len(data) // 4 * 4)], "<i4")
    return bool(len(data) and len(data) % 4 == 0 and (first >= 0).all() and (first < GPT2_VOCAB).all() and first.any())


def optimizer_fields(data: bytes) -> tuple[int, ...] | None:
    return struct.unpack_from("<4Q", data, 8) if len(data) >= 40 else None


def optimizer_size(data: bytes) -> int | None:
    found = optimizer_fields(data)
    return 1024 + 8 * (found[2] - found[1]) if found else None


def is_optimizer(data: bytes) -> bool:
    words = words_of(data, 20261121, 10)
    if not words or words[1] != 1:
        return False
    P, begin, end, t = optimizer_fields(data)
    return 0 <= begin < end <= P <= 1 << 40 and t <= 1 << 48 and len(data) == optimizer_size(data)


def state_size(data: bytes) -> int | None:
    """The length that a training state of 6 parameters asks for."""
    if len(data) < 1024:
        return None
    master, shuffle = struct.unpack_from("<2i", data, 16)
    at = 1024 + 24 * (3 if master == 1 else 2)
    if shuffle != 1:
        return at
    for _ in range(2):
        if at + 8 > len(data):
            return None
        at += 8 + 4 * struct.unpack_from("<Q", data, at)[0]
    return at + 2520


def is_state(data: bytes) -> bool:
    words = words_of(data, 20240527, 34)
    if not words or words[1:4] != (1, 1, 0) or {*words[4:6]} - {0, 1} or words[10] < 0:
        return False
    if any(words[6:10] + words[11:20] + words[24:30]) or len(data) != state_size(data):
        return False
    start = 1024 + 24 * (2 + words[4])
    shards = struct.unpack_from("<Q", data, start)[0] if words[5] else 1
    return shards >= 1 and (not words[5] or struct.unpack_from("<Q", data, start + 8 + 4 * shards)[0] >= 1)


def split_tokens(data: bytes, count: int) -> list[bytes] | None:
    at, found = 1024, []
    for _ in range(count):
        if at >= len(data) or not data[at] or at + 1 + data[at] > len(data):
            return None
        found.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return found if at == len(data) else None


def is_character(piece: bytes) -> bool:
    try:
        return len(piece.decode()) == 1
    except UnicodeDecodeError:
        return False


def is_tokenizer(data: bytes) -> bool:
    words = words_of(data, 20240328, 5)
    if not words or not (words[1] == 2 or words[1:5] == (1, GPT2_VOCAB, 0, 0)):
        return False
    _, version, count, eot, kind = words[:5]
    eot = GPT2_EOT if version == 1 else eot
    if not (1 <= count <= 1 << 20 and 0 <= eot < count and 0 <= kind <= 3) or count > len(data):
        return False
    pieces = split_tokens(data, count)
    if pieces is None:
        return False
    others = pieces[:eot] + pieces[eot + 1 :]
    once = len(set(others)) == len(others)
    merges = once and set(BYTES) <= set(others)
    byte = pieces[:256] == BYTES and count == 257 and eot == 256
    return (count != GPT2_VOCAB or merges, once and all(map(is_character, others)), byte, merges)[kind]


def debug_state_size(data: bytes) -> int | None:
    if len(data) < 16:
        return None
    version, B, T = struct.unpack_from("<3i", data, 4)
    dims = samples.DIMS if version == 2 else samples.DIMS | {"Vp": samples.DIMS["V"]}
    return 1024 + 8 * B * T + 4 * (B * T * dims["V"] + 1 + samples.parameters(dims))


def is_debug_state(data: bytes) -> bool:
    words, V = words_of(data, 20240327, 4), samples.DIMS["V"]
    if not words or words[1] not in (1, 2) or not (1 <= words[2] <= 1 << 20 and 1 <= words[3] <= samples.DIMS["maxT"]):
        return False
    if len(data) != debug_state_size(data):
        return False
    n = words[2] * words[3]
    ids = struct.unpack_from(f"<{2 * n}i", data, 1024)
    right = all(0 <= i < V for i in ids[:n]) and all(-1 <= i < V for i in ids[n:])
    return right and math.isfinite(struct.unpack_from("<f", data, 1024 + 4 * n * (2 + V))[0])


def is_choices(data: bytes) -> bool:
    words = words_of(data, 20240522, 4)
    if not words or words[1] != 1 or not 1 <= words[2] < 65535 or not 0 < words[3] < 10 * samples.ROW:
        return False
    rest = list(np.frombuffer(data[1024 : len(data) // 2 * 2], "<u2").tolist())
    for index in range(words[2]):
        start, size, number, label, count = (*rest[:5], *[0] * 5)[:5]
        body, rest = rest[5 : size // 2], rest[size // 2 :]
        if (start, number, count) != (65535, index, 4) or label > 3 or size % 2 or not 12 <= size <= words[3]:
            return False
        if len(body) != size // 2 - 5:
            return False
        lengths = []
        while body and len(lengths) < 5:
            lengths.append(body[0])
            if not body[0] or body[0] >= len(body):
                return False
            body = body[1 + body[0] :]
        if body or len(lengths) != 5 or lengths[0] + max(lengths[1:]) >= samples.ROW:
            return False
    return not rest and len(data) % 2 == 0


def is_text(data: bytes) -> bool:
    try:
        return data.decode() not in ("", "\ufeff")
    except UnicodeDecodeError:
        return False


def is_config(data: bytes) -> bool:
    try:
        tomllib.loads(data.decode())
    except (ValueError, RecursionError):
        return False
    return True


def is_environment(data: bytes) -> bool:
    try:
        found = json.loads(data.decode())
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("started"), str) and bool(found["started"])
