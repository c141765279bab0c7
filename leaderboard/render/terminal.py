"""The board on a terminal, in at most `TERMINAL_WIDTH` columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leaderboard import labels
from leaderboard.board import Board
from leaderboard.content import audits, notation, task_results
from leaderboard.content.document import Table
from leaderboard.content.sections import brief_table, caption, remainder, title

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

TERMINAL_WIDTH = 100
_PLAIN = str.maketrans({"≤": "<=", "–": "-", "±": "+-", "·": "|"})


def print_board(board: Board, console: Console) -> None:
    """Print every task of the board in at most `TERMINAL_WIDTH` columns."""
    for section in board.sections:
        console.print(_text(title(section), console), style="bold")
        for column in section.columns:
            print_table(brief_table(section, column), caption(section, column), console)
    groups = (*board.others, *board.audits)
    for entries, name in zip(groups, labels.titles(groups), strict=True):
        console.print(_text(name, console), style="bold")
        brief = audits.brief_table if entries in board.audits else task_results.brief_table
        print_table(brief(entries), task_results.caption(entries), console)
    console.print(_text(notation.SHORT_LEGEND, console))
    console.print(_text(remainder(board), console))


def print_table(brief: Table, words: str, console: Console) -> None:
    """Print a table of few columns under some words."""
    from rich import box
    from rich import table as rich_table

    table = rich_table.Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=_text(words, console), title_justify="left"
    )
    for i, name in enumerate(brief.header):
        table.add_column(name, justify="right" if i else "left", overflow="fold", no_wrap=i > 0)
    for row in brief.rows:
        table.add_row(*(_text(str(value), console) for value in row))
    console.print(table)


def _text(words: str, console: Console) -> Text:
    from rich.text import Text

    # A terminal without ≤ would show something worse in its place.
    return Text(words if console.encoding.startswith("utf") else words.translate(_PLAIN))
