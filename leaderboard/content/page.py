"""Everything that a board says, in order; and the files that say it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from leaderboard.board import Board
from leaderboard.content import audits, cost_views, notation, reported, task_results
from leaderboard.content.document import Part, Table
from leaderboard.content.sections import caption, overview, remainder, task_table, title
from leaderboard.render.markdown import markdown
from leaderboard.render.svg import svg


def parts(board: Board) -> list[Part]:
    """All parts of the page; views without data are left out."""
    found = []
    for n, section in enumerate(board.sections):
        found.append(Part(title=title(section), table=overview(section)))
        for column in section.columns:
            said = (f"{caption(section, column)}.",)
            found.append(Part(title=column.title, level=3, text=said, table=task_table(section, column)))
        # Two sections of one track and tokenizer differ in fields too many for a name.
        found += cost_views.parts(section, cost_views.slug(f"{section.track} {section.tokenizer} {n + 1}"))
    for entries, name in zip(board.others, task_results.titles(board.others), strict=True):
        found += task_results.parts(entries, name)
    for entries, name in zip(board.audits, task_results.titles(board.audits), strict=True):
        found.append(audits.part(entries, f"{name[:1].upper()}{name[1:]}"))
    found += reported.parts([entry.cell.task["name"] for entry in board.entries])
    return [*found, provenance(board)]


def provenance(board: Board) -> Part:
    """Where each result comes from."""
    rows = []
    for entry in board.entries:
        cell, found = entry.cell, entry.cell.provenance
        rows.append(
            (
                entry.name,
                cell.model["weights_digest"][:12],
                (found["commit"] or notation.NOTHING)[:12] + (" with changes" if found["dirty"] else ""),
                found["date"],
                found["device"],
                cell.scoring["dtype"],
                f"{found['wall_seconds']:.0f}",
                ", ".join(f"{name} {version}" for name, version in sorted(found["versions"].items())),
                found["command"],
            )
        )
    header = ("Result", "Weights", "Commit", "Date", "Device", "Dtype", "Seconds", "Versions", "Command")
    table = Table(header=header, rows=tuple(rows), words=(1, 2, 3, 4, 5, 7, 8))
    return Part(title="Where each result comes from", folded=True, table=table)


def files(board: Board, out: Path) -> Mapping[Path, bytes]:
    """What stands where: the Markdown at `out`, and beside it the page, the table of numbers, and a folder of plots."""
    from leaderboard.csv_export import csv_table
    from leaderboard.render.html_page import html_page

    found, end = parts(board), remainder(board)
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
