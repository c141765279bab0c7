"""Documents out of rows: JSON lines, CSV with a header, and parquet."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ltm.data.reading import Reading
from ltm.errors import UserError
from ltm.untrusted import json_text
from ltm.untrusted.display import bare, shown

MOST_BYTES = 256 << 20
"""The most bytes of a row."""
_LIMITS = json_text.Limits(bytes=MOST_BYTES, string=MOST_BYTES, values=1_000_000, controls=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns that make a document, joined by a newline when there are several.

    Attributes:
        choices: sets of columns, the first of which that a file has is taken.
        remedy: what the user can do if it has none.
    """

    choices: Sequence[tuple[str, ...]]
    remedy: str = ""

    def chosen(self, present: Collection[str], where: str) -> tuple[str, ...]:
        """Choose among the columns that are there. Raises UserError if there are none of these."""
        for names in self.choices:
            if all(name in present for name in names):
                if len(present) > len(set(present)):
                    raise UserError(f"{where}: expected each column once, found {', '.join(map(shown, present))}")
                return names
        found = ", ".join(shown(name, most=40) for name in list(present)[:20]) or "none"
        raise UserError(
            f"{where}: expected the field {' and '.join(map(repr, self.choices[0]))}, found {found}{self.remedy}"
        )


def of_json_lines(lines: Iterable[tuple[int, str]], columns: Columns, name: str) -> Iterator[str]:
    """Yield the document of each numbered line that is not blank.

    Raises:
        UserError: a line is no JSON object with text in these columns; names the line.
    """
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json_text.table(json_text.parse(line, where=where, limits=_LIMITS), where=where)
        except UserError as error:
            if number == 1 and (line.startswith("[") or line.strip() == "{"):
                raise UserError(f"{error}; a row is an object on a line, as jq -c '.[]' writes them") from None
            raise
        yield document_of(row, columns.chosen(row, where), where)


def of_csv(lines: Iterable[tuple[int, str]], columns: Columns, name: str, *, delimiter: str) -> Iterator[str]:
    """Yield the document of each row below the header.

    Raises:
        UserError: a row has another number of fields than the header, or quotes that do not match; names the line.
    """
    before = csv.field_size_limit(MOST_BYTES)
    rows = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        names = columns.chosen(header, f"{name}, line 1")
        for row in rows:
            where = f"{name}, line {rows.line_num}"
            if row and len(row) != len(header):
                raise UserError(f"{where}: expected {len(header)} fields, as in the header, found {len(row)}")
            if row:
                yield document_of(dict(zip(header, row, strict=True)), names, where)
    except csv.Error as error:
        raise UserError(f"{name}, line {rows.line_num}: {error}; expected CSV as RFC 4180 has it") from error
    finally:
        csv.field_size_limit(before)


def of_parquet(
    file: IO[bytes] | Path, columns: Columns, name: str, *, within: tuple[Reading, int] | None
) -> Iterator[str]:
    """Yield the documents of a parquet file, which is read a few rows at a time.

    Args:
        within: the limits on its text, and the size of the file in bytes; None for no limit.

    Raises:
        UserError: it is damaged, lacks the columns, has a row without text, or more text than the limits allow.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = total = 0
    try:
        with ParquetFile(file) as opened:
            names = columns.chosen(opened.schema_arrow.names, name)
            if within is not None:
                # Before anything is read: values that are all alike take next to no place in the file.
                parts = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
                chunks = (part.column(i) for part in parts for i in range(part.num_columns))
                sizes = [chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names]
                if max(opened.metadata.num_rows, sum(sizes)) > (most := within[0].allowed(within[1])):
                    raise within[0].too_much(name, most=most)
            # Rows may be huge.
            for batch in opened.iter_batches(batch_size=64, columns=list(names)):
                for row in batch.to_pylist():
                    number += 1
                    document = document_of(row, names, f"{name}, row {number}")
                    total += len(document)
                    if within is not None and total > (most := within[0].allowed(within[1])):
                        raise within[0].too_much(name, most=most)
                    yield document
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"cannot read {name}: {bare(str(error))}; is it damaged? copy it again") from error


def in_parquet(files: Iterable[Path]) -> int:
    """Return the number of rows of parquet files, of which only the ends are read. Raises UserError: one is damaged."""
    import pyarrow
    from pyarrow.parquet import read_metadata

    total = 0
    for file in files:
        try:
            total += read_metadata(file).num_rows
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UserError(f"cannot read {file}: {bare(str(error))}; is it damaged? copy it again") from error
    return total


def document_of(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """Return the document of a row. Raises UserError: a column of it is no text."""
    for name in names:
        if not isinstance(row[name], str):
            raise UserError(f"{where}: field {name!r} must be text, found {type(row[name]).__name__}")
    return "\n".join(row[name] for name in names)
