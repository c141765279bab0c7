"""Models that are not exact draw from the law of their own sampler; the contract holds exact ones to their likelihood.

V=3, L=2: unconditional samples against their exact law, by chi-square.
"""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from ltm import registry
from ltm.api import Sampling
from ltm.nn.left_to_right import ExactModel
from ltm.rng import SequenceRng
from ltm.testing.miniatures import V, all_texts
from tests.support.sampler_laws import law

INEXACT = [name for name in registry.names(registry.MODELS) if not issubclass(registry.model_family(name), ExactModel)]


@pytest.mark.parametrize("family", sorted(INEXACT))
def test_frequencies_match_the_samplers_law(family):
    model, log_p = law(family, all_texts(V, 2))
    count = 4000
    drawn = model.generate([[]] * count, max_new_tokens=2, sampling=Sampling(), rng=SequenceRng(3, range(count))).tokens
    frequency = torch.bincount(torch.tensor([a * V + b for a, b in drawn]), minlength=V * V)
    expected = log_p.exp()
    assert float(expected.sum()) == pytest.approx(1, abs=1e-6)
    assert chisquare(frequency.numpy(), (expected / expected.sum() * count).numpy()).pvalue > 0.001
