"""How long the models of a section took to train and to score, as their results say it."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    once = {entry.result.model["weights_digest"]: entry for row in rows for entry in _seeds(row)}.values()
    trained = [
        f"{_hours(math.fsum(map(_trained, entries)))} of training on {device}"
        for device, entries in _by_device([*once]).items()
    ]
    scored = math.fsum(_scored(row) for row in rows)
    words = (
        f"{', '.join(trained)}, and {_hours(scored)} of scoring these texts, added up over processes that may have run "
        "side by side; audits and other tasks are not counted."
    )
    table = Table(
        header=("Model", "Seeds", "Training, minutes", "Tokens/s", "Scoring, minutes", "Trained on"),
        rows=tuple(_row(row) for row in rows),
        words=(5,),
    )
    return [Part(title="Time taken, per training seed", level=3, text=(words,), table=table, folded=True)]


def _row(row: Row) -> tuple[str, ...]:
    seeds = _by_device(_seeds(row))
    minutes = {device: math.fsum(map(_trained, entries)) / 60 for device, entries in seeds.items()}
    rates = {
        device: notation.short(math.fsum(map(_tokens, entries)) / minutes[device] / 60) if minutes[device] else NOTHING
        for device, entries in seeds.items()
    }
    return (
        row.label,
        "; ".join(str(len(entries)) for entries in seeds.values()),
        "; ".join(f"{minutes[device] / len(entries):.1f}" for device, entries in seeds.items()),
        "; ".join(rates.values()),
        f"{_scored(row) / sum(map(len, seeds.values())) / 60:.1f}",
        "; ".join(seeds),
    )


def _by_device(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Results by what their models were trained on."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.result.training["device"] or NOTHING, []).append(entry)
    return found


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
