"""The tables of a section: an overview of its models, and one table per task."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from leaderboard.board import Board, Column, Row, Section
from leaderboard.content import notation, reported
from leaderboard.content.document import NOTHING, Table, Value
from leaderboard.entries import PERPLEXITY, Entry
from leaderboard.ranking import headline, mean_ranks, other_side, ranked
from ltm.progress import count


def by_perplexity(rows: Sequence[Row], columns: Sequence[Column]) -> list[Row]:
    """Sort rows by perplexity, the geometric mean over columns; rows that lack columns come later, estimates last."""

    def order(row: Row) -> tuple[bool, int, float, str]:
        by_column = [[m for e in row.entries.get(column, ()) if (m := headline(e))] for column in columns]
        values = [metric.value for metrics in by_column for metric in metrics]
        estimate = any(metric.kind == "estimate" for metrics in by_column for metric in metrics)
        mean = statistics.geometric_mean(values) if values and min(values) > 0 else float("inf")
        return estimate, sum(not metrics for metrics in by_column), mean, row.label

    return sorted(rows, key=order)


def by_rank(section: Section, column: Column) -> tuple[list[Row], dict[str, tuple[int, bool]]]:
    """Sort the rows with results in a column by rank, then perplexity, those without a rank last.

    Returns the rows, and by label each rank and whether it is shared.
    """
    rows = by_perplexity([row for row in section.rows if column in row.entries], [column])
    ranks = ranked(rows, column)
    return sorted(rows, key=lambda row: ranks[row.label][0] if row.label in ranks else len(rows) + 1), ranks


def by_mean_rank(section: Section) -> tuple[list[Row], dict[str, tuple[float, float | None]]]:
    """Sort the rows of a section by mean rank, if it has `SEVERAL` texts, then perplexity.

    Returns the rows, and by label each mean rank and its spread over seeds.
    """
    rows = by_perplexity(section.rows, section.columns)
    places = mean_ranks(section.rows, section.columns) if len(section.columns) >= SEVERAL else {}
    return sorted(rows, key=lambda row: places[row.label][0] if row.label in places else math.inf), places


SEVERAL = 3
"""Texts from which on a mean rank is shown, and the table of each is folded."""
BESIDE = 5
"""Texts beside one another on a terminal."""
ELSEWHERE = "elsewhere"
"""What weights were trained on that nobody here trained."""


def overview(section: Section, *, narrow: bool = False) -> Table:
    """Return a row per model: its perplexity in every column of the section, its size, its training, and its cost.

    Args:
        narrow: show `main_columns` only; the mean rank is on all texts.
    """
    audited = any(entry.audit for row in section.rows for entries in row.entries.values() for entry in entries)
    several = len(section.columns) >= SEVERAL
    shown = main_columns(section) if narrow else section.columns
    in_order, places = by_mean_rank(section)
    rows = [
        (
            row.label + ("" if row.first.training["complete"] is not False else " (training unfinished)"),
            *([_mean_rank(*places[row.label]) if row.label in places else NOTHING] if several else []),
            *(perplexity(row.entries.get(column, ())) for column in shown),
            *([_audit(row)] if audited else []),
            notation.short(row.first.cost["parameters"]),
            row.first.training["corpus"] or ELSEWHERE,
            notation.short(row.first.training["tokens"]),
            notation.short(row.first.cost["paper_train_flops_per_token"]),
            notation.short(row.first.cost["train_flops_per_token"]),
        )
        for row in in_order
    ]
    papers = [
        (
            *(paper.label, *[NOTHING] * several),
            *(paper.values.get(column.task) or NOTHING for column in shown),
            *([NOTHING] * audited),
            *(paper.size, NOTHING, paper.tokens or NOTHING, paper.flops_per_token, NOTHING),
        )
        for paper in reported.perplexities()
        if reported.comparable(section) and any(paper.values.get(column.task) for column in shown)
    ]
    header = (
        *("Model", *(["Mean rank"] if several else [])),
        *(column.title for column in shown),
        *(["Audit"] if audited else []),
        *("Parameters", "Trained on", "Tokens", "FLOPs/token, paper", "FLOPs/token, counted"),
    )
    words = tuple(i for i, name in enumerate(header) if name in ("Audit", "Trained on"))
    return Table(header=header, rows=tuple(rows), reported=tuple(papers), words=words)


def task_table(section: Section, column: Column) -> Table:
    """Return a row per model that was scored on the column's task: every likelihood, unit, part and cost."""
    in_order, ranks = by_rank(section, column)
    others = _other_likelihoods(in_order, column)
    rows = []
    for row in in_order:
        entries = row.entries[column]
        result = entries[0].result
        first = headline(entries[0])
        errors = [m.stderr_mc for e in entries if (m := headline(e)) is not None and m.stderr_mc is not None]
        rows.append(
            (
                row.label,
                rank(ranks, row),
                perplexity(entries),
                notation.audit(entries[0], first.likelihood if first else None),
                (first.likelihood if first else None) or NOTHING,
                str(len(entries)),
                *(notation.value([e.result.metric(PERPLEXITY, name) for e in entries]) for name in others),
                notation.value([e.result.metric("word_perplexity") for e in entries]),
                notation.value([e.result.metric("bits_per_byte") for e in entries]),
                likelihood_part(entries, "kl_per_token"),
                likelihood_part(entries, "reconstruction_per_token"),
                notation.number(max(errors)) if errors else NOTHING,
                str(result.scoring["draws"] or NOTHING),
                notation.short(result.cost["score_flops_per_token"]),
                notation.short(result.provenance["tokens_per_second"]),
            )
        )
    header = (
        *("Model", "Rank", "Perplexity", "Audit", "Likelihood", "n"),
        *(name.replace("_", " ").capitalize() for name in others),
        *("Word perplexity", "Bits/byte", "KL, nats/token", "Reconstruction, nats/token"),
        *("Monte Carlo s.e.", "Draws", "Scoring FLOPs/token", "Tokens/s"),
    )
    papers = [
        (paper.label, NOTHING, value, *[NOTHING] * (len(header) - 3))
        for paper in reported.perplexities()
        if reported.comparable(section) and (value := paper.values.get(column.task))
    ]
    return Table(header=header, rows=tuple(rows), reported=tuple(papers), words=(3, 4))


