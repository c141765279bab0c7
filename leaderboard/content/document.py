"""What a board says, before it is Markdown, HTML or text on a terminal: parts with tables and figures."""

from __future__ import annotations

import re
from dataclasses import dataclass

NOTHING = "–"
"""The text of a table cell that has no value."""

FAILED = "failed"
"""The verdict that stands out where there is colour."""


def printable(text: str) -> str:
    """The text on one line, with what no reader should meet (control characters, reversed writing) made visible."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A text in a table, with what can be said about it where there is room: its kind, interval, draws, provenance."""

    text: str
    tip: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns named by `header`, rows of as many texts. The first column holds names, the others numbers.

    Attributes:
        reported: rows of numbers that others measured; below the others, in italics, whatever these are sorted by.
        words: columns that hold words too, beside the first.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str | Value, ...], ...]
    reported: tuple[tuple[str | Value, ...], ...] = ()
    words: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A mark of a figure. `faint` ones are drawn hollow, and named only where there is room."""

    x: float
    y: float
    label: str = ""
    tip: str = ""
    faint: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one colour, its own unless given; `joined` by a line, perhaps `dashed`. A name is for the legend."""

    name: str
    points: tuple[Point, ...]
    joined: bool = False
    dashed: bool = False
    colour: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A label, and where the ticks are; without `ticks` they are found, at round numbers or powers of ten."""

    label: str
    log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A plot. `name` is that of its file; `words` say what is to be seen, for those who do not see it."""

    name: str
    title: str
    words: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A heading with what stands under it, in this order: text, figures, table.

    Attributes:
        level: 2 for a chapter, 3 for what belongs to the chapter before it.
        folded: whether the table is shown only when asked for.
    """

    title: str
    level: int = 2
    text: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    table: Table | None = None
    folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All parts of a board, with what explains them and the line that ends it.

    Attributes:
        short_legend: the signs in one line.
        legend: the signs in full, a line each; `code` and *emphasis* are marked.
    """

    parts: tuple[Part, ...]
    short_legend: str
    legend: tuple[str, ...]
    end: str


def slug(text: str) -> str:
    """The text as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
