"""Convert nats to the numbers people read, with their errors. `leaderboard.verify` recomputes them independently.

Two errors are kept apart: Monte Carlo error (how far the draws may have led an estimate astray) and sampling error (how
far other text of the same kind would move it). Both are computed in nats per token and carried through the conversion.
Shapes: N blocks or items, M models or means, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ltm.errors import UserError

RESAMPLES = 9999
MOST_BLOCKS = 1_000_000
"""The most blocks that are resampled one by one; of more, groups are, about `GROUPS` of them."""
GROUPS = 100_000
SEED = 20250
NORMAL_95 = 1.959964
"""Half the width of a 95% interval of a normal distribution, in standard errors."""
ONE_SIDED_95 = 1.644854
"""Standard errors that a normal number exceeds its mean by in 5 of 100 cases."""


class Measured(NamedTuple):
    """A number and its errors, in the number's own unit; None where an error is unknown.

    `ci95` is (low, high), and `method` says how it was computed, or why there is none.
    """

    value: float
    stderr_mc: float | None
    stderr_data: float | None
    ci95: tuple[float, float] | None
    method: str


class NatsTotal(NamedTuple):
    """The total cost of a text: `nats` for `tokens` tokens, and the errors of nats per token as in `Measured`."""

    nats: float
    tokens: float
    stderr_mc: float | None
    stderr_data: float | None
    ci95: tuple[float, float] | None
    method: str

    def per_token(self) -> Measured:
        """Nats per token: the ratio of the totals, never a mean of ratios."""
        return self._through(lambda nats: nats, 1.0, units=self.tokens)

    def perplexity(self, *, units: float | None = None) -> Measured:
        """exp(total nats / units), for units such as words; for tokens when None. Tokens per unit count as fixed."""
        units = units or self.tokens
        return self._through(perplexity, perplexity(self.nats / units), units=units)

    def bits_per_byte(self, byte_count: float) -> Measured:
        """Total bits divided by the bytes of the raw text."""
        return self._through(lambda nats: nats / math.log(2), 1 / math.log(2), units=byte_count)

    def _through(self, convert: Callable[[float], float], slope: float, *, units: float) -> Measured:
        # An increasing function of nats per unit: errors by the delta method, the interval end by end.
        ratio = self.tokens / units
        return Measured(
            convert(self.nats / units),
            None if self.stderr_mc is None else slope * ratio * self.stderr_mc,
            None if self.stderr_data is None else slope * ratio * self.stderr_data,
            None if self.ci95 is None else (convert(self.ci95[0] * ratio), convert(self.ci95[1] * ratio)),
            self.method,
        )


def nats_total(nats_N: Any, tokens_N: Any, mc_var_N: Any = None) -> NatsTotal:
    """Add up the cost of a text from its blocks.

    Args:
        nats_N: log-likelihoods of blocks.
        tokens_N: tokens in each block.
        mc_var_N: Monte Carlo variances of `nats_N`; blocks have independent noise. None when exact or unknown.

    Raises:
        ValueError: no tokens, or a number that is not finite.
    """
    nats_N, tokens_N = np.asarray(nats_N, np.float64), np.asarray(tokens_N, np.float64)
    if nats_N.shape != tokens_N.shape or nats_N.ndim != 1:
        raise ValueError(
            f"expected nats and tokens of the same blocks, found shapes {nats_N.shape} and {tokens_N.shape}"
        )
    if not np.isfinite(nats_N).all() or not tokens_N.sum() > 0:
        raise ValueError("nats must be finite, and there must be tokens")
    tokens = math.fsum(tokens_N)
    stderr_mc = None if mc_var_N is None else math.sqrt(math.fsum(mc_var_N)) / tokens
    return NatsTotal(-math.fsum(nats_N), tokens, stderr_mc, *_bootstrap(*_in_groups(nats_N, tokens_N)))


def _in_groups(nats_N: np.ndarray, tokens_N: np.ndarray) -> tuple[bytes, bytes, int]:
    """The blocks, or sums over groups of neighbours where there are more than `MOST_BLOCKS`, and the size of a group.

    Resampling groups is as sound, and also counts how alike neighbours are.
    """
    size = 1 if len(nats_N) <= MOST_BLOCKS else -(-len(nats_N) // GROUPS)
    if size > 1:
        starts = np.arange(0, len(nats_N), size)
        nats_N, tokens_N = np.add.reduceat(nats_N, starts), np.add.reduceat(tokens_N, starts)
    return nats_N.tobytes(), tokens_N.tobytes(), size


@lru_cache(maxsize=64)
def _bootstrap(nats: bytes, tokens: bytes, group: int) -> tuple[float | None, tuple[float, float] | None, str]:
    """Return the standard error and the percentile interval of nats per token over resampled (nats, tokens) pairs.

    Percentiles pass through exp unchanged, so a perplexity's interval is the exp of this one.
    """
    nats_N, tokens_N = np.frombuffer(nats), np.frombuffer(tokens)
    blocks = len(nats_N)
    if blocks < 2:
        return None, None, "one block has no spread: no interval"
    from scipy.stats import bootstrap

    resampled = bootstrap(
        (nats_N, tokens_N),
        lambda nats, tokens, axis: -nats.sum(axis) / tokens.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 4_000_000 // blocks),
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    low, high = (float(end) for end in resampled.confidence_interval)
    blocks_of = "blocks" if group == 1 else f"groups of {group} neighbouring blocks"
    return (
        float(resampled.standard_error),
        (low, high),
        f"percentile bootstrap over {blocks} {blocks_of}, {RESAMPLES} resamples",
    )


def mean_of_exp(nats_N: Any, tokens_N: Any) -> float:
    """Mean of the blocks' perplexities, the short last block counting as much as any; inf on overflow.

    Some published scripts report this. It exceeds exp of the mean and depends on how the text is cut into blocks.
    """
    with np.errstate(over="ignore"):
        perplexity_N = np.exp(-np.asarray(nats_N, np.float64) / np.asarray(tokens_N, np.float64))
    return math.fsum(perplexity_N) / len(perplexity_N)


def term_per_token(term_N: Any, tokens_N: Any) -> float:
    """Cost of a named part of the log-likelihood in nats per token; the parts add up to the whole."""
    return -math.fsum(term_N) / math.fsum(tokens_N) + 0.0  # no -0.0


def perplexity(nats: float) -> float:
    """exp(nats).

    Raises:
        ValueError: it is beyond all floats.
    """
    try:
        return math.exp(nats)
    except OverflowError:
        raise ValueError(
            f"perplexity exp({nats:.6g}) is beyond all floats: the model is worse than useless here"
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blocks:
    """One model's values on the blocks of a text: log-likelihood in nats, tokens, and the result that they are from."""

    source: str
    nats_N: np.ndarray
    tokens_N: np.ndarray


