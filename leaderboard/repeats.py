"""Trainings repeated elsewhere: do their perplexities lie where a further training seed of the same row would?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from pathlib import Path

from leaderboard.board import Board, Column, Row
from leaderboard.entries import Entry, load
from leaderboard.labels import row_identity
from leaderboard.ranking import headline
from ltm.errors import UserError

LEVEL = 0.99
"""Share of further training seeds that the tolerance takes in, where a row has several."""
LEAST = 0.01
"""The tolerance is at least this, in nats per token: seeds may happen to lie close together."""
ALONE = 0.05
"""The tolerance in nats per token where a row has one training seed, whose spread nobody knows."""


def repeated(board: Board, directory: Path) -> Iterator[tuple[str, bool]]:
    """Yield for each perplexity in a results directory a line on how it stands to the board's row, and whether it fits.

    Raises:
        UserError: there are no results, or none of a training and a text that the board has.
    """
    known = {
        (_training(entries[0]), _text(column)): (row, column)
        for section in board.sections
        for row in section.rows
        for column, entries in row.entries.items()
    }
    found = False
    for entry in load(directory):
        task, data = entry.result.task, entry.result.data
        key = _training(entry), (task["name"], str(task["version"]), task["split"], data["fingerprint"])
        if headline(entry) is not None and key in known:
            found = True
            yield _judged(entry, *known[key])
    if not found:
        raise UserError(
            f"{directory} has no perplexity of a training and a text that the board has too; "
            "repeat a row of it with the command that the board names"
        )


def _training(entry: Entry) -> str:
    return repr(sorted(row_identity(entry.result).items(), key=lambda item: item[0]))


def _text(column: Column) -> tuple[str, str, str, str]:
    return column.task, str(column.version), column.split, column.fingerprint


def _judged(entry: Entry, row: Row, column: Column) -> tuple[str, bool]:
    metric = headline(entry)
    assert metric is not None  # `repeated` asks for nothing else.
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