def _mean_rank(mean: float, spread: float | None) -> str:
    return f"{mean:.1f}" + ("" if spread is None else f" ± {spread:.1f}")


def _audit(row: Row) -> str:
    entry = next(iter(row.entries.values()))[0]
    metric = headline(entry)
    return notation.audit(entry, metric.likelihood if metric else None)


def brief_overviews(section: Section) -> list[Table]:
    """Return a row per model with its perplexities, in as many tables as a terminal needs."""
    rows, places = by_mean_rank(section)

    def cells(row: Row, shown: Sequence[Column]) -> tuple[str, ...]:
        mean = _mean_rank(places[row.label][0], None) if row.label in places else NOTHING
        values = (notation.value([headline(entry) for entry in row.entries.get(column, ())]) for column in shown)
        return (row.label, mean, *values)

    parts = [section.columns[start : start + BESIDE] for start in range(0, len(section.columns), BESIDE)]
    return [
        Table(
            header=("Model", "Mean\nrank", *(column.title for column in shown)),
            rows=tuple(cells(row, shown) for row in rows),
        )
        for shown in parts
    ]


def brief_table(section: Section, column: Column) -> Table:
    """Return the columns of a task's table that fit on a terminal."""
    in_order, ranks = by_rank(section, column)
    return Table(
        header=(
            *("Model", "Rank", "Param-\neters", "Train\ntokens", "FLOPs\n/token", "Perplexity"),
            *("Bits\n/byte", "KL\n/token", "Tokens\n/s"),
        ),
        rows=tuple(
            (
                row.label,
                rank(ranks, row),
                notation.short(row.first.cost["parameters"]),
                notation.short(row.first.training["tokens"]),
                notation.short(row.first.cost["paper_train_flops_per_token"]),
                perplexity(entries),
                notation.value([e.result.metric("bits_per_byte") for e in entries]),
                likelihood_part(entries, "kl_per_token"),
                notation.short(entries[0].result.provenance["tokens_per_second"]),
            )
            for row in in_order
            for entries in [row.entries[column]]
        ),
    )


