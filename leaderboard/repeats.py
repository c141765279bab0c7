"""Trainings repeated elsewhere: do their perplexities lie where a further training seed of the same row would?"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from leaderboard.board import Board, Column, Row, column_key
from leaderboard.entries import Entry, load
from leaderboard.labels import row_identity
from leaderboard.ranking import headline
from ltm.config import canonical_json
from ltm.errors import UserError
from ltm.result import Metric

LEVEL = 0.99
"""Share of further training seeds that the tolerance takes in, where a row has several."""
LEAST = 0.01
"""The tolerance is at least this, in nats per token: seeds may happen to lie close together."""
ALONE = 0.05
"""The tolerance in nats per token where a row has one training seed, whose spread nobody knows."""


def repeated(board: Board, directory: Path) -> list[tuple[str, bool]]:
    """Return for each perplexity in a results directory a line on how it stands to the board's row, and if it fits.

    Raises:
        UserError: there are no results, or none of a training and a text that the board has.
    """
    known = {
        _key(entries[0]): (row, column)
        for section in board.sections
        for row in section.rows
        for column, entries in row.entries.items()
    }
    judged = [
        _judged(entry, metric, *known[_key(entry)])
        for entry in load(directory)
        if (metric := headline(entry)) is not None and _key(entry) in known
    ]
    if not judged:
        raise UserError(
            f"{directory} has no perplexity of a training and a text that the board has too; train and score a row of "
            "it again, with the settings that its results record"
        )
    return judged


def _key(entry: Entry) -> tuple[Any, ...]:
    return canonical_json(row_identity(entry.result)), *column_key(entry.result)


def _judged(entry: Entry, metric: Metric, row: Row, column: Column) -> tuple[str, bool]:
    committed = [math.log(m.value) for each in row.entries[column] if (m := headline(each)) is not None]
    difference, allowed = math.log(metric.value) - statistics.fmean(committed), tolerance(committed)
    seeds = f"{len(committed)} training seeds" if len(committed) > 1 else "one training seed"
    fits = abs(difference) <= allowed
    line = (
        f"{row.label} on {column.title}, seed {entry.result.training['seed']}: {metric.value:.4g} against "
        f"{math.exp(statistics.fmean(committed)):.4g} of {seeds}, {difference:+.4f} nats per token, "
        f"{'within' if fits else 'beyond'} ±{allowed:.4f}"
    )
    return line, fits


def tolerance(nats: list[float]) -> float:
    """How far a further training may be from the mean of these, in nats per token: the t prediction interval."""
    if len(nats) < 2:
        return ALONE
    from scipy.stats import t

    width = float(t.ppf((1 + LEVEL) / 2, len(nats) - 1)) * statistics.stdev(nats) * math.sqrt(1 + 1 / len(nats))
    return max(LEAST, width)
