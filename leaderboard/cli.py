"""`ltm-leaderboard build | show | check`: result files to a page, and proof that the page is what they say."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ltm.errors import UserError, run_command

if TYPE_CHECKING:
    from leaderboard.store import Board

BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"
STALE = 1


def main() -> int:
    """The command; 0 when done, 1 when `check` finds a stale page, 2 for a mistake in the call or in a file."""
    return run_command(lambda: _run(parser().parse_args()))


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="ltm-leaderboard", description="Turn the result files that ltm-eval writes into a leaderboard."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="build|show|check")
    for name, words in (
        ("build", "print the board, and write it as Markdown"),
        ("show", "print the board"),
        ("check", "fail, with a diff, if the written page is not what the result files give"),
    ):
        command = commands.add_parser(name, help=words, description=words.capitalize() + ".")
        command.add_argument(
            "--results", type=Path, default=Path("results"), metavar="DIR", help="result files (default: results)"
        )
        if name != "show":
            command.add_argument(
                "--out",
                type=Path,
                default=Path("LEADERBOARD.md"),
                metavar="FILE",
                help="the page (default: LEADERBOARD.md)",
            )
            command.add_argument(
                "--readme", type=Path, metavar="FILE", help=f"also a page with a block between {BEGIN} and {END}"
            )
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from leaderboard.store import board, load

    built = board(load(arguments.results))
    if arguments.command != "check":
        _print(built)
    if arguments.command == "show":
        return 0
    pages = _pages(built, arguments.out, arguments.readme)
    return _check(pages) if arguments.command == "check" else _write(pages)


def _print(built: Board) -> None:
    from rich.console import Console

    from leaderboard.table import TERMINAL_WIDTH, print_board

    console = Console(highlight=False, soft_wrap=False)
    console.width = min(TERMINAL_WIDTH, console.width) if console.is_terminal else TERMINAL_WIDTH
    print_board(built, console)


def _pages(built: Board, out: Path, readme: Path | None) -> dict[Path, tuple[str, str]]:
    """By path: what the page says now, empty when there is none, and what it should say."""
    from leaderboard.table import markdown, markdown_block

    pages = {out: (_read(out) if out.exists() else "", markdown(built))}
    if readme is not None:
        old = _read(readme)
        if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
            raise UserError(
                f"{readme}: expected one line {BEGIN} and after it one line {END}; put them where the table belongs"
            )
        head, tail = old[: old.index(BEGIN) + len(BEGIN)], old[old.index(END) :]
        pages[readme] = (old, f"{head}\n{markdown_block(built)}{tail}")
    return pages


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _write(pages: dict[Path, tuple[str, str]]) -> int:
    from ltm.files import write_atomically

    for path, (old, new) in pages.items():
        if old != new:
            write_atomically(path, new.encode())
        print(f"{'wrote' if old != new else 'unchanged:'} {path}")
    return 0


def _check(pages: dict[Path, tuple[str, str]]) -> int:
    stale = False
    for path, (old, new) in pages.items():
        if old != new:
            stale = True
            before, after = old.splitlines(keepends=True), new.splitlines(keepends=True)
            sys.stdout.writelines(difflib.unified_diff(before, after, str(path), f"{path}, built anew"))
            print(f"{path} is stale; run ltm-leaderboard build with the same options", file=sys.stderr)
    return STALE if stale else 0


if __name__ == "__main__":
    sys.exit(main())
