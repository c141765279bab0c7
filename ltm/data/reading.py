"""How text files are read: how much of them, what ends a line, and which column of a table is the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from argparse import ArgumentParser

NEWLINES = ("kept", "universal")
MOST_BYTES = 1 << 40
"""The most bytes of text in a file, unless the user says otherwise."""
MOST_FROM_STREAMS = 4 << 30
"""The most bytes from a pipe, which may have no end."""
ALWAYS_ALLOWED = 64 << 20
"""Bytes that any packed file may expand to."""
MOST_EXPANSION = 200
"""Beyond those, bytes of text for each packed byte. Prose has under 10, logs under 100, a file of zeros 7,000."""
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The options with which text files are read.

    Attributes:
        max_bytes: the most bytes of text in one file, unpacked, such as `500M`; None for `MOST_BYTES`, and for packed
            files no more than they can honestly hold.
        newlines: `kept`: CR and CRLF are characters of the text; `universal`: they are read as LF.
        text_column: the field or column that holds the text, in files of rows other than those of known corpora; None
            for `text`.

    Raises:
        UserError: a value is not one of these; names the option.
    """

    max_bytes: int | str | None = None
    newlines: str = "kept"
    text_column: str | None = None

    def __post_init__(self) -> None:
        if self.newlines not in NEWLINES:
            raise did_you_mean("value of --newlines", str(self.newlines), NEWLINES)
        if self.limit < 1:
            raise UserError("--max-bytes: expected at least 1 byte, found 0")

    @classmethod
    def among(cls, settings: Mapping[str, Any]) -> Reading:
        """Take the options of reading out of settings that may have others too."""
        return cls(**{field.name: settings[field.name] for field in fields(cls) if field.name in settings})

    @property
    def limit(self) -> int:
        """The most bytes of text in one file."""
        if self.max_bytes is None:
            return MOST_BYTES
        amount = re.fullmatch(r"(\d{1,20})([kmgt]?)", str(self.max_bytes), re.IGNORECASE)
        if amount is None:
            raise UserError(f"--max-bytes: expected bytes as 2000000, 500M or 8G, found {str(self.max_bytes)[:40]!r}")
        return int(amount[1]) * _SCALE[amount[2].lower()]

    def allowed(self, packed: int) -> int:
        """The most bytes of text in a packed file of that size."""
        if self.max_bytes is not None:
            return self.limit
        return min(self.limit, max(ALWAYS_ALLOWED, MOST_EXPANSION * packed))

    def too_much(self, name: str, *, most: int | None = None) -> UserError:
        """Make the error for a file with more text than is read."""
        return UserError(
            f"{name}: expected at most {self.limit if most is None else most:,} bytes of text, found more; if that is "
            "right, say how much to read with --max-bytes, as in --max-bytes 8G"
        )


AS_IT_IS = Reading()
"""Nothing changed, within the usual limits."""


def add_reading_options(parser: ArgumentParser) -> None:
    """Add the options of `Reading` to a command line."""
    group = parser.add_argument_group("text files")
    group.add_argument(
        "--max-bytes",
        metavar="N",
        help="the most text to read from one file, unpacked, such as 500M; default: 1 TiB; from pipes 4 GiB, and "
        f"from packed files no more than {MOST_EXPANSION} times their size",
    )
    group.add_argument(
        "--newlines",
        default="kept",
        metavar="HOW",
        help="kept (default): carriage returns are text; universal: CRLF and CR are read as LF",
    )
    group.add_argument(
        "--text-column",
        metavar="NAME",
        help="the column with the text, in .csv, .tsv, .parquet and .jsonl files of yours; default: text",
    )
