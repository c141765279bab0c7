"""How long the models of a section took to train and to score, as their results say it."""

from __future__ import annotations

import math

from leaderboard.board import Row, Section
from leaderboard.content import notation
from leaderboard.content.document import NOTHING, Part, Table
from leaderboard.content.sections import by_perplexity
from leaderboard.entries import Entry


def parts(section: Section) -> list[Part]:
    """Return a table with the minutes of one training seed of each model; nothing if no training time is known."""
    rows = [row for row in by_perplexity(section.rows, section.columns) if any(map(_trained, _seeds(row)))]
    if not rows:
        return []
    trained = math.fsum(_trained(entry) for row in rows for entry in _seeds(row))
    scored = math.fsum(_scored(row) for row in rows)
    words = (
        f"{_hours(trained)} of training and {_hours(scored)} of scoring these texts in all, by the clock; audits and "
        "other tasks are not counted."
    )
    table = Table(
        header=("Model", "Seeds", "Training, minutes", "Tokens/s", "Scoring, minutes", "Trained on"),
        rows=tuple(_row(row) for row in rows),
        words=(5,),
    )
    return [Part(title="Time taken, per training seed", level=3, text=(words,), table=table, folded=True)]


def _row(row: Row) -> tuple[str, ...]:
    seeds = _seeds(row)
    seconds, tokens = (math.fsum(values) for values in (map(_trained, seeds), map(_tokens, seeds)))
    devices = dict.fromkeys(entry.result.training["device"] or NOTHING for entry in seeds)
    return (
        row.label,
        str(len(seeds)),
        f"{seconds / len(seeds) / 60:.1f}",
        notation.short(tokens / seconds) if seconds else NOTHING,
        f"{_scored(row) / len(seeds) / 60:.1f}",
        "; ".join(devices),
    )


def _seeds(row: Row) -> list[Entry]:
    """One result of each training seed."""
    return [*{entry.result.model["weights_digest"]: entry for entry in _entries(row)}.values()]


def _entries(row: Row) -> list[Entry]:
    return [entry for scored in row.entries.values() for entry in scored]


def _trained(entry: Entry) -> float:
    return float(entry.result.training["seconds"] or 0)


def _tokens(entry: Entry) -> float:
    return float(entry.result.training["tokens"] or 0)


def _scored(row: Row) -> float:
    return math.fsum(entry.result.provenance["wall_seconds"] for entry in _entries(row))


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours"
