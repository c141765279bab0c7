"""Search for the clipped schedule of block diffusion (arXiv 2503.09573) with the least noisy training loss.

Training on shares of masked tokens from an interval [low, high] does not change what each token's prediction should be,
but how much the loss varies from block to block. Shapes: B sequences, L tokens, P blocks per sequence, N positions, X
blocks of all sequences and draws.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.diffusion.bd3lm import BD3LM
from baselines.diffusion.masking import draw_masks
from ltm.nn.output_head import token_nats
from ltm.rng import SequenceRng

INTERVALS = tuple(
    (start / 20, (start + width) / 20) for width in (10, 12, 14, 16, 18) for start in range(0, 21 - width)
)
"""The published grid: widths 0.5, 0.6, .. 0.9 at offsets in steps of 0.05."""


class ClippingSearch(NamedTuple):
    """Result of `search_clipping`: the interval of least variance, and the variance of block losses for each."""

    low: float
    high: float
    variances: dict[tuple[float, float], float]


@torch.no_grad()
def search_clipping(
    model: BD3LM,
    batches: Iterable[tuple[Tensor, SequenceRng]],
    *,
    draws: int = 1,
    intervals: Iterable[tuple[float, float]] = INTERVALS,
) -> ClippingSearch:
    """Compute the variance of block losses, in (nats per token)², for each interval, all from the same masks.

    Masks are drawn over all shares. A block with k of n tokens masked represents the shares from (k - 1) / n to k / n,
    and is weighted by how much of these lies in the interval.

    Args:
        batches: token ids (B, L) and their noise.
        draws: masks per text.

    Raises:
        ValueError: no batch; or blocks of one token, which leave nothing to clip.
    """
    if model.config.block_size == 1:
        raise ValueError("blocks of one token are always masked whole: there is no share to clip")
    losses = [_block_losses(model, tokens_BL, rng, draws) for tokens_BL, rng in batches]
    if not losses:
        raise ValueError("need at least one batch to search with")
    loss_X, k_X, n_X = (torch.cat(part) for part in zip(*losses, strict=True))
    variances = {}
    for low, high in intervals:
        inside_X = (torch.clamp(k_X / n_X, max=high) - torch.clamp((k_X - 1) / n_X, min=low)).clamp(min=0)
        weight_X = n_X * inside_X
        weight_X = weight_X / weight_X.sum()
        mean = (weight_X * loss_X).sum()
        variances[low, high] = float((weight_X * (loss_X - mean).square()).sum())
    low, high = min(variances, key=lambda interval: variances[interval])
    return ClippingSearch(low, high, variances)


def _block_losses(model: BD3LM, tokens_BL: Tensor, rng: SequenceRng, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return nats per token, masked tokens k and tokens n of each block that has any; float64 (X,)."""
    S, scored_BL = model.config.block_size, torch.ones_like(tokens_BL, dtype=torch.bool)
    inputs_BN = model.lay_out(tokens_BL)

    def per_block(x_BL: Tensor) -> Tensor:
        x_BN = F.pad(x_BL.double(), (1, 0))
        return F.pad(x_BN, (0, -x_BN.shape[1] % S)).unflatten(1, (-1, S)).sum(2)

    clean = model.clean_pass(inputs_BN)
    losses: list[tuple[Tensor, Tensor, Tensor]] = []
    for masks in draw_masks(scored_BL, rng, draws=draws, block_length=model.block_length, block=S):
        h_MD = model.masked_pass(inputs_BN, masks.masked_BL, clean)
        nats_BL = torch.zeros_like(masks.weight_BL)
        nats_BL[masks.masked_BL] = token_nats(h_MD, model.decoder.head(), tokens_BL[masks.masked_BL]).double()
        n_BP, k_BP = per_block(scored_BL), per_block(masks.masked_BL)
        real_BP = n_BP > 0
        loss_BP = -per_block(masks.weight_BL * nats_BL) / n_BP
        losses.append((loss_BP[real_BP], k_BP[real_BP], n_BP[real_BP]))
    loss_X, k_X, n_X = (torch.cat(part) for part in zip(*losses, strict=True))
    return loss_X, k_X, n_X
