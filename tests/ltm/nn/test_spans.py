"""Masks of given, scored and padding tokens; and the variance stated for stratified draws."""

from __future__ import annotations

import pytest
import torch

from baselines.diffusion.masking import variance_of_mean
from ltm.nn.spans import prepare_batch, scored_span
from ltm.rng import SequenceRng


def test_given_scored_and_padding_share_out_the_batch():
    tokens = torch.tensor([[1, 2, 3, 4], [4, 3, 9, 9]])
    found, given, scored = prepare_batch(tokens, torch.tensor([1, 0]), torch.tensor([4, 2]), 11)
    assert given.int().tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
    assert scored.int().tolist() == [[0, 1, 1, 1], [1, 1, 0, 0]]
    assert found.tolist() == [[1, 2, 3, 4], [4, 3, 0, 0]]


def test_bad_spans_and_ids():
    tokens = torch.tensor([[1, 2, 3]])
    for context, length in ((-1, 3), (0, 4), (3, 2)):
        with pytest.raises(ValueError, match="context <= length"):
            scored_span(tokens, context, torch.tensor([length]))
    for bad in (9, 10, -1):  # BOS, the mask, and nothing at all
        with pytest.raises(ValueError, match=f"token id {bad} is outside"):
            prepare_batch(torch.tensor([[1, bad, 3]]), 0, None, 10)


def test_the_variance_of_a_stratified_mean_is_not_understated():
    """Smooth and rough integrands: over many seeds the stated variance is at least the observed one."""

    def draw(seed: int, draws: int, rough: float) -> torch.Tensor:
        rng = SequenceRng(seed, range(40))
        u = rng.stratified("t", draws)[..., 0]
        noise = rng.stream("noise").normal(draws, dtype=torch.float64).T
        return 3 * u + u.square() + rough * noise

    for draws, rough, at_most in ((2, 1.0, 5.0), (4, 1.0, 1.25), (4, 0.1, 30.0), (5, 1.0, 5.0), (8, 1.0, 1.25)):
        values = [draw(seed, draws, rough) for seed in range(300)]
        seen = torch.stack([v.mean(0).sum() for v in values]).var()
        stated = torch.stack([variance_of_mean(v).sum() for v in values]).mean()
        assert 0.8 < float(stated / seen) < at_most, (draws, rough, float(stated / seen))
    assert variance_of_mean(torch.zeros(1, 3)) is None