def rank(ranks: dict[str, tuple[int, bool]], row: Row) -> str:
    """Format the rank of a row: `1`, `1=` if it is shared, a dash if there is none."""
    if row.label not in ranks:
        return NOTHING
    number, shared = ranks[row.label]
    return f"{number}=" if shared else str(number)


def main_columns(section: Section) -> Sequence[Column]:
    """Return, of several texts, those that a model was trained on; all of them if they are few, or none is such."""
    return (trained_columns(section) if len(section.columns) >= SEVERAL else ()) or section.columns


def trained_columns(section: Section) -> Sequence[Column]:
    """Return the texts that a model was trained on."""
    return [column for column in section.columns if any(trained_on(row, column) for row in section.rows)]


def trained_on(row: Row, column: Column) -> bool:
    """Return True if a column's text is of the corpus that a row was trained on."""
    return bool(row.first.training["corpus"] == column.task.removeprefix("ltm_"))


def perplexity(entries: Sequence[Entry]) -> str | Value:
    """Format the headline perplexity of a row in a column, with its other side, sign, error, and a tooltip."""
    metrics, least = [headline(entry) for entry in entries], [other_side(entry) for entry in entries]
    return notation.with_tooltip(notation.value_and_error(metrics, least), [*entries, *entries], [*metrics, *least])


def likelihood_part(entries: Sequence[Entry], name: str) -> str:
    """Format the mean of a part of the headline likelihood, to 1e-4 nats per token; parts carry no sign."""
    values = [metric.value for entry in entries if (metric := entry.result.metric(name)) is not None]
    return f"{statistics.fmean(values):.4f}" if values else NOTHING


def _other_likelihoods(rows: Sequence[Row], column: Column) -> list[str]:
    metrics = [m for row in rows for e in row.entries[column] for m in e.result.metrics]
    others = [m for m in metrics if m.name == PERPLEXITY and not m.headline and m.likelihood]
    bounds = {m.likelihood for m in others if m.kind != "estimate"}
    # What is an estimate of all models comes last.
    return sorted({str(m.likelihood) for m in others}, key=lambda name: (name not in bounds, name))


def title(section: Section) -> str:
    """Return the title of a section: what its results have in common."""
    separator = "EOS between documents" if section.eos_between_documents else "no separator"
    return (
        f"{section.track.capitalize()} track · {section.tokenizer} ({section.tokenizer_fingerprint[:8]}) · "
        f"blocks of {section.block_length} · {separator}{' · in chunks' if section.in_chunks else ''}"
    )


def caption(section: Section, column: Column) -> str:
    """Return a line on the task and the text of a column, with their sizes."""
    result = next(row.entries[column][0].result for row in section.rows if column in row.entries)
    data, scoring = result.data, result.scoring
    return (
        f"{column.task} version {column.version}, {data['corpus']} {column.split} (text {column.fingerprint[:8]}): "
        f"{count(data['documents'], 'documents')}, {count(data['bytes'], 'bytes')}, {count(data['words'], 'words')}, "
        f"{count(scoring['tokens'], 'tokens')} in {count(scoring['blocks'], 'blocks')}"
    )


def remainder(board: Board) -> str:
    """Return a line on the number of result files, and on how many no table shows and why."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in board.not_shown.items())
    return f"{board.files} result files" + (f"; not shown: {reasons}." if reasons else ".")
