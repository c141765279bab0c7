"""The board's files: made, written, and checked against what is on disk."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from leaderboard import manifest, questions
from leaderboard.board import Board, board
from leaderboard.entries import Entry, load
from leaderboard.questions import Question
from leaderboard.render.html_page import html_page
from leaderboard.render.markdown import answer_lines, escape, image, markdown, markdown_table
from leaderboard.render.svg import MADE_BY, svg
from leaderboard.verify import verify
from ltm.errors import UserError
from ltm.files import write_atomically
from ltm.progress import count, say
from ltm.untrusted.display import one_line, printable
from ltm.untrusted.regular_files import read_bytes

# What a page says needs NumPy, for which `--help` does not wait: `leaderboard.content` is imported inside functions.

BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"
"""The marks in a README between which the board's block goes."""

WRONG = 1
"""Exit code of `check` when something is wrong."""

SHOWN_LINES = 40
"""Lines of a diff that are printed."""

SHOWN_PROBLEMS = 40
"""Problems that are printed."""

LARGEST_FILE = 1 << 28
"""Most bytes of a page, a changelog or a README."""

SHOWN_CHARACTERS = 500
"""Characters of a line of a diff that are printed."""

ANSWERS_IN_BLOCK = 5
"""How many answers of a board are shown on another page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the board's sources and files are.

    Attributes:
        results: the results directory.
        out: the Markdown; the other files go next to it.
        readme: a page that holds a block of the board, if any.
        changelog: names the results that were removed on purpose; need not exist.
        again: results of repeated trainings, which `check` compares with the board's.
    """

    results: Path
    out: Path
    readme: Path | None
    changelog: Path
    again: Path | None = None


def files(board: Board, out: Path, readme: Path | None = None, asked: Sequence[Question] = ()) -> dict[Path, bytes]:
    """Return the content of every file of the board by path: Markdown, HTML page, CSV, plots, and the README if given.

    Raises:
        UserError: the README cannot be read or lacks the marks; a result's records do not fit the result; or a question
            that was asked of the board fits several rows.
    """
    from leaderboard.content import page
    from leaderboard.csv_export import csv_table

    whole, plots = page.whole(board, asked), plots_folder(out)
    texts = {
        out: markdown(whole, plots=plots.name),
        out.with_name(f"{out.stem.lower()}.html"): html_page(whole),
        out.with_name(f"{out.stem.lower()}.csv"): csv_table(board),
        **{plots / f"{figure.name}.svg": svg(figure) for part in whole.parts for figure in part.figures},
    }
    if readme is not None:
        seen_from = Path(os.path.relpath(plots, readme.parent)).as_posix()
        texts[readme] = _with_block(_read(readme), markdown_block(board, asked, plots=seen_from), readme)
    return {path: text.encode() for path, text in texts.items()}


def markdown_block(board: Board, asked: Sequence[Question] = (), *, plots: str) -> str:
    """Return the first answers, and the overview of each section, as Markdown to be inserted in another page.

    Questions that are not answered yet are left out, and so are prequential bounds, and texts that no model was trained
    on, where there are several: the whole board has them.

    Args:
        plots: the folder of the board's plots, as seen from that page.
    """
    from leaderboard.content import answers, page

    lines = []
    for part in answers.parts(board.sections, asked):
        answered = [answer for answer in part.answers if answer.command]
        lines += [*answer_lines(answered[:ANSWERS_IN_BLOCK])[1:], "", *map(escape, part.text), ""]
    for part in page.overviews(board, narrow=True):
        lines += [f"**{escape(part.title)}**", ""]
        lines += [line for figure in part.figures for line in (image(figure, plots), "")]
        lines += [*(markdown_table(part.table) if part.table else ()), ""]
    return "\n".join(lines)


def plots_folder(out: Path) -> Path:
    """Return the folder for the plots of the board at `out`."""
    return out.with_name(f"{out.stem.lower()}_plots")


def write(contents: Mapping[Path, bytes], entries: Sequence[Entry], places: Places) -> None:
    """Write the files that changed and the manifest, remove old plots, and print a line for each.

    Raises:
        UserError: the manifest or the changelog cannot be read.
    """
    listed, now, changelog = manifest.read(places.results), manifest.digests_of(entries), _changelog(places)
    manifest_path = places.results / manifest.NAME
    for path, content in {**contents, manifest_path: manifest.content(listed, now, changelog)}.items():
        same = _existing(path) == content
        if not same:
            write_atomically(path, content)
        print(one_line(f"{'unchanged:' if same else 'wrote'} {path}"))
    for path in _old_plots(contents, places.out):
        path.unlink()
        print(one_line(f"removed {path}"))
    for problem in manifest.unexplained(listed, now, changelog).values():
        say(f"note: {problem}; ltm-leaderboard check will fail")


