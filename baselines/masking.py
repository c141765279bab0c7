"""What all masked diffusion models share: which positions are masked, how often, and what that weighs.

A text of n scored tokens is masked at rate m, each token by itself. With the rate's schedule integrated out, the
continuous-time bound of absorbing diffusion (arXiv 2406.07524, 2406.04329) is

    integral over m in [0, 1] of (1 / m) E_mask sum_masked c_i dm  =  sum over k = 1..n of (1 / k) E_{k masked} sum_masked c_i

where c_i is what masked token i costs, since the integral of m^(k-1) (1-m)^(n-k) is a Beta function. So the number k
of masked tokens is uniform on 1..n, a text costs n times the mean over its masked tokens, and given k the rate has the law
Beta(k, n - k + 1), that of the k-th smallest of n uniform numbers. Nothing is cut off at either end of [0, 1], and the
weight, unlike 1 / m, is bounded. Shapes: K draws, B sequences, L tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ltm.rng import SequenceRng

DRAWS = 4
"""Default Monte Carlo draws of a diffusion bound."""


class Masks(NamedTuple):
    """One draw of masks for each sequence.

    Attributes:
        masked_BL: bool; k of the scored positions.
        rate_B: float64, the mask rate m that k was drawn at, in (0, 1).
        weight_B: float64, n / k: what the sum over masked tokens is multiplied with; 0 where nothing is scored.
    """

    masked_BL: Tensor
    rate_B: Tensor
    weight_B: Tensor


def draw_masks(
    scored_BL: Tensor,
    rng: SequenceRng,
    *,
    draws: int,
    block_length: int,
    low: float = 0.0,
    high: float = 1.0,
    purpose: str = "masks",
) -> list[Masks]:
    """`draws` masks for each sequence, with k spread evenly over the draws and over the sequences of a run.

    Args:
        scored_BL: where a token may be masked.
        block_length: L of the longest sequence there may be: noise of a position does not depend on padding.
        low, high: the part of 1..n that k is drawn from; the bound needs all of it.

    Raises:
        ValueError: fewer than one draw, or not 0 <= low < high <= 1.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, found {draws}")
    if not 0 <= low < high <= 1:
        raise ValueError(f"need 0 <= low < high <= 1, found {low} and {high}")
    device, L = scored_BL.device, scored_BL.shape[1]
    n_B = scored_BL.sum(1)
    u_KB = low + (high - low) * rng.stratified(purpose, draws)[..., 0].to(device)
    stream, found = rng.stream(purpose), []
    for u_B in u_KB:
        v_BL = stream.uniform(block_length)[:, :L].to(device).masked_fill(~scored_BL, 2.0)
        k_B = torch.minimum((u_B * n_B).long() + 1, n_B)
        ordered_BL = v_BL.sort(1).values
        rate_B = ordered_BL.gather(1, (k_B - 1).clamp(min=0)[:, None])[:, 0]
        masked_BL = (v_BL <= rate_B[:, None]) & scored_BL
        found.append(Masks(masked_BL, rate_B.clamp(max=1.0), n_B / k_B.clamp(min=1)))
    return found


def check_schedule(name: str, known: tuple[str, ...]) -> None:
    """Raise ValueError, with the nearest known name, unless `name` is a schedule."""
    from ltm.errors import did_you_mean

    if name not in known:
        raise ValueError(str(did_you_mean("schedule", name, known)))
