"""How the fuzzer changes a valid file: fields of the header, numbers behind it, bits, pieces, lengths, kinds.

Of all mutants 10 % are random bytes; 40 % of the others get the length that their header then asks for."""

import random
import struct

import samples
from fuzz_readers import READERS, Reader

LARGE_SEEDS = 0.008  # share of the mutants that start from a large file
INTERESTING = (-(2**31), -(2**31) + 1, -65536, -2, -1, *range(9), 12, 16, 255, 256, 257, 1023, 1024, 1025, 32768, 50256,
               50257, 65535, 65536, 65537, 2**20, 2**20 + 1, 2**24, 2**30, 2**30 + 1, 2**31 - 2, 2**31 - 1,
               *samples.KINDS)  # fmt: skip
CROSSINGS = [seed for reader in READERS.values() for seed in reader.seeds if 0 < len(seed) < 4096]


def mutant(reader: Reader, rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        return rng.randbytes(rng.choice((0, 1, 3, 4, 1023, 1024, 1028, rng.randrange(3000))))
    large = reader.large and rng.random() < LARGE_SEEDS
    data = bytearray(rng.choice(reader.large if large else reader.seeds + reader.hostile))
    for change in rng.choices(list(MUTATIONS), MUTATIONS.values(), k=1 if large else rng.randint(1, 4)):
        change(data, reader, rng)
    if rng.random() < 0.4:
        size = reader.size(data)
        if size is not None and 0 <= size < 1 << 17:
            data = data[:size] + bytes(max(0, size - len(data)))
    return bytes(data)


def put_field(data, reader, rng) -> None:
    """A header word: an interesting number, or one near what was there; now and then one of the reserved words."""
    index = rng.choice(reader.fields) if reader.fields and rng.random() < 0.9 else rng.randrange(1, 256)
    if 4 * index + 4 <= len(data):
        (old,) = struct.unpack_from("<i", data, 4 * index)
        new = rng.choice(INTERESTING) if rng.random() < 0.6 else old + rng.choice((-2, -1, 1, 2, old))
        struct.pack_into("<i", data, 4 * index, (new + 2**31) % 2**32 - 2**31)


def put_unit(data, reader, rng) -> None:
    """A number behind the header: a length, an id or a float that means something, or one beside what was there."""
    width, values = rng.choice(reader.units)
    last = len(data) - width
    if last < reader.start:
        return
    at = rng.choice(reader.spots) if rng.random() < 0.5 else rng.randrange(reader.start, last + 1, width)
    if at <= last:
        near = int.from_bytes(data[at : at + width], "little") + rng.choice((-1, 1))
        new = rng.choice(values) if rng.random() < 0.7 else near % (1 << 8 * width)
        data[at : at + width] = new.to_bytes(width, "little")


def flip_bits(data, reader, rng) -> None:
    for _ in range(rng.randint(1, 4) if data else 0):
        data[rng.randrange(len(data) if rng.random() < 0.7 else min(40, len(data)))] ^= 1 << rng.randrange(8)


def splice(data, reader, rng) -> None:
    """A piece of another file, of any kind, over what was there or between it."""
    other = rng.choice(CROSSINGS)
    start, at, length = rng.randrange(len(other)), rng.randrange(len(data) + 1), rng.randrange(1, 200)
    data[at : at + (length if rng.random() < 0.7 else 0)] = other[start : start + length]


def change_length(data, reader, rng) -> None:
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 3, 4, 8, rng.randrange(1, 300)))
    data[at : at + (0 if rng.random() < 0.5 else length)] = bytes(length) if rng.random() < 0.5 else b""


def cut_or_extend(data, reader, rng) -> None:
    if rng.random() < 0.6:
        del data[rng.choice((rng.randrange(len(data) + 1), 1024, 1023, max(0, len(data) - rng.randrange(1, 5)))) :]
    else:
        data += rng.choice((b"\0", bytes(4), rng.randbytes(rng.randrange(1, 5000))))


def cross(data, reader, rng) -> None:
    """The magic, the header or the contents of another kind."""
    other = rng.choice(CROSSINGS)
    cut = slice(0, 4) if rng.random() < 0.6 else slice(0, 1024) if rng.random() < 0.5 else slice(1024, None)
    data[cut] = other[cut]


MUTATIONS = {put_field: 34, put_unit: 28, flip_bits: 12, splice: 7, change_length: 7, cut_or_extend: 7, cross: 5}
