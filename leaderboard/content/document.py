"""What a board says, before it is Markdown, HTML or text on a terminal: parts with tables and figures."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ltm.config import digest

NOTHING = "–"
"""The text of a table cell that has no value."""

FAILED = "failed"
"""The verdict that is highlighted where there is colour."""

SLUG = 80
"""Most characters of a part of a file name; a file's name has up to three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A text in a table, and what a tooltip adds to it: kind, interval, draws, provenance."""

    text: str
    tip: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows with a text for each column of `header`. The first column holds names, the others numbers.

    Attributes:
        reported: rows of numbers that others measured; they stay in italics below `rows`, however those are sorted.
        words: indices of further columns that hold words.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str | Value, ...], ...]
    reported: tuple[tuple[str | Value, ...], ...] = ()
    words: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A mark in a figure. `faint` ones are drawn hollow, and labelled only where there is room."""

    x: float
    y: float
    label: str = ""
    tip: str = ""
    faint: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one colour, by default the series' own, perhaps joined by a line. A named series is in the legend."""

    name: str
    points: tuple[Point, ...]
    joined: bool = False
    dashed: bool = False
    colour: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A label, and ticks as (value, text); without `ticks` they are placed at round numbers or powers of ten."""

    label: str
    log: bool = False
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A plot. `name` is its file's, without suffix; `words` describe the plot to those who cannot see it."""

    name: str
    title: str
    words: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A question, the verdict of the results, the numbers behind it, and the command that shows the same, if any."""

    question: str
    verdict: str
    evidence: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A heading and what follows it, in this order: answers, text, figures, table.

    Attributes:
        level: 2 for a chapter, 3 for a subsection of the chapter before it.
        folded: True if the table is hidden until the reader opens it.
    """

    title: str
    level: int = 2
    text: tuple[str, ...] = ()
    answers: tuple[Answer, ...] = ()
    figures: tuple[Figure, ...] = ()
    table: Table | None = None
    folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All parts of a board, with the legend and a closing line.

    Attributes:
        short_legend: what the signs mean, in one line.
        legend: what the signs mean, in full, an item per sign; `code` and *emphasis* are marked like this.
    """

    parts: tuple[Part, ...]
    short_legend: str
    legend: tuple[str, ...]
    end: str


def slug(text: str) -> str:
    """Return the text as part of a file name: lower-case letters and digits, with dashes between; a digest if long."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
    return name if len(name) <= SLUG else f"{name[: SLUG - 9]}-{digest(text)[:8]}"
