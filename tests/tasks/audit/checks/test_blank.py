"""Random texts of a block through a network without weights: sound claims are tight, and errors at length show."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ltm.harness import HarnessModel
from tasks.audit.checks import blank
from tests.support.harness_models import Bigram, BigramConfig, loaded
from tests.tasks.audit.checks.test_enumeration import subject


def model(family: str, **changes) -> HarnessModel:
    toy = loaded(Bigram(BigramConfig()))
    return HarnessModel(pretrained=dataclasses.replace(toy, model=subject(family, **changes)), device="cpu")


@pytest.mark.parametrize("family", ["ar", "mdlm", "md4", "sedd", "bd3lm", "vae", "ltm", "ngram"])
def test_sound_families_claim_no_more_than_the_uniform_distribution(family):
    results = blank.blank_text(model(family))
    assert results and all(one.passed and one.value <= 1e-3 for one in results), [one.detail for one in results]


@pytest.mark.parametrize("gain", [0.005, 0.05])
def test_tokens_beyond_the_first_that_cost_less_are_seen(monkeypatch, gain):
    found = model("mdlm")
    cls = type(found.loaded.model)
    sound = cls.log_likelihoods

    def cheaper(self, tokens_BL, *, lengths=None, **options):
        claims = sound(self, tokens_BL, lengths=lengths, **options)
        late_B = (torch.full((len(tokens_BL),), tokens_BL.shape[1]) if lengths is None else lengths) - 2
        return {name: dataclasses.replace(one, nats_B=one.nats_B + gain * late_B) for name, one in claims.items()}

    monkeypatch.setattr(cls, "log_likelihoods", cheaper)
    (one,) = blank.blank_text(found)
    block = found.block_length
    # A gain that differs with the length looks like noise, which more texts are for.
    count = blank.TEXTS + (blank.MORE_TEXTS if gain > 0.01 else 0)
    late = count / 2 * (block - 2 + blank._prime_up_to(block) - 2)
    assert one.passed == (gain < 0.01) and one.value == pytest.approx(gain * late, rel=1e-3)


def test_the_model_itself_keeps_its_weights():
    found = model("ar")
    before = {name: value.clone() for name, value in found.loaded.model.state_dict().items()}
    blank.blank_text(found)
    assert all(torch.equal(before[name], value) for name, value in found.loaded.model.state_dict().items())


def test_half_of_the_texts_have_a_prime_length():
    assert [blank._prime_up_to(n) for n in (1, 2, 4, 127, 1023)] == [1, 2, 3, 127, 1021]


def test_claims_that_are_no_numbers_are_not_judged(monkeypatch):
    monkeypatch.setattr(
        Bigram, "nats_BL", lambda self, tokens_BL: torch.full(tokens_BL.shape, torch.nan, dtype=torch.float64)
    )
    (one,) = blank.blank_text(HarnessModel(pretrained=loaded(Bigram(BigramConfig())), device="cpu"))
    assert one.passed is None and "no numbers" in one.detail
