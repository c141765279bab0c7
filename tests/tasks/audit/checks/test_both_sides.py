"""Bounds beside an exact value: sound ones pass, those on the wrong side do not, others are not compared."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from baselines.source import Source
from ltm.harness import HarnessModel
from ltm.known_sources.base import from_settings
from tasks.audit.checks.both_sides import against_exact
from tests.support.harness_models import Bigram, BigramConfig, loaded

SPEC = "topics:length=12,words=6,topics=4,classes=2"
TOKENS = torch.tensor([list(t.encode()) for t in from_settings(SPEC).texts(from_settings(SPEC).sample(64, seed=1))])


class Shifted(Source):
    """Bounds that are `above` nats higher, with a stated error `errors` times as large."""

    above: tuple[float, float] = (0.0, 0.0)
    errors = 1.0
    on_text = None

    def log_likelihoods(self, tokens_BL, **options):
        """As those of a source, and shifted."""
        found = super().log_likelihoods(tokens_BL, **options)
        for name, shift in zip(("importance_bound", "tube_upper_bound"), self.above, strict=True):
            if name in found:
                shift_B = torch.full_like(found[name].nats_B, shift)
                if self.on_text is not None:
                    shift_B = torch.where(torch.arange(len(shift_B)) == self.on_text, shift_B, 0.0)
                variance_B = found[name].mc_var_B * self.errors**2
                found[name] = dataclasses.replace(found[name], nats_B=found[name].nats_B + shift_B, mc_var_B=variance_B)
        return found


def judged(seed: int = 0, **changes) -> dict:
    opened = Source.from_source(SPEC)
    model = Shifted(opened.model.config)
    for name, value in changes.items():
        setattr(model, name, value)
    harness = HarnessModel(pretrained=dataclasses.replace(opened, model=model.eval()), device="cpu", seed=seed)
    return {found.likelihood: found for found in against_exact(harness, TOKENS)}


@pytest.mark.parametrize("seed", range(20))
def test_sound_bounds_pass_whatever_the_noise(seed):
    found = judged(seed)
    assert set(found) == {"importance_bound", "tube_upper_bound"}
    assert all(result.passed for result in found.values())


def test_a_bound_on_the_wrong_side_is_refuted_and_the_other_is_not():
    higher, lower = judged(above=(0.15, 0.15)), judged(above=(-0.15, -0.15))
    assert not higher["importance_bound"].passed and higher["tube_upper_bound"].passed
    assert lower["importance_bound"].passed and not lower["tube_upper_bound"].passed


def test_one_text_below_the_truth_is_enough():
    found = judged(above=(0.0, -2.0), on_text=7)["tube_upper_bound"]
    assert not found.passed and found.value > 1 and "+" in found.detail


def test_an_error_that_is_hidden_refutes():
    assert not judged(above=(0.0, 0.0), errors=0.001)["tube_upper_bound"].passed


def test_without_an_exact_value_or_a_bound_there_is_nothing_to_compare():
    model = HarnessModel(pretrained=loaded(Bigram(BigramConfig(block=12)), "bigram"), device="cpu")
    assert against_exact(model, TOKENS) == []


def test_tails_too_heavy_to_judge_are_not_judged():
    class Heavy(Shifted):
        """Weights of which few count."""

        def log_likelihoods(self, tokens_BL, **options):
            """With a tail index of 2."""
            found = super().log_likelihoods(tokens_BL, **options)
            if "tube_upper_bound" in found:
                upper = found["tube_upper_bound"]
                told = {name: torch.full_like(v, 2.0) for name, v in upper.reliability.items()}
                found["tube_upper_bound"] = dataclasses.replace(upper, nats_B=upper.nats_B - 9, reliability=told)
            return found

    opened = Source.from_source(SPEC)
    model = HarnessModel(pretrained=dataclasses.replace(opened, model=Heavy(opened.model.config)), device="cpu")
    found = {result.likelihood: result for result in against_exact(model, TOKENS)}["tube_upper_bound"]
    assert found.passed is None and math.isnan(found.value) and "heavy tails" in found.detail
