"""Corpora in local files: `<directory>/<corpus>/<split>.{txt,jsonl,...}`, plain or packed as .xz, .gz or .zst.

A split of many files is a directory of its own, `<directory>/<corpus>/<split>/`, with files of one kind.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import io
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltm.data import rows, tally
from ltm.data.corpus_table import KnownCorpus
from ltm.data.detokenize import detokenizer as detokenizer_named
from ltm.data.documents import Documents, chained
from ltm.data.reading import AS_IT_IS, Reading
from ltm.data.split import Unit
from ltm.data.tally import Tally
from ltm.data.unpacked import name_of, opened, packing, spool
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
        if path.name == "tokenizers":  # which `ltm.tokenizer` reads
            continue
        # A folder that is not for us, such as lost+found.
        with contextlib.suppress(OSError):
            found[path.name] = sorted(_files(path))
    return {corpus: splits for corpus, splits in found.items() if splits}


def names(split: str) -> str:
    """The file names that a split may have, for messages."""
    return f"{split}.txt or {split}.jsonl (or .json, .csv, .tsv, .parquet; packed or not; or many in {split}/)"


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
        elif not kind and path.is_dir() and any(_kind(file) in _KINDS for file in path.iterdir()):
            files.setdefault(path.name, []).append(path)
    return files


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What files hold, read anew for each pass.

    Attributes:
        rows: the rows or lines as they are in the files.
        made: gives the documents of a row.
        settings: plain data that says how `rows` and `made` come from the files.
        unit: what a document is.
        source: options that changed what is read, for the `source` of a split.
        files: where to find the files, in messages.
    """

    rows: Documents
    made: Callable[[str], Iterable[str]]
    settings: Mapping[str, Any]
    unit: Unit
    source: Mapping[str, Any]
    files: Sequence[Path]

    def counted(self, detokenizer: str | None) -> tuple[Documents, Tally, dict[str, Any]]:
        """Return the documents, what is to be known of them, and the source; the text is read once, or not at all."""
        title = f"reading {self.files[0].name}{' and others' if len(self.files) > 1 else ''}"

        def count() -> Tally:
            return tally.counted(tally.said(self.rows, title), detokenizer=detokenizer, made=self.made)

        version = detokenizer and detokenizer_named(detokenizer).version
        settings = {**self.settings, "detokenizer": [detokenizer, version]}
        found = tally.of_files(self.files, self.rows.stamps, settings, count)
        source = dict(self.source)
        if found.with_returns and self.settings["newlines"] == "universal":
            source["newlines"] = "universal"
        elif found.with_returns:
            _say_once(
                f"{name_of(self.files[0])}: warning: {found.with_returns:,} of {found.rows:,} documents have carriage "
                "returns (CRLF or CR), which are scored as text; --newlines universal reads them as line feeds"
            )
        documents = Documents(lambda: itertools.chain.from_iterable(map(self.made, self.rows)), of=[self.rows])
        return documents.counted(found.documents), found, source


def read(place: Path, known: KnownCorpus, reading: Reading = AS_IT_IS, *, named: bool = False) -> Texts:
    """Find out how to read documents: the lines of a text file, each with its line end, or the rows of a file of rows.

    Rows have the columns of their corpus, or else `text`; or the one that `reading` names. Files with other suffixes
    than those of rows are text. Corpora with a detokeniser are read with universal newlines, since its rules know LF
    alone.

    Args:
        place: a file, or a directory of shards, which are read in the order of their names.
        named: the user named this very path, so it may be a pipe; what comes out of it is kept in a temporary file.

    Raises:
        UserError: there is no such file. Reading the documents raises it for a damaged or endless file, one that is not
            UTF-8, a row that is not an object with the expected fields.
    """
    files = _shards(place) if place.is_dir() and not _kind(place) else [place]
    kind = _kind(files[0])
    has_rows = kind in _KINDS and kind != ".txt"
    universal = reading.newlines == "universal" or known.detokenizer is not None
    columns = _columns(known, reading)
    parts = [_rows_of(file, kind if has_rows else ".txt", columns, reading, named) for file in files]

    def made(row: str) -> Iterable[str]:
        if universal and "\r" in row:
            row = row.replace("\r\n", "\n").replace("\r", "\n")
            if not has_rows:
                return _LINE.findall(row)
        return (known.as_in_file(row) if has_rows else row,)

    return Texts(
        rows=chained(parts) if len(parts) > 1 else parts[0],
        made=made,
        settings={
            "kind": kind if has_rows else ".txt",
            "columns": [list(names) for names in columns.choices],
            "newlines": "universal" if universal else "kept",
            "as_in_file": known.as_in_file.__name__,
        },
        unit=known.unit if has_rows else "line",
        source={"text_column": reading.text_column} if has_rows and reading.text_column is not None else {},
        files=files,
    )


