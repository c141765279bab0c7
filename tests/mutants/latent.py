"""Mutants of models with latent variables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from baselines.vae import VAE
from baselines.vq import Codebook
from ltm.latent import base, bounds
from ltm.latent.base import LatentModel
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior
from tests.mutants import Patch, changed, instead, mutant


def elbo_of(value: Callable[[Any], torch.Tensor]) -> Patch:
    """Another value in place of the ELBO; its terms are not shown."""
    return changed(bounds, "elbo", lambda found: dataclasses.replace(found, nats_B=value(found), terms={}))


@mutant("ltm", "reused noise: the ELBO at the noise that q was fitted to")
def reused_noise() -> Patch:
    def change(found):
        if "reused_noise_estimate" in found:
            found["elbo"] = dataclasses.replace(found["reused_noise_estimate"], kind="lower_bound")
        return found

    return changed(LatentThoughtModel, "log_likelihoods", change)


@mutant(
    "ltm",
    "the ELBO at noises that q was fitted to, each seen once",
    escapes="one step gains almost nothing from one noise among many",
)
def seen_noise() -> Patch:
    def make(sound):
        return lambda value, q, draws, rng, purpose: sound(
            value, q, draws, rng, "fit" if purpose == "elbo" else purpose
        )

    return instead(bounds, "_draw", make)


@mutant("ltm", "a continuation scored under the q that was fitted to it")
def q_sees_the_answer() -> Patch:
    def make(sound):
        def bad(self, batch, *, whole, **options):
            return sound(self, batch._replace(given_BL=batch.given_BL | batch.scored_BL), whole=whole, **options)

        return bad

    return instead(LatentModel, "gaussian_bounds", make)


@mutant("vae-vq", "ELBO(x, y) - ELBO(x) as log p(y given x)")
def difference_of_elbos() -> Patch:
    def make(sound):
        def bad(self, batch, *, whole, only):
            if whole:
                return sound(self, batch, whole=whole, only=only)
            given_B, all_B = batch.given_BL.sum(1), (batch.given_BL | batch.scored_BL).sum(1)
            long, short = (
                self.log_likelihoods(batch.tokens_BL, lengths=n, rng=batch.rng)["elbo"] for n in (all_B, given_B)
            )
            nats_B = long.nats_B - short.nats_B
            return {"predictive_bound": dataclasses.replace(long, nats_B=nats_B, tokens_B=batch.tokens_B, terms={})}

        return bad

    return instead(VAE, "code_bounds", make)


@mutant("vae", "KL dropped: only the reconstruction")
def dropped_kl() -> Patch:
    return elbo_of(lambda found: found.terms["reconstruction"])


@mutant("vae", "KL halved")
def halved_kl() -> Patch:
    return elbo_of(lambda found: found.terms["reconstruction"] + found.terms["-kl"] / 2)


@mutant("ltm", "KL of the means only: sigma costs nothing")
def kl_of_means() -> Patch:
    return instead(Posterior, "kl", lambda sound: lambda self: 0.5 * self.mean.double().square())


@mutant("ltm", "KL weighted by 0.9")
def cheaper_kl() -> Patch:
    return changed(Posterior, "kl", lambda kl: 0.9 * kl)


@mutant("vae", "KL with the wrong sign")
def added_kl() -> Patch:
    return elbo_of(lambda found: found.terms["reconstruction"] - found.terms["-kl"])


@mutant("vae", "KL of only one latent")
def kl_of_one_latent() -> Patch:
    return instead(Posterior, "kl", lambda sound: lambda self: sound(self)[:, :1, :1])


@mutant("vae", "KL only beyond two free nats per latent, in scoring too")
def kl_beyond_free_bits() -> Patch:
    return instead(Posterior, "kl", lambda sound: lambda self: (sound(self) - 2.0).clamp(min=0))


@mutant("vae", "no KL if only the ELBO is requested")
def no_kl_alone() -> Patch:
    def make(sound):
        def bad(self, batch, *, only, **options):
            found = sound(self, batch, only=only, **options)
            if only == "elbo":
                found["elbo"] = dataclasses.replace(
                    found["elbo"], nats_B=found["elbo"].terms["reconstruction"], terms={}
                )
            return found

        return bad

    return instead(LatentModel, "gaussian_bounds", make)


@mutant("vae-vq", "token nats floored at -5, given z")
def floor_given_z() -> Patch:
    return changed(base, "token_nats", lambda nats_N: nats_N.clamp(min=-5.0))


@mutant("vae", "log of the mean reconstruction, minus the KL")
def mean_of_probabilities_less_kl() -> Patch:
    def make(sound):
        def bad(log_likelihood, q, tokens_B, *, draws, rng):
            found = sound(log_likelihood, q, tokens_B, draws=draws, rng=rng)
            values_KB = bounds._draw(lambda noise: log_likelihood(q.at(noise)), q, draws, rng, "elbo")
            nats_B = values_KB.logsumexp(0) - math.log(draws) + found.terms["-kl"]
            return dataclasses.replace(found, nats_B=nats_B, terms={})

        return bad

    return instead(bounds, "elbo", make)


@mutant("vae", "importance weights averaged over the better half of the draws")
def best_half_of_weights() -> Patch:
    def make(sound):
        return lambda log_w_KB, tokens_B: sound(log_w_KB.sort(0).values[len(log_w_KB) // 2 :], tokens_B)

    return instead(bounds, "log_mean_exp", make)


@mutant("vae", "importance weights summed: no 1/K")
def sum_of_weights() -> Patch:
    return changed(
        bounds, "log_mean_exp", lambda e: dataclasses.replace(e, nats_B=e.nats_B + math.log(max(1, e.draws)))
    )


@mutant("vae", "importance weights that ignore the spread of q")
def weights_without_spread() -> Patch:
    def bad(self, noise):
        return 0.5 * (noise.double().square() - self.at(noise).double().square()).flatten(1).sum(1)

    return mock.patch.object(Posterior, "log_ratio", bad)


@mutant("vae", "a stated variance ten times too large")
def overstated_error() -> Patch:
    return changed(bounds, "elbo", lambda e: dataclasses.replace(e, mc_var_B=e.mc_var_B * 10))


@mutant("vae-vq", "codes that cost nothing: their prior is dropped")
def codes_for_free() -> Patch:
    return changed(Codebook, "log_prior", torch.zeros_like)
