"""The board as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from leaderboard.content.document import NOTHING, Answer, Figure, Page, Table, Value
from ltm.untrusted.display import one_line


def markdown(page: Page, *, plots: str) -> str:
    """Return the page as Markdown; it shows figure NAME from the file NAME.svg in the folder `plots`."""
    lines = ["# Leaderboard", "", escape(page.short_legend), ""]
    lines += folded("How to read the signs, in full", [f"- {line}" for line in page.legend])
    for part in page.parts:
        lines += ["", f"{'#' * part.level} {escape(part.title)}"]
        lines += answer_lines(part.answers)
        lines += [line for text in part.text for line in ("", escape(text))]
        lines += [line for figure in part.figures for line in ("", image(figure, plots))]
        if part.table is not None:
            table = markdown_table(part.table)
            lines += ["", *(folded("Show", table) if part.folded else table)]
    lines += ["", "Made by `ltm-leaderboard build` from result files; do not edit it by hand.", ""]
    return "\n".join([*lines, escape(page.end), ""])


def folded(summary: str, lines: Iterable[str]) -> list[str]:
    """Return lines that are hidden until the reader opens them, under a summary."""
    return [f"<details><summary>{summary}</summary>", "", *lines, "", "</details>"]


def answer_lines(answers: Sequence[Answer]) -> list[str]:
    """Return an item for each answer, after a blank line; nothing if there are none."""
    # In tags, since a name may have a backtick.
    items = [
        " ".join(filter(None, ("-", escape(each.question), f"**{escape(each.verdict)}.**", escape(each.evidence))))
        + (f" <code>{escape(each.command)}</code>" if each.command else "")
        for each in answers
    ]
    return ["", *items] if items else []


def markdown_table(table: Table) -> list[str]:
    """Return the lines of a table: words left-aligned, numbers right-aligned, reported rows in italics."""
    rule = ["---" if i == 0 or i in table.words else "---:" for i in range(len(table.header))]
    rows = [_escaped(row) for row in (table.header, *table.rows)]
    # Dashes are not set in italics.
    italics = [tuple(c if c == NOTHING else f"*{c}*" for c in _escaped(row)) for row in table.reported]
    return ["| " + " | ".join(cells) + " |" for cells in (rows[0], rule, *rows[1:], *italics)]


def _escaped(row: Iterable[str | Value]) -> tuple[str, ...]:
    return tuple(escape(str(value)) for value in row)


def image(figure: Figure, plots: str) -> str:
    """Return the line that shows a figure, described in words, from its file in the folder `plots`."""
    words = re.sub(r"[\[\]]", "", f"{figure.title}. {figure.words}")
    return f"![{escape(words)}]({plots}/{figure.name}.svg)"


def escape(text: str) -> str:
    """Escape text for Markdown and HTML, on one line; intervals and names such as `ltm_ptb` stay readable."""
    line = html.escape(one_line(text), quote=False)
    return re.sub(r"[\\`*|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|~(?! )|\](?=[(\[])", r"\\\g<0>", line)
