"""The board as tables of text, and those as Markdown or on the terminal."""

from __future__ import annotations

import html
import re
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from leaderboard import other_tasks, signs
from leaderboard.ranking import headline, ranked
from leaderboard.signs import NOTHING
from leaderboard.store import PERPLEXITY, Board, Column, Entry, Row, Section
from leaderboard.text_table import Table

if TYPE_CHECKING:
    from rich.console import Console

TERMINAL_WIDTH = 100
_PLAIN = str.maketrans({"≤": "<=", "–": "-", "±": "+-", "·": "|"})


def by_perplexity(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    """Rows in order of their perplexity, geometric mean over columns; those with fewer columns, or estimates, later."""

    def order(row: Row) -> tuple[bool, int, float, str]:
        found = [[m for e in row.entries.get(column, ()) if (m := headline(e))] for column in columns]
        values = [metric.value for metrics in found for metric in metrics]
        estimate = any(metric.kind == "estimate" for metrics in found for metric in metrics)
        mean = statistics.geometric_mean(values) if values and min(values) > 0 else float("inf")
        return estimate, sum(not metrics for metrics in found), mean, row.label

    return sorted(rows, key=order)


def by_rank(section: Section, column: Column) -> tuple[list[Row], dict[str, tuple[int, bool]]]:
    """The rows that a column has results of, by rank, then perplexity, and those without a rank last; and the ranks."""
    rows = by_perplexity([row for row in section.rows if column in row.entries], [column])
    places = ranked(rows, column)
    return sorted(rows, key=lambda row: places[row.label][0] if row.label in places else len(rows) + 1), places


def overview(section: Section) -> Table:
    """A row a model: its size, its training, its cost, and its perplexity in every column of the section."""
    rows = []
    for row in by_perplexity(section.rows, section.columns):
        cell = row.first
        rows.append(
            (
                row.label + ("" if cell.training["complete"] is not False else " (training unfinished)"),
                signs.short(cell.cost["parameters"]),
                cell.training["corpus"] or NOTHING,
                signs.short(cell.training["tokens"]),
                signs.short(cell.cost["paper_train_flops_per_token"]),
                signs.short(cell.cost["train_flops_per_token"]),
                *(perplexity(row.entries.get(column, ())) for column in section.columns),
            )
        )
    header = ("Model", "Parameters", "Trained on", "Tokens", "FLOPs/token, paper", "FLOPs/token, counted")
    return Table(header=(*header, *(column.title for column in section.columns)), rows=tuple(rows))


def task_table(section: Section, column: Column) -> Table:
    """A row a model that was scored on the column's task: every likelihood, unit, part and cost."""
    in_order, places = by_rank(section, column)
    others = _other_likelihoods(in_order, column)
    rows = []
    for row in in_order:
        entries = row.entries[column]
        cell = entries[0].cell
        first = headline(entries[0])
        errors = [m.stderr_mc for e in entries if (m := headline(e)) is not None and m.stderr_mc is not None]
        rows.append(
            (
                row.label,
                rank(places, row),
                str(len(entries)),
                (first.likelihood if first else None) or NOTHING,
                perplexity(entries),
                *(signs.value([e.cell.metric(PERPLEXITY, name) for e in entries]) for name in others),
                signs.value([e.cell.metric("word_perplexity") for e in entries]),
                signs.value([e.cell.metric("bits_per_byte") for e in entries]),
                part(entries, "kl_per_token"),
                part(entries, "reconstruction_per_token"),
                signs.number(max(errors)) if errors else NOTHING,
                str(cell.scoring["draws"] or NOTHING),
                signs.short(cell.cost["score_flops_per_token"]),
                signs.short(cell.provenance["tokens_per_second"]),
            )
        )
    header = (
        *("Model", "Rank", "n", "Likelihood", "Perplexity"),
        *(name.replace("_", " ").capitalize() for name in others),
        *("Word perplexity", "Bits/byte", "KL, nats/token", "Reconstruction, nats/token"),
        *("Monte Carlo s.e.", "Draws", "Scoring FLOPs/token", "Tokens/s"),
    )
    return Table(header=header, rows=tuple(rows))


def brief_table(section: Section, column: Column) -> Table:
    """What of a task fits on a terminal."""
    in_order, places = by_rank(section, column)
    return Table(
        header=(
            *("Model", "Rank", "Param-\neters", "Train\ntokens", "FLOPs\n/token", "Perplexity"),
            *("Bits\n/byte", "KL\n/token", "Tokens\n/s"),
        ),
        rows=tuple(
            (
                row.label,
                rank(places, row),
                signs.short(row.first.cost["parameters"]),
                signs.short(row.first.training["tokens"]),
                signs.short(row.first.cost["paper_train_flops_per_token"]),
                perplexity(entries),
                signs.value([e.cell.metric("bits_per_byte") for e in entries]),
                part(entries, "kl_per_token"),
                signs.short(entries[0].cell.provenance["tokens_per_second"]),
            )
            for row in in_order
            for entries in [row.entries[column]]
        ),
    )


def rank(places: dict[str, tuple[int, bool]], row: Row) -> str:
    """`1`, `1=` where it is shared, a dash where there is none."""
    if row.label not in places:
        return NOTHING
    place, shared = places[row.label]
    return f"{place}=" if shared else str(place)


def perplexity(entries: Sequence[Entry]) -> str:
    """The headline perplexity of a row in a column, with sign and error."""
    return signs.value_and_error([headline(entry) for entry in entries])


def part(entries: Sequence[Entry], name: str) -> str:
    """The mean of a part of the headline likelihood, to 1e-4 nats; parts carry no sign of their own."""
    found = [metric.value for entry in entries if (metric := entry.cell.metric(name)) is not None]
    return f"{statistics.fmean(found):.4f}" if found else NOTHING


def _other_likelihoods(rows: Sequence[Row], column: Column) -> list[str]:
    metrics = [m for row in rows for e in row.entries[column] for m in e.cell.metrics]
    found = {(m.kind == "estimate", m.likelihood) for m in metrics if m.name == PERPLEXITY and not m.headline}
    return [name for _, name in sorted(found, key=str) if name]


def title(section: Section) -> str:
    """What the results of a section have in common."""
    separator = "EOS between documents" if section.eos_between_documents else "no separator"
    return (
        f"{section.track.capitalize()} track · {section.tokenizer} ({section.tokenizer_fingerprint[:8]}) · "
        f"blocks of {section.block_length} · {separator}"
    )


def caption(section: Section, column: Column) -> str:
    """Which text a column is about."""
    cell = next(row.entries[column][0].cell for row in section.rows if column in row.entries)
    data, scoring = cell.data, cell.scoring
    return (
        f"{column.task} version {column.version}, {data['corpus']} {column.split} (text {column.fingerprint[:8]}): "
        f"{data['documents']:,} documents, {data['bytes']:,} bytes, {data['words']:,} words, "
        f"{scoring['tokens']:,} tokens in {scoring['blocks']:,} blocks"
    )


def remainder(board: Board) -> str:
    """How many result files no table shows, and why."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in board.not_shown.items())
    return f"{board.files} result files" + (f"; not shown: {reasons}." if reasons else ".")


def markdown(board: Board) -> str:
    """The whole page."""
    lines = ["# Leaderboard", "", "Made by `ltm-leaderboard build` from result files; do not edit it by hand.", ""]
    lines += [f"- {line}" for line in signs.LEGEND]
    for section in board.sections:
        lines += ["", f"## {escape(title(section))}", "", *markdown_table(overview(section))]
        for column in section.columns:
            lines += ["", f"### {escape(column.title)}", "", escape(caption(section, column)) + ".", ""]
            lines += markdown_table(task_table(section, column))
    for entries in board.others:
        lines += ["", f"## {escape(other_tasks.title(entries))}", "", escape(other_tasks.caption(entries)) + ".", ""]
        lines += markdown_table(other_tasks.table(entries))
    return "\n".join([*lines, "", remainder(board), ""])


def markdown_block(board: Board) -> str:
    """The overview of each section, to stand inside another page."""
    parts = []
    for section in board.sections:
        parts += [f"**{escape(title(section))}**", "", *markdown_table(overview(section)), ""]
    return "\n".join(parts)


def markdown_table(table: Table) -> list[str]:
    """A Markdown table, names to the left and numbers to the right."""
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    rows = [tuple(map(escape, row)) for row in (table.header, *table.rows)]
    return ["| " + " | ".join(cells) + " |" for cells in (rows[0], rule, *rows[1:])]


def escape(text: str) -> str:
    """Text that Markdown and HTML leave as it is, on one line; intervals and names such as `ltm_ptb` stay legible."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\`*|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|~(?! )|\](?=[(\[])", r"\\\g<0>", line)


def print_board(board: Board, console: Console) -> None:
    """Print every task of the board in at most `TERMINAL_WIDTH` columns."""
    from rich import box
    from rich import table as rich_table
    from rich.text import Text

    def text(words: str) -> Text:
        # A terminal without ≤ would show something worse in its place.
        return Text(words if console.encoding.startswith("utf") else words.translate(_PLAIN))

    def show(brief: Table, words: str) -> None:
        table = rich_table.Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=text(words), title_justify="left")
        for i, name in enumerate(brief.header):
            table.add_column(name, justify="right" if i else "left", overflow="fold", no_wrap=i > 0)
        for row in brief.rows:
            table.add_row(*map(text, row))
        console.print(table)

    for section in board.sections:
        console.print(text(title(section)), style="bold")
        for column in section.columns:
            show(brief_table(section, column), caption(section, column))
    for entries in board.others:
        console.print(text(other_tasks.title(entries)), style="bold")
        show(other_tasks.brief_table(entries), other_tasks.caption(entries))
    console.print(text(signs.SHORT_LEGEND))
    console.print(text(remainder(board)))
