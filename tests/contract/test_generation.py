"""Generation repeats under a seed, keeps to its limits, and draws from the distribution that is scored."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from ltm import registry
from ltm.api import Sampling
from ltm.rng import SequenceRng
from tests.contract.conftest import V, all_texts
from tests.support.sampler_laws import law


def test_repeats_under_a_seed_whatever_the_batch(model):
    prompts = [[0, 1], [], [2], [1, 1]]
    together = model.generate(prompts, max_new_tokens=2, sampling=Sampling(), rng=SequenceRng(7, range(4)))
    again = model.generate(prompts, max_new_tokens=2, sampling=Sampling(), rng=SequenceRng(7, range(4)))
    assert together == again
    for row in (3, 1):
        alone = model.generate([prompts[row]], max_new_tokens=2, sampling=Sampling(), rng=SequenceRng(7, [row]))
        assert alone.tokens[0] == together.tokens[row]
    assert all(len(t) == 2 and all(0 <= i < V for i in t) for t in together.tokens)
    assert all(n >= 1 for n in together.network_evaluations)


def test_stops_at_stop_ids(model):
    sampling = Sampling(stop_ids=tuple(range(V)))
    assert all(
        len(t) == 1
        for t in model.generate([[], [0]], max_new_tokens=3, sampling=sampling, rng=SequenceRng(0, [0, 1])).tokens
    )


def test_a_prompt_longer_than_a_block_is_refused(model):
    with pytest.raises(ValueError, match="exceed"):
        model.generate([[0] * (model.block_length + 1)], max_new_tokens=1, sampling=Sampling(), rng=SequenceRng(0, [0]))


@pytest.mark.parametrize("family", sorted(registry.names(registry.MODELS)))
def test_frequencies_match_the_samplers_law(family):
    """V=3, L=2: unconditional samples against their exact law, by chi-square; of exact models, their likelihood."""
    texts = all_texts(V, 2)
    model, log_p = law(family, texts)
    count = 4000
    drawn = model.generate([[]] * count, max_new_tokens=2, sampling=Sampling(), rng=SequenceRng(3, range(count))).tokens
    frequency = torch.bincount(torch.tensor([a * V + b for a, b in drawn]), minlength=V * V)
    expected = log_p.exp()
    assert float(expected.sum()) == pytest.approx(1, abs=1e-6)
    assert chisquare(frequency.numpy(), (expected / expected.sum() * count).numpy()).pvalue > 0.001
