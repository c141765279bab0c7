"""Read what a zip file says it holds, believing nothing: names, and where the bytes are.

Only entries that are stored as they are, as torch stores them: nothing is unpacked, so nothing grows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ltm.errors import UserError
from ltm.untrusted.display import shown

ENTRIES = 200_000
"""Most entries of a file."""
NAME = 500
"""Most bytes of an entry's name."""
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_WIDE = 0xFFFFFFFF  # says that the value is in the extra field of 64-bit values
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a file.

    Attributes:
        start, end: where its bytes are in the file.
        checksum: the CRC-32 that its bytes should have.
    """

    start: int
    end: int
    checksum: int


def entries(data: memoryview, *, where: str) -> dict[str, Entry]:
    """Read the directory of a zip file.

    Args:
        data: the whole file, such as a memory map of it.
        where: the file, for messages.

    Raises:
        UserError: it is no zip file, or a damaged one; entries are compressed, encrypted, overlap, or are there twice.
    """
    count, first, end = _directory(data, where)
    found: dict[str, Entry] = {}
    spans = []
    for name, header, entry in _listed(data, count, first, end, where):
        if name in found:
            raise _wrong(where, "each entry once", f"{shown(name)} twice")
        found[name] = entry
        spans.append((header, entry.end, name))
    at = 0
    for header, past, name in sorted(spans):
        if header < at:
            raise _wrong(where, "entries one after the other", f"{shown(name)} within another")
        at = past
    if at > first:
        raise _wrong(where, "entries before the directory", "one that reaches into it")
    return found


def _directory(data: memoryview, where: str) -> tuple[int, int, int]:
    """Return how many entries the directory has, and where it begins and ends."""
    at = len(data) - _END.size
    if at < 0 or data[:4] != b"PK\x03\x04":
        raise _wrong(where, "a zip file", "something else")
    magic, disk, other, here, count, size, first, comment = _END.unpack_from(data, at)
    if magic != b"PK\x05\x06" or comment:
        raise _wrong(where, "a whole zip file", "one that is cut off or has something after its end")
    locator = at - _LOCATOR.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        at = _LOCATOR.unpack_from(data, locator)[2]
        if at + _END64.size != locator or data[at : at + 4] != b"PK\x06\x06":
            raise _wrong(where, "the end of a zip file", "a damaged one")
        _, _, _, _, disk, other, here, count, size, first = _END64.unpack_from(data, at)
    if disk or other or here != count or first + size != at:
        raise _wrong(where, "the end of a zip file", "a damaged one")
    if count > ENTRIES:
        raise _wrong(where, f"at most {ENTRIES:,} entries", shown(count))
    return count, first, at


def _listed(data: memoryview, count: int, at: int, end: int, where: str) -> Iterator[tuple[str, int, Entry]]:
    for _ in range(count):
        if at + _CENTRAL.size > end:
            raise _wrong(where, f"{count:,} entries in its directory", "fewer")
        fields = _CENTRAL.unpack_from(data, at)
        flags, method, checksum, packed, size = fields[3], fields[4], *fields[7:10]
        long, extra, comment, header = *fields[10:13], fields[16]
        name_at = at + _CENTRAL.size
        at = name_at + long + extra + comment
        if fields[0] != b"PK\x01\x02" or at > end or not 0 < long <= NAME:
            raise _wrong(where, "a directory of entries", "a damaged one")
        raw = bytes(data[name_at : name_at + long])
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise _wrong(where, "names in UTF-8", shown(raw)) from None
        size, packed, header = _wide((size, packed, header), data[name_at + long : name_at + long + extra], where)
        if method or packed != size:
            raise _wrong(
                where, "entries that are stored as they are, as torch stores them", f"{shown(name)} compressed"
            )
        if flags & _ENCRYPTED:
            raise _wrong(where, "entries that anyone can read", f"{shown(name)} encrypted")
        start = _start(data, header, raw, where)
        if start + size > end:
            raise _wrong(where, f"{size:,} bytes of {shown(name)}", f"a file that ends after {max(0, end - start):,}")
        yield name, header, Entry(start=start, end=start + size, checksum=checksum)
    if at != end:
        raise _wrong(where, f"{count:,} entries in its directory", "more")


def _wide(values: tuple[int, int, int], extra: memoryview, where: str) -> tuple[int, int, int]:
    """Return size, packed size and position, which stand in the extra field where they need 64 bits."""
    if _WIDE not in values:
        return values
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1 and at + 4 + length <= len(extra) and length % 8 == 0:
            rest = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            size, packed, header = (next(rest, None) if value == _WIDE else value for value in values)
            if size is not None and packed is not None and header is not None:
                return size, packed, header
        at += 4 + length
    raise _wrong(where, "the size and place of each entry", "one without")


def _start(data: memoryview, header: int, name: bytes, where: str) -> int:
    """Return where the bytes begin whose local header is there, if it is the header of an entry of this name."""
    if header + _LOCAL.size > len(data):
        raise _wrong(where, f"an entry at byte {header:,}", "the end of the file")
    fields = _LOCAL.unpack_from(data, header)
    at = header + _LOCAL.size
    if fields[0] != b"PK\x03\x04" or fields[3] or data[at : at + fields[9]] != name:
        raise _wrong(where, f"the entry {shown(name)} at byte {header:,}", "something else")
    return at + fields[9] + fields[10]


def _wrong(where: str, expected: str, found: str) -> UserError:
    return UserError(f"{where}: expected {expected}, found {found}")
