"""A section by cost: ranks at equal tokens and at equal compute, and which models no other dominates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from leaderboard.board import COUNTED, Column, Row, Section
from leaderboard.content import notation
from leaderboard.content.document import NOTHING, Axis, Figure, Part, Point, Series, Table, Value, slug
from leaderboard.content.sections import by_perplexity, main_columns, perplexity, rank, trained_columns
from leaderboard.ranking import claim, headline, ranked
from ltm.progress import count

EQUAL_TOKENS = 1.05
"""Training tokens count as equal if the most is at most this many times the least."""
EQUAL_COMPUTE = 1.25
"""Training FLOPs count as equal if the most is at most this many times the least."""


def parts(section: Section, name: str) -> list[Part]:
    """Return the views of a section that have something to show; names of figures begin with `name`.

    They are of the section's `main_columns`.
    """
    equal = [
        _equal(section, EQUAL_TOKENS, lambda row: row.first.training["tokens"], "At equal training tokens", "tokens"),
        _equal(section, EQUAL_COMPUTE, lambda row: row.first.training["flops"], "At equal training compute", "FLOPs"),
    ]
    return [part for part in (*equal, *(_pareto(section, column, name) for column in main_columns(section))) if part]


def groups(rows: Sequence[Row], ratio: float, amount: Callable[[Row], float | None]) -> list[list[Row]]:
    """Group rows from the least amount on, so that within a group the most is at most `ratio` times the least.

    Groups of one are left out, and so are rows whose amount is zero or not known.
    """
    known = [(value, row) for row in rows if (value := amount(row))]
    grouped: list[list[tuple[float, Row]]] = []
    for value, row in sorted(known, key=lambda pair: (pair[0], pair[1].label)):
        if grouped and value <= ratio * grouped[-1][0][0]:
            grouped[-1].append((value, row))
        else:
            grouped.append([(value, row)])
    return [[row for _, row in group] for group in grouped if len(group) > 1]


def _equal(section: Section, ratio: float, amount: Callable[[Row], float | None], title: str, unit: str) -> Part | None:
    rows, columns = [], main_columns(section)
    for group in groups(section.rows, ratio, amount):
        ranks = {column: ranked(group, column) for column in columns}
        amounts = [value for row in group if (value := amount(row))]
        least, most = (notation.short(end(amounts)) for end in (min, max))
        label = f"{least} {unit}" if least == most else f"{least} to {most} {unit}"
        rows += [
            (
                row.label,
                *(_perplexity_and_rank(row, column, ranks[column]) for column in columns),
                notation.short(amount(row)),
                label,
            )
            for row in by_perplexity(group, columns)
        ]
    words = f"Groups in which all were trained on at most {ratio - 1:.0%} more than the least; ranks within a group."
    header = ("Model", *(c.title for c in columns), unit.capitalize() if unit.islower() else unit, "Group")
    table = Table(header=header, rows=tuple(rows), words=(len(header) - 1,))
    return Part(title=title, level=3, text=(words,), table=table) if rows else None


def seeds(section: Section, name: str) -> Figure | None:
    """Return the section's first figure: each training seed on the text most like the training text, against FLOPs.

    None unless a row has several seeds.
    """
    rows = by_perplexity(section.rows, section.columns)
    for column in trained_columns(section) or section.columns:
        points, spreads = list[Point](), list[Series]()
        known = [
            row for row in rows if claim(row.entries.get(column, ())) and (row.first.training["flops"] or 0) >= COUNTED
        ]
        shown = [row for row in known if _informed(row, column)]
        for row in shown:
            flops = row.first.training["flops"]
            points.append(_point(row, column, flops))
            values = [metric.value for entry in row.entries[column] if (metric := headline(entry)) is not None]
            if len(values) > 1:
                of_seeds = tuple(Point(x=flops, y=value, faint=True) for value in values)
                spreads.append(Series(name="", points=of_seeds, joined=True, colour=0))
        if spreads:
            return Figure(
                name=f"{name}-{slug(column.title)}-seeds",
                title=f"{column.title}: perplexity against training FLOPs",
                words=f"{count(len(points), 'models')}; hollow marks are training seeds, full ones their means."
                + _left_out(known, shown),
                x=Axis(label="Training FLOPs", log=True),
                y=Axis(label="Perplexity, or the bound on it", log=True),
                series=(*spreads, Series(name="", points=tuple(points), colour=0)),
            )
    return None


def _point(row: Row, column: Column, flops: float, *, faint: bool = False) -> Point:
    tip = f"{row.label}: {perplexity(row.entries[column])}, {notation.short(flops)} FLOPs"
    return Point(x=flops, y=_claimed(row, column), label=row.label, tip=tip, faint=faint)


def _informed(row: Row, column: Column) -> bool:
    """Return False if a row is worse than a uniform guess among all tokens: such rows would squeeze all others."""
    tokens = row.first.model["config"].get("vocab_size")
    return not isinstance(tokens, int) or _claimed(row, column) <= tokens


def _left_out(known: Sequence[Row], shown: Sequence[Row]) -> str:
    missing = len(known) - len(shown)
    return f" Worse than a uniform guess, and not shown: {missing}." if missing else ""


def _perplexity_and_rank(row: Row, column: Column, ranks: dict[str, tuple[int, bool]]) -> str | Value:
    value = perplexity(row.entries.get(column, ()))
    text = f"{value} ({rank(ranks, row)})" if row.label in ranks else str(value)
    return replace(value, text=text) if isinstance(value, Value) else text


def dominated(costs: Sequence[float], perplexities: Sequence[float]) -> list[int | None]:
    """Return for each point the index of the one that dominates it, the best if there are several; None at the front.

    A point dominates another if it costs no more and is no worse, and is better in one of the two.
    """
    pairs = list(zip(costs, perplexities, strict=True))
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i][1], pairs[i][0]))
    dominators: list[int | None] = []
    for cost, value in pairs:
        better = (i for i in order if pairs[i][0] <= cost and pairs[i][1] <= value and pairs[i] != (cost, value))
        dominators.append(next(better, None))
    return dominators


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """FLOPs that perplexity is plotted against, `of` a row; None or 0 if they are not known."""

    key: str
    label: str
    of: Callable[[Row], Any]


def _pareto(section: Section, column: Column, name: str) -> Part | None:
    rows = by_perplexity([r for r in section.rows if column in r.entries and claim(r.entries[column])], [column])
    if len(rows) < 2:
        return None
    training = Cost(key="training", label="Training FLOPs", of=lambda row: row.first.training["flops"])
    scoring = Cost(
        key="scoring",
        label="Scoring FLOPs/token",
        of=lambda row: row.entries[column][0].result.cost["score_flops_per_token"],
    )
    dominators = {cost.key: _dominators(rows, column, cost) for cost in (training, scoring)}
    table = Table(
        header=("Model", "Perplexity", training.label, "By training", scoring.label, "By scoring"),
        rows=tuple(
            (
                row.label,
                perplexity(row.entries[column]),
                *(
                    text
                    for cost in (training, scoring)
                    for text in (notation.short(cost.of(row)), _verdict(dominators[cost.key], row))
                ),
            )
            for row in rows
        ),
        words=(3, 5),
    )
    left_out = max(len(rows) - len(known) for known in dominators.values())
    words = "Front: no other model is at least as good at no more cost. Otherwise the best model that is, is named."
    return Part(
        title=f"{column.title} against compute",
        level=3,
        text=(words + (f" Of unknown cost, and in no plot: {left_out}." if left_out else ""),),
        figures=tuple(
            _pareto_figure(dominators[c.key], column, c, f"{name}-{slug(column.title)}") for c in (training, scoring)
        ),
        table=table,
    )


def _dominators(rows: Sequence[Row], column: Column, cost: Cost) -> dict[Row, Row | None]:
    """The rows whose cost is known, in their order, each with the row that dominates it; None at the front."""
    known = [row for row in rows if cost.of(row)]
    indices = dominated([cost.of(row) for row in known], [_claimed(row, column) for row in known])
    return {row: None if i is None else known[i] for row, i in zip(known, indices, strict=True)}


def _claimed(row: Row, column: Column) -> float:
    row_claim = claim(row.entries[column])
    assert row_claim is not None  # Rows without a claim are left out before.
    return row_claim.value


def _verdict(dominators: Mapping[Row, Row | None], row: Row) -> str:
    if row not in dominators:
        return NOTHING
    dominator = dominators[row]
    return "front" if dominator is None else dominator.label


def _pareto_figure(dominators: Mapping[Row, Row | None], column: Column, cost: Cost, name: str) -> Figure:
    shown = [row for row in dominators if _informed(row, column)]
    points = tuple(_point(row, column, cost.of(row), faint=dominators[row] is not None) for row in shown)
    front = ", ".join(row.label for row, dominator in dominators.items() if dominator is None)
    return Figure(
        name=f"{name}-{cost.key}",
        title=f"{column.title}: perplexity against {cost.label[0].lower()}{cost.label[1:]}",
        words=f"{count(len(points), 'models')}. Not dominated: {front}.{_left_out([*dominators], shown)}",
        x=Axis(label=cost.label, log=True),
        y=Axis(label="Perplexity, or the bound on it", log=True),
        series=(Series(name="", points=points),),
    )
