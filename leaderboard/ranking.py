"""Which model is better than which, stated only where the numbers separate them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from leaderboard.board import Column, Row
from leaderboard.entries import PERPLEXITY, Entry
from ltm.result import Metric, Result, read_blocks
from ltm.statistics import (
    Blocks,
    check_same_blocks,
    difference_over_seeds,
    paired_intervals,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Claim:
    """A perplexity that may be ranked, exact or the most that it can be, over all training seeds of a row.

    Attributes:
        value: mean over training seeds.
        low, high: the lowest and the highest end of the seeds' 95% intervals; None if a seed has no interval.
        seeds: the per-block values of each training seed; none unless the records of all are at hand.
        weights: digests of the weights of each training seed.
    """

    value: float
    low: float | None
    high: float | None
    seeds: tuple[Blocks, ...] = ()
    weights: tuple[str, ...] = ()


def separated(better: Claim, worse: Claim) -> bool:
    """Return True if the first claim wins: its perplexity, or the bound on it, is lower beyond doubt.

    With per-block values of both, the 95% interval of the paired difference decides, over the text and, if there are
    several, over training seeds; otherwise the 95% intervals must not touch. Bounds are compared as they stand, so the
    true perplexity behind a bound that loses may still be lower.

    Raises:
        UserError: both have per-block values, but of different blocks.
    """
    if better.value >= worse.value:
        return False
    if better.seeds and worse.seeds:
        same = bool(better.weights) and better.weights == worse.weights
        interval = difference_over_seeds(better.seeds, worse.seeds, same_trainings=same).ci95
        return interval is not None and interval[1] < 0
    return better.high is not None and worse.low is not None and better.high < worse.low


def ranks(claims: Sequence[Claim]) -> list[int]:
    """Return for each claim 1 + the number of claims that win over it, so that claims of equal standing share a rank.

    Raises:
        UserError: the per-block values are not all of the same blocks.
    """
    single = [claim for claim in claims if len(claim.seeds) == 1]
    wins = dict(zip(single, _paired_wins(single), strict=True))
    return [
        1
        + sum(separated(other, claim) for other in claims if not (claim in wins and other in wins))
        + wins.get(claim, 0)
        for claim in claims
    ]


def _paired_wins(claims: Sequence[Claim]) -> list[int]:
    """Count the claims that win over each, as `separated` does, one row of pairs at a time; all must have one seed."""
    blocks = [claim.seeds[0] for claim in claims]
    if not blocks:
        return []
    for other in blocks[1:]:
        check_same_blocks(blocks[0], other)
    nats_NB, value_N = np.stack([b.nats_N for b in blocks]), np.array([claim.value for claim in claims])
    wins = []
    for value, nats_B in zip(value_N, nats_NB, strict=True):
        _, high_N = paired_intervals(nats_B - nats_NB, blocks[0].tokens_N)
        wins.append(int(((value_N < value) & (high_N < 0)).sum()))
    return wins


@cache
def claim(entries: tuple[Entry, ...]) -> Claim | None:
    """Return what the results of one row in one column claim; None if there are none, or if one is an estimate.

    Raises:
        UserError: the records of a result do not give its perplexity.
    """
    pairs = [(entry, metric) for entry in entries if (metric := headline(entry)) is not None]
    metrics = [metric for _, metric in pairs]
    if not metrics or any(metric.kind == "estimate" for metric in metrics):
        return None
    intervals = [metric.ci95 for metric in metrics if metric.ci95 is not None]
    whole = len(intervals) == len(metrics)
    return Claim(
        value=sum(metric.value for metric in metrics) / len(metrics),
        low=min(interval.low for interval in intervals) if whole else None,
        high=max(interval.high for interval in intervals) if whole else None,
        seeds=all_blocks(pairs),
        weights=weights([entry for entry, _ in pairs]),
    )


def ranked(rows: Sequence[Row], column: Column) -> dict[str, tuple[int, bool]]:
    """Return by row label the rank in a column, and whether it is shared; rows without a rank are left out."""
    claims = {row.label: made for row in rows if (made := claim(row.entries.get(column, ()))) is not None}
    numbers = ranks(list(claims.values()))
    return {label: (rank, numbers.count(rank) > 1) for label, rank in zip(claims, numbers, strict=True)}


def mean_ranks(rows: Sequence[Row], columns: Sequence[Column]) -> dict[str, tuple[float, float | None]]:
    """Return by row label the mean over columns of its place in order of perplexity, and its spread over seeds.

    Only rows that may be ranked in every column have one. Seed by seed all are put in order; a row with fewer seeds
    than others stands with its last. The spread is the standard deviation over seeds, None for a single one.
    """
    complete = [row for row in rows if all(claim(row.entries.get(column, ())) is not None for column in columns)]
    several = [len(row.entries[column]) for row in complete for column in columns if len(row.entries[column]) > 1]
    seeds, counts = min(several, default=1), len(complete)
    if not counts:
        return {}
    places = np.zeros((seeds, counts))
    for seed in range(seeds):
        for column in columns:
            metrics = [headline(row.entries[column][: seed + 1][-1]) for row in complete]
            values = np.array([metric.value for metric in metrics if metric is not None])
            better, equal = values[None] < values[:, None], values[None] == values[:, None]
            places[seed] += better.sum(1) + (equal.sum(1) + 1) / 2
    places /= max(1, len(columns))
    spread = places.std(0, ddof=1) if seeds > 1 else [None] * counts
    return {
        row.label: (float(mean), None if sd is None else float(sd))
        for row, mean, sd in zip(complete, places.mean(0), spread, strict=True)
    }


def headline(entry: Entry) -> Metric | None:
    """Return the perplexity that the model of a result is ranked by; None for tasks that measure none."""
    return entry.result.metric(PERPLEXITY)


def other_side(entry: Entry) -> Metric | None:
    """Return the perplexity that a model has at least, and is not ranked by; None unless its headline is a bound."""
    return entry.result.other_side(PERPLEXITY)


def weights(entries: Iterable[Entry]) -> tuple[str, ...]:
    """Return the digest of the weights of each result."""
    return tuple(entry.result.model["weights_digest"] for entry in entries)


def blocks(entry: Entry, metric: Metric) -> Blocks | None:
    """Read the per-block values of a likelihood; see `ltm.result.read_blocks`."""
    return read_blocks(entry.path, entry.result, metric)


def all_blocks(pairs: Iterable[tuple[Entry, Metric]]) -> tuple[Blocks, ...]:
    """Read the per-block values of a likelihood of each result; none unless the records of all are at hand."""
    found = [blocks(entry, metric) for entry, metric in pairs]
    return tuple(each for each in found if each is not None) if all(each is not None for each in found) else ()


def judged_by(result: Result) -> Metric:
    """Return the metric that the result is compared by: the first headline metric, or the first of all."""
    return sorted(result.metrics, key=lambda metric: not metric.headline)[0]
