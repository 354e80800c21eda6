"""The members of a zip archive that stores them as they are: where the bytes of each lie (PKWARE's APPNOTE 6.3, 4.3 and 4.5.3).

Nothing is unpacked, so no archive grows; members must not overlap, and the directory must end the file."""

import struct
from typing import NamedTuple

from ..errors import FormatError
from .files import RegularFile
from .strict_json import told

MAGIC = b"PK\x03\x04"
LOCAL, ENTRY, END = struct.Struct("<4s22x2H"), struct.Struct("<4s4x2H8x2I3H8xI"), struct.Struct("<4s4x2H2IH")
LOCATOR, END64 = struct.Struct("<4s4xQ4x"), struct.Struct("<4s8x4x8x4Q")
MAX_DIRECTORY, BIG, BIG_FIELD = 1 << 24, 0xFFFFFFFF, 1
CURE = "copy the file again"


class Member(NamedTuple):
    """The bytes of a member: `size` of them from `offset` on."""

    offset: int
    size: int


def read_members(file: RegularFile) -> dict[str, Member]:
    """The members of an open archive by name. Raises FormatError for one that is damaged, packs or hides them."""
    count, size, start, end = _directory(file)
    if not (0 < count and ENTRY.size * count <= size <= MAX_DIRECTORY and start + size == end):
        raise FormatError(
            f"{file.path}: its directory of {count} members takes {size} bytes from {start} on, and {end} is where it ends: {CURE}"
        )
    data, at, members, before = file.read(start, size), 0, {}, 0
    for _ in range(count):
        name, header, length, after = _entry(file, data, at)
        member = Member(_data_offset(file, header, start), length)
        if name in members or header < before or member.offset + length > start:
            raise FormatError(f"{file.path}: its member {told(name)} is there twice or lies over another: {CURE}")
        members[name], before, at = member, member.offset + length, after
    if at != size:
        raise FormatError(f"{file.path}: {size - at} bytes are left behind its directory of {count} members: {CURE}")
    return members


def _directory(file: RegularFile) -> tuple[int, int, int, int]:
    """(members, bytes of the directory, where it begins, where it must end)."""
    place = file.size - END.size
    if place < 0:
        raise FormatError(f"{file.path}: found {file.size} bytes, expected a zip archive: {CURE}")
    magic, _, count, size, start, comment = END.unpack(file.read(place, END.size))
    if magic != b"PK\x05\x06" or comment:
        raise FormatError(f"{file.path}: does not end as a zip archive does: it was cut short; {CURE}")
    at = place - LOCATOR.size - END64.size
    if at >= 0:
        magic, where = LOCATOR.unpack(file.read(place - LOCATOR.size, LOCATOR.size))
        if (magic, where) == (b"PK\x06\x07", at):
            magic, _, count, size, start = END64.unpack(file.read(at, END64.size))
            place = at if magic == b"PK\x06\x06" else -1
    return count, size, start, place


def _entry(file: RegularFile, data: bytes, at: int) -> tuple[str, int, int, int]:
    """(name, where its local header lies, bytes, where the next entry begins) of the entry at `at` of the directory."""
    head = data[at : at + ENTRY.size]
    magic, flags, method, packed, size, names, extras, comments, header = ENTRY.unpack(head.ljust(ENTRY.size, b"\0"))
    after = at + ENTRY.size + names + extras + comments
    if magic != b"PK\x01\x02" or after > len(data):
        raise FormatError(f"{file.path}: the entry at byte {at} of its directory is damaged: {CURE}")
    name = data[at + ENTRY.size : at + ENTRY.size + names].decode("utf-8", "replace")
    extra = data[at + ENTRY.size + names : after - comments]
    size, packed, header = _big(extra, size, packed, header)
    if flags & 1 or method or packed != size:
        raise FormatError(
            f"{file.path}: its member {told(name)} is packed or encrypted, expected it as torch.save stores it"
        )
    return name, header, size, after


def _big(extra: bytes, *fields: int) -> list[int]:
    """The fields with those that do not fit 32 bits taken from the extra field of zip64."""
    at, found = 0, b""
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == BIG_FIELD:
            found = extra[at + 4 : at + 4 + length]
        at += 4 + length
    words = iter(struct.unpack(f"<{len(found) // 8}Q", found[: len(found) // 8 * 8]))
    return [next(words, field) if field == BIG else field for field in fields]


def _data_offset(file: RegularFile, header: int, end: int) -> int:
    if header + LOCAL.size > end:
        raise FormatError(f"{file.path}: a member begins at byte {header}, behind all of them: {CURE}")
    magic, names, extras = LOCAL.unpack(file.read(header, LOCAL.size))
    if magic != MAGIC:
        raise FormatError(f"{file.path}: no member begins at byte {header}, where its directory says so: {CURE}")
    return header + LOCAL.size + names + extras
