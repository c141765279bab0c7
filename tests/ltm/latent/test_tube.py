"""The upper bound against evidence that is known: a linear-Gaussian decoder, and quadrature over two latents."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from baselines.vae import VAE
from ltm.config import with_settings
from ltm.evaluation.likelihoods import gather
from ltm.latent import bounds, mixture, reliability, tube
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior, PosteriorConfig
from ltm.rng import SequenceRng
from ltm.testing.miniatures import L, all_texts
from tests.ltm.latent.test_mixture import LOG_EVIDENCE, TOKENS_B, B, exact_posterior, log_likelihood
from tests.support.quadrature import evidence, two_dimensional

EXACT = exact_posterior()
NARROW = Posterior(mean=EXACT.mean + 0.15, log_variance=EXACT.log_variance - 0.7)
"""As a fitted q is: its own weights have no variance."""


def both(q: Posterior, seed: int, draws: int = 64):
    rng = SequenceRng(seed, range(B))
    lower = bounds.importance_bound(log_likelihood, q, TOKENS_B, draws=draws, rng=rng)
    return lower, tube.tube_upper_bound(log_likelihood, q, lower, TOKENS_B, draws=draws, rng=rng)


@pytest.fixture(scope="module")
def many():
    return [both(NARROW, seed, 32) for seed in range(80)]


def test_given_psi_the_mean_is_the_tangent_at_psi(many):
    """E[U | psi] = log psi + p / psi - 1, at least log p; and the stated variance is that about it."""
    errors = torch.stack(
        [u.nats_B - (u.terms["log_psi"] + (LOG_EVIDENCE - u.terms["log_psi"]).exp() - 1) for _, u in many]
    )
    assert abs(float(errors.mean())) < 4 * float(errors.std()) / math.sqrt(errors.numel())
    stated = torch.stack([u.mc_var_B for _, u in many])
    assert float(stated.mean()) == pytest.approx(float(errors.square().mean()), rel=0.2)
    slack = torch.stack([u.terms["log_psi"] for _, u in many]) - LOG_EVIDENCE
    assert bool(((slack + (-slack).exp() - 1) >= 0).all())


def test_sums_over_texts_are_covered_at_the_stated_level(many):
    """One-sided 95% over the draws: the sum over texts and 1.645 standard errors are below log p in at most 5%."""
    below = [
        float(u.nats_B.sum()) + 1.645 * float(u.mc_var_B.sum().sqrt()) < float(LOG_EVIDENCE.sum()) for _, u in many
    ]
    assert np.mean(below) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / len(many))
    width = torch.stack([u.nats_B - lower.nats_B for lower, u in many]).mean()
    assert 0 < float(width) < 0.2
    gaps = torch.stack([u.nats_B - LOG_EVIDENCE for _, u in many])
    assert float(gaps.mean()) > 0


def test_of_psi_from_its_own_draws_no_upper_bound_is_left(many):
    """What independence is for: with one noise for both, the tangent touches, and the lower bound comes back."""
    rng = SequenceRng(0, range(B))
    noises = list(bounds.fresh_noises(NARROW, 64, rng, "any"))
    log_w_KB = bounds.log_weights(log_likelihood, ((NARROW.at(n), NARROW.log_ratio(n)) for n in noises))
    lower = bounds.log_mean_exp(log_w_KB, TOKENS_B)
    same = tube.tangent(log_w_KB, lower.nats_B, TOKENS_B)
    torch.testing.assert_close(same.nats_B, lower.nats_B, rtol=0, atol=1e-12)


def test_the_exact_posterior_leaves_no_slack():
    _, upper = both(EXACT, 0)
    plain = dataclasses.replace(upper, q=None)
    assert float((plain.nats_B - LOG_EVIDENCE).abs().max()) < 0.2
    assert reliability.trusted({name: v.numpy() for name, v in upper.reliability.items()})


def test_a_weight_beyond_all_bounds_makes_the_number_vacuous_and_not_infinite():
    log_w_KB = torch.zeros(64, 2, dtype=torch.float64)
    log_w_KB[3, 0] = 5_000.0
    bound = tube.tangent(log_w_KB, torch.zeros(2, dtype=torch.float64), torch.tensor([4, 4]))
    assert bool(bound.nats_B.isfinite().all() & bound.mc_var_B.isfinite().all())
    assert float(bound.nats_B[0]) > 1e100 and float(bound.nats_B[1]) == 0.0


@pytest.mark.parametrize(("cls", "posterior"), [(LatentThoughtModel, PosteriorConfig(steps=32, lr=0.1)), (VAE, None)])
def test_every_text_lies_between(cls, posterior):
    """On all 81 texts under each seed: lower <= log p <= upper within five of a text's errors; and on average."""
    texts, seeds = all_texts(), 8
    model = two_dimensional(3, posterior, cls=cls, kl_warmup=1.0, kl_weight_start=0.1)
    log_p_B = evidence(model, texts)
    rows, noise = texts.repeat(seeds, 1), SequenceRng(0, range(seeds * len(texts)))
    for name, sign in (("importance_bound", 1), ("tube_upper_bound", -1)):
        found = model.log_likelihoods(rows, rng=noise, only=name, draws=4)[name]
        beyond, error = sign * (found.nats_B.view(seeds, -1) - log_p_B), found.mc_var_B.view(seeds, -1).mean(0).sqrt()
        assert bool((beyond <= 5 * error + 1e-9).all()), (name, float((beyond / error).max()))
        assert float(beyond.mean()) <= 3 * float(error.square().mean().sqrt()) / math.sqrt(beyond.numel()), name
        if sign < 0:
            # Summed over all texts, exp of the upper bound is no less than 1.
            masses = found.nats_B.view(seeds, -1).exp().sum(1)
            assert float(masses.mean()) >= 1 - 3 * float(masses.std()) / math.sqrt(seeds)
            assert float(beyond.mean()) < 0, "slack that the draws leave can be seen"


