"""Corpora in local files: `<directory>/<corpus>/<split>.{txt,jsonl,...}`, plain or packed as .xz, .gz or .zst."""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltm.data import rows
from ltm.data.corpus_table import KnownCorpus
from ltm.data.reading import AS_IT_IS, Reading
from ltm.data.split import Unit
from ltm.data.unpacked import name_of, opened, packing
from ltm.errors import UserError
from ltm.progress import say
from ltm.untrusted import regular_files

_KINDS = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_LONGEST_LABEL = 100
_MARKS = (
    *((mark, "UTF-32") for mark in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)),
    *((mark, "UTF-16") for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)),
)
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


def find(directory: Path, corpus: str, split: str) -> Path | None:
    """Find the file of a split, or None.

    Raises:
        UserError: several files match, or the directory cannot be read.
    """
    try:
        files = _files(directory / corpus).get(split, [])
    except OSError as error:
        raise UserError(f"cannot read the directory {directory / corpus}: {error.strerror or error}") from error
    if len(files) > 1:
        names = " and ".join(sorted(file.name for file in files))
        raise UserError(f"{directory / corpus} has {names}; keep one file for the split {split!r}")
    return files[0] if files else None


def corpora(directory: Path) -> dict[str, list[str]]:
    """Every corpus of a directory with its splits, by name."""
    found: dict[str, list[str]] = {}
    for path in sorted(directory.iterdir()):
        # A folder that is not for us, such as lost+found.
        with contextlib.suppress(OSError):
            found[path.name] = sorted(_files(path))
    return {corpus: splits for corpus, splits in found.items() if splits}


def names(split: str) -> str:
    """The file names that a split may have, for messages."""
    return f"{split}.txt or {split}.jsonl (or .json, .csv, .tsv, .parquet; packed or not)"


def label(file: Path) -> str:
    """Name a text after its file: letters, digits, `.`, `_` and `-` of the file's name without known extensions.

    All else becomes `-`. If that loses characters beyond ASCII, or the name is very long, a digest of it follows, so
    that two such files do not get one label.

    Raises:
        UserError: there is no such file.
    """
    try:
        if file.is_dir():
            raise UserError(f"{name_of(file)}: a directory, not a file")
        file.stat()
    except FileNotFoundError:
        raise UserError(f"{name_of(file)}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {name_of(file)}: {getattr(error, 'strerror', None) or error}") from None
    name = f"fd-{file.name}" if str(file.parent) in ("/dev/fd", "/proc/self/fd") else file.name
    unpacked = name.removesuffix(packing(file))
    stem, kind = os.path.splitext(unpacked)
    given = unicodedata.normalize("NFC", stem if kind.lower() in _KINDS else unpacked)
    kept = "".join(c if c.isalnum() or c in "._-" or unicodedata.category(c)[0] == "M" else " " for c in given)
    lost = any(was > "\x7f" and now == " " for was, now in zip(given, kept, strict=True))
    short = re.sub(" +", "-", kept)
    if lost or len(short.encode()) > _LONGEST_LABEL:
        digest = hashlib.sha256(given.encode(errors="surrogateescape")).hexdigest()[:8]
        short = f"{short.encode()[:_LONGEST_LABEL].decode(errors='ignore')}-{digest}"
    return short


