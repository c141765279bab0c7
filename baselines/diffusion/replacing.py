"""The tokens that uniform diffusion replaces, drawn so that a text's cost hardly depends on the draw.

By sigma each token is replaced, by any of V, with probability m = 1 - e^-sigma. The bound is an integral

    integral over m of E_replaced[f] / (1 - m),  f the sum of the tokens' costs per unit of sigma,

and f is about k / m if k of n tokens are replaced: for small m it is mostly near 0 and rarely large. So k is drawn
first, uniform on 0..n, and then m from Beta(k, n - k + 1), or Beta(1, n) for k = 0. Up to a constant this is k / m
times as likely as a uniform m with its replacements; a weight corrects for it, and weight times f is nearly flat.
Shapes: B sequences, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from baselines.diffusion.schedules import SIGMA_HIGH, SIGMA_LOW
from ltm.rng import SequenceRng


class Replaced(NamedTuple):
    """One draw for each sequence.

    Attributes:
        now_BL: int64, the tokens at sigma.
        sigma_B: float64, in [SIGMA_LOW, SIGMA_HIGH].
        weight_B: float64, the weight of f; 0 if m lies beyond the ends, which other terms of the bound cover.
    """

    now_BL: Tensor
    sigma_B: Tensor
    weight_B: Tensor


def draw_replaced(
    tokens_BL: Tensor, scored_BL: Tensor, rng: SequenceRng, *, draws: int, outputs: int, block_length: int
) -> Iterator[Replaced]:
    """Yield `draws` replacements of each sequence's scored tokens; k / n is spread evenly over draws and sequences.

    Args:
        outputs: V, number of ids that a token can become.
        block_length: L of the longest possible sequence, so that no noise depends on padding.

    Raises:
        ValueError: fewer than one draw.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, found {draws}")
    n_B, stream = scored_BL.sum(1), rng.stream("replaced")
    low, high = (-math.expm1(-sigma) for sigma in (SIGMA_LOW, SIGMA_HIGH))
    for u_B in rng.stratified("replaced", draws)[..., 0].to(tokens_BL.device):
        v_B2L = stream.uniform(2, block_length)[..., : tokens_BL.shape[1]].to(tokens_BL.device)
        order_BL = v_B2L[:, 0].masked_fill(~scored_BL, 1.0)
        k_B = torch.minimum((u_B * (n_B + 1)).long(), n_B)
        m_B = order_BL.sort(1).values.gather(1, (k_B - 1).clamp(min=0)[:, None])[:, 0]
        replaced_BL = scored_BL & (order_BL <= m_B[:, None]) & (k_B > 0)[:, None]
        # The probability of these replacements at m over that of drawing (m, replacements) here; then d sigma / d m.
        weight_B = torch.where(k_B > 0, m_B / k_B.clamp(min=1) / (1 - m_B), 1 / n_B.clamp(min=1)) * (n_B + 1)
        inside_B = (low <= m_B) & (m_B <= high)
        yield Replaced(
            torch.where(replaced_BL, (v_B2L[:, 1] * outputs).long(), tokens_BL),
            -torch.log1p(-m_B.clamp(low, high)),
            torch.where(inside_B, weight_B, 0.0),
        )
