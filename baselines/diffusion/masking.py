"""What all masked diffusion models share: which tokens are masked, at what rate, and what each weighs in the bound.

A text of n scored tokens is masked at rate m, each token by itself. With the rate's schedule integrated out, the
continuous-time bound of absorbing diffusion (arXiv 2406.07524, 2406.04329) is

    integral over m in [0, 1] of (1 / m) E_mask[sum over masked i of c_i]  =  sum over k = 1..n of (1 / k) E_k[the same]

where c_i is what masked token i costs and E_k is over masks of just k tokens: the integral of m^(k-1) (1-m)^(n-k) is a
Beta function. So k is uniform on 1..n, a text costs n times the mean over its masked tokens, and given k the rate has
the law Beta(k, n - k + 1), that of the k-th smallest of n uniform numbers. Nothing is cut off at either end of [0, 1],
and the weight of a token, n / k, is bounded. In block diffusion (arXiv 2503.09573) each block is a text of its own.
Shapes: K draws, B sequences, L tokens, P blocks of a sequence, S tokens of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ltm.api import LanguageModel, LikelihoodEstimate
from ltm.rng import SequenceRng

DRAWS = 4
"""Default Monte Carlo draws of a diffusion bound."""


class MaskedModel(LanguageModel):
    """A model of texts with masks in them, and its one bound."""

    @property
    def mask_id(self) -> int:
        """The id after BOS: an input only, and no id of the tokenizer."""
        return self.vocab_size

    def headline(self, context: int | Tensor = 0) -> str:
        """The evidence lower bound, whatever is scored."""
        return "elbo"


class Masks(NamedTuple):
    """One draw of masks for each sequence.

    Attributes:
        masked_BL: bool; of the scored tokens of each block, k.
        weight_BL: float64; n / k where masked, else 0.
        rate_BP: float64, the mask rate m of each block, in (0, 1]; of a block without scored tokens, 1.
    """

    masked_BL: Tensor
    weight_BL: Tensor
    rate_BP: Tensor


def draw_masks(
    scored_BL: Tensor,
    rng: SequenceRng,
    *,
    draws: int,
    block_length: int,
    block: int | None = None,
    low: float = 0.0,
    high: float = 1.0,
    purpose: str = "masks",
) -> list[Masks]:
    """`draws` masks of each sequence; shares k / n are spread evenly over draws, blocks and sequences of a run.

    Args:
        scored_BL: where a token may be masked.
        block_length: L of the longest sequence there may be, so that no noise depends on padding.
        block: S, tokens of a block, BOS counted as the first of the first block; None for one block.
        low, high: the part of 1..n that k is drawn from; the bound needs all of it.

    Raises:
        ValueError: fewer than one draw, a text longer than `block_length`, or not 0 <= low < high <= 1.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, found {draws}")
    if not 0 <= low < high <= 1:
        raise ValueError(f"need 0 <= low < high <= 1, found {low} and {high}")
    B, L = scored_BL.shape
    if L > block_length:
        raise ValueError(f"a text of {L} tokens exceeds the {block_length} that fit beside the BOS")
    S = block_length + 1 if block is None else block
    P = -(-(block_length + 1) // S)
    padding = (1, P * S - L - 1)

    def blocks(x_BL: Tensor, value: float) -> Tensor:
        return F.pad(x_BL, padding, value=value).view(B, P, S)

    scored_BPS = blocks(scored_BL, False)
    n_BP = scored_BPS.sum(2)
    u_KBP = low + (high - low) * rng.stratified(purpose, draws, P).to(scored_BL.device)
    stream, found = rng.stream(purpose), []
    for u_BP in u_KBP:
        v_BL = stream.uniform(block_length)[:, :L].to(scored_BL.device)
        v_BPS = blocks(v_BL, 2.0).masked_fill(~scored_BPS, 2.0)
        k_BP = torch.minimum((u_BP * n_BP).long() + 1, n_BP).clamp(min=1)
        rate_BP = v_BPS.sort(2).values.gather(2, k_BP[..., None] - 1)[..., 0]
        masked_BPS = (v_BPS <= rate_BP[..., None]) & scored_BPS
        weight_BPS = masked_BPS * (n_BP / k_BP)[..., None].double()
        cut = slice(1, L + 1)
        found.append(Masks(masked_BPS.flatten(1)[:, cut], weight_BPS.flatten(1)[:, cut], rate_BP.clamp(max=1.0)))
    return found


def diffusion_bound(
    nats_KB: Tensor, tokens_B: Tensor, ends: Mapping[str, Tensor] | None = None
) -> dict[str, LikelihoodEstimate]:
    """The `elbo` from draws of the integral, made with `SequenceRng.stratified`, and what its ends add, (B,) each."""
    diffusion_B, ends = nats_KB.mean(0), ends or {}
    estimate = LikelihoodEstimate(
        nats_B=diffusion_B + sum(ends.values()),
        tokens_B=tokens_B,
        kind="lower_bound",
        draws=len(nats_KB),
        mc_var_B=variance_of_mean(nats_KB),
        terms={"diffusion": diffusion_B, **ends} if ends else {},
        averaged=True,
    )
    return {"elbo": estimate}


def variance_of_mean(values_KB: Tensor) -> Tensor | None:
    """Variance of the mean over draws, from draws made with `SequenceRng.stratified`, (B,); None for one draw.

    From four draws on it is taken between mirrored pairs. Strata make the mean better than independent draws would,
    so in expectation this is an upper bound on the variance.
    """
    draws = len(values_KB)
    if draws < 2:
        return None
    if draws >= 4 and draws % 2 == 0:
        values_KB = values_KB.unflatten(0, (-1, 2)).mean(1)
    return values_KB.var(0) / len(values_KB)


def visible_keys(real_BL: Tensor) -> Tensor | None:
    """For `Stack.run`: BOS and all tokens that are not padding, (B, 1, 1, L + 1); None when that is everything."""
    return None if bool(real_BL.all()) else F.pad(real_BL, (1, 0), value=True)[:, None, None]