def test_chains_bound_from_above_too():
    """AIS weights are unbiased as well; their kind needs enough chains to judge a tail."""
    texts = all_texts()[::20]
    model = two_dimensional(3)
    model.config = with_settings(model.config, ["inference=langevin", "langevin.steps=3"])
    few = model.log_likelihoods(texts[:1], rng=SequenceRng(0, [0]), draws=2)
    assert "tube_upper_bound" not in few
    found = model.log_likelihoods(texts, rng=SequenceRng(0, range(len(texts))), draws=25)
    lower, upper, log_p_B = found["ais_bound"], found["tube_upper_bound"], evidence(model, texts)
    assert bool((lower.nats_B <= log_p_B + 4.5 * lower.mc_var_B.sqrt()).all())
    assert bool((upper.nats_B >= log_p_B - 4.5 * upper.mc_var_B.sqrt()).all())
    assert upper.kind == "upper_bound" and upper.draws == 25


def test_wider_proposals_lie_between_q_and_the_prior():
    proposals = mixture.defended(NARROW, 64)
    assert proposals.counts == (4, 12, 24, 24) and mixture.defended(NARROW, 8).draws == 8
    prior, half, quarter, q = proposals.parts
    assert float(prior.mean.abs().max()) == float(prior.log_variance.abs().max()) == 0
    assert bool((q.log_variance < quarter.log_variance).all() & (quarter.log_variance < half.log_variance).all())
    # q^(1/2) p^(1/2), up to its normalisation.
    z = torch.randn(B, 1, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    difference = half.log_density(z) - (q.log_density(z) + prior.log_density(z)) / 2
    other = half.log_density(z + 1) - (q.log_density(z + 1) + prior.log_density(z + 1)) / 2
    torch.testing.assert_close(difference, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_the_tail_index_is_that_of_a_pareto_distribution(k):
    u = torch.rand(4_000, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = reliability.tail_index(((u ** (-k) - 1) / k).log())
    assert float(found.mean()) == pytest.approx(k, abs=0.05)


def test_the_gate_closes_where_weights_are_heavy():
    """Under it the number is an estimate. A tail without variance, few effective draws and few draws close it."""

    def kind(k: float, draws: int = 64) -> str:
        u = torch.rand(draws, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        log_w_KB = ((u ** (-k) - 1) / k).clamp(min=1e-12).log()
        bound = tube.tangent(log_w_KB, log_w_KB.logsumexp(0) - math.log(draws), torch.full((64,), L))
        part: dict[str, Any] = {
            "kind": bound.kind,
            "draws": draws,
            "mc_var": 0.1,
            "terms": {},
            "averaged": True,
            "tokens": L,
        }
        records = [
            {
                "headline": "elbo",
                "seconds": 0.0,
                "likelihoods": {
                    "elbo": {**part, "kind": "lower_bound", "nats": -1.0},
                    "up": {**part, "nats": nats, "reliability": {n: float(v[b]) for n, v in bound.reliability.items()}},
                },
            }
            for b, nats in enumerate(bound.nats_B.tolist())
        ]
        return gather(records, stream_tokens=64 * L, headline="elbo").likelihoods["up"].kind

    assert kind(0.1) == kind(0.3) == "upper_bound"
    assert kind(0.9) == kind(1.5) == "estimate"
    assert kind(0.1, draws=16) == "estimate"
    steep = torch.linspace(0, 40, 64, dtype=torch.float64)[:, None].expand(-1, 3)
    found = {name: v.numpy() for name, v in reliability.of_weights(steep).items()}
    assert found["effective"].max() < 8 and not reliability.trusted(found)
    flat = {name: v.numpy() for name, v in reliability.of_weights(torch.zeros(64, 3)).items()}
    assert flat["tail"].tolist() == [-1.0] * 3 and reliability.trusted(flat)
    with pytest.raises(ValueError, match="takes 25 draws, found 24"):
        reliability.tail_index(torch.zeros(24, 1))
