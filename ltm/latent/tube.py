"""An upper bound on log p(x) from unbiased estimates of p(x): the tangent of the logarithm at a point psi.

log t <= t / psi - 1 + log psi for every psi > 0. If psi is fixed before the draws and w is unbiased for p(x),

    log p(x) <= log psi + E[w] / psi - 1,

with equality at psi = p(x): near it the slack is half the squared error of log psi. So psi comes from the draws of a
lower bound, and w from others, independent of them given q; the mean over draws is unbiased for the right-hand side
(after the thermodynamic upper bound of arXiv 2605.24292). Shapes: B texts, K draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltm.api import LikelihoodEstimate
from ltm.latent import mixture, reliability
from ltm.latent.bounds import LogLikelihood, log_weights
from ltm.latent.mixture import Mixture
from ltm.latent.posterior import Posterior
from ltm.rng import SequenceRng

VACUOUS = 300.0
"""Nats above psi beyond which a weight is counted as that, so that squares fit in a float. No text has a positive
log-likelihood, so a bound with one such weight bounds nothing, and its variance says so."""


def log_psi(lower: LikelihoodEstimate) -> Tensor:
    """The point to take the tangent at, (B,): a lower bound by weights, raised by its relative variance v.

    If log psi were normal about log p with that variance, as the mean -v/2 of such bounds suggests, a raise by v would
    give the least slack on average: v/2, where without it is exp(v) - 1 - v/2.
    """
    return lower.nats_B if lower.mc_var_B is None else lower.nats_B + lower.mc_var_B


def tangent(
    log_weights_KB: Tensor, log_psi_B: Tensor, tokens_B: Tensor, *, proposals: Mixture | None = None
) -> LikelihoodEstimate:
    """log psi + mean w / psi - 1, an unbiased average of an upper bound on log p(x).

    Args:
        log_weights_KB: of draws on which `log_psi_B` does not depend.
        proposals: what the draws are from, for the error of a stratified mean; None if they are independent.
    """
    ratios_KB = (log_weights_KB - log_psi_B).clamp(max=VACUOUS).exp()
    if proposals is not None:
        variance_B = proposals.variance_of_mean(ratios_KB)
    else:
        variance_B = ratios_KB.var(0) / len(ratios_KB) if len(ratios_KB) > 1 else None
    excess_B = ratios_KB.mean(0) - 1
    return LikelihoodEstimate(
        nats_B=log_psi_B + excess_B,
        tokens_B=tokens_B,
        kind="upper_bound",
        draws=len(log_weights_KB),
        mc_var_B=variance_B,
        terms={"log_psi": log_psi_B, "excess": excess_B},
        averaged=True,
        q=proposals,
        reliability=reliability.of_weights(log_weights_KB),
    )


def tube_upper_bound(
    log_likelihood: LogLikelihood,
    q: Posterior,
    lower: LikelihoodEstimate,
    tokens_B: Tensor,
    *,
    draws: int,
    rng: SequenceRng,
) -> LikelihoodEstimate:
    """The tangent at psi from `lower`, with draws from q, from wider q's and from the prior (`mixture.defended`).

    No weight exceeds p(x|z) K / n_prior, so that there is a variance, however narrow q is.
    """
    proposals = mixture.defended(q, draws)
    zeros = torch.zeros_like(q.mean)
    prior = Posterior(mean=zeros, log_variance=zeros)
    zs = proposals.sample(rng.stream("tube_upper_bound"))
    log_w_KB = log_weights(log_likelihood, ((z, prior.log_density(z) - proposals.log_density(z)) for z in zs))
    return tangent(log_w_KB, log_psi(lower), tokens_B, proposals=proposals)
