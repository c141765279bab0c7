"""An ELBO against what q and p(x|z) give: sound ones agree, a cheaper KL or a reconstruction too good do not."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from baselines.vae import VAE
from ltm.harness import HarnessModel
from ltm.latent import bounds, mixture, tube
from ltm.latent.mixture import Mixture
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior, PosteriorConfig
from ltm.rng import SequenceRng
from tasks.audit.checks import estimator
from tasks.audit.checks.check import SAYS_NOTHING
from tests.support.harness_models import Bigram, BigramConfig, loaded
from tests.tasks.audit.checks.test_enumeration import subject

TOKENS = [1, 2, 3, 0, 4, 1, 2, 0] * 3


def reading(family: str, **changes) -> HarnessModel:
    toy = loaded(Bigram(BigramConfig()))
    return HarnessModel(pretrained=dataclasses.replace(toy, model=subject(family, **changes)), device="cpu")


@pytest.mark.parametrize("family, changes", [("ltm", {"posterior": PosteriorConfig(steps=4)}), ("vae", {})])
def test_sound_bounds_agree(family, changes):
    found = estimator.recomputed_bounds(reading(family, **changes), TOKENS)
    assert [(one.name, one.likelihood) for one in found] == [
        ("recomputed_elbo", "elbo"),
        ("recomputed_importance", "importance_bound"),
        ("recomputed_tube_upper", "tube_upper_bound"),
    ]
    assert all(one.passed and abs(one.value) <= one.limit and "2 texts" in one.detail for one in found)


def test_an_upper_bound_above_0_is_not_judged(monkeypatch):
    """As of a q that is far off, whose weights are beyond floats when they are computed again."""
    model, sound = reading("vae"), tube.tube_upper_bound

    def vacuous(*arguments, **options):
        found = sound(*arguments, **options)
        return dataclasses.replace(found, nats_B=found.nats_B + 1e9)

    monkeypatch.setattr(tube, "tube_upper_bound", vacuous)
    elbo, importance, upper = estimator.recomputed_bounds(model, TOKENS)
    assert elbo.passed and importance.passed and upper.passed is None and upper.detail == SAYS_NOTHING


def test_a_kl_that_costs_less_is_seen_to_the_digit(monkeypatch):
    model = reading("ltm", posterior=PosteriorConfig(steps=4))
    sound = Posterior.kl
    monkeypatch.setattr(Posterior, "kl", lambda self: 0.99 * sound(self))
    elbo, importance, _ = estimator.recomputed_bounds(model, TOKENS)
    assert not elbo.passed and "the stated KL" in elbo.detail and importance.passed


def test_a_thousandth_of_a_nat_is_seen_under_the_same_noise(monkeypatch):
    # As in a model that hardly uses its latents, where a KL of half its size is worth no more.
    model, sound = reading("vae"), bounds.elbo

    def better(*arguments, **options):
        found = sound(*arguments, **options)
        return dataclasses.replace(found, nats_B=found.nats_B + 1e-3)

    monkeypatch.setattr(bounds, "elbo", better)
    elbo, importance, _ = estimator.recomputed_bounds(model, TOKENS)
    assert not elbo.passed and elbo.value == pytest.approx(1e-3, rel=0.1) and importance.passed


def test_what_states_no_terms_is_held_against_other_draws(monkeypatch):
    model = reading("ltm", posterior=PosteriorConfig(steps=4))
    sound = bounds.elbo
    before, *_ = estimator.recomputed_bounds(model, TOKENS)

    def better(*arguments, **options):
        found = sound(*arguments, **options)
        return dataclasses.replace(found, nats_B=found.nats_B + 3 * before.limit, terms={})

    monkeypatch.setattr(bounds, "elbo", better)
    found, *_ = estimator.recomputed_bounds(model, TOKENS)
    assert not found.passed and found.value == pytest.approx(3 * before.limit, rel=0.1)


def test_the_best_of_several_evaluations_is_seen_whatever_the_draws(monkeypatch):
    model = reading("ltm", posterior=PosteriorConfig(steps=4))
    sound = bounds.elbo

    def best(log_likelihood, q, tokens_B, *, draws, rng):
        shifted = [SequenceRng(rng.seed + n, rng.indices) for n in range(4)]
        found = [sound(log_likelihood, q, tokens_B, draws=draws, rng=one) for one in shifted]
        return dataclasses.replace(found[0], nats_B=torch.stack([one.nats_B for one in found]).amax(0))

    monkeypatch.setattr(bounds, "elbo", best)
    found, *_ = estimator.recomputed_bounds(model, TOKENS)
    assert not found.passed and found.value > 0


def test_importance_weights_of_another_variance_are_seen(monkeypatch):
    model = reading("vae")
    sound = Posterior.log_ratio
    monkeypatch.setattr(
        Posterior, "log_ratio", lambda self, noise: sound(self, noise) + 0.05 * noise.square().flatten(1).sum(1)
    )
    elbo, importance, _ = estimator.recomputed_bounds(model, TOKENS)
    assert elbo.passed and not importance.passed


def test_a_prior_of_its_own_is_taken_and_one_of_each_text_is_not(monkeypatch):
    model = reading("ltm", posterior=PosteriorConfig(steps=4))
    sound = bounds.elbo

    def under(prior_of):
        def elbo(log_likelihood, q, tokens_B, *, draws, rng):
            found, prior = sound(log_likelihood, q, tokens_B, draws=draws, rng=rng), prior_of(q)
            law, other = (
                torch.distributions.Normal(one.mean.double(), (0.5 * one.log_variance.double()).exp())
                for one in (q, prior)
            )
            kl_B = torch.distributions.kl_divergence(law, other).flatten(1).sum(1)
            nats_B = found.terms["reconstruction"] - kl_B
            return dataclasses.replace(found, nats_B=nats_B, terms={}, prior=prior)

        return elbo

    def wide(q):
        return Posterior(mean=torch.zeros_like(q.mean), log_variance=torch.full_like(q.mean, 0.7))

    monkeypatch.setattr(bounds, "elbo", under(wide))
    elbo, *_ = estimator.recomputed_bounds(model, TOKENS)
    assert elbo.passed
    monkeypatch.setattr(bounds, "elbo", under(lambda q: q))
    elbo, *_ = estimator.recomputed_bounds(model, TOKENS)
    assert not elbo.passed and "the prior differs between texts" in elbo.detail


@pytest.mark.parametrize("antithetic", [False, True])
def test_a_mixture_is_recomputed_from_what_is_handed_over(monkeypatch, antithetic):
    """To the last digits under the same noise, whatever the class of what is handed over."""
    model = reading("ltm", posterior=PosteriorConfig(steps=4), importance_proposals="mixture")
    sound = bounds.multiple_importance_bound

    def of_pairs(log_likelihood, proposals, tokens_B, *, rng):
        proposals = dataclasses.replace(proposals, antithetic=antithetic)
        found = sound(log_likelihood, proposals, tokens_B, rng=rng)
        own = SimpleNamespace(parts=proposals.parts, counts=proposals.counts, antithetic=antithetic)
        return dataclasses.replace(found, q=own, nats_B=found.nats_B + more)

    monkeypatch.setattr(bounds, "multiple_importance_bound", of_pairs)
    for more in (0.0, 1e-3):
        elbo, importance, _ = estimator.recomputed_bounds(model, TOKENS)
        assert elbo.passed and importance.passed == (more == 0)
    assert importance.value == pytest.approx(1e-3, rel=0.1)


def test_a_proposal_that_only_the_draws_know_of_is_seen(monkeypatch):
    """z from the prior, weighed by a mixture that does not have it; the audit gets the same mixture."""
    model = reading("ltm", posterior=PosteriorConfig(steps=4), importance_proposals="mixture")
    monkeypatch.setattr(mixture, "of_fit", lambda visited, draws: Mixture(parts=(visited[-1],), counts=(draws,)))
    sound = Mixture.sample

    def some_from_the_prior(self, stream):
        for number, z in enumerate(sound(self, stream)):
            yield z if number % 4 else stream.normal(*z.shape[1:]).to(z)

    monkeypatch.setattr(Mixture, "sample", some_from_the_prior)
    elbo, importance, _ = estimator.recomputed_bounds(model, TOKENS)
    assert elbo.passed and not importance.passed


def test_a_mixture_of_more_draws_than_are_claimed_is_none(monkeypatch):
    model, sound = reading("vae", importance_proposals="mixture"), bounds.multiple_importance_bound

    def fewer(log_likelihood, proposals, tokens_B, *, rng):
        more = dataclasses.replace(proposals, counts=tuple(10 * count for count in proposals.counts))
        return dataclasses.replace(sound(log_likelihood, proposals, tokens_B, rng=rng), q=more)

    monkeypatch.setattr(bounds, "multiple_importance_bound", fewer)
    elbo, importance, _ = estimator.recomputed_bounds(model, TOKENS)
    assert elbo.passed and not importance.passed and "640" in importance.detail


def test_models_without_a_gaussian_q_are_not_asked():
    vq = reading("vae", bottleneck="vq")
    chains = reading("ltm", inference="langevin")
    assert isinstance(chains.loaded.model, LatentThoughtModel)
    assert [estimator.recomputed_bounds(model, TOKENS) for model in (vq, chains, reading("ar"))] == [[], [], []]


def own_proposals(monkeypatch, *, more: float):
    """An importance bound from the prior, with nothing handed over, and `infer` with a far narrower q."""
    model, sound = reading("vae"), VAE.infer

    def infer(self, *given, **options):
        q = sound(self, *given, **options)
        return dataclasses.replace(q, mean=q.mean + 2, log_variance=torch.full_like(q.log_variance, -4.0))

    def from_the_prior(log_likelihood, q, tokens_B, *, draws, rng):
        prior = Posterior.prior(len(tokens_B), tuple(q.mean.shape[1:]), like=q.mean)
        noises = bounds.fresh_noises(prior, draws, rng, "importance_bound")
        found = bounds.log_mean_exp(
            bounds.log_weights(log_likelihood, ((noise, torch.zeros(len(tokens_B))) for noise in noises)), tokens_B
        )
        return dataclasses.replace(found, nats_B=found.nats_B + more)

    monkeypatch.setattr(VAE, "infer", infer)
    monkeypatch.setattr(bounds, "importance_bound", from_the_prior)
    return estimator.recomputed_bounds(model, TOKENS)[1]


def test_better_proposals_than_infer_has_are_no_fault(monkeypatch):
    importance = own_proposals(monkeypatch, more=0.0)
    assert importance.passed and "beyond log p(x) by" in importance.detail


def test_but_more_than_log_p_is(monkeypatch):
    importance = own_proposals(monkeypatch, more=1.0)
    assert not importance.passed and importance.value == pytest.approx(1.0, abs=0.5)
