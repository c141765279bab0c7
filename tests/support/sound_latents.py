"""Latent models with bounds that are sound and not those of this suite: none may be refuted.

Shapes as in `ltm.latent.base`; T tries.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from baselines.vae import VAE
from ltm.api import Loss
from ltm.latent import bounds
from ltm.latent.mixture import Mixture
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior
from ltm.rng import SequenceRng, seed_of


class _OwnPosterior(LatentThoughtModel):
    """An LTM that scores whole texts under another q than `infer` gives."""

    def own_posterior(self, batch: Any, draws: int) -> Posterior:
        """The q of each text."""
        raise NotImplementedError

    def gaussian_bounds(self, batch, *, whole, draws, only):
        """As `LatentModel.gaussian_bounds`."""
        if not whole or only not in (None, "elbo", "importance_bound"):
            return super().gaussian_bounds(batch, whole=whole, draws=draws, only=only)
        q, found = self.own_posterior(batch, draws), {}
        for name, bound, count in (("elbo", bounds.elbo, 1), ("importance_bound", bounds.importance_bound, 8)):
            if only in (None, name):
                estimate = bound(batch.log_likelihood, q, batch.tokens_B, draws=count * draws, rng=batch.rng)
                found[name] = dataclasses.replace(estimate, q=q)
        return found


class BestOfRefits(_OwnPosterior):
    """Four fits of q; the best by an ELBO of noise that nothing is reported under is scored."""

    def own_posterior(self, batch, draws):
        """See the class."""
        fits = [
            self.infer(batch.tokens_BL, batch.rng, weights_BL=batch.scored_BL, purpose=f"refit {n}") for n in range(4)
        ]
        other = SequenceRng(seed_of(batch.rng.seed, "choice"), batch.rng.indices)
        values_TB = [bounds.elbo(batch.log_likelihood, q, batch.tokens_B, draws=draws, rng=other).nats_B for q in fits]
        best_B, rows = torch.stack(values_TB).argmax(0), torch.arange(len(batch.tokens_B))
        return Posterior(
            mean=torch.stack([q.mean for q in fits])[best_B, rows],
            log_variance=torch.stack([q.log_variance for q in fits])[best_B, rows],
        )


class MoreSteps(_OwnPosterior):
    """Four times the fast steps that `infer` takes."""

    def own_posterior(self, batch, draws):
        """See the class."""
        posterior = self.config.posterior
        more = dataclasses.replace(posterior, steps=4 * posterior.steps)
        return self.infer(batch.tokens_BL, batch.rng, weights_BL=batch.scored_BL, config=more)


def _log_density(law: Posterior, z_BYGD: Tensor) -> Tensor:
    mean, log_variance, z = law.mean.double(), law.log_variance.double(), z_BYGD.double()
    log_p = -0.5 * ((z - mean).square() / log_variance.exp() + log_variance + math.log(2 * math.pi))
    return log_p.flatten(1).sum(1)


def _divergence(q: Posterior, prior: Posterior) -> Tensor:
    laws = (
        torch.distributions.Normal(law.mean.double(), (0.5 * law.log_variance.double()).exp()) for law in (q, prior)
    )
    return torch.distributions.kl_divergence(*laws).flatten(1).sum(1)


class OtherPrior(VAE):
    """A VAE whose prior is a Gaussian with a learned mean and variance."""

    def __init__(self, config):
        super().__init__(config)
        self.prior_mean = nn.Parameter(torch.full(self.latent_shape, 0.5))
        self.prior_log_variance = nn.Parameter(torch.full(self.latent_shape, 0.5))

    def prior(self, texts: int) -> Posterior:
        """p(z), once for each text."""
        mean, log_variance = (
            own.expand(texts, *self.latent_shape) for own in (self.prior_mean, self.prior_log_variance)
        )
        return Posterior(mean=mean, log_variance=log_variance)

    def training_loss(self, tokens_BL, *, rng, progress=1.0):
        """The negative ELBO at one z."""
        rng = SequenceRng.of(rng, len(tokens_BL))
        q, batch = self.infer(tokens_BL, rng), self.scoring_batch(tokens_BL, 0, None, rng)
        z = q.at(rng.stream("slow").normal(*self.latent_shape, dtype=q.mean.dtype))
        kl = self.config.kl_weight(progress) * _divergence(q, self.prior(len(tokens_BL))).sum()
        return Loss(value=(kl - batch.log_likelihood(z).sum()) / tokens_BL.numel())

    def gaussian_bounds(self, batch, *, whole, draws, only):
        """As `LatentModel.gaussian_bounds`, with the own prior."""
        if not whole:
            return super().gaussian_bounds(batch, whole=whole, draws=draws, only=only)
        q, prior = self.infer(batch.tokens_BL, batch.rng, weights_BL=batch.scored_BL), self.prior(len(batch.tokens_B))
        found = {}
        if only in (None, "elbo"):
            plain = bounds.elbo(batch.log_likelihood, q, batch.tokens_B, draws=draws, rng=batch.rng)
            reconstruction_B, kl_B = plain.terms["reconstruction"], _divergence(q, prior)
            terms = {"reconstruction": reconstruction_B, "-kl": -kl_B}
            nats_B = reconstruction_B - kl_B
            found["elbo"] = dataclasses.replace(plain, nats_B=nats_B, terms=terms, q=q, prior=prior)
        if only in (None, "importance_bound"):

            def log_weight(noise):
                z = q.at(noise)
                return batch.log_likelihood(z) + _log_density(prior, z) - _log_density(q, z)

            log_w_KB = bounds._draw(log_weight, q, 8 * draws, batch.rng, "importance_bound")
            bound = bounds.log_mean_exp(log_w_KB, batch.tokens_B)
            found["importance_bound"] = dataclasses.replace(bound, q=q, prior=prior)
        return found

    def latents_after(self, tokens_BL, rng, *, weights_BL, draws, before=None):
        """As `LatentModel.latents_after`; without tokens, from the own prior."""
        if tokens_BL.shape[1]:
            return super().latents_after(tokens_BL, rng, weights_BL=weights_BL, draws=draws, before=before)
        stream, prior = rng.stream("predictive_bound"), self.prior(len(tokens_BL))
        return (prior.at(stream.normal(*self.latent_shape).to(prior.mean)) for _ in range(draws)), None


class DefensiveMixture(VAE):
    """An importance bound with z from q or, half of the time, from the prior: no weight exceeds 2 p(x|z)."""

    def gaussian_bounds(self, batch, *, whole, draws, only):
        """As `LatentModel.gaussian_bounds`."""
        found = super().gaussian_bounds(batch, whole=whole, draws=draws, only=only)
        if "importance_bound" not in found:
            return found
        q = self.infer(batch.tokens_BL, batch.rng, weights_BL=batch.scored_BL)
        prior = Posterior.prior(len(batch.tokens_B), self.latent_shape, like=q.mean)
        coins = batch.rng.stream("component")

        def log_weight(noise):
            of_prior_B = coins.uniform()[:, None, None, None] < 0.5
            z = torch.where(of_prior_B, noise, q.at(noise))
            log_p_B = _log_density(prior, z)
            log_mixture_B = torch.logaddexp(log_p_B, _log_density(q, z)) - math.log(2)
            return batch.log_likelihood(z) + log_p_B - log_mixture_B

        log_w_KB = bounds._draw(log_weight, q, 8 * draws, batch.rng, "defensive")
        return {**found, "importance_bound": bounds.log_mean_exp(log_w_KB, batch.tokens_B)}


class VisitedMixture(LatentThoughtModel):
    """An LTM with this suite's mixture of the prior and the q's that a fit went through."""

    def __init__(self, config):
        super().__init__(dataclasses.replace(config, importance_proposals="mixture"))


class MirroredMixture(VAE):
    """Proposals of its own, with pairs of draws that mirror each other."""

    def gaussian_bounds(self, batch, *, whole, draws, only):
        """As `LatentModel.gaussian_bounds`."""
        found = super().gaussian_bounds(batch, whole=whole, draws=draws, only=only)
        if "importance_bound" not in found:
            return found
        q = self.infer(batch.tokens_BL, batch.rng, weights_BL=batch.scored_BL)
        wide = Posterior(mean=q.mean, log_variance=q.log_variance + 0.3)
        proposals = Mixture(parts=(wide, q), counts=(4 * draws, 4 * draws), antithetic=True)
        bound = bounds.multiple_importance_bound(batch.log_likelihood, proposals, batch.tokens_B, rng=batch.rng)
        return {**found, "importance_bound": bound}


class ControlVariate(VAE):
    """An ELBO with half of log p(z) - log q(z), less its expectation, added to every draw."""

    def gaussian_bounds(self, batch, *, whole, draws, only):
        """As `LatentModel.gaussian_bounds`."""
        found = super().gaussian_bounds(batch, whole=whole, draws=draws, only=only)
        if "elbo" not in found:
            return found
        q = self.infer(batch.tokens_BL, batch.rng, weights_BL=batch.scored_BL)
        kl_B = q.kl().flatten(1).sum(1)

        def value(noise):
            return batch.log_likelihood(q.at(noise)) + 0.5 * (q.log_ratio(noise) + kl_B)

        values_KB = bounds._draw(value, q, draws, batch.rng, "control variate")
        elbo = dataclasses.replace(
            found["elbo"],
            nats_B=values_KB.mean(0) - kl_B,
            mc_var_B=values_KB.var(0) / draws if draws > 1 else None,
            terms={"reconstruction": values_KB.mean(0), "-kl": -kl_B},
        )
        return {**found, "elbo": elbo}
