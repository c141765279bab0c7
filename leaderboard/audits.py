"""What audits found: whether the numbers of a model can be likelihoods at all, on text whose likelihood is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leaderboard import signs
from leaderboard.document import Part, Table, Value
from leaderboard.other_tasks import caption, labels
from leaderboard.signs import NOTHING
from leaderboard.store import AUDIT, Entry
from ltm.result import Cell, Metric

THRESHOLD = math.log(100)
"""Nats: a valid claim exceeds the source by this much over all texts with a probability of at most 1%."""
COLUMNS = {
    "audit_claimed_nats_per_token": "Claimed, nats/token",
    "audit_source_nats_per_token": "Source, nats/token",
    "audit_log_e_value": "Log e-value",
}
ENTROPY = "audit_source_entropy_per_token"


def part(entries: Sequence[Entry], title: str) -> Part:
    """The verdicts on all likelihoods of the models that were audited on one source."""
    found = [
        (label, entry, verdict)
        for label, entry in zip(labels(entries), entries, strict=True)
        for verdict in entry.cell.metrics
        if verdict.name == AUDIT
    ]
    checks = list(dict.fromkeys(m.name for _, entry, _ in found for m in entry.cell.metrics if _is_check(m)))
    rows = [_row(label, entry, verdict, checks) for label, entry, verdict in found]
    entropies = sorted({m.value for _, entry, _ in found for m in entry.cell.metrics if m.name == ENTROPY})
    line = [
        ("the source itself: no model can be below this line", NOTHING, NOTHING, value, value, NOTHING, NOTHING)
        for value in map(signs.number, entropies)
    ]
    # The line stands where it belongs: below whoever claims less, in every sense.
    ordered = sorted([*rows, *((*row, *[NOTHING] * len(checks)) for row in line)], key=_claimed)
    words = (
        f"{caption(entries)}. A likelihood is refuted when its claims exceed the source's own log-likelihood of fresh "
        f"texts by more than {THRESHOLD:.2f} nats in total, which happens to a valid one with a probability of at most "
        "1%, or when another check refutes it. What failed has the sign ~ and no rank, on all corpora."
    )
    header = ("Model", "Verdict", "Likelihood", *COLUMNS.values(), "Threshold", *(_heading(name) for name in checks))
    table = Table(header=header, rows=tuple(ordered), words=(1, 2))
    return Part(title=title, text=(words,), table=table)


def _row(label: str, entry: Entry, verdict: Metric, checks: Sequence[str]) -> tuple[str | Value, ...]:
    cell, likelihood = entry.cell, verdict.likelihood
    said = Value(text="passed" if verdict.value == 1 else "failed", tip=signs.told(entry, verdict))
    values = [_number(_find(cell, name, likelihood)) for name in COLUMNS]
    others = [_number(_find(cell, name, likelihood)) for name in checks]
    return label, said, likelihood or NOTHING, *values, signs.number(THRESHOLD), *others


def _is_check(metric: Metric) -> bool:
    return metric.name.startswith("audit_") and metric.name not in (AUDIT, ENTROPY, *COLUMNS)


def _find(cell: Cell, name: str, likelihood: str | None) -> Metric | None:
    """The metric of a likelihood, or the one that is of none: the source's."""
    named = {metric.likelihood: metric for metric in cell.metrics if metric.name == name}
    return named.get(likelihood, named.get(None))


def _number(metric: Metric | None) -> str:
    return NOTHING if metric is None else signs.number(metric.value)


def _heading(name: str) -> str:
    return name.removeprefix("audit_").replace("_", " ").capitalize()


def _claimed(row: Sequence[str | Value]) -> tuple[float, str]:
    text = str(row[3])
    return (math.inf if text == NOTHING else float(text)), str(row[0])
