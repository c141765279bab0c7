"""Corpora in local files: `<directory>/<corpus>/<split>.{txt,jsonl}`, plain or compressed as .xz, .gz or .zst."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from ltm.data.corpus_table import KnownCorpus
from ltm.data.split import Unit
from ltm.errors import UserError

_KINDS = (".txt", ".jsonl")
_PACKINGS = (".xz", ".gz", ".zst")


def find(directory: Path, corpus: str, split: str) -> Path | None:
    """Find the file of a split, or None.

    Raises:
        UserError: several files match.
    """
    files = _files(directory / corpus).get(split, [])
    if len(files) > 1:
        names = " and ".join(sorted(file.name for file in files))
        raise UserError(f"{directory / corpus} has {names}; keep one file for the split {split!r}")
    return files[0] if files else None


def corpora(directory: Path) -> dict[str, list[str]]:
    """Every corpus of a directory with its splits, by name."""
    folders = {path.name: sorted(_files(path)) for path in sorted(directory.iterdir()) if path.is_dir()}
    return {corpus: splits for corpus, splits in folders.items() if splits}


def names(split: str) -> str:
    """The file names that a split may have, for messages."""
    return f"{split}.txt or {split}.jsonl (also .xz, .gz, .zst)"


def stem(file: Path) -> str:
    """The name of a text file without extensions; characters but letters, digits, `.`, `_` and `-` become `-`.

    Raises:
        UserError: there is no such file, or it is of another kind than `read` knows.
    """
    if not file.is_file():
        raise UserError(f"{file}: {'a directory, not a file' if file.is_dir() else 'no such file'}")
    name, kind = os.path.splitext(file.name.removesuffix(_packing(file)))
    if kind not in _KINDS:
        raise UserError(f"{file}: expected the name of a text file, {names('NAME')}; rename it")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def _files(directory: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in directory.iterdir() if directory.is_dir() else ():
        split, kind = os.path.splitext(path.name.removesuffix(_packing(path)))
        if split and kind in _KINDS and path.is_file():
            files.setdefault(split, []).append(path)
    return files


def _packing(file: Path) -> str:
    return file.suffix if file.suffix in _PACKINGS else ""


def read(file: Path, known: KnownCorpus) -> tuple[list[str], Unit]:
    """Read documents and their unit: the lines of a .txt file, each with its line end, or the rows of a .jsonl file.

    A row has the fields of its corpus, or else `text`.

    Raises:
        UserError: a damaged archive, bytes that are not UTF-8, a row that is not an object with the expected fields.
    """
    if file.name.removesuffix(_packing(file)).endswith(".txt"):
        return list(_lines(file)), "line"
    rows = (
        _row(line, known.fields, f"{file}, line {number}")
        for number, line in enumerate(_lines(file), start=1)
        if line.strip()
    )
    return [known.as_in_file(row) for row in rows], known.unit


def _row(line: str, fields: Sequence[str], where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with the field {fields[0]!r}, found {type(row).__name__}")
    if not all(name in row for name in fields):
        if "text" not in row:
            raise UserError(f"{where}: expected the field {' and '.join(map(repr, fields))}, found {_quoted(row)}")
        fields = ("text",)
    values = [row[name] for name in fields]
    for name, value in zip(fields, values, strict=True):
        if not isinstance(value, str):
            raise UserError(f"{where}: field {name!r} must be text, found {type(value).__name__}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{where}: field {name!r} has half a surrogate pair at character {error.start}") from error
    return "\n".join(values)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _lines(file: Path) -> Iterator[str]:
    """Lines with their ends; only a line feed ends one, while str.splitlines would also cut at form feeds."""
    offset = 0
    try:
        with _open(file) as data:
            for line in data:
                yield line.decode("utf-8")
                offset += len(line)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: byte {offset + error.start} (0x{error.object[error.start]:02x}) is not UTF-8: {error.reason}; "
            "convert the file"
        ) from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"cannot read {file}: {error}; is it damaged or cut short? pack or copy it again") from error


def _open(file: Path) -> IO[bytes] | gzip.GzipFile:
    if file.suffix == ".xz":
        return lzma.open(file)
    if file.suffix == ".gz":
        return gzip.open(file)
    if file.suffix == ".zst":
        return io.BytesIO(_unpack_zstd(file.read_bytes(), file))
    return open(file, "rb")


def _unpack_zstd(data: bytes, file: Path) -> bytes:
    try:
        from compression import zstd  # type: ignore[import-not-found]  # in Python 3.14 and later
    except ImportError:
        pass
    else:
        try:
            return zstd.decompress(data)
        except zstd.ZstdError as error:
            raise EOFError(error) from error
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            f"{file}: reading .zst needs Python 3.14 or the package zstandard; pip install zstandard, or pack as .xz"
        ) from error
    parts = []
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(frame.decompress(data))
        except zstandard.ZstdError as error:
            raise EOFError(error) from error
        if not frame.eof:
            raise EOFError("the last frame is incomplete")
        data = frame.unused_data
    return b"".join(parts)
