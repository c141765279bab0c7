"""Which model is better than which, stated only where the numbers separate them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from leaderboard.board import Column, Row
from leaderboard.entries import PERPLEXITY, Entry
from ltm.errors import UserError
from ltm.result import Metric, Result, read_records


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """Per-block values of one result: log-likelihood in nats, number of tokens, and the file that they are from."""

    path: Path
    nats: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Claim:
    """A perplexity that may be ranked, exact or an upper bound, over all training seeds of a row.

    Attributes:
        value: mean over training seeds.
        low, high: the lowest and the highest end of the seeds' 95% intervals; None if a seed has no interval.
        blocks: per-block values, if there is one training seed and its records are at hand.
    """

    value: float
    low: float | None
    high: float | None
    blocks: Blocks | None = None


def separated(better: Claim, worse: Claim) -> bool:
    """Return True if the first claim wins: its perplexity, or the bound on it, is lower beyond doubt.

    With per-block values of both, the 95% interval of the paired difference decides; otherwise the 95% intervals must
    not touch. Bounds are compared as they stand, so the true perplexity behind a bound that loses may still be lower.

    Raises:
        UserError: both have per-block values, but of different blocks.
    """
    if better.value >= worse.value:
        return False
    if better.blocks is not None and worse.blocks is not None:
        _, high = paired_difference(better.blocks, worse.blocks)
        return high < 0
    return better.high is not None and worse.low is not None and better.high < worse.low


def ranks(claims: Sequence[Claim]) -> list[int]:
    """Return for each claim 1 + the number of claims that win over it, so that claims of equal standing share a rank.

    Raises:
        UserError: the per-block values are not all of the same blocks.
    """
    paired = [claim for claim in claims if claim.blocks is not None]
    wins = _paired_wins(paired)
    return [
        1
        + sum(separated(other, claim) for other in claims if other.blocks is None or claim.blocks is None)
        + (wins[paired.index(claim)] if claim.blocks is not None else 0)
        for claim in claims
    ]


def _paired_wins(claims: Sequence[Claim]) -> list[int]:
    """Count the claims that win over each, as `separated` does, one row of pairs at a time; all must have blocks."""
    blocks = [claim.blocks for claim in claims if claim.blocks is not None]
    if not blocks:
        return []
    for other in blocks[1:]:
        _check_same(blocks[0], other)
    nats_NB, value_N = np.stack([b.nats for b in blocks]), np.array([claim.value for claim in claims])
    wins = []
    for value, nats_B in zip(value_N, nats_NB, strict=True):
        _, high_N = _intervals(nats_B - nats_NB, blocks[0].tokens)
        wins.append(int(((value_N < value) & (high_N < 0)).sum()))
    return wins


def paired_difference(a: Blocks, b: Blocks) -> tuple[float, float]:
    """The 95% interval (t, over blocks) of the nats per token that `a` needs beyond `b` on the same blocks.

    Infinite for a single block.

    Raises:
        UserError: the blocks are not the same.
    """
    _check_same(a, b)
    (low,), (high,) = _intervals((b.nats - a.nats)[None], a.tokens)
    return float(low), float(high)


def _check_same(a: Blocks, b: Blocks) -> None:
    if not np.array_equal(a.tokens, b.tokens):
        raise UserError(f"{a.path} and {b.path} should cover the same blocks, but their records differ; score again")


def _intervals(difference_NB: np.ndarray, tokens_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95% interval of nats per token for each row of differences by block."""
    from scipy.special import stdtrit

    count, total = len(tokens_B), tokens_B.sum()
    mean_N = difference_NB.sum(1) / total
    if count < 2:
        return np.full_like(mean_N, -np.inf), np.full_like(mean_N, np.inf)
    # A ratio of sums: its error is that of the residuals about the mean ratio.
    residual_NB = difference_NB - mean_N[:, None] * tokens_B
    stderr_N = np.sqrt(count / (count - 1) * np.einsum("nb,nb->n", residual_NB, residual_NB)) / total
    margin_N = stdtrit(count - 1, 0.975) * stderr_N
    return mean_N - margin_N, mean_N + margin_N


@cache
def claim(entries: tuple[Entry, ...]) -> Claim | None:
    """Return what the results of one row in one column claim; None if there are none, or if one is an estimate.

    Raises:
        UserError: the records of a result do not give its perplexity.
    """
    metrics = [metric for entry in entries if (metric := headline(entry)) is not None]
    if not metrics or any(metric.kind == "estimate" for metric in metrics):
        return None
    intervals = [metric.ci95 for metric in metrics if metric.ci95 is not None]
    whole = len(intervals) == len(metrics)
    return Claim(
        value=sum(metric.value for metric in metrics) / len(metrics),
        low=min(interval.low for interval in intervals) if whole else None,
        high=max(interval.high for interval in intervals) if whole else None,
        blocks=blocks(entries[0], metrics[0]) if len(entries) == 1 else None,
    )


def ranked(rows: Sequence[Row], column: Column) -> dict[str, tuple[int, bool]]:
    """Return by row label the rank in a column, and whether it is shared; rows without a rank are left out."""
    claims = {row.label: made for row in rows if (made := claim(row.entries.get(column, ()))) is not None}
    numbers = ranks(list(claims.values()))
    return {label: (rank, numbers.count(rank) > 1) for label, rank in zip(claims, numbers, strict=True)}


def headline(entry: Entry) -> Metric | None:
    """Return the perplexity that the model of a result is ranked by; None for tasks that measure none."""
    return entry.result.metric(PERPLEXITY)


def blocks(entry: Entry, metric: Metric) -> Blocks | None:
    """Read the per-block values of a likelihood; None if the result has no records.

    Raises:
        UserError: the records are not the result's own, lack the likelihood, or do not give the stated perplexity.
    """
    records = read_records(entry.path, entry.result)
    if records is None:
        return None
    name = str(metric.likelihood)
    if not records or any(name not in record or "tokens" not in record for record in records):
        raise UserError(f"{entry.path}: field records: expected {name} and tokens of every block, found less")
    nats = np.array([record[name] for record in records], np.float64)
    tokens = np.array([record["tokens"] for record in records], np.float64)
    perplexity = math.exp(-nats.sum() / tokens.sum())
    if not math.isclose(perplexity, metric.value, rel_tol=1e-6):
        raise UserError(
            f"{entry.path}: field metrics, {metric.name}: expected {perplexity!r}, which the records give, "
            f"found {metric.value!r}"
        )
    return Blocks(path=entry.path, nats=nats, tokens=tokens)


def judged_by(result: Result) -> Metric:
    """Return the metric that the result is compared by: the first headline metric, or the first of all."""
    return sorted(result.metrics, key=lambda metric: not metric.headline)[0]
