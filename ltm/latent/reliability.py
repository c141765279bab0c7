"""Can a mean of importance weights be trusted? Effective sample size, and how heavy the tail of the weights is.

A mean of heavy-tailed weights is too low in most samples and far too high in a few. For a lower bound that is the safe
side; for an upper bound it is the wrong one. Shapes: K draws, B texts, M largest weights, J grid points, N texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEAST_DRAWS = 25
"""Draws from which a tail has the five weights that an index is fitted to."""
MOST_TAIL = 0.55
"""The largest mean tail index over texts. With 64 draws that have a Pareto tail of 0.6, whose fitted index is that on
average, a bound on 64 texts together was above the truth in 98 of 100 trials; with 0.7 in 93, with 0.8 in 84."""
LEAST_EFFECTIVE = 8.0
"""The least median of effective draws over texts."""


def of_weights(log_weights_KB: Tensor) -> dict[str, Tensor]:
    """`effective` draws and, from `LEAST_DRAWS` on, the `tail` index of each text's weights, float64 (B,)."""
    found = {"effective": effective_draws(log_weights_KB)}
    if len(log_weights_KB) >= LEAST_DRAWS:
        found["tail"] = tail_index(log_weights_KB)
    return found


def effective_draws(log_weights_KB: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2, between 1 and K (Kish)."""
    shares_KB = log_weights_KB.double().softmax(0)
    return 1 / shares_KB.square().sum(0)


def tail_index(log_weights_KB: Tensor) -> Tensor:
    """k of a generalised Pareto distribution fitted to the M largest weights: PSIS k-hat (Vehtari et al., 2024).

    Moments above 1 / k do not exist. M is the lesser of K / 5 and 3 sqrt(K), and k is drawn towards 1/2 as by ten more
    observations. Zhang and Stephens (Technometrics 51, 2009): a mean over a grid of the other parameter, weighted by
    the profile likelihood. -1 for weights without a tail.

    Raises:
        ValueError: fewer draws than `LEAST_DRAWS`.
    """
    K = len(log_weights_KB)
    if K < LEAST_DRAWS:
        raise ValueError(f"a tail index takes {LEAST_DRAWS} draws, found {K}")
    M = math.ceil(min(K / 5, 3 * math.sqrt(K)))
    log_w_KB = log_weights_KB.double().sort(0).values
    w_KB = (log_w_KB - log_w_KB[-1]).exp()
    x_MB = w_KB[-M:] - w_KB[-M - 1]
    # Where the largest weights are equal up to rounding, there is nothing to fit.
    flat_B = x_MB[-1] <= 1e-9
    x_MB = torch.where(flat_B, torch.arange(1, M + 1, dtype=torch.float64, device=x_MB.device)[:, None], x_MB)
    J = 30 + math.floor(math.sqrt(M))
    grid_J = 1 - torch.sqrt(J / (torch.arange(1, J + 1, dtype=torch.float64, device=x_MB.device) - 0.5))
    quartile_B = x_MB[math.floor(M / 4 + 0.5) - 1].clamp(min=1e-12)
    b_JB = 1 / x_MB[-1] + grid_J[:, None] / (3 * quartile_B)

    def index(b: Tensor) -> Tensor:
        return torch.log1p(-b[..., None, :] * x_MB).mean(-2)

    k_JB = index(b_JB)
    share_JB = (M * ((-b_JB / k_JB).log() - k_JB - 1)).softmax(0)
    k_B = (M * index((share_JB * b_JB).sum(0)) + 5) / (M + 10)
    return torch.where(flat_B, -1.0, k_B)


def trusted(diagnostics: Mapping[str, Any]) -> bool:
    """True if the mean `tail` index and the median of `effective` draws over texts are within the limits.

    What no draw has seen, such as a mode of the posterior far from all proposals, shows in neither.

    Args:
        diagnostics: see `of_weights`; arrays or tensors, (N,).
    """
    if "tail" not in diagnostics or not len(diagnostics["tail"]):
        return False
    tail_N, effective_N = (torch.as_tensor(diagnostics[name]).cpu().numpy() for name in ("tail", "effective"))
    return bool(np.mean(tail_N) <= MOST_TAIL and np.median(effective_N) >= LEAST_EFFECTIVE)
