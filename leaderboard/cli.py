"""`ltm-leaderboard build | show | check | compare`: turn result files into a board, and check that the two agree."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from leaderboard.build import BEGIN, END, Places, check, files, write
from ltm.errors import run_command


def main() -> int:
    """Run the command; return 0 when done, 1 if `check` found a problem, 2 for a wrong call or an unreadable file."""
    return run_command(lambda: _run(parser().parse_args()))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the four commands."""
    parser = argparse.ArgumentParser(
        prog="ltm-leaderboard", description="Turn the result files that ltm-eval writes into a leaderboard."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="build|show|check|compare")
    for name, words in (
        ("build", "print the board, and write it as Markdown, as an HTML page, as CSV and as plots"),
        ("show", "print the board"),
        ("check", "fail if a result was edited or silently removed, or if a page is not what the results give"),
        ("compare", "print the differences between two models, or two commits, with 95%% intervals"),
    ):
        command = commands.add_parser(name, help=words, description=words.replace("%%", "%").capitalize() + ".")
        if name == "compare":
            command.add_argument("a", metavar="A", help="a model, by name or by the label of its row; or a commit")
            command.add_argument("b", metavar="B", help="what to compare it with: another model, or another commit")
        command.add_argument(
            "--results", type=Path, default=Path("results"), metavar="DIR", help="result files (default: results)"
        )
        if name in ("build", "check"):
            _add_places(command)
        if name == "check":
            command.add_argument(
                "--again",
                type=Path,
                metavar="DIR",
                help="results of repeated trainings: fail if one is not where a further training seed would be",
            )
    return parser


def _add_places(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out",
        type=Path,
        default=Path("LEADERBOARD.md"),
        metavar="FILE",
        help="the Markdown; the page, the CSV and the plots go next to it (default: LEADERBOARD.md)",
    )
    command.add_argument("--readme", type=Path, metavar="FILE", help=f"also update the block between {BEGIN} and {END}")
    command.add_argument(
        "--changelog",
        type=Path,
        default=Path("CHANGELOG.md"),
        metavar="FILE",
        help="names the results that were removed on purpose (default: CHANGELOG.md)",
    )


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "check":
        return check(_places(arguments))
    from leaderboard import questions
    from leaderboard.board import board
    from leaderboard.content import page
    from leaderboard.entries import load
    from leaderboard.render.terminal import open_console, print_parts

    entries = load(arguments.results)
    built, asked = board(entries), questions.read(arguments.results)
    if arguments.command == "compare":
        from leaderboard.compare import compare

        compare(built, arguments.a, arguments.b, open_console())
    elif arguments.command == "show":
        print_parts(page.brief(built, asked), open_console())
    else:
        places = _places(arguments)
        # Made before anything is printed: a README without its marks is an error.
        contents = files(built, places.out, places.readme, asked)
        print_parts(page.brief(built, asked), open_console())
        write(contents, entries, places)
    return 0


def _places(arguments: argparse.Namespace) -> Places:
    return Places(
        results=arguments.results,
        out=arguments.out,
        readme=arguments.readme,
        changelog=arguments.changelog,
        again=getattr(arguments, "again", None),
    )


if __name__ == "__main__":
    sys.exit(main())
