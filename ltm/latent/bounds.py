"""Bounds on log p(x) given a fitted q: valid ones on fresh noise, and the reused-noise estimate, which is not a bound.

Everything here takes a function from z to log p(x|z), so it serves any latent-variable model. Shapes: B texts, K draws.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ltm.api import LikelihoodEstimate
from ltm.latent.mixture import Mixture
from ltm.latent.posterior import Posterior
from ltm.rng import SequenceRng

LogLikelihood = Callable[[Tensor], Tensor]
"""Maps z (B, Y, G, D) to log p(x|z) in nats, (B,), float64.

One with an attribute `draws_at_once` n also takes up to n draws for every text, (n B, Y, G, D), in one pass.
"""


def _draw(value: Callable[[Tensor], Tensor], q: Posterior, draws: int, rng: SequenceRng, purpose: str) -> Tensor:
    """Evaluate `value` at `draws` noises that no fit has seen, (K, B)."""
    return torch.stack([value(noise) for noise in _noises(q, draws, rng, purpose)])


def _noises(q: Posterior, draws: int, rng: SequenceRng, purpose: str) -> Iterator[Tensor]:
    if draws < 1:
        raise ValueError(f"draws must be at least 1, found {draws}")
    stream, shape = rng.stream(purpose), q.mean.shape[1:]
    return (stream.normal(*shape, dtype=q.mean.dtype, device=q.mean.device) for _ in range(draws))


def given(log_likelihood: LogLikelihood, zs: Iterable[Tensor]) -> Tensor:
    """log p(x|z) of every text at each z (B, Y, G, D), (K, B); several z's in a pass where that is possible."""
    at_once, draws, values = getattr(log_likelihood, "draws_at_once", 1), iter(zs), []
    while group := list(itertools.islice(draws, at_once)):
        values.append(log_likelihood(torch.cat(group)).view(len(group), -1))
    return torch.cat(values)


def elbo(
    log_likelihood: LogLikelihood, q: Posterior, tokens_B: Tensor, *, draws: int, rng: SequenceRng
) -> LikelihoodEstimate:
    """E_q[log p(x|z)] - KL(q || p): Monte Carlo reconstruction on fresh noise, closed-form KL. A lower bound.

    It holds on average, hence `averaged`: with p(x|z) = exp(a z), a normal prior and the exact posterior, the
    exponential of one draw is exp(a^2 / 2) times p(x) in expectation.
    """
    values_KB = given(log_likelihood, map(q.at, _noises(q, draws, rng, "elbo")))
    reconstruction_B, kl_B = values_KB.mean(0), q.kl().flatten(1).sum(1)
    return LikelihoodEstimate(
        nats_B=reconstruction_B - kl_B,
        tokens_B=tokens_B,
        kind="lower_bound",
        draws=draws,
        mc_var_B=values_KB.var(0) / draws if draws > 1 else None,
        terms={"reconstruction": reconstruction_B, "-kl": -kl_B},
        averaged=True,
        q=q,
        fast_steps_B=q.steps_B,
    )


def importance_bound(
    log_likelihood: LogLikelihood, q: Posterior, tokens_B: Tensor, *, draws: int, rng: SequenceRng
) -> LikelihoodEstimate:
    """log (1/K) sum_k p(x|z_k) p(z_k) / q(z_k), a lower bound at least as tight as the ELBO (arXiv 1509.00519)."""
    purpose = "importance_bound"
    values_KB = given(log_likelihood, map(q.at, _noises(q, draws, rng, purpose)))
    bound = log_mean_exp(values_KB + _draw(q.log_ratio, q, draws, rng, purpose), tokens_B)
    return dataclasses.replace(bound, q=q, fast_steps_B=q.steps_B)