def check(places: Places) -> int:
    """Print everything that is wrong, not only the first problem; return 0 if nothing is, otherwise `WRONG`.

    Files are compared with the results only once the results themselves are sound.

    Raises:
        UserError: there are no results, or no repeated ones where these are asked for; or a README, manifest,
            changelog or list of questions cannot be read.
    """
    entries, problems = verify(places.results)
    if problems:
        return _report(problems)
    # Without results, `load` says how to make some.
    built, asked = board(entries or load(places.results)), questions.read(places.results)
    contents = files(built, places.out, places.readme, asked)
    problems += [problem for path, content in contents.items() for problem in _stale(path, content)]
    problems += [f"{path} does not belong to this board" for path in _old_plots(contents, places.out)]
    problems += _manifest_problems(entries, places)
    if problems:
        return _report(problems)
    print(f"{count(len(entries), 'results')} and {count(len(contents), 'files')} of the board agree")
    return 0 if places.again is None else _check_again(built, places.again)


def _check_again(built: Board, again: Path) -> int:
    """Print how repeated trainings stand to the board's; return 0 if all fit."""
    from leaderboard.repeats import repeated

    judged = repeated(built, again)
    for line, _ in judged:
        print(one_line(line))
    return 0 if all(fits for _, fits in judged) else WRONG


def _with_block(page: str, block: str, path: Path) -> str:
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise UserError(
            f"{path}: expected one line {BEGIN} followed by one line {END}; put them where the table should go"
        )
    return f"{page[: page.index(BEGIN) + len(BEGIN)]}\n{block}{page[page.index(END) :]}"


def _existing(path: Path) -> bytes | None:
    """The content of a file, None if there is none. Raises UserError if it cannot be read or is something else."""
    return read_bytes(path, most=LARGEST_FILE) if os.path.lexists(path) else None


def _read(path: Path) -> str:
    try:
        return read_bytes(path, most=LARGEST_FILE).decode()
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _changelog(places: Places) -> str:
    return _read(places.changelog) if os.path.lexists(places.changelog) else ""


def _old_plots(contents: Mapping[Path, bytes], out: Path) -> list[Path]:
    """Plots of an earlier build that this board no longer has; other files in that folder are left alone."""
    plots = sorted(plots_folder(out).glob("*.svg"))
    return [path for path in plots if path not in contents and path.is_file() and MADE_BY.encode() in path.read_bytes()]


def _manifest_problems(entries: Sequence[Entry], places: Places) -> list[str]:
    listed, now = manifest.read(places.results), manifest.digests_of(entries)
    unexplained = manifest.unexplained(listed, now, _changelog(places)).values()
    path = places.results / manifest.NAME
    return [
        *(
            f"{problem}: restore it, or say in {places.changelog} that it was removed, and why"
            for problem in unexplained
        ),
        *(f"{path} does not list {name}; was it edited?" for name in sorted(now.keys() - listed.keys())),
    ]


def _stale(path: Path, content: bytes) -> list[str]:
    """The problem with a file that differs from `content`, if it does; the difference is printed."""
    old = _existing(path)
    if old is None:
        return [f"{path} is missing"]
    if old == content:
        return []
    before, after = (text.decode(errors="replace").splitlines(keepends=True) for text in (old, content))
    lines = list(difflib.unified_diff(before, after, str(path), f"{path}, rebuilt", n=1))
    for line in lines[:SHOWN_LINES]:
        sys.stdout.write(printable(line if len(line) < SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]}…\n"))
    if len(lines) > SHOWN_LINES:
        print(f"… and {len(lines) - SHOWN_LINES} more lines")
    return [f"{path} is stale"]


def _report(problems: Sequence[str]) -> int:
    for problem in problems[:SHOWN_PROBLEMS]:
        say(problem)
    if len(problems) > SHOWN_PROBLEMS:
        say(f"… and {len(problems) - SHOWN_PROBLEMS} more")
    say(
        "Results that were changed are restored, or deleted and measured again. Pages are made by "
        "ltm-leaderboard build with the same options."
    )
    return WRONG
