"""Means over items with their 95% intervals: items resampled with replacement, all means together, so they pair.

Shapes: M means, N items, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.stats import RESAMPLES, SEED, Measured


def means(values_MN: Any, items: str) -> list[Measured]:
    """The mean of each row, with its error over the choice of items.

    A percentile interval over few items that all agree has no width, which says little: `method` has their number.

    Args:
        values_MN: finite; column i is the same item in every row.
        items: what they are called, such as `problems`.

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
    low_M, high_M = np.quantile(resampled_RM, [0.025, 0.975], axis=0)
    return [
        Measured(
            float(values_MN[m].mean()),
            None,
            float(resampled_RM[:, m].std(ddof=1)),
            (float(low_M[m]), float(high_M[m])),
            f"percentile bootstrap over {count} {items}, {RESAMPLES} resamples",
        )
        for m in range(len(values_MN))
    ]


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
