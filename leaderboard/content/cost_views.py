"""A section seen by what its numbers cost: at equal tokens, at equal compute, and which models nothing dominates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from leaderboard.board import Column, Row, Section
from leaderboard.content import notation
from leaderboard.content.document import NOTHING, Axis, Figure, Part, Point, Series, Table, Value, slug
from leaderboard.content.sections import by_perplexity, perplexity, rank
from leaderboard.ranking import claim, ranked

EQUAL_TOKENS, EQUAL_COMPUTE = 1.05, 1.25
"""The largest may have so many times as much as the least, and is taken for equal."""


def parts(section: Section, name: str) -> list[Part]:
    """The views of a section that have something to show; `name` begins the names of its figures."""
    equal = [
        _equal(section, EQUAL_TOKENS, lambda row: row.first.training["tokens"], "At equal training tokens", "tokens"),
        _equal(section, EQUAL_COMPUTE, lambda row: row.first.training["flops"], "At equal training compute", "FLOPs"),
    ]
    return [part for part in (*equal, *(_pareto(section, column, name) for column in section.columns)) if part]


def groups(rows: Sequence[Row], ratio: float, amount: Callable[[Row], float | None]) -> list[list[Row]]:
    """Rows of which the most has at most `ratio` times as much as the least, from the least on; at least two each."""
    known = [(value, row) for row in rows if (value := amount(row))]
    found: list[list[tuple[float, Row]]] = []
    for value, row in sorted(known, key=lambda pair: (pair[0], pair[1].label)):
        if found and value <= ratio * found[-1][0][0]:
            found[-1].append((value, row))
        else:
            found.append([(value, row)])
    return [[row for _, row in group] for group in found if len(group) > 1]


def _equal(section: Section, ratio: float, amount: Callable[[Row], float | None], title: str, unit: str) -> Part | None:
    rows = []
    for group in groups(section.rows, ratio, amount):
        places = {column: ranked(group, column) for column in section.columns}
        amounts = [value for row in group if (value := amount(row))]
        least, most = (notation.short(end(amounts)) for end in (min, max))
        label = f"{least} {unit}" if least == most else f"{least} to {most} {unit}"
        rows += [
            (
                row.label,
                *(_placed(row, column, places[column]) for column in section.columns),
                notation.short(amount(row)),
                label,
            )
            for row in by_perplexity(group, section.columns)
        ]
    words = f"Groups in which all were trained on at most {ratio - 1:.0%} more than the least; ranks within a group."
    header = ("Model", *(c.title for c in section.columns), unit.capitalize() if unit.islower() else unit, "Group")
    table = Table(header=header, rows=tuple(rows), words=(len(header) - 1,))
    return Part(title=title, level=3, text=(words,), table=table) if rows else None


def _placed(row: Row, column: Column, places: dict[str, tuple[int, bool]]) -> str | Value:
    value = perplexity(row.entries.get(column, ()))
    text = f"{value} ({rank(places, row)})" if row.label in places else str(value)
    return replace(value, text=text) if isinstance(value, Value) else text


def dominated(costs: Sequence[float], perplexities: Sequence[float]) -> list[int | None]:
    """For each point the best one that costs no more, is no worse, and is better in one of both; None at the front."""
    pairs = list(zip(costs, perplexities, strict=True))
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i][1], pairs[i][0]))
    found: list[int | None] = []
    for cost, worth in pairs:
        better = (i for i in order if pairs[i][0] <= cost and pairs[i][1] <= worth and pairs[i] != (cost, worth))
        found.append(next(better, None))
    return found


def _pareto(section: Section, column: Column, name: str) -> Part | None:
    measures = (
        ("training", "Training FLOPs", lambda row: row.first.training["flops"]),
        ("scoring", "Scoring FLOPs/token", lambda row: row.entries[column][0].result.cost["score_flops_per_token"]),
    )
    rows = by_perplexity([r for r in section.rows if column in r.entries and claim(r.entries[column])], [column])
    if len(rows) < 2:
        return None
    figures, verdicts, left_out = [], [], 0
    for key, label, amount in measures:
        known = [row for row in rows if amount(row)]
        left_out = max(left_out, len(rows) - len(known))
        # Claims are there: those without were left out above.
        worth = [found.value for row in known if (found := claim(row.entries[column]))]
        by = dominated([amount(row) for row in known], worth)
        verdicts.append({r.label: "front" if i is None else known[i].label for r, i in zip(known, by, strict=True)})
        points = tuple(
            Point(
                x=amount(row),
                y=value,
                label=row.label,
                tip=f"{row.label}: {perplexity(row.entries[column])}, {notation.short(amount(row))} FLOPs",
                faint=i is not None,
            )
            for row, value, i in zip(known, worth, by, strict=True)
        )
        front = ", ".join(row.label for row, i in zip(known, by, strict=True) if i is None)
        figures.append(
            Figure(
                name=f"{name}-{slug(column.title)}-{key}",
                title=f"{column.title}: perplexity against {label[0].lower()}{label[1:]}",
                words=f"{len(points)} models. Not dominated: {front}.",
                x=Axis(label=label, log=True),
                y=Axis(label="Perplexity, or the bound on it", log=True),
                series=(Series(name="", points=points),),
            )
        )
    table = Table(
        header=("Model", "Perplexity", "Training FLOPs", "By training", "Scoring FLOPs/token", "By scoring"),
        rows=tuple(
            (
                row.label,
                perplexity(row.entries[column]),
                notation.short(measures[0][2](row)),
                verdicts[0].get(row.label, NOTHING),
                notation.short(measures[1][2](row)),
                verdicts[1].get(row.label, NOTHING),
            )
            for row in rows
        ),
        words=(3, 5),
    )
    words = "Front: no other model is at least as good at no more cost. Otherwise the best model that is, is named."
    more = f" Of unknown cost, and in no plot: {left_out}." if left_out else ""
    return Part(
        title=f"{column.title} against compute", level=3, text=(words + more,), figures=tuple(figures), table=table
    )


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error; nan for a single value."""
    mean = math.fsum(values) / len(values)
    count = len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (count - 1) if count > 1 else math.nan
    return mean, math.sqrt(variance / count)
