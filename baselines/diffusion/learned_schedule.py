"""A learned mask schedule per token type, GenMD4 (arXiv 2406.04329): by time t, type v is masked at rate t^(w_v).

As time falls, a masked token of type v is revealed at the rate w_v / t. A network that gives p(v) reveals v at the rate
p(v) w_v / t, so that a masked token x costs, per unit of time, the divergence between the two jump processes:

    c / t  with  c = sum_v w_v p(v) - w_x - w_x log p(x).

With all w = 1 this is MDLM's -log p(x) / t. The bound is the integral of the expected costs over t in [OFFSET, 1], plus
the data end: what is masked at OFFSET is guessed uniformly. At t = 1 everything is masked, exactly.

As in `masking.py` the time is integrated out. Let k be uniform on 1..n, t the k-th smallest time at which some token
becomes masked, and M the k tokens masked by then: (M, t) has density P(M | t) W / (n t), where W is the sum of w over
M. So n C / W, where C is the sum of c over M, estimates the bound with a bounded weight. (The published code draws t
uniformly, and its weight is 1 / t.)
Shapes: B sequences, L tokens, V outputs, N masked tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.diffusion.schedules import OFFSET
from ltm.rng import SequenceRng


class Noised(NamedTuple):
    """One draw of a mask and its time for each sequence.

    Attributes:
        masked_BL: bool; the masked tokens, scored ones only.
        time_B: float64 in (0, 1].
    """

    masked_BL: Tensor
    time_B: Tensor


class LearnedSchedule(nn.Module):
    """A speed w_v > 0 for each of `outputs` token types, initially 1."""

    def __init__(self, outputs: int):
        super().__init__()
        self.raw = nn.Parameter(torch.full((outputs,), math.log(math.e - 1)))

    def speeds(self) -> Tensor:
        """Return the speeds w, (V,)."""
        return F.softplus(self.raw)

    @torch.no_grad()
    def draw(
        self, tokens_BL: Tensor, scored_BL: Tensor, rng: SequenceRng, *, draws: int, block_length: int, masks: int = 1
    ) -> list[Noised]:
        """Draw `draws` counts of masked tokens per sequence, spread evenly, and `masks` independent masks for each.

        Args:
            scored_BL: bool; which tokens may be masked.
            block_length: L of the longest possible sequence, so that no noise depends on padding.

        Raises:
            ValueError: fewer than one draw.
        """
        if draws < 1:
            raise ValueError(f"draws must be at least 1, found {draws}")
        n_B, stream, noised = scored_BL.sum(1), rng.stream("masks"), []
        speeds_BL = self.speeds().double()[tokens_BL]
        for u_B in rng.stratified("masks", draws)[..., 0].to(tokens_BL.device):
            k_B = torch.minimum((u_B * n_B).long() + 1, n_B).clamp(min=1)
            for _ in range(masks):
                v_BL = stream.uniform(block_length)[:, : tokens_BL.shape[1]].to(tokens_BL.device)
                masked_by_BL = (v_BL ** (1 / speeds_BL)).masked_fill(~scored_BL, 1.0)
                time_B = masked_by_BL.sort(1).values.gather(1, k_B[:, None] - 1)[:, 0]
                noised.append(Noised(scored_BL & (masked_by_BL <= time_B[:, None]), time_B))
        return noised

    def _masked_speed(self, tokens_BL: Tensor, noised: Noised) -> Tensor:
        """Return W, float64 (B,); 1 if nothing is masked."""
        speeds_BL = self.speeds().double()[tokens_BL].masked_fill(~noised.masked_BL, 0.0)
        return speeds_BL.sum(1) + ~noised.masked_BL.any(1)

    def weights(self, tokens_BL: Tensor, scored_BL: Tensor, noised: Noised) -> Tensor:
        """Return n / W, float64 (B,), differentiable in the speeds; 0 below OFFSET, which the data end covers."""
        return scored_BL.sum(1) * (noised.time_B >= OFFSET) / self._masked_speed(tokens_BL, noised)

    def cost(self, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        """Return c of each masked token, (N,) nats; the integrand of the bound is c / t."""
        log_p_NV, speeds_V = logits_NV.log_softmax(1), self.speeds().to(logits_NV.dtype)
        speed_N = speeds_V[targets_N]
        return log_p_NV.exp() @ speeds_V - speed_N - speed_N * log_p_NV.gather(1, targets_N[:, None])[:, 0]

    def log_density(self, tokens_BL: Tensor, scored_BL: Tensor, noised: Noised) -> Tensor:
        """Return the log density of a draw up to terms without the speeds, float64 (B,), differentiable in them."""
        masked_nats_BL = self.speeds().double()[tokens_BL] * noised.time_B.log()[:, None]
        # Clamped just below time 1: at 1 every token is masked, and the logarithm of 0 has no gradient.
        kept_nats_BL = torch.log(-torch.expm1(masked_nats_BL.clamp(max=-(2.0**-52))))
        mask_nats_BL = torch.where(noised.masked_BL, masked_nats_BL, kept_nats_BL).masked_fill(~scored_BL, 0.0)
        return mask_nats_BL.sum(1) + self._masked_speed(tokens_BL, noised).log()

    def data_end(self, tokens_BL: Tensor, scored_BL: Tensor) -> Tensor:
        """Return the expected cost of guessing what is masked at OFFSET, float64 (B,) nats."""
        masked_BL = OFFSET ** self.speeds().double()[tokens_BL]
        return masked_BL.masked_fill(~scored_BL, 0.0).sum(1) * math.log(len(self.raw))

    def reveal(self, p_NV: Tensor, time: float, next_time: float) -> Tensor:
        """Return weights (N, V + 1) of each token, and last of staying masked, over a step; 0 at `next_time` 0."""
        stay_NV = p_NV * (next_time / time) ** self.speeds().to(p_NV)
        return torch.cat([p_NV - stay_NV, stay_NV.sum(1, keepdim=True)], 1)


def leave_one_out(costs_2B: Tensor, log_densities_2B: Tensor) -> Tensor:
    """Return the mean cost (B,) of two independent draws, with a gradient that includes the sampling of the masks.

    It adds the score-function gradient with the other mask's cost as baseline, (c1 - c2) / 2 times grad log(q1 / q2).
    The added value is 0.
    """
    half_B = (costs_2B[0] - costs_2B[1]).detach() / 2
    score_B = half_B * (log_densities_2B[0] - log_densities_2B[1])
    return costs_2B.mean(0) + score_B - score_B.detach()
