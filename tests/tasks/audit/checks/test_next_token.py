"""Next tokens of a model as it is: what they share, by every claim, and given z."""

from __future__ import annotations

import dataclasses

import pytest

from ltm.harness import HarnessModel
from ltm.latent import base
from tasks.audit.checks import next_token
from tests.support.harness_models import Bigram, BigramConfig, loaded
from tests.tasks.audit.checks.test_enumeration import subject


def test_next_tokens_of_a_model_as_it_is(monkeypatch):
    model = HarnessModel(pretrained=loaded(Bigram(BigramConfig()).double()), device="cpu", dtype="float64")
    tokens = list(b"some real text, more than a block of it")
    (found,) = next_token.next_token_mass(model, tokens)
    assert found.passed and found.value == pytest.approx(1) and "257 next tokens" in found.detail
    monkeypatch.setattr(next_token, "EXHAUSTIVE_VOCABULARY", 100)
    monkeypatch.setattr(next_token, "RANDOM_TOKENS", 100)
    monkeypatch.setattr(next_token, "_noiseless", lambda *_: False)
    (part,) = next_token.next_token_mass(model, tokens)
    assert part.passed and part.value < 1 and "it must be 1" not in part.detail
    sound = Bigram.nats_BL
    monkeypatch.setattr(Bigram, "nats_BL", lambda self, tokens_BL: sound(self, tokens_BL) / 4)
    (hot,) = next_token.next_token_mass(model, tokens)
    assert not hot.passed and hot.value > 1


def test_next_tokens_of_latents_and_of_diffusion():
    for family in ("ltm", "mdlm"):
        toy = loaded(Bigram(BigramConfig()))
        found = HarnessModel(pretrained=dataclasses.replace(toy, model=subject(family)), device="cpu")
        results = next_token.next_token_mass(found, [1, 2, 3, 0, 4, 1, 2])
        assert all(result.passed for result in results), [result.detail for result in results]
        names = {result.likelihood for result in results}
        assert names >= ({"elbo", "importance_bound", "predictive_bound"} if family == "ltm" else {"elbo"})


def test_a_floor_under_every_token_shows_in_a_few(monkeypatch):
    """What some random tokens of 209 get stands for all of them."""
    model = HarnessModel(pretrained=loaded(Bigram(BigramConfig()).double()), device="cpu", dtype="float64")
    monkeypatch.setattr(next_token, "EXHAUSTIVE_VOCABULARY", 100)
    monkeypatch.setattr(next_token, "RANDOM_TOKENS", 60)
    sound = Bigram.nats_BL
    monkeypatch.setattr(Bigram, "nats_BL", lambda self, tokens_BL: sound(self, tokens_BL).clamp(min=-4.0))
    monkeypatch.setattr(next_token, "_noiseless", lambda *_: False)
    (found,) = next_token.next_token_mass(model, list(b"some real text, more than a block of it"))
    assert not found.passed and "209 of them judged by" in found.detail


@pytest.mark.parametrize("family", ["ltm", "vae"])
def test_given_z_next_tokens_share_one(monkeypatch, family):
    toy = loaded(Bigram(BigramConfig()))
    model = HarnessModel(pretrained=dataclasses.replace(toy, model=subject(family)), device="cpu")
    (found,) = next_token.decoder_mass(model, [1, 2, 3, 0, 4, 1, 2])
    assert found.passed and found.value == pytest.approx(1, abs=1e-5) and found.likelihood is None
    sound = base.token_nats
    # Less than a bound's divergence hides: none of it is to be seen in the ELBO.
    monkeypatch.setattr(base, "token_nats", lambda *arguments: sound(*arguments) + 1e-3)
    (off,) = next_token.decoder_mass(model, [1, 2, 3, 0, 4, 1, 2])
    assert not off.passed and off.value == pytest.approx(1.001, abs=1e-5)


def test_models_without_latents_are_not_asked_for_them():
    model = HarnessModel(pretrained=loaded(Bigram(BigramConfig())), device="cpu")
    assert next_token.decoder_mass(model, [1, 2, 3]) == []


def test_a_token_that_costs_nothing_shows_after_one_token(monkeypatch):
    toy = loaded(Bigram(BigramConfig()))
    found = HarnessModel(pretrained=dataclasses.replace(toy, model=subject("mdlm")), device="cpu")
    cls = type(found.loaded.model)
    sound = cls.log_likelihoods

    def free(self, tokens_BL, **options):
        claims = sound(self, tokens_BL, **options)
        last_B = tokens_BL[:, -1] == 2
        return {
            name: dataclasses.replace(one, nats_B=one.nats_B.masked_fill(last_B, 0.0)) for name, one in claims.items()
        }

    monkeypatch.setattr(cls, "log_likelihoods", free)
    (one,) = next_token.next_token_mass(found, [0, 1, 1, 1])
    assert not one.passed and one.value > 1
