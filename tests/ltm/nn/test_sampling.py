"""Draws follow their probabilities; truncation keeps the right tokens."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from ltm.api import Sampling
from ltm.nn import sampling as sampling_module
from ltm.nn.sampling import draw, probabilities, up_to_stop

LOGITS = torch.tensor([[0.3, 2.0, -1.0, 1.2, 0.0]])


def test_frequencies():
    p = LOGITS.double().softmax(1)[0]
    uniforms = torch.rand(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(draw(LOGITS.expand(20000, -1), uniforms, Sampling()), minlength=5)
    assert chisquare(counts.numpy(), (p * 20000).numpy()).pvalue > 0.001


def test_inversion_never_picks_the_impossible():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for u, expected in ((0.0, 1), (0.49999, 1), (0.5, 3), (1 - 2**-53, 3)):
        assert int(draw(logits, torch.tensor([u], dtype=torch.float64), Sampling())) == expected


def test_draws_do_not_depend_on_how_many_are_made_together(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(13, 5, generator=generator)
    uniforms = torch.rand(13, generator=generator, dtype=torch.float64)
    for sampling in (Sampling(), Sampling(temperature=0), Sampling(top_p=0.6)):
        together = draw(logits, uniforms, sampling)
        for elements in (1, 10, 64):  # one row, two rows, twelve rows
            monkeypatch.setitem(sampling_module.TOGETHER, "cpu", elements)
            assert torch.equal(draw(logits, uniforms, sampling), together)
            assert draw(logits[:0], uniforms[:0], sampling).shape == (0,)
        monkeypatch.undo()


def test_a_text_ends_with_its_first_stop_id():
    assert up_to_stop([4, 2, 3, 2], (2, 3)) == [4, 2]
    assert up_to_stop([4, 2], (5,)) == up_to_stop([4, 2], ()) == [4, 2]


def test_truncation():
    assert probabilities(LOGITS, Sampling(temperature=0)).tolist() == [[0, 1, 0, 0, 0]]
    assert (probabilities(LOGITS, Sampling(top_k=2)) > 0).tolist() == [[False, True, False, True, False]]
    p = LOGITS.double().softmax(1)[0]
    assert (probabilities(LOGITS, Sampling(top_p=float(p[1]) + 0.01)) > 0).sum() == 2  # the crossing token stays
    assert (probabilities(LOGITS, Sampling(top_p=float(p[1]) - 0.01)) > 0).sum() == 1
    for sampling in (Sampling(), Sampling(top_k=3), Sampling(top_p=0.7), Sampling(temperature=0.5)):
        torch.testing.assert_close(probabilities(LOGITS, sampling).sum(), torch.tensor(1.0, dtype=torch.float64))
    sharper = probabilities(LOGITS, Sampling(temperature=0.5))
    torch.testing.assert_close(sharper, (LOGITS.double() / 0.5).softmax(1))


def test_bad_settings():
    for bad in ({"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"reinfer_every": 0}):
        with pytest.raises(ValueError):
            Sampling(**bad)
