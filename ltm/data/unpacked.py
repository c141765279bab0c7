"""The bytes of a text file, unpacked in a stream: memory is bounded, and no file expands without end."""

from __future__ import annotations

import atexit
import gzip
import io
import lzma
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ltm.data.reading import ALWAYS_ALLOWED, MOST_FROM_STREAMS, Reading
from ltm.errors import UserError
from ltm.untrusted import regular_files
from ltm.untrusted.display import printable

_PIECE = 1 << 20
_XZ_MEMORY = 256 << 20
"""The most memory for unpacking .xz; a file of `xz -9` needs a quarter of it, a hostile one may ask for 4 GiB."""


def packing(file: Path) -> str:
    """The suffix that says how a file is packed, as it is written there; empty if it is not."""
    return file.suffix if file.suffix.lower() in _UNPACK else ""


def name_of(file: Path) -> str:
    """The path for messages, in printable characters."""
    return printable(str(file), keep=frozenset())


@contextmanager
def opened(file: Path, reading: Reading, *, at: Path | None = None) -> Iterator[io.BufferedReader]:
    """Open a file for reading its text, unpacked if its name says that it is packed.

    Args:
        at: where its bytes are, if not at `file`, whose name counts.

    Raises:
        UserError: it cannot be read, is no file, is damaged, or has more bytes than `reading` allows.
    """
    name, suffix = name_of(file), packing(file).lower()
    try:
        with regular_files.opened(file if at is None else at) as source:
            if os.fstat(source.fileno()).st_size > reading.limit:
                raise reading.too_much(name)
            counted = _Counted(source)
            pieces = _limited(_UNPACK[suffix](counted), counted if suffix else None, reading, name)
            yield io.BufferedReader(_Pieces(pieces), _PIECE)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        if "Memory usage limit" in str(error):
            raise UserError(
                f"{name}: unpacking needs more than {_XZ_MEMORY >> 20} MiB of memory; pack it again, with xz -9 or less"
            ) from error
        raise UserError(f"cannot read {name}: {error}; is it damaged or cut short? pack or copy it again") from error


def spool(file: Path, reading: Reading) -> Path | None:
    """Copy a pipe or a terminal that the user named to a temporary file; None if the file can be read more than once.

    The copy goes when this process ends.

    Raises:
        UserError: it cannot be read, or has more bytes than `reading` allows.
    """
    if regular_files.is_regular(file):
        return None
    most = min(reading.limit, MOST_FROM_STREAMS) if reading.max_bytes is None else reading.limit
    descriptor, path = tempfile.mkstemp(prefix="ltm-", suffix=packing(file))
    atexit.register(Path(path).unlink, missing_ok=True)
    total = 0
    try:
        with regular_files.opened(file, streams=True) as source, open(descriptor, "wb") as copy:
            while piece := source.read(_PIECE):
                if (total := total + len(piece)) > most:
                    raise reading.too_much(name_of(file), most=most)
                copy.write(piece)
    except OSError as error:
        raise UserError(f"cannot keep what comes from {name_of(file)}: {error.strerror or error}") from error
    return Path(path)


def _limited(pieces: Iterable[bytes], packed: _Counted | None, reading: Reading, name: str) -> Iterator[bytes]:
    """Yield the pieces while they are within the limits.

    Those of a packed file are held back until there are `ALWAYS_ALLOWED` bytes of them, and compared with the bytes
    that they came from: what expands too much is refused before anything is made of it.
    """
    held: list[bytes] = []
    total = size = before = 0
    for piece in pieces:
        total += len(piece)
        if total > reading.limit:
            raise reading.too_much(name)
        if packed is None:
            yield piece
            continue
        held.append(piece)
        size += len(piece)
        if size > ALWAYS_ALLOWED:
            if size > (most := reading.allowed(packed.count - before)):
                raise reading.too_much(name, most=most)
            yield from held
            held, size, before = [], 0, packed.count
    yield from held


class _Counted(io.RawIOBase):
    """A file that counts the bytes read from it."""

    def __init__(self, file: IO[bytes]):
        self._file, self.count = file, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]):
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _plain(file: _Counted) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _xz(file: _Counted) -> Iterator[bytes]:
    # lzma.open would take as much memory as the file asks for.
    data = file.read(1 << 16)
    while data:
        stream = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        while not stream.eof:
            if stream.needs_input and not data and not (data := file.read(1 << 16)):
                raise EOFError("it ends before its end is marked")
            yield stream.decompress(data, _PIECE)
            data = b""
        # Another stream may follow; zeros are padding.
        data = stream.unused_data.lstrip(b"\0")
        while not data and (more := file.read(1 << 16)):
            data = more.lstrip(b"\0")


def _gz(file: _Counted) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as unpacked:
        while piece := unpacked.read(_PIECE):
            yield piece


def _zst(file: _Counted) -> Iterator[bytes]:
    import pyarrow

    with pyarrow.CompressedInputStream(file, "zstd") as unpacked:
        while piece := unpacked.read(_PIECE):
            yield piece


_UNPACK: Mapping[str, Callable[[_Counted], Iterator[bytes]]] = {"": _plain, ".xz": _xz, ".gz": _gz, ".zst": _zst}
