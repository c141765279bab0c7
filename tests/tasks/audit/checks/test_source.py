"""Claims against a known source, and total probability by importance sampling, with models known by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ltm.data import corpora
from ltm.errors import UserError
from ltm.harness import HarnessModel
from ltm.known_sources.topics import Topics
from tasks.audit.checks import source
from tasks.audit.checks.evidence import texts_to_refute
from tests.support.harness_models import Bigram, BigramConfig, NoisyBigram, loaded

SOURCE = Topics(length=8, words=4, topics=2, classes=2)


class Oracle(Bigram):
    """Claims the source's own log-likelihood of whole texts, and `excess` nats a text more."""

    family = "oracle"
    excess = 0.0

    @torch.no_grad()
    def log_likelihoods(self, tokens_BL, *, context=0, lengths=None, draws=None, rng, only=None):
        """`exact`."""
        estimate = super().log_likelihoods(tokens_BL, context=context, lengths=lengths, rng=rng)["exact"]
        if tokens_BL.shape[1] == SOURCE.length:
            texts = [bytes(row).decode() for row in tokens_BL.tolist()]
            estimate.nats_B[:] = SOURCE.log_likelihood(SOURCE.symbols(texts)) + self.excess
        return {"exact": estimate}


def harness(family=Bigram, seed: int = 0, **changes) -> HarnessModel:
    model = family(BigramConfig(table_seed=seed, block=8)).double()
    for name, value in changes.items():
        setattr(model, name, value)
    return HarnessModel(pretrained=loaded(model, f"{family.family}-{changes}"), device="cpu", dtype="float64")


def test_a_claim_is_of_the_whole_text_and_stands_beside_the_sources_own():
    model = harness()
    found = source.claims_on(model, SOURCE, texts=32)
    texts = corpora.split_of(SOURCE, "test").texts()[:32]
    tokens = torch.tensor([list(text.encode()) for text in texts])
    np.testing.assert_allclose(found.claims_N["exact"], model.loaded.model.nats_BL(tokens).sum(1).detach())
    np.testing.assert_array_equal(found.reference_N, SOURCE.log_likelihood(SOURCE.symbols(texts)))
    assert found.tokens == 32 * 8 and not found.averaged
    (result,) = source.known_source(found)
    assert result.passed and result.value == pytest.approx((found.claims_N["exact"] - found.reference_N).sum())


def test_texts_longer_than_a_block_are_claimed_whole():
    whole, halves = (
        source.claims_on(
            HarnessModel(pretrained=loaded(Bigram(BigramConfig(block=b)), f"block {b}"), device="cpu"), SOURCE, texts=4
        )
        for b in (8, 4)
    )
    assert whole.tokens == halves.tokens and not np.allclose(whole.claims_N["exact"], halves.claims_N["exact"])
    assert (halves.claims_N["exact"] < -8).all()


def test_the_source_itself_passes_and_more_than_it_does_not():
    (exact,) = source.known_source(source.claims_on(harness(Oracle), SOURCE, texts=64))
    assert exact.passed and exact.value == pytest.approx(0, abs=1e-9) and "blind below" in exact.detail
    for excess in (0.05, 0.1, 0.2):
        n = texts_to_refute(excess)
        enough, few = (
            source.known_source(source.claims_on(harness(Oracle, excess=excess), SOURCE, texts=count))
            for count in (n, n - 1)
        )
        assert not enough[0].passed and few[0].passed
        assert enough[0].value == pytest.approx(n * excess) and "blind" not in enough[0].detail


def test_every_likelihood_is_judged_by_itself():
    found = source.claims_on(harness(NoisyBigram), SOURCE, texts=16)
    results = source.known_source(found, name="renamed")
    assert [r.likelihood for r in results] == [
        *("elbo", "importance_bound", "reused_noise_estimate"),
    ]
    assert {r.name for r in results} == {"renamed"} and found.mc_var_N["reused_noise_estimate"] is None


def test_a_proposal_that_is_the_model_itself_finds_the_whole_mass():
    model = harness()
    (found,) = source.proposal_mass(model, model)
    assert found.passed and 0.9 < found.value <= 1.0 and "can only refute" in found.detail


def test_a_claim_twice_too_high_is_refuted_by_a_proposal():
    class Doubled(Bigram):
        """p twice."""

        family = "doubled"

        def log_likelihoods(self, tokens_BL, **options):
            """`exact`, and log 2 more."""
            found = super().log_likelihoods(tokens_BL, **options)
            found["exact"].nats_B[:] += math.log(2)
            return found

    (found,) = source.proposal_mass(harness(Doubled), harness())
    assert not found.passed and 1.5 < found.value <= 2


def test_a_lower_bound_on_the_mass_stays_below_it():
    """Two bigrams of two letters, short enough to sum by hand: the claim's mass on all texts is 1.3."""

    class Inflated(Bigram):
        """1.3 p of another table."""

        family = "inflated"

        def log_likelihoods(self, tokens_BL, **options):
            """`exact`, and log 1.3 more."""
            found = super().log_likelihoods(tokens_BL, **options)
            found["exact"].nats_B[:] += math.log(1.3)
            return found

    small = BigramConfig(vocab_size=3, block=4)
    model, proposal = (loaded(family(small).double(), family.family) for family in (Inflated, Bigram))
    texts = torch.tensor(list(itertools.product(range(2), repeat=4)))
    mass = float(model.model.log_likelihoods(texts, rng=None)["exact"].nats_B.exp().sum())
    assert mass == pytest.approx(1.3)
    (found,) = source.proposal_mass(*(HarnessModel(pretrained=m, device="cpu") for m in (model, proposal)))
    assert 1 < found.value <= mass and not found.passed


def test_a_proposal_must_be_exact_and_have_the_same_tokens():
    with pytest.raises(UserError, match="not an exact likelihood"):
        source.proposal_mass(harness(), harness(NoisyBigram))
    other = harness()
    other.loaded.tokenizer.__dict__["fingerprint"] = "another"
    with pytest.raises(UserError, match="a different tokenizer"):
        source.proposal_mass(harness(), other)