def multiple_importance_bound(
    log_likelihood: LogLikelihood, proposals: Mixture, tokens_B: Tensor, *, rng: SequenceRng
) -> LikelihoodEstimate:
    """log (1/K) sum_k p(x|z_k) p(z_k) / mix(z_k): n_m of the z's from each q_m, mix(z) = sum_m (n_m / K) q_m(z).

    Multiple importance sampling with the balance heuristic (Veach and Guibas, SIGGRAPH 1995), as arXiv 1902.10294 has
    it for the q's of a fit, but with the mixture's density in every weight. Given the q's, the mean weight is unbiased,

        E (1/K) sum_m sum_(z from q_m) p(x, z) / mix(z) = int sum_m (n_m / K) q_m(z) p(x, z) / mix(z) dz = p(x),

    so that its logarithm is a lower bound (Jensen), however the q's were found, if they know nothing of the noise of
    these draws. Pairs change no expectation. Where the prior is one of the q's, no weight exceeds p(x|z) K / n_prior
    (Hesterberg, Technometrics 1995). With a single q this is `importance_bound`, draw for draw.
    """
    zeros = torch.zeros_like(proposals.parts[0].mean)
    prior = Posterior(mean=zeros, log_variance=zeros)

    def log_weight(z_BYGD: Tensor) -> Tensor:
        return log_likelihood(z_BYGD) + prior.log_density(z_BYGD) - proposals.log_density(z_BYGD)

    log_weights_KB = torch.stack([log_weight(z) for z in proposals.sample(rng.stream("importance_bound"))])
    estimate = log_mean_exp(log_weights_KB, tokens_B)
    variance_B = proposals.variance_of_mean((log_weights_KB - estimate.nats_B).exp())
    return dataclasses.replace(estimate, mc_var_B=variance_B, q=proposals)


def predictive_bound(
    log_likelihood: LogLikelihood, q: Posterior, tokens_B: Tensor, *, draws: int, rng: SequenceRng
) -> LikelihoodEstimate:
    """log (1/K) sum_k p(y|x,z_k), z_k ~ q(z|x) with q fitted to x alone: bounds a proper predictive p(y|x) from below.

    The predictive is the integral of q(z|x) p(y|x,z), normalised over y, so there is no KL to pay.
    """
    values_KB = given(log_likelihood, map(q.at, _noises(q, draws, rng, "predictive_bound")))
    return dataclasses.replace(log_mean_exp(values_KB, tokens_B), fast_steps_B=q.steps_B)


def reused_noise_estimate(log_likelihood: LogLikelihood, q: Posterior, tokens_B: Tensor) -> LikelihoodEstimate:
    """log p(x | z*) - KL(q || p) at the very noise that q was fitted to. Not a bound: it can exceed log p(x).

    With the noise fixed the reconstruction is evaluated at one point that the fit has chosen, while the KL is that
    of the whole q (docs/protocol.md).

    Raises:
        ValueError: q was fitted by zero steps, so there is no such noise.
    """
    if q.fitted_noise is None:
        raise ValueError("q has seen no noise: it was fitted by 0 steps")
    reconstruction_B, kl_B = log_likelihood(q.at(q.fitted_noise)), q.kl().flatten(1).sum(1)
    return LikelihoodEstimate(
        nats_B=reconstruction_B - kl_B,
        tokens_B=tokens_B,
        kind="estimate",
        draws=1,
        terms={"reconstruction": reconstruction_B, "-kl": -kl_B},
        fast_steps_B=q.steps_B,
    )


def log_mean_exp(log_weights_KB: Tensor, tokens_B: Tensor) -> LikelihoodEstimate:
    """log (1/K) sum_k w_k. With independent weights that are unbiased for p(x), a lower bound on its logarithm."""
    draws = len(log_weights_KB)
    nats_B = log_weights_KB.logsumexp(0) - math.log(draws)
    # Delta method: var(log mean w) is about var(w) / (K mean(w)^2).
    relative_KB = (log_weights_KB - nats_B).exp()
    return LikelihoodEstimate(
        nats_B=nats_B,
        tokens_B=tokens_B,
        kind="lower_bound",
        draws=draws,
        mc_var_B=relative_KB.var(0) / draws if draws > 1 else None,
        terms={},
    )
