"""The board's files: made, written, and checked against what lies there."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ltm.errors import UserError

if TYPE_CHECKING:
    from leaderboard.board import Board
    from leaderboard.entries import Entry

BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"
"""The marks in a page between which its block stands."""

WRONG = 1
"""The exit code of a check that found something."""

SHOWN_LINES, SHOWN_PROBLEMS = 40, 40
"""How much of a difference, and how many problems, are printed."""


def markdown_block(board: Board) -> str:
    """The overview of each section, to stand inside another page."""
    from leaderboard.content.sections import overview, title
    from leaderboard.render.markdown import escape, markdown_table

    parts = []
    for section in board.sections:
        parts += [f"**{escape(title(section))}**", "", *markdown_table(overview(section)), ""]
    return "\n".join(parts)


def files(board: Board, out: Path) -> Mapping[Path, bytes]:
    """What stands where: the Markdown at `out`, and beside it the page, the table of numbers, and a folder of plots."""
    from leaderboard.content import page
    from leaderboard.content.sections import remainder
    from leaderboard.csv_export import csv_table
    from leaderboard.render.html_page import html_page
    from leaderboard.render.markdown import markdown
    from leaderboard.render.svg import svg

    found, end = page.parts(board), remainder(board)
    plots = plots_folder(out)
    pages = {
        out: markdown(found, end, plots=plots.name),
        out.with_name(f"{out.stem.lower()}.html"): html_page(found, end),
        out.with_name(f"{out.stem.lower()}.csv"): csv_table(board),
        **{plots / f"{figure.name}.svg": svg(figure) for part in found for figure in part.figures},
    }
    return {path: text.encode() for path, text in pages.items()}


def plots_folder(out: Path) -> Path:
    """Where the plots of a board go."""
    return out.with_name(f"{out.stem.lower()}_plots")


def files_of(built: Board, arguments: argparse.Namespace) -> dict[Path, bytes]:
    """By path, what each file of the board should contain."""
    found = dict(files(built, arguments.out))
    if arguments.readme is not None:
        old = _read(arguments.readme)
        if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
            raise UserError(
                f"{arguments.readme}: expected one line {BEGIN} and after it one line {END}; put them where the table "
                "belongs"
            )
        head, tail = old[: old.index(BEGIN) + len(BEGIN)], old[old.index(END) :]
        found[arguments.readme] = f"{head}\n{markdown_block(built)}{tail}".encode()
    return found


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _left_over(files: Mapping[Path, bytes], out: Path) -> list[Path]:
    """Plots of an earlier build that this board has no more; files of others in that folder are left alone."""
    from leaderboard.render.svg import MADE_BY

    plots = sorted(plots_folder(out).glob("*.svg"))
    return [path for path in plots if path not in files and MADE_BY in path.read_text(errors="replace")]


def write(files: Mapping[Path, bytes], entries: Sequence[Entry], arguments: argparse.Namespace) -> int:
    from leaderboard import manifest
    from ltm.files import write_atomically

    listed, now = manifest.read(arguments.results), manifest.of(entries)
    changelog = _read(arguments.changelog) if arguments.changelog.exists() else ""
    files = {**files, arguments.results / manifest.NAME: manifest.content(listed, now, changelog)}
    for path, content in files.items():
        same = path.exists() and path.read_bytes() == content
        if not same:
            write_atomically(path, content)
        print(f"{'unchanged:' if same else 'wrote'} {path}")
    for path in _left_over(files, arguments.out):
        path.unlink()
        print(f"removed {path}")
    for problem in manifest.gone(listed, now, changelog).values():
        print(f"note: {problem}; ltm-leaderboard check will fail", file=sys.stderr)
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Everything that is wrong, not only the first."""
    from leaderboard import manifest
    from leaderboard.board import board
    from leaderboard.entries import load
    from leaderboard.verify import verify

    entries, problems = verify(arguments.results)
    if not problems:
        built = board(entries or load(arguments.results))
        files = files_of(built, arguments)
        for path, content in files.items():
            problems += _stale(path, content)
        problems += [f"{path} is of no board any more" for path in _left_over(files, arguments.out)]
        listed, now = manifest.read(arguments.results), manifest.of(entries)
        changelog = _read(arguments.changelog) if arguments.changelog.exists() else ""
        problems += [
            f"{problem}: restore it, or say in {arguments.changelog} that it went, and why"
            for problem in manifest.gone(listed, now, changelog).values()
        ]
        path = arguments.results / manifest.NAME
        problems += [f"{path} does not list {name}; was it edited?" for name in sorted(now.keys() - listed.keys())]
    for problem in problems[:SHOWN_PROBLEMS]:
        print(problem, file=sys.stderr)
    if len(problems) > SHOWN_PROBLEMS:
        print(f"… and {len(problems) - SHOWN_PROBLEMS} more", file=sys.stderr)
    if problems:
        print(
            "Results are never edited: restore them, or delete them and measure again. Pages are made by "
            "ltm-leaderboard build with the same options.",
            file=sys.stderr,
        )
        return WRONG
    print(f"{len(entries)} results and {len(files)} files of the board agree")
    return 0


def _stale(path: Path, content: bytes) -> list[str]:
    """That a file is not what it should be, with the difference printed."""
    old = path.read_bytes() if path.exists() else b""
    if old == content:
        return []
    before, after = (text.decode(errors="replace").splitlines(keepends=True) for text in (old, content))
    if old:
        lines = list(difflib.unified_diff(before, after, str(path), f"{path}, built anew", n=1))
        sys.stdout.writelines(line if len(line) < 500 else f"{line[:500]}…\n" for line in lines[:SHOWN_LINES])
        if len(lines) > SHOWN_LINES:
            print(f"… and {len(lines) - SHOWN_LINES} lines more")
    return [f"{path} is {'stale' if old else 'not there'}"]
