"""Stated errors: right ones pass, and those that are ten times too large or too small do not."""

from __future__ import annotations

import dataclasses

import pytest

from ltm.harness import HarnessModel
from tasks.audit.checks.estimator import stated_error
from tests.support.harness_models import Bigram, BigramConfig, NoisyBigram, loaded

TOKENS = list(b"some text of a few")


class Stating(NoisyBigram):
    """States `factor` times the variance of its ELBO, a mean over draws."""

    factor = 1.0

    def log_likelihoods(self, tokens_BL, **options):
        """One likelihood."""
        elbo = super().log_likelihoods(tokens_BL, **options)["elbo"]
        return {"elbo": dataclasses.replace(elbo, mc_var_B=elbo.mc_var_B * self.factor, averaged=True)}


def check(family, **changes):
    model = family(BigramConfig())
    for name, value in changes.items():
        setattr(model, name, value)
    return stated_error(HarnessModel(pretrained=loaded(model), device="cpu"), TOKENS)


@pytest.mark.parametrize(("factor", "passed"), [(1.0, True), (10.0, False), (0.1, False)])
def test_stated_and_found(factor, passed):
    (found,) = check(Stating, factor=factor)
    assert (found.name, found.likelihood, found.passed) == ("stated_error", "elbo", passed)
    assert found.value == pytest.approx(factor, rel=0.4) and "over 64 noises" in found.detail


def test_what_states_no_error_is_not_looked_at():
    assert check(Bigram) == []


@pytest.mark.parametrize(("outliers", "passed"), [(1, True), (6, False)])
def test_one_draw_of_a_long_tail_does_not_refute_and_several_do(outliers, passed):
    class LongTailed(Stating):
        def log_likelihoods(self, tokens_BL, **options):
            elbo = super().log_likelihoods(tokens_BL, **options)["elbo"]
            nats_B = elbo.nats_B.clone()
            nats_B[:outliers] -= 30 * elbo.mc_var_B.mean().sqrt()
            return {"elbo": dataclasses.replace(elbo, nats_B=nats_B)}

    (found,) = check(LongTailed)
    assert found.passed == passed
