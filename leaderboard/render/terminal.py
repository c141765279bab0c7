"""Parts of a board as text on a terminal, at most `TERMINAL_WIDTH` columns wide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from leaderboard.content.document import Part, Table
from ltm.untrusted.display import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

TERMINAL_WIDTH = 100
_PLAIN = str.maketrans({"≤": "<=", "≥": ">=", "–": "-", "−": "-", "±": "+-", "·": "|"})


def open_console() -> Console:
    """Return a console on stdout, `TERMINAL_WIDTH` wide or as wide as the terminal if that is narrower."""
    from rich.console import Console

    # Names are text, though they may look like markup.
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
    console.width = min(TERMINAL_WIDTH, console.width) if console.is_terminal else TERMINAL_WIDTH
    return console


def print_parts(parts: Sequence[Part], console: Console) -> None:
    """Print titles, texts, answers and tables, a table under its part's title; figures are left out."""
    for part in parts:
        if part.table is not None:
            print_table(part.table, part.title, console)
        elif part.title:
            console.print(_text(part.title, console), style="bold")
        for each in part.answers:
            console.print(_text(f"{each.question} {each.verdict}. {each.evidence}".lstrip(), console))
        for text in part.text:
            console.print(_text(text, console))


def print_table(table: Table, title: str, console: Console) -> None:
    """Print a table under its title; the first column and those of words wrap."""
    from rich import box
    from rich import table as rich_table

    printed = rich_table.Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=_text(title, console), title_justify="left"
    )
    for i, name in enumerate(table.header):
        words = i == 0 or i in table.words
        printed.add_column(
            _text(name, console), justify="left" if words else "right", overflow="fold", no_wrap=not words
        )
    for row in table.rows:
        printed.add_row(*(_text(str(value), console) for value in row))
    console.print(printed)


def _text(text: str, console: Console) -> Text:
    from rich.text import Text

    text = printable(text)
    # A terminal that cannot show ≤ would show something worse in its place.
    return Text(text if console.encoding.startswith("utf") else text.translate(_PLAIN))