def _files(directory: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in directory.iterdir() if directory.is_dir() else ():
        split, kind = os.path.splitext(path.name.removesuffix(packing(path)))
        # What is no file is refused when it is opened: it would be a mystery why it is not found.
        if split and kind.lower() in _KINDS:
            files.setdefault(split, []).append(path)
    return files


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What a file holds.

    Attributes:
        documents: in order.
        unit: what a document is.
        source: options that changed what was read, for the `source` of a split.
    """

    documents: list[str]
    unit: Unit
    source: dict[str, Any]


def read(file: Path, known: KnownCorpus, reading: Reading = AS_IT_IS, *, named: bool = False) -> Texts:
    """Read documents: the lines of a text file, each with its line end, or the rows of a file of rows.

    Rows have the columns of their corpus, or else `text`; or the one that `reading` names. Files with other suffixes
    than those of rows are text. Corpora with a detokeniser are read with universal newlines, since its rules know LF
    alone.

    Args:
        named: the user named this very path, so it may be a pipe.

    Raises:
        UserError: a damaged or endless file, one that is not UTF-8, a row that is not an object with the expected
            fields.
    """
    kind = os.path.splitext(file.name.removesuffix(packing(file)))[1].lower()
    has_rows = kind in _KINDS and kind != ".txt"
    documents = _documents(file, kind if has_rows else ".txt", _columns(known, reading), reading, named)
    source: dict[str, Any] = {}
    if has_rows and reading.text_column is not None:
        source["text_column"] = reading.text_column
    if returns := sum("\r" in document for document in documents):
        if reading.newlines == "universal" or known.detokenizer is not None:
            source["newlines"] = "universal"
            documents = [document.replace("\r\n", "\n").replace("\r", "\n") for document in documents]
            if not has_rows:
                documents = [line for document in documents for line in _LINE.findall(document)]
        else:
            _say_once(
                f"{name_of(file)}: warning: {returns:,} of {len(documents):,} documents have carriage returns (CRLF or "
                "CR), which are scored as text; --newlines universal reads them as line feeds"
            )
    if has_rows:
        documents = [known.as_in_file(document) for document in documents]
    return Texts(documents=documents, unit=known.unit if has_rows else "line", source=source)


def _columns(known: KnownCorpus, reading: Reading) -> rows.Columns:
    if reading.text_column is not None:
        return rows.Columns(choices=((reading.text_column,),))
    remedy = "; to read another: --text-column NAME" if known == KnownCorpus() else ""
    return rows.Columns(choices=tuple(dict.fromkeys((known.fields, ("text",)))), remedy=remedy)


def _documents(file: Path, kind: str, columns: rows.Columns, reading: Reading, named: bool) -> list[str]:
    name = name_of(file)
    if kind == ".parquet":
        if packing(file):
            raise UserError(f"{name}: parquet is packed inside; expected {file.name.removesuffix(packing(file))}")
        with regular_files.opened(file, most=reading.limit) as plain:
            return rows.of_parquet(plain, columns, name, within=(reading, os.fstat(plain.fileno()).st_size))
    with opened(file, reading, named=named) as stream:
        if kind == ".txt":
            return [text for _, text in _lines(stream, name)]
        lines = _rows(_lines(stream, name, most=rows.MOST_BYTES))
        if kind in (".csv", ".tsv"):
            return list(rows.of_csv(lines, columns, name, delimiter="," if kind == ".csv" else "\t"))
        return list(rows.of_json_lines(lines, columns, name))


@functools.cache
def _say_once(text: str) -> None:
    say(text)


def _lines(stream: io.BufferedReader, name: str, *, most: int | None = None) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends; only a line feed ends one. One of more than `most` bytes is an error."""
    offset = _start(stream, name)
    size = -1 if most is None else most + 1
    for number, line in enumerate(iter(functools.partial(stream.readline, size), b""), start=1):
        if most is not None and len(line) > most:
            raise UserError(f"{name}, line {number}: expected at most {most:,} bytes in a row, found more")
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}: byte {offset + error.start} (0x{line[error.start]:02x}) is not UTF-8: {error.reason}; "
                "convert the file, as in iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
            ) from error
        offset += len(line)


def _rows(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Cut lines at carriage returns too, which are no text between rows."""
    number = 0
    for _, line in lines:
        for part in io.StringIO(line, newline="") if "\r" in line else (line,):
            number += 1
            yield number, part


def _start(stream: io.BufferedReader, name: str) -> int:
    """Skip a byte order mark, and return its length; refuse what is not UTF-8 by its first bytes."""
    head = stream.peek(1024)[:1024]
    if head.startswith(codecs.BOM_UTF8):
        _say_once(f"{name}: its byte order mark is no text, and is left out")
        return len(stream.read(len(codecs.BOM_UTF8)))
    for mark, coding in _MARKS:
        if head.startswith(mark):
            raise UserError(
                f"{name}: expected UTF-8, found {coding}; convert it: iconv -f {coding} -t UTF-8 FILE > NEW"
            )
    if head.count(0) * 4 > len(head):
        coding = "UTF-16BE" if head[::2].count(0) > head[1::2].count(0) else "UTF-16LE"
        raise UserError(
            f"{name}: expected UTF-8, found zeros, as in {coding} or in what is no text; to convert the former: "
            f"iconv -f {coding} -t UTF-8 FILE > NEW"
        )
    return 0
