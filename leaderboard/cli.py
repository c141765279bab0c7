"""`ltm-leaderboard build | show | check | compare`: result files to a board, and proof that it is what they say."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from leaderboard.build import BEGIN, END, check, files_of, write
from ltm.errors import run_command

if TYPE_CHECKING:
    from rich.console import Console


def main() -> int:
    """The command; 0 when done, 1 when `check` finds something wrong, 2 for a mistake in the call or in a file."""
    return run_command(lambda: _run(parser().parse_args()))


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="ltm-leaderboard", description="Turn the result files that ltm-eval writes into a leaderboard."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="build|show|check|compare")
    for name, words in (
        ("build", "print the board, and write it as Markdown, as an HTML page, as CSV and as plots"),
        ("show", "print the board"),
        ("check", "fail if a result was edited or has gone without a word, or a page is not what the results give"),
        ("compare", "print the differences between two models, or two commits, with 95%% intervals"),
    ):
        command = commands.add_parser(name, help=words, description=words.replace("%%", "%").capitalize() + ".")
        if name == "compare":
            command.add_argument("a", metavar="A", help="a model, by name or by the label of its row; or a commit")
            command.add_argument("b", metavar="B", help="another, of the same sort")
        command.add_argument(
            "--results", type=Path, default=Path("results"), metavar="DIR", help="result files (default: results)"
        )
        if name in ("build", "check"):
            command.add_argument(
                "--out",
                type=Path,
                default=Path("LEADERBOARD.md"),
                metavar="FILE",
                help="the Markdown; the page, the CSV and the plots stand beside it (default: LEADERBOARD.md)",
            )
            command.add_argument(
                "--readme", type=Path, metavar="FILE", help=f"also a page with a block between {BEGIN} and {END}"
            )
            command.add_argument(
                "--changelog",
                type=Path,
                default=Path("CHANGELOG.md"),
                metavar="FILE",
                help="names the results that were removed on purpose (default: CHANGELOG.md)",
            )
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from leaderboard.board import board
    from leaderboard.entries import load

    if arguments.command == "check":
        return check(arguments)
    entries = load(arguments.results)
    built = board(entries)
    if arguments.command == "compare":
        from leaderboard.compare import compare

        compare(built, arguments.a, arguments.b, _console())
        return 0
    from leaderboard.render.terminal import print_board

    if arguments.command == "build":
        files = files_of(built, arguments)
    print_board(built, _console())
    return write(files, entries, arguments) if arguments.command == "build" else 0


def _console() -> Console:
    from rich.console import Console

    from leaderboard.render.terminal import TERMINAL_WIDTH

    console = Console(highlight=False, soft_wrap=False)
    console.width = min(TERMINAL_WIDTH, console.width) if console.is_terminal else TERMINAL_WIDTH
    return console


if __name__ == "__main__":
    sys.exit(main())
