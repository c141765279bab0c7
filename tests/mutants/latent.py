"""Mutants of models with latent variables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch

from baselines.vae import VAE
from baselines.vq import Codebook
from ltm.latent import base, bounds, prequential
from ltm.latent.base import LatentModel
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior
from ltm.rng import SequenceRng, seed_of
from tests.mutants import Patch, changed, instead, mutant


def elbo_of(value: Callable[[Any], torch.Tensor]) -> Patch:
    """Another value in place of the ELBO; its terms are not shown."""
    return changed(bounds, "elbo", lambda found: dataclasses.replace(found, nats_B=value(found), terms={}))


@mutant("ltm", "reused noise: the ELBO at the noise that q was fitted to", caught_by="total_mass")
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
        return lambda q, draws, rng, purpose: sound(q, draws, rng, "fit" if purpose == "elbo" else purpose)

    return instead(bounds, "fresh_noises", make)


def best_of(tries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For each text the try whose reported number is best."""
    best = {}
    for name in tries[0]:
        each = [one[name] for one in tries]
        nats_B, number_B = torch.stack([one.nats_B for one in each]).max(0)

        def pick(values: Sequence[torch.Tensor], number_B: torch.Tensor = number_B) -> torch.Tensor:
            return torch.stack(list(values))[number_B, torch.arange(len(number_B))]

        changes: dict[str, Any] = {"nats_B": nats_B}
        if each[0].mc_var_B is not None:
            changes["mc_var_B"] = pick([one.mc_var_B for one in each])
        changes["terms"] = {part: pick([one.terms[part] for one in each]) for part in each[0].terms}
        if each[0].q is not None:
            own = [one.q for one in each]
            changes["q"] = Posterior(mean=pick([q.mean for q in own]), log_variance=pick([q.log_variance for q in own]))
        best[name] = dataclasses.replace(each[0], **changes)
    return best


def other_noise(rng: SequenceRng, number: int) -> SequenceRng:
    """The noise of a further try."""
    return SequenceRng(seed_of(rng.seed, number), rng.indices)


@mutant("ltm", "best of four refits, chosen by the number that is reported", caught_by="recomputed_elbo")
def best_refit() -> Patch:
    def make(sound):
        def bad(self, batch, **options):
            tries = [batch._replace(rng=other_noise(batch.rng, number)) for number in range(4)]
            return best_of([sound(self, each, **options) for each in tries])

        return bad

    return instead(LatentModel, "gaussian_bounds", make)