def paired_difference(a: Blocks, b: Blocks) -> Measured:
    """How many more nats per token `a` costs than `b` on the same blocks, with a 95% t interval over the blocks.

    Negative: `a` is better. An interval without 0: the two differ on this text. exp of it is a ratio of perplexities.

    Raises:
        UserError: the blocks are not the same: another text, tokenizer or block length.
    """
    check_same_blocks(a, b)
    count = len(a.tokens_N)
    (mean,), (stderr,) = _ratios((b.nats_N - a.nats_N)[None], a.tokens_N)
    if count < 2:
        return Measured(float(mean), None, None, None, "one block has no spread: no interval")
    margin = _t975(count - 1) * stderr
    ci95 = (float(mean - margin), float(mean + margin))
    return Measured(float(mean), None, float(stderr), ci95, f"paired t interval over {count} blocks")


def difference_over_seeds(a: Sequence[Blocks], b: Sequence[Blocks], *, same_trainings: bool = False) -> Measured:
    """How many more nats per token training like `a` costs than training like `b`, with a 95% t interval.

    Each holds the same blocks under several training seeds. Text and seed vary: the error of the text is that of the
    paired difference between the means over seeds, the error of the seed comes from the spread of each model's totals,
    and the degrees of freedom are Welch's. A model with one seed is taken to vary as the other does. With one seed of
    both this is `paired_difference`, which speaks of these two trainings alone.

    Args:
        same_trainings: the n-th of both are the same weights, scored in two ways, whose difference is what varies.

    Raises:
        UserError: the blocks are not the same.
    """
    if len(a) == len(b) == 1:
        return paired_difference(a[0], b[0])
    for other in (*a[1:], *b):
        check_same_blocks(a[0], other)
    tokens_N = a[0].tokens_N
    a_SN, b_SN = (np.stack([blocks.nats_N for blocks in seeds]) for seeds in (a, b))
    (mean,), (stderr,) = _ratios((b_SN.mean(0) - a_SN.mean(0))[None], tokens_N)
    if len(tokens_N) < 2:
        return Measured(float(mean), None, None, None, "one block has no spread: no interval")
    parts = [(float(stderr) ** 2, len(tokens_N) - 1)]
    varying = [(b_SN - a_SN,) * 2] if same_trainings else [(a_SN, b_SN), (b_SN, a_SN)]
    for own_SN, other_SN in varying:
        spread_SN = own_SN if len(own_SN) > 1 else other_SN
        variance = float(np.var(spread_SN.sum(1) / tokens_N.sum(), ddof=1))
        parts.append((variance / len(own_SN), len(spread_SN) - 1))
    variance = sum(part for part, _ in parts)
    degrees = variance**2 / sum(part**2 / free for part, free in parts) if variance else 1.0
    margin = _t975(degrees) * math.sqrt(variance)
    method = f"paired t interval over {len(tokens_N)} blocks, and {len(a)} and {len(b)} training seeds"
    ci95 = (float(mean) - margin, float(mean) + margin)
    return Measured(float(mean), None, math.sqrt(variance), ci95, method)


