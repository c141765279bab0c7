"""Score entropy: the cost of learned ratios in the bound, and how they move a token back in time (arXiv 2310.16834).

A network gives scores s_y, estimates of the ratio p(y) / p(x) between the noised text with token y in place of the
present token x and the text as it is. A forward process that moves y to x at rate Q(y, x) per unit of sigma runs back
at rates Q(y, x) s_y; if the true ratios given the text x0 are r_y, the bound pays, per token and unit of sigma,

    H = sum over y != x of Q(y, x) (s_y - r_y log s_y + r_y (log r_y - 1)),

the divergence between the two jump processes. The network's logits o_y are the score relative to a known scale.

Absorbing graph. Only masked tokens pay; Q(y, mask) = 1, and r_y is r = 1 / (e^sigma - 1) at y = x0 and 0 elsewhere.
With s_y = r g_y, g_y = exp(o_y) / V,  H = r (Z - 1 - log g_x0),  Z = sum_y g_y. The mask rate is m = 1 - e^-sigma, so
r = (1 - m) / m and d sigma = dm / (1 - m): the bound's integral is that of (1 / m) (Z - 1 - log g_x0) over m in [0, 1],
which `masking.py` estimates. Nothing is left out at its ends. With Z = 1 it is that of MDLM.

Uniform graph. Q(y, x) = 1 / V; by sigma a token has been replaced, by any of V, with probability 1 - e^-sigma. With
q = (e^sigma - 1) / (e^sigma - 1 + V), the probability ratio of one other token to the original: at x = x0 all r_y = q;
elsewhere r_x0 = 1 / q and the other r_y = 1. With d = log(1 + (V - 1) e^-sigma), log s_y = d (o_y / log V - 1): zero
logits give the ratio for a y of which nothing is known and an x that the text makes certain, 1 / V for little noise and
1 for much; and at high noise, where the true ratios are near 1, d keeps the network's errors small. In Duo (arXiv
2506.10892) the logits are those of the original token, and a law of it gives all ratios; see `duo_log_scores`.
Shapes: N tokens, V outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ltm.api import Sampling
from ltm.nn.sampling import probabilities

Scores = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps logits (N, V), present tokens (N,) and sigma, broadcast to (N, 1), to log s_y (N, V) of the uniform graph.

Entries with y = x are unused.
"""


