"""Read gzip-compressed lines of JSON objects that anyone may have written, in bounded memory."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ltm.errors import UserError
from ltm.untrusted.json_text import LIMITS, parse, table

UNPACKED = 256 << 20
"""Most bytes that a file may unpack to."""
LINES = 1_000_000
"""Most lines of a file."""
LINE = replace(LIMITS, bytes=16 << 20, string=1_000_000, values=1_000_000, controls=True)
"""What a line may hold: texts of models have control characters."""
_CHUNK = 1 << 20
_GZIP = 31  # zlib's name for the format with gzip's header and checksum


def parse_gzip(data: bytes, *, where: str, unpacked: int = UNPACKED, lines: int = LINES) -> list[dict[str, Any]]:
    """Parse a gzip file with a JSON object per line.

    Args:
        where: the file, for messages.
        unpacked: the most bytes that it may unpack to; what is beyond them is not unpacked.
        lines: the most lines.

    Raises:
        UserError: it is not gzip, is cut off, exceeds a limit, or a line is not an object within the limits `LINE`.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_lines(data, where, unpacked), start=1):
        if number > lines:
            raise UserError(f"{where}: expected at most {lines:,} lines, found more")
        here = f"{where}, line {number}"
        rows.append(table(parse(line, where=here, limits=LINE), where=here))
    return rows


def _lines(data: bytes, where: str, unpacked: int) -> Iterator[bytes]:
    rest = b""
    for chunk in _chunks(data, where, unpacked):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
        if len(rest) > LINE.bytes:
            raise UserError(f"{where}: expected lines of at most {LINE.bytes:,} bytes, found a longer one")
    if rest:
        yield rest


def _chunks(data: bytes, where: str, unpacked: int) -> Iterator[bytes]:
    unpacker, file, total = zlib.decompressobj(_GZIP), io.BytesIO(data), 0
    rest = file.read(_CHUNK)
    while not unpacker.eof:
        if not rest:
            raise UserError(f"{where}: expected a whole gzip file, found one that is cut off")
        try:
            chunk = unpacker.decompress(rest, _CHUNK)
        except zlib.error:
            raise UserError(f"{where}: expected a gzip file, found something else, or a damaged one") from None
        total += len(chunk)
        if total > unpacked:
            raise UserError(f"{where}: expected a file that unpacks to at most {unpacked:,} bytes, found a larger one")
        yield chunk
        rest = unpacker.unconsumed_tail or file.read(_CHUNK)
    if unpacker.unused_data or rest:
        raise UserError(f"{where}: expected one gzip file, found more after its end")