def of_snapshot(files: Sequence[Path], known: KnownCorpus, part: tuple[int | None, int | None] | None) -> Texts:
    """Find out how to read the parquet files of a hub's data set, or the rows `part` of them."""
    columns = rows.Columns(choices=(known.fields,))

    def of_file(file: Path) -> Documents:
        return Documents(lambda: rows.of_parquet(file, columns, str(file), within=None), files=[file])

    whole = chained(map(of_file, files))
    return Texts(
        rows=whole if part is None else whole.counted(rows.in_parquet(files))[slice(*part)],
        made=lambda row: (known.as_in_file(row),),
        settings={
            "kind": "snapshot",
            "columns": [list(known.fields)],
            "newlines": "kept",
            "as_in_file": known.as_in_file.__name__,
            "rows": part,
        },
        unit=known.unit,
        source={},
        files=files,
    )


def _kind(file: Path) -> str:
    """The suffix that says what a file holds; empty if it has none."""
    return os.path.splitext(file.name.removesuffix(packing(file)))[1].lower()


def _shards(directory: Path) -> list[Path]:
    """The files of a split in a directory of its own, in order.

    Raises:
        UserError: there are none, they are not all of one kind, or some of those numbered `-of-N` are missing.
    """
    files = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    kinds = sorted({_kind(file) for file in files})
    if len(kinds) != 1 or kinds[0] not in _KINDS:
        found = ", ".join(kind or "no suffix" for kind in kinds) or "nothing"
        raise UserError(f"{name_of(directory)}: expected files of one kind ({', '.join(_KINDS)}), found {found}")
    numbered = re.search(r"-of-(\d{1,9})\.", files[0].name)
    if numbered and len(files) != int(numbered[1]):
        raise UserError(f"{name_of(directory)}: expected {int(numbered[1])} files, found {len(files)}; copy the others")
    return files


def _columns(known: KnownCorpus, reading: Reading) -> rows.Columns:
    if reading.text_column is not None:
        return rows.Columns(choices=((reading.text_column,),))
    remedy = "; to read another: --text-column NAME" if known == KnownCorpus() else ""
    return rows.Columns(choices=tuple(dict.fromkeys((known.fields, ("text",)))), remedy=remedy)


def _rows_of(file: Path, kind: str, columns: rows.Columns, reading: Reading, named: bool) -> Documents:
    name = name_of(file)
    if kind == ".parquet" and packing(file):
        raise UserError(f"{name}: parquet is packed inside; expected {file.name.removesuffix(packing(file))}")
    spooled = spool(file, reading) if named else None
    at = file if spooled is None else spooled

    def of_parquet() -> Iterator[str]:
        with regular_files.opened(at, most=reading.limit) as plain:
            yield from rows.of_parquet(plain, columns, name, within=(reading, os.fstat(plain.fileno()).st_size))

    def of_lines() -> Iterator[str]:
        with opened(file, reading, at=at) as stream:
            if kind == ".txt":
                yield from (text for _, text in _lines(stream, name))
                return
            lines = _rows(_lines(stream, name, most=rows.MOST_BYTES))
            if kind in (".csv", ".tsv"):
                yield from rows.of_csv(lines, columns, name, delimiter="," if kind == ".csv" else "\t")
            else:
                yield from rows.of_json_lines(lines, columns, name)

    if not regular_files.is_regular(at):
        with regular_files.opened(at):  # which says what it is
            pass
    return Documents(of_parquet if kind == ".parquet" else of_lines, files=[at])


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
