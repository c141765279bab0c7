"""Masks, mask rates and weights of the bound that all masked diffusion models share.

A text of n scored tokens is masked at rate m, each token by itself. With the rate's schedule integrated out, the
continuous-time bound of absorbing diffusion (arXiv 2406.07524, 2406.04329) is

    integral over m in [0, 1] of (1 / m) E_mask[sum over masked i of c_i]  =  sum over k = 1..n of (1 / k) E_k[the same]

where c_i is the cost of masked token i and E_k averages over masks of exactly k tokens: the integral of
m^(k-1) (1-m)^(n-k) is a Beta function. So k is uniform on 1..n, a text costs n times the mean over its masked tokens,
and the rate given k follows Beta(k, n - k + 1), the law of the k-th smallest of n uniform numbers. Nothing is cut off
at either end of [0, 1], and the weight of a token, n / k, is bounded. In block diffusion (arXiv 2503.09573) each block
is a text of its own.
Shapes: K draws, B sequences, L tokens, P blocks per sequence, S tokens per block.
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
    """A model that predicts tokens of texts with masks in them: scored by a bound, or exactly under a rule of order."""

    @property
    def mask_id(self) -> int:
        """The id after BOS: an input that is never output, and no id of the tokenizer."""
        return self.vocab_size

    def headline(self, context: int | Tensor = 0) -> str:
        """Return `elbo`, whatever is scored; under a rule the name of its exact likelihood, such as `duel_margin`."""
        unmasking = self.config.unmasking
        return "elbo" if unmasking == "any_order" else f"duel_{unmasking}"

    def passes(self, masks: int) -> int:
        """Return the network passes that scoring takes: one per mask under a rule, which needs half of the heads."""
        return DRAWS if self.config.unmasking == "any_order" else masks

    @property
    def chain_rule(self) -> bool:
        """See `LanguageModel.chain_rule`: how many masks follow may change the order in which a beginning is shown."""
        return self.config.unmasking == "any_order"


class Masks(NamedTuple):
    """One draw of masks for each sequence.

    Attributes:
        masked_BL: bool; true for k of the scored tokens of each block.
        weight_BL: float64; n / k where masked, else 0.
        rate_BP: float64, the mask rate m of each block, in (0, 1]; 1 for a block without scored tokens.
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
    """Draw `draws` masks per sequence; shares k / n are spread evenly over draws, blocks and sequences of a run.

    Args:
        scored_BL: bool; which tokens may be masked.
        block_length: L of the longest possible sequence, so that no noise depends on padding.
        block: S, tokens per block, with BOS as the first token of the first block; None for a single block.
        low, high: the range of shares k / n to draw from; the bound needs all of [0, 1].
        purpose: name of the noise.

    Raises:
        ValueError: fewer than one draw, a text longer than `block_length`, or not 0 <= low < high <= 1.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, found {draws}")
    if not 0 <= low < high <= 1:
        raise ValueError(f"need 0 <= low < high <= 1, found {low} and {high}")
    B, L = scored_BL.shape
    if L > block_length:
        raise ValueError(f"a text of {L} tokens exceeds the {block_length} that fit after the BOS")
    S = block_length + 1 if block is None else block
    P = -(-(block_length + 1) // S)
    padding = (1, P * S - L - 1)

    def blocks(x_BL: Tensor, value: float) -> Tensor:
        return F.pad(x_BL, padding, value=value).view(B, P, S)

    scored_BPS = blocks(scored_BL, False)
    n_BP = scored_BPS.sum(2)
    u_KBP = low + (high - low) * rng.stratified(purpose, draws, P).to(scored_BL.device)
    stream, masks = rng.stream(purpose), []
    for u_BP in u_KBP:
        v_BL = stream.uniform(block_length)[:, :L].to(scored_BL.device)
        v_BPS = blocks(v_BL, 2.0).masked_fill(~scored_BPS, 2.0)
        k_BP = torch.minimum((u_BP * n_BP).long() + 1, n_BP).clamp(min=1)
        rate_BP = v_BPS.sort(2).values.gather(2, k_BP[..., None] - 1)[..., 0]
        masked_BPS = (v_BPS <= rate_BP[..., None]) & scored_BPS
        weight_BPS = masked_BPS * (n_BP / k_BP)[..., None].double()
        cut = slice(1, L + 1)
        masks.append(Masks(masked_BPS.flatten(1)[:, cut], weight_BPS.flatten(1)[:, cut], rate_BP.clamp(max=1.0)))
    return masks


def diffusion_bound(
    nats_KB: Tensor, tokens_B: Tensor, ends: Mapping[str, Tensor] | None = None
) -> dict[str, LikelihoodEstimate]:
    """Return the `elbo` as the mean over draws of the integral plus its end terms.

    Args:
        nats_KB: float64, one estimate of the integral per draw, made with `SequenceRng.stratified`.
        tokens_B: int64, scored tokens.
        ends: float64 (B,) each, terms of the bound at the ends of the integral, by name; not positive.
    """
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


def spread(values_N: Tensor, where_BL: Tensor) -> Tensor:
    """Put values at the true positions, row-major, and 0 elsewhere; float64 (B, L), differentiable."""
    return torch.zeros_like(where_BL, dtype=torch.float64).masked_scatter(where_BL, values_N.double())


def variance_of_mean(values_KB: Tensor) -> Tensor | None:
    """Return the variance of the mean over draws made with `SequenceRng.stratified`, (B,); None for one draw.

    An even number of four or more draws is compared in mirrored pairs. The mean of stratified draws varies less than
    that of independent ones, so in expectation this is an upper bound on the variance.
    """
    draws = len(values_KB)
    if draws < 2:
        return None
    if draws >= 4 and draws % 2 == 0:
        values_KB = values_KB.unflatten(0, (-1, 2)).mean(1)
    return values_KB.var(0) / len(values_KB)


def visible_keys(real_BL: Tensor) -> Tensor | None:
    """Return the `visible` of `Stack.run`: BOS and all real tokens, (B, 1, 1, L + 1); None if there is no padding."""
    return None if bool(real_BL.all()) else F.pad(real_BL, (1, 0), value=True)[:, None, None]