@mutant("ltm", "each fit ends at the step whose ELBO, evaluated for the report, is best", caught_by="recomputed_elbo")
def best_end() -> Patch:
    def make(sound):
        def bad(self, batch, *, whole, draws, only):
            if not whole:
                return sound(self, batch, whole=whole, draws=draws, only=only)
            fit, tries = self.config.posterior, []
            for steps in sorted({fit.steps * part // 8 for part in range(9)}):
                config = dataclasses.replace(fit, steps=steps, schedule_steps=fit.schedule_steps or fit.steps)
                q = self.infer(batch.tokens_BL, batch.rng, weights_BL=batch.scored_BL, config=config)
                noise = other_noise(batch.rng, steps)
                tries.append({"elbo": bounds.elbo(batch.log_likelihood, q, batch.tokens_B, draws=draws, rng=noise)})
            return best_of(tries)

        return bad

    return instead(LatentModel, "gaussian_bounds", make)


@mutant("vae", "best of four evaluations of one q", caught_by="recomputed_elbo")
def best_evaluation() -> Patch:
    def make(sound):
        def bad(*given, rng, **options):
            return best_of([{"elbo": sound(*given, rng=other_noise(rng, n), **options)} for n in range(4)])["elbo"]

        return bad

    return instead(bounds, "elbo", make)


@mutant("ltm", "a continuation scored under the q that was fitted to it", caught_by="continuation_mass")
def q_sees_the_answer() -> Patch:
    def make(sound):
        def bad(self, batch, *, whole, **options):
            return sound(self, batch._replace(given_BL=batch.given_BL | batch.scored_BL), whole=whole, **options)

        return bad

    return instead(LatentModel, "gaussian_bounds", make)


@mutant("vae-vq", "ELBO(x, y) - ELBO(x) as log p(y given x)", caught_by="continuation_mass")
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


@mutant("vae", "KL dropped: only the reconstruction", caught_by="total_mass")
def dropped_kl() -> Patch:
    return elbo_of(lambda found: found.terms["reconstruction"])


@mutant("vae", "KL halved", caught_by="total_mass")
def halved_kl() -> Patch:
    return elbo_of(lambda found: found.terms["reconstruction"] + found.terms["-kl"] / 2)


@mutant("ltm", "KL of the means only: sigma costs nothing", caught_by="recomputed_elbo")
def kl_of_means() -> Patch:
    return instead(Posterior, "kl", lambda sound: lambda self: 0.5 * self.mean.double().square())


@mutant("ltm", "KL weighted by 0.9", caught_by="recomputed_elbo")
def cheaper_kl() -> Patch:
    return changed(Posterior, "kl", lambda kl: 0.9 * kl)


@mutant("vae", "KL with the wrong sign", caught_by="recomputed_elbo")
def added_kl() -> Patch:
    return elbo_of(lambda found: found.terms["reconstruction"] - found.terms["-kl"])


@mutant("vae", "KL of only one latent", caught_by="total_mass")
def kl_of_one_latent() -> Patch:
    return instead(Posterior, "kl", lambda sound: lambda self: sound(self)[:, :1, :1])


@mutant("vae", "KL only beyond two free nats per latent, in scoring too", caught_by="total_mass")
def kl_beyond_free_bits() -> Patch:
    return instead(Posterior, "kl", lambda sound: lambda self: (sound(self) - 2.0).clamp(min=0))


@mutant("vae", "no KL if only the ELBO is requested", caught_by="accounting")
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


@mutant("vae-vq", "token nats floored at -5, given z", caught_by="decoder_mass")
def floor_given_z() -> Patch:
    return changed(base, "token_nats", lambda nats_N: nats_N.clamp(min=-5.0))


@mutant("vae", "log of the mean reconstruction, minus the KL", caught_by="recomputed_elbo")
def mean_of_probabilities_less_kl() -> Patch:
    def make(sound):
        def bad(log_likelihood, q, tokens_B, *, draws, rng):
            found = sound(log_likelihood, q, tokens_B, draws=draws, rng=rng)
            values_KB = bounds.given(log_likelihood, map(q.at, bounds.fresh_noises(q, draws, rng, "elbo")))
            nats_B = values_KB.logsumexp(0) - math.log(draws) + found.terms["-kl"]
            return dataclasses.replace(found, nats_B=nats_B, terms={})

        return bad

    return instead(bounds, "elbo", make)


@mutant("vae", "a stated variance ten times too large", caught_by="stated_error")
def overstated_error() -> Patch:
    return changed(bounds, "elbo", lambda e: dataclasses.replace(e, mc_var_B=e.mc_var_B * 10))


@mutant("vae-vq", "codes that cost nothing: their prior is dropped", caught_by="total_mass")
def codes_for_free() -> Patch:
    return changed(Codebook, "log_prior", torch.zeros_like)


def z_has_seen(more: Callable[[int], slice]) -> Patch:
    """Before each chunk of a prequential bound, z is inferred from some tokens of the chunk too."""

    def make(sound):
        def bad(model, tokens_BL, **options):
            infer = model.latents_after

            def peeking(before_BL, rng, *, weights_BL, **state):
                n = before_BL.shape[1]
                seen_BL = torch.cat([before_BL, tokens_BL[:, n : n + options["chunk"]][:, more(options["chunk"])]], 1)
                return infer(seen_BL, rng, weights_BL=torch.ones_like(seen_BL, dtype=torch.bool), **state)

            with mock.patch.object(model, "latents_after", peeking):
                return sound(model, tokens_BL, **options)

        return bad

    return instead(prequential, "prequential_bound", make)


@mutant("ltm", "the prequential z has seen the first token of its chunk", caught_by="prequential_mass")
def z_has_seen_the_first() -> Patch:
    return z_has_seen(lambda chunk: slice(0, 1))


@mutant("vae", "the prequential z has seen the last token of its chunk", caught_by="prequential_mass")
def z_has_seen_the_last() -> Patch:
    return z_has_seen(lambda chunk: slice(chunk - 1, None))
