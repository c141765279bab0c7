"""What audits found: whether a model's numbers can be likelihoods at all, on text whose likelihood is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leaderboard.content import notation
from leaderboard.content.document import FAILED, NOTHING, Part, Table, Value
from leaderboard.entries import AUDIT, Entry
from leaderboard.labels import labels
from ltm.progress import count
from ltm.result import NO_TWIN, Metric, Result, computing_from_records, read_records, reservations

THRESHOLD = math.log(100)
"""Nats by which a valid claim exceeds the source's own, over all texts, with a probability of at most 1%."""

COLUMNS = {
    "audit_claimed_nats_per_token": "Claimed, nats/token",
    "audit_source_nats_per_token": "Source, nats/token",
    "audit_log_e_value": "Log e-value",
}
"""The metrics with a column in every audit table, and the column's title."""
ENTROPY = "audit_source_entropy_per_token"
LINE = "the source itself: no model can need less"
"""The label of a source's own row, which shows its entropy."""


def parts(entries: Sequence[Entry], title: str) -> tuple[Part, Part]:
    """Return the verdicts on all likelihoods of the models, and behind them, folded, what every check found.

    The table of all checks is sorted by source, with the entropy of each source as a row.
    """
    verdicts = [
        (label, entry, verdict)
        for label, entry in zip(labels(entries), entries, strict=True)
        for verdict in entry.result.metrics
        if verdict.name == AUDIT
    ]
    checks = list(dict.fromkeys(m.name for _, entry, _ in verdicts for m in entry.result.metrics if _is_check(m)))
    rows = [_row(label, entry, verdict, checks) for label, entry, verdict in verdicts]
    entropies = {
        (e.result.data["corpus"], notation.number(m.value))
        for e in entries
        for m in e.result.metrics
        if m.name == ENTROPY
    }
    rest = [NOTHING] * (2 + len(checks))
    floors = [(LINE, NOTHING, NOTHING, NOTHING, source, value, value, *rest) for source, value in entropies]
    task = entries[0].result.task
    words = (
        f"{task['name']} version {task['version']}. A likelihood is refuted when its claims exceed the source's own "
        f"log-likelihood of fresh texts by more than {THRESHOLD:.2f} nats in total, which happens to a valid one with "
        "probability 1% or less, or when another check refutes it. What failed has the sign ~ and no rank, on all "
        "corpora. To have passed is not to be proven: it is that nothing here refutes it."
    )
    header = (
        *("Model", "Verdict", "Likelihood", "Refuted by", "Source"),
        *(*COLUMNS.values(), "Threshold", *(_heading(name) for name in checks)),
    )
    # Sorted by claim, so that a source's own row separates the claims below its entropy from the others.
    ordered = tuple(sorted([*rows, *floors], key=_order))
    limits = [
        f"{label}: {text}" for label, entry in zip(labels(entries), entries, strict=True) if (text := _limits(entry))
    ]
    every = Table(header=header, rows=ordered, words=(1, 2, 3, 4))
    return (
        Part(title=title, text=(words, *limits), table=_verdicts(every)),
        Part(title="Every check", level=3, folded=True, table=every),
    )


def brief_table(entries: Sequence[Entry]) -> Table:
    """Return the verdicts in a few columns, without the sources' own rows."""
    (verdicts, _) = parts(entries, "")
    assert verdicts.table is not None
    return verdicts.table


def _verdicts(whole: Table) -> Table:
    kept = [whole.header.index(name) for name in ("Model", "Verdict", "Likelihood", "Refuted by", "Log e-value")]
    return Table(
        header=tuple(whole.header[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in whole.rows if row[0] != LINE),
        words=(1, 2, 3),
    )


def _row(label: str, entry: Entry, verdict: Metric, checks: Sequence[str]) -> tuple[str | Value, ...]:
    result, likelihood = entry.result, verdict.likelihood
    refuted = [
        record
        for record in read_records(entry.path, result) or []
        if record.get("passed") is False and record.get("likelihood") in (likelihood, None)
    ]
    with computing_from_records(entry.path, "the checks of an audit"):
        details = "; ".join(f"{record['check']}: {record['detail']}" for record in refuted)
        names = ", ".join(record["check"].replace("_", " ") for record in refuted)
    limits = _limits(entry)
    shown = Value(
        text=notation.PASSED + reservations(result.scoring, result.status) if verdict.value == 1 else FAILED,
        tip="; ".join(part for part in (notation.describe(entry, verdict), details, limits) if part),
    )
    values = [_number(_metric_of(result, name, likelihood)) for name in COLUMNS]
    others = [_number(_metric_of(result, name, likelihood)) for name in checks]
    twin = result.scoring.get("twin") != NO_TWIN
    source, threshold = (result.data["corpus"], notation.number(THRESHOLD)) if twin else (NOTHING, NOTHING)
    return label, shown, likelihood or NOTHING, names or NOTHING, source, *values, threshold, *others


def _limits(entry: Entry) -> str:
    """Say what an audit with reservations did without; nothing of a whole one."""
    result = entry.result
    if not reservations(result.scoring, result.status):
        return ""
    if result.status == "partial":
        return f"audited on {count(result.scoring['blocks'], 'texts')} only"
    checks = [record for record in read_records(entry.path, result) or [] if record.get("part") == "check"]
    with computing_from_records(entry.path, "the checks of an audit"):
        names = dict.fromkeys(record["check"].replace("_", " ") for record in checks if record["passed"] is None)
    return f"made elsewhere, so without a twin; checks not made: {', '.join(names)}"


def _is_check(metric: Metric) -> bool:
    return metric.name.startswith("audit_") and metric.name not in (AUDIT, ENTROPY, *COLUMNS)


def _metric_of(result: Result, name: str, likelihood: str | None) -> Metric | None:
    """The metric of a likelihood, or else the one that belongs to no likelihood but to the source."""
    named = {metric.likelihood: metric for metric in result.metrics if metric.name == name}
    return named.get(likelihood, named.get(None))


def _number(metric: Metric | None) -> str:
    return NOTHING if metric is None else notation.number(metric.value)


def _heading(name: str) -> str:
    return name.removeprefix("audit_").replace("_", " ").capitalize()


def _order(row: Sequence[str | Value]) -> tuple[str, float, str, str]:
    source, text = str(row[4]), str(row[5])
    return source, (math.inf if text == NOTHING else float(text)), str(row[0]), str(row[2])
