"""Total probability: sound miniatures share out at most 1, and planted errors give themselves away."""

from __future__ import annotations

import dataclasses
import functools
from unittest import mock

import pytest
import torch

from baselines.ar import Autoregressive
from baselines.diffusion import mdlm
from baselines.diffusion.masking import Masks, draw_masks
from baselines.ngram import NGram
from ltm import registry
from ltm.harness import HarnessModel
from ltm.latent import bounds
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import PosteriorConfig
from tasks.audit.checks import enumeration, next_token
from tests.support.harness_models import Bigram, BigramConfig, loaded


def subject(family: str, **changes):
    """An untrained model whose settings a miniature takes over."""
    cls = registry.model_family(family)
    return cls(dataclasses.replace(cls.miniature(6, 8), **changes))


@functools.cache
def mini(family: str):
    """One trained miniature a family, a little less than in an audit; shared, so none may change it."""
    changes = {"posterior": PosteriorConfig(steps=4)} if family == "ltm" else {}
    with mock.patch.object(enumeration, "UPDATES", 80):
        return enumeration.enumerable_model(subject(family, **changes))


def verdicts(results) -> dict[str, bool]:
    return {result.likelihood: result.passed for result in results}


@pytest.mark.parametrize("family", ["ar", "ngram", "mdlm", "bd3lm", "ltm"])
def test_sound_miniatures_pass(family):
    for check in (enumeration.total_mass, enumeration.continuation_mass, enumeration.blank_mass):
        for result in check(mini(family)):
            sound = result.likelihood != "reused_noise_estimate"
            assert result.passed or not sound, (check.__name__, result.detail)
            if result.likelihood == "exact":
                assert result.value == pytest.approx(1, abs=1e-9) and "it must be 1" in result.detail
            elif check is enumeration.total_mass and result.likelihood in ("elbo", "importance_bound"):
                assert 0.1 < result.value <= result.limit


def test_the_miniature_keeps_the_settings_and_many_fast_steps():
    found = mini("ltm").config
    assert found.posterior == PosteriorConfig(steps=enumeration.FAST_STEPS)
    assert found.kl_warmup == 0.0  # the training of the miniature is not a setting of its scoring
    assert next(mini("ltm").parameters()).dtype == torch.float64


def test_reused_noise_shares_out_more_than_there_is():
    (found,) = [r for r in enumeration.total_mass(mini("ltm")) if r.likelihood == "reused_noise_estimate"]
    assert not found.passed and found.value > 1.5


def test_a_divergence_left_out_is_seen(monkeypatch):
    sound = bounds.elbo

    def without_kl(*args, **options):
        found = sound(*args, **options)
        return dataclasses.replace(found, nats_B=found.terms["reconstruction"])

    monkeypatch.setattr(bounds, "elbo", without_kl)
    assert verdicts(enumeration.total_mass(mini("ltm")))["elbo"] is False


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_a_piece_of_the_integral_left_out_is_seen_however_small(monkeypatch, share):
    """A blank network's bound is tight, so a thousandth of it is enough."""

    def part(*args, **options):
        return [m._replace(weight_BL=share * m.weight_BL) for m in draw_masks(*args, **options)]

    monkeypatch.setattr(mdlm, "draw_masks", part)
    (found,) = enumeration.blank_mass(mini("mdlm"))
    assert not found.passed and found.value == pytest.approx(3 ** (4 * (1 - share)), rel=1e-6)


def test_a_network_that_sees_what_it_predicts_is_seen(monkeypatch):
    monkeypatch.setattr(
        Autoregressive,
        "token_nats",
        lambda self, tokens_BL: (
            (self.decoder(tokens_BL) @ self.decoder.head().T).log_softmax(-1).gather(-1, tokens_BL[..., None])[..., 0]
        ),
    )
    assert verdicts(enumeration.total_mass(mini("ar"))) == {"exact": False}
    assert verdicts(enumeration.continuation_mass(mini("ar"))) == {"exact": False}


def test_an_exact_claim_below_1_is_wrong_too(monkeypatch):
    sound = NGram.token_nats
    monkeypatch.setattr(NGram, "token_nats", lambda self, tokens_BL: sound(self, tokens_BL) - 1e-4)
    (found,) = enumeration.total_mass(mini("ngram"))
    assert not found.passed and found.value < 1


def test_continuations_that_see_the_answer_are_seen(monkeypatch):
    sound = LatentThoughtModel.infer

    def with_answer(self, tokens_BL, rng, *, weights_BL=None, **options):
        return sound(self, tokens_BL, rng, weights_BL=torch.ones_like(tokens_BL, dtype=torch.bool), **options)

    monkeypatch.setattr(LatentThoughtModel, "infer", with_answer)
    assert verdicts(enumeration.continuation_mass(mini("ltm"))) == {"predictive_bound": False}


def published(least: float):
    """Masks as many write them: t uniform on [least, 1], each token masked with probability t, weight 1 / t."""

    def draw(scored_BL, rng, *, draws, block_length):
        stream = rng.stream("published")
        for _ in range(draws):
            t_B1 = least + (1 - least) * stream.uniform(1)
            masked_BL = (stream.uniform(block_length)[:, : scored_BL.shape[1]] < t_B1) & scored_BL
            yield Masks(masked_BL, (1 - least) * masked_BL / t_B1, t_B1)

    return draw


@pytest.mark.parametrize("least, sound", [(1e-6, True), (0.2, False)])
def test_rough_averages_are_refuted_only_when_wrong(monkeypatch, least, sound):
    """Many draws of a single token mask nothing and cost nothing: no mean of their exponentials is near p."""
    monkeypatch.setattr(mdlm, "draw_masks", published(least))
    model = HarnessModel(
        pretrained=dataclasses.replace(loaded(Bigram(BigramConfig())), model=mini("mdlm")), device="cpu"
    )
    results = [
        *enumeration.total_mass(mini("mdlm")),
        *enumeration.blank_mass(mini("mdlm")),
        *enumeration.continuation_mass(mini("mdlm")),
        *next_token.next_token_mass(model, [0, 1, 1, 1]),
    ]
    assert all(result.passed for result in results) == sound, [result.detail for result in results]


def test_a_batch_of_mixed_contexts_is_one_of_the_checks(monkeypatch):
    sound = Autoregressive.log_likelihoods

    def longest(self, tokens_BL, *, context=0, **options):
        return sound(self, tokens_BL, context=int(torch.as_tensor(context).max()), **options)

    monkeypatch.setattr(Autoregressive, "log_likelihoods", longest)
    (found,) = enumeration.continuation_mass(mini("ar"))
    assert not found.passed and found.value == pytest.approx(3)
