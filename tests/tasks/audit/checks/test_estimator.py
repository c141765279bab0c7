"""An ELBO against what q and p(x|z) give: sound ones agree, a cheaper KL or a reconstruction too good do not."""

from __future__ import annotations

import dataclasses

import pytest

from ltm.harness import HarnessModel
from ltm.latent import bounds
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior, PosteriorConfig
from tasks.audit.checks import estimator
from tests.support.harness_models import Bigram, BigramConfig, loaded
from tests.tasks.audit.checks.test_enumeration import subject

TOKENS = [1, 2, 3, 0, 4, 1, 2, 0] * 3


def reading(family: str, **changes) -> HarnessModel:
    toy = loaded(Bigram(BigramConfig()))
    return HarnessModel(pretrained=dataclasses.replace(toy, model=subject(family, **changes)), device="cpu")


@pytest.mark.parametrize("family, changes", [("ltm", {"posterior": PosteriorConfig(steps=4)}), ("vae", {})])
def test_sound_elbos_agree(family, changes):
    (found,) = estimator.recomputed_elbo(reading(family, **changes), TOKENS)
    assert found.passed and abs(found.value) <= found.limit and "3 texts" in found.detail


def test_a_kl_that_costs_less_is_seen_to_the_digit(monkeypatch):
    model = reading("ltm", posterior=PosteriorConfig(steps=4))
    sound = Posterior.kl
    monkeypatch.setattr(Posterior, "kl", lambda self: 0.99 * sound(self))
    (found,) = estimator.recomputed_elbo(model, TOKENS)
    assert not found.passed and "the stated KL" in found.detail


def test_what_states_no_terms_is_held_against_other_draws(monkeypatch):
    model = reading("ltm", posterior=PosteriorConfig(steps=4))
    sound = bounds.elbo
    (before,) = estimator.recomputed_elbo(model, TOKENS)

    def better(*arguments, **options):
        found = sound(*arguments, **options)
        return dataclasses.replace(found, nats_B=found.nats_B + before.limit, terms={})

    monkeypatch.setattr(bounds, "elbo", better)
    (found,) = estimator.recomputed_elbo(model, TOKENS)
    assert not found.passed and found.value == pytest.approx(before.value + 3 * before.limit)


def test_models_without_a_gaussian_q_are_not_asked():
    vq = reading("vae", bottleneck="vq")
    chains = reading("ltm", inference="langevin")
    assert isinstance(chains.loaded.model, LatentThoughtModel)
    assert [estimator.recomputed_elbo(model, TOKENS) for model in (vq, chains, reading("ar"))] == [[], [], []]