def check_same_blocks(a: Blocks, b: Blocks) -> None:
    """Raise UserError unless both cover blocks of the same lengths."""
    if not np.array_equal(a.tokens_N, b.tokens_N):
        raise UserError(
            f"{a.source} and {b.source} should cover the same blocks, but their records differ; score again"
        )


def paired_intervals(difference_MN: np.ndarray, tokens_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95% t interval of nats per token for each row of differences by block; infinite for one block."""
    mean_M, stderr_M = _ratios(difference_MN, tokens_N)
    margin_M = stderr_M if len(tokens_N) < 2 else _t975(len(tokens_N) - 1) * stderr_M
    return mean_M - margin_M, mean_M + margin_M


def _ratios(difference_MN: np.ndarray, tokens_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nats per token of each row, and its standard error over blocks; an infinite one for a single block."""
    count, total = len(tokens_N), tokens_N.sum()
    mean_M = difference_MN.sum(1) / total
    if count < 2:
        return mean_M, np.full_like(mean_M, np.inf)
    # A ratio of sums: its error is that of the residuals about the mean ratio.
    residual_MN = difference_MN - mean_M[:, None] * tokens_N
    return mean_M, np.sqrt(count / (count - 1) * np.einsum("mn,mn->m", residual_MN, residual_MN)) / total


def _t975(degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of values and its standard error; nan for a single value."""
    mean, count = math.fsum(values) / len(values), len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1) if count > 1 else math.nan
    return mean, math.sqrt(variance / count)


def rate_interval(successes: int, count: int) -> tuple[float, float]:
    """The exact 95% interval of a rate (Clopper and Pearson, Biometrika 26, 1934); none of 1,000 is [0, 0.0037]."""
    from scipy.stats import binomtest

    low, high = binomtest(successes, count).proportion_ci(0.95, method="exact")
    return float(low), float(high)


def means(values_MN: Any, items: str, *, rates: Collection[int] = ()) -> list[Measured]:
    """Mean of each row with its bootstrap error: items are resampled with replacement, together for all rows.

    So differences between rows are paired. Items that all agree leave the bootstrap's interval no width. Rates, which
    often do, have an exact one.

    Args:
        values_MN: finite; column i is the same item in every row.
        items: what the items are called, such as `problems`.
        rates: rows of shares, each between 0 and 1. Where each is 0 or 1, the interval is that of `rate_interval`.

    Raises:
        ValueError: no items.
    """
    values_MN = np.asarray(values_MN, np.float64)
    if values_MN.ndim != 2 or not values_MN.shape[1]:
        raise ValueError(f"expected rows of values of at least one item, found shape {values_MN.shape}")
    count = values_MN.shape[1]
    if count < 2:
        return [Measured(float(row[0]), None, None, None, "one item has no spread: no interval") for row in values_MN]
    resampled_RM = _resampled(values_MN)
    found = []
    for m, values_N in enumerate(values_MN):
        if m in rates and np.isin(values_N, (0, 1)).all():
            ci95, method = rate_interval(int(values_N.sum()), count), f"exact binomial over {count} {items}"
        else:
            low, high = np.quantile(resampled_RM[:, m], [0.025, 0.975])
            ci95, method = (
                (float(low), float(high)),
                f"percentile bootstrap over {count} {items}, {RESAMPLES} resamples",
            )
        found.append(Measured(float(values_N.mean()), None, float(resampled_RM[:, m].std(ddof=1)), ci95, method))
    return found


def _resampled(values_MN: np.ndarray) -> np.ndarray:
    rng, count = np.random.default_rng(SEED), values_MN.shape[1]
    at_a_time = max(1, 2_000_000 // count)
    parts: Sequence[np.ndarray] = []
    for start in range(0, RESAMPLES, at_a_time):
        rows = min(at_a_time, RESAMPLES - start)
        # How often each item was drawn, by row: one product gives every mean.
        drawn = rng.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        times_RN = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        parts = [*parts, times_RN @ values_MN.T / count]
    return np.concatenate(parts)