def absorb_cost(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return Z - 1 - log g_x0 of masked tokens, (N,): their cost on the absorbing graph, relative to r."""
    log_scale = math.log(logits_NV.shape[1])
    target_N = logits_NV.gather(1, targets_N[:, None])[:, 0]
    return torch.exp(logits_NV.logsumexp(1) - log_scale) - 1 - (target_N - log_scale)


def log_ratio(sigma: Tensor, outputs: int) -> Tensor:
    """Return log q of the uniform graph, in the shape of `sigma`."""
    return -torch.log1p(outputs / torch.expm1(sigma))


def uniform_log_scores(logits_NV: Tensor, sigma: Tensor) -> Tensor:
    """Return log s_y of the uniform graph, (N, V); `sigma` broadcasts to (N, 1). Entries with y = x are unused."""
    V = logits_NV.shape[1]
    depth = torch.log1p((V - 1) * torch.exp(-sigma)).to(logits_NV.dtype)
    return depth * (logits_NV / math.log(V) - 1)


def sedd_log_scores(logits_NV: Tensor, now_N: Tensor, sigma: Tensor) -> Tensor:
    """As `uniform_log_scores`, whatever the present tokens are: `Scores` of SEDD."""
    return uniform_log_scores(logits_NV, sigma)


def duo_log_scores(logits_NV: Tensor, now_N: Tensor, sigma: Tensor) -> Tensor:
    """Return log s_y, (N, V), if the softmax p of the logits is the law of the original token: `Scores` of Duo.

    With a = e^-sigma, s_y = (V a p_y + 1 - a) / (V a p_x + 1 - a) for the present token x.
    """
    kept, replaced = math.log(logits_NV.shape[1]) - sigma, torch.log(-torch.expm1(-sigma))
    log_NV = torch.logaddexp(logits_NV.log_softmax(1) + kept.to(logits_NV), replaced.to(logits_NV))
    return log_NV - log_NV.gather(1, now_N[:, None])


def uniform_cost(
    logits_NV: Tensor, targets_N: Tensor, now_N: Tensor, sigma_N: Tensor, *, scores: Scores = sedd_log_scores
) -> Tensor:
    """Return H of the uniform graph, (N,), for tokens `now_N` whose originals are `targets_N`."""
    V, dtype = logits_NV.shape[1], logits_NV.dtype
    log_q_N, log_s_NV = log_ratio(sigma_N, V).to(dtype), scores(logits_NV, now_N, sigma_N[:, None])
    original_N = log_s_NV.gather(1, targets_N[:, None])[:, 0]
    present_N = log_s_NV.gather(1, now_N[:, None])[:, 0]
    sum_s_N, sum_log_s_N = log_s_NV.exp().sum(1) - present_N.exp(), log_s_NV.sum(1) - present_N
    q_N = log_q_N.exp()
    untouched_N = sum_s_N - q_N * sum_log_s_N + (V - 1) * q_N * (log_q_N - 1)
    replaced_N = sum_s_N - sum_log_s_N - (V - 2) - (1 / q_N - 1) * original_N - (log_q_N + 1) / q_N
    return torch.where(now_N == targets_N, untouched_N, replaced_N) / V


def noise_end(sigma: float, outputs: int) -> float:
    """Return the KL of a token's law at the uniform graph's last sigma from the uniform law, nats; closed form."""
    kept = math.exp(-sigma)
    same, other = (1 + (outputs - 1) * kept) / outputs, (1 - kept) / outputs
    return same * math.log1p((outputs - 1) * kept) + (outputs - 1) * other * math.log1p(-kept)


def data_end(sigma: float, outputs: int) -> float:
    """Return the expected -log p(x0 | x) at the uniform graph's first sigma, nats per token, for a uniform prior of x0.

    Since all originals are equally likely a priori, the posterior is the forward law with its arguments exchanged.
    """
    other = -math.expm1(-sigma) / outputs
    changed = (outputs - 1) * other
    return -(1 - changed) * math.log1p(-changed) - changed * math.log(other) if changed else 0.0


def absorb_weights(logits_NV: Tensor, share: float, sampling: Sampling, *, last: bool = False) -> Tensor:
    """Return weights (N, V + 1) of each token, and last of staying masked, for a step on the absorbing graph.

    Args:
        share: the share of masks that the step reveals if Z = 1: (m - m') / m for the analytic step from rate m to
            m', r times the length in sigma for the Euler step.
        sampling: affects which token is revealed, never how often.
        last: no mask stays.
    """
    logits_NV = logits_NV.double()
    shown_N1 = share * torch.exp(logits_NV.logsumexp(1, keepdim=True) - math.log(logits_NV.shape[1]))
    stay_N1 = torch.zeros_like(shown_N1) if last else (1 - shown_N1).clamp(min=0)
    return torch.cat([shown_N1 * probabilities(logits_NV, sampling), stay_N1], 1)


def _uniform_scores(
    logits_NV: Tensor, now_N: Tensor, sigma: float, sampling: Sampling, scores: Scores
) -> tuple[Tensor, Tensor]:
    """Return scores (N, V), 0 at the present token, and their sums (N, 1); `sampling` reshapes scores, not sums."""
    log_s_NV = scores(logits_NV.double(), now_N, torch.tensor(sigma, dtype=torch.float64))
    log_s_NV = log_s_NV.scatter(1, now_N[:, None], -torch.inf)
    total_N1 = torch.exp(log_s_NV.logsumexp(1, keepdim=True))
    return total_N1 * probabilities(log_s_NV, sampling), total_N1


def uniform_euler_weights(
    logits_NV: Tensor,
    now_N: Tensor,
    sigma: float,
    length: float,
    sampling: Sampling,
    *,
    scores: Scores = sedd_log_scores,
) -> Tensor:
    """Return weights (N, V) of the next token if rates at `sigma` hold for a `length` in sigma; none is negative."""
    score_NV, total_N1 = _uniform_scores(logits_NV, now_N, sigma, sampling, scores)
    rate = length / logits_NV.shape[1]
    return (rate * score_NV).scatter(1, now_N[:, None], (1 - rate * total_N1).clamp(min=0))


def uniform_analytic_weights(
    logits_NV: Tensor,
    now_N: Tensor,
    sigma: float,
    length: float,
    sampling: Sampling,
    *,
    scores: Scores = sedd_log_scores,
) -> Tensor:
    """Return weights (N, V) of the token a `length` in sigma earlier: Tweedie, exact for one token with exact scores.

    Scores are carried back by the inverse of the forward law, then weighted by the forward law to the present token.
    The former can become negative if scores are not true ratios; it is clamped at 0.
    """
    score_NV, total_N1 = _uniform_scores(logits_NV, now_N, sigma, sampling, scores)
    V, kept = logits_NV.shape[1], math.exp(-length)
    earlier_NV = score_NV.scatter(1, now_N[:, None], 1.0) / kept - (1 - kept) / (V * kept) * (total_N1 + 1)
    to_now_NV = torch.full_like(score_NV, (1 - kept) / V).scatter(1, now_N[:, None], kept + (1 - kept) / V)
    return earlier_NV.clamp(min=0) * to_now_NV
