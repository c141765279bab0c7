"""`ltm-leaderboard build | show | check | compare`: result files to a board, and proof that it is what they say."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ltm.errors import UserError, run_command

if TYPE_CHECKING:
    from rich.console import Console

    from leaderboard.board import Board, Entry

BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"
WRONG = 1
SHOWN_LINES, SHOWN_PROBLEMS = 40, 40


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
    from leaderboard.board import board, load

    if arguments.command == "check":
        return _check(arguments)
    entries = load(arguments.results)
    built = board(entries)
    if arguments.command == "compare":
        from leaderboard.compare import compare

        compare(built, arguments.a, arguments.b, _console())
        return 0
    from leaderboard.render.terminal import print_board

    if arguments.command == "build":
        files = _files(built, arguments)
    print_board(built, _console())
    return _write(files, entries, arguments) if arguments.command == "build" else 0


def _console() -> Console:
    from rich.console import Console

    from leaderboard.render.terminal import TERMINAL_WIDTH

    console = Console(highlight=False, soft_wrap=False)
    console.width = min(TERMINAL_WIDTH, console.width) if console.is_terminal else TERMINAL_WIDTH
    return console


def _files(built: Board, arguments: argparse.Namespace) -> dict[Path, bytes]:
    """By path, what each file of the board should contain."""
    from leaderboard.content.page import files
    from leaderboard.render.markdown import markdown_block

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
    from leaderboard.content.page import plots_folder
    from leaderboard.render.svg import MADE_BY

    plots = sorted(plots_folder(out).glob("*.svg"))
    return [path for path in plots if path not in files and MADE_BY in path.read_text(errors="replace")]


def _write(files: Mapping[Path, bytes], entries: Sequence[Entry], arguments: argparse.Namespace) -> int:
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


def _check(arguments: argparse.Namespace) -> int:
    """Everything that is wrong, not only the first."""
    from leaderboard import manifest
    from leaderboard.board import board, load
    from leaderboard.verify import verify

    entries, problems = verify(arguments.results)
    if not problems:
        built = board(entries or load(arguments.results))
        files = _files(built, arguments)
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


if __name__ == "__main__":
    sys.exit(main())
