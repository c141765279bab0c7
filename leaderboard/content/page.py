"""Everything that a board says, in order: the whole page, and a brief version for the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from leaderboard import labels
from leaderboard.board import Board, Section
from leaderboard.content import (
    answers,
    audits,
    cost_views,
    document,
    notation,
    reported,
    sections,
    task_results,
    time_taken,
)
from leaderboard.content.document import NOTHING, Page, Part, Table
from leaderboard.content.sections import SEVERAL, caption, overview, task_table, title
from leaderboard.questions import Question

_CUT = "…"
"""What stands for the directories of an absolute path."""


def whole(board: Board, asked: Sequence[Question] = ()) -> Page:
    """Return the page with answers, all parts, the legend, and a closing line on what is not shown.

    Raises:
        UserError: the records of a result do not give its perplexity; or a question fits several rows.
    """
    return Page(
        parts=(*answers.parts(board.sections, asked), *parts(board)),
        short_legend=notation.SHORT_LEGEND,
        legend=notation.LEGEND,
        end=sections.remainder(board),
    )


def parts(board: Board) -> list[Part]:
    """Return all parts of the page; views without data are left out.

    Raises:
        UserError: the records of a result do not give its perplexity.
    """
    listed = list[Part]()
    for n, (section, beginning) in enumerate(zip(board.sections, overviews(board), strict=True)):
        listed.append(beginning)
        folded = len(section.columns) >= SEVERAL
        for column in section.columns:
            text, table = (f"{caption(section, column)}.",), task_table(section, column)
            listed.append(Part(title=column.title, level=3, text=text, table=table, folded=folded))
        if not section.in_chunks:  # whose models other sections have
            listed += [*cost_views.parts(section, _name(section, n)), *time_taken.parts(section)]
    for entries, name in zip(board.others, labels.titles(board.others), strict=True):
        listed += task_results.parts(entries, name)
    for entries, name in zip(board.audits, labels.titles(board.audits), strict=True):
        listed += audits.parts(entries, f"{name[:1].upper()}{name[1:]}")
    listed += reported.parts([entry.result.task["name"] for entry in board.entries])
    return [*listed, provenance(board)]


def overviews(board: Board, *, narrow: bool = False) -> list[Part]:
    """Return how each section begins: the table of its models, and, if they have several seeds, a plot of these.

    Args:
        narrow: leave out prequential bounds, and texts that no model was trained on, where there are several; see
            `sections.overview`.
    """
    listed = list[Part]()
    for n, section in enumerate(board.sections):
        if not (narrow and section.in_chunks):
            figure, table = cost_views.seeds(section, _name(section, n)), overview(section, narrow=narrow)
            listed.append(Part(title=title(section), figures=(figure,) if figure else (), table=table))
    return listed


def _name(section: Section, n: int) -> str:
    # Numbered, since sections of one track and tokenizer differ in too many fields for a name.
    return document.slug(f"{section.track} {section.tokenizer} {n + 1}")


def brief(board: Board, asked: Sequence[Question] = ()) -> list[Part]:
    """Return narrow tables for each section and task, answers, the signs and what is not shown.

    Of a section of several texts all perplexities are in one table, and only texts that were trained on have their own.

    Raises:
        UserError: the records of a result do not give its perplexity; or a question fits several rows.
    """
    listed = list[Part]()
    for section in board.sections:
        listed.append(Part(title=title(section)))
        if len(section.columns) >= SEVERAL:
            listed += [Part(title="Perplexity", level=3, table=table) for table in sections.brief_overviews(section)]
        for column in sections.main_columns(section):
            listed.append(Part(title=caption(section, column), level=3, table=sections.brief_table(section, column)))
    groups = (*board.others, *board.audits)
    for entries, name in zip(groups, labels.titles(groups), strict=True):
        brief_table = audits.brief_table if entries in board.audits else task_results.brief_table
        listed.append(Part(title=name))
        listed.append(Part(title=task_results.caption(entries), level=3, table=brief_table(entries)))
    listed += answers.parts(board.sections, asked)
    return [*listed, Part(title="", text=(notation.SHORT_LEGEND, sections.remainder(board)))]


def provenance(board: Board) -> Part:
    """Return the part that says where each result comes from."""
    rows = []
    for entry in board.entries:
        result, origin = entry.result, entry.result.provenance
        rows.append(
            (
                entry.name,
                result.model["weights_digest"][:12],
                (origin["commit"] or NOTHING)[:12] + (" with changes" if origin["dirty"] else ""),
                origin["date"],
                origin["device"],
                result.scoring["dtype"],
                f"{origin['wall_seconds']:.0f}",
                ", ".join(f"{name} {version}" for name, version in sorted(origin["versions"].items())),
                without_directories(origin["command"]),
            )
        )
    header = ("Result", "Weights", "Commit", "Date", "Device", "Dtype", "Seconds", "Versions", "Command")
    table = Table(header=header, rows=tuple(rows), words=(1, 2, 3, 4, 5, 7, 8))
    return Part(title="Where each result comes from", folded=True, table=table)


def without_directories(command: str) -> str:
    """Return a command with absolute paths cut to their names: a page need not say where a machine keeps its files."""
    return re.sub(r"(?<![^\s'\"=:,])[/~](?:[^\s'\",/]*/)*(?=[^\s'\",/])", f"{_CUT}/", command)
