"""Several Gaussians as one proposal: exact integrals, closed-form evidence, and errors against repeated runs."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from baselines.vae import VAE
from ltm.config import with_settings
from ltm.latent import bounds, mixture
from ltm.latent.mixture import Mixture
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior, PosteriorConfig, fit
from ltm.rng import SequenceRng
from ltm.testing.likelihoods import LikelihoodTests
from ltm.testing.miniatures import L, V, all_texts
from tests.support.quadrature import evidence, two_dimensional

B, Z = 16, 3
RNG = SequenceRng(0, range(B))
TOKENS_B = torch.full((B,), Z)
W, S = torch.tensor([0.3, 0.9, 1.5], dtype=torch.float64), 0.8
X = torch.randn(B, Z, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * (W.square() + S * S).sqrt()
LOG_EVIDENCE = torch.distributions.Normal(0.0, (W.square() + S * S).sqrt()).log_prob(X).sum(1)


def log_likelihood(z_BYGD):
    """x = w z + s noise, coordinate by coordinate."""
    return torch.distributions.Normal(W * z_BYGD[:, 0, 0].double(), S).log_prob(X).sum(1)


def gaussian(mean: float, log_variance: float, *, batch: int = B, width: int = Z) -> Posterior:
    shape = (batch, 1, 1, width)
    return Posterior(
        mean=torch.full(shape, mean, dtype=torch.float64),
        log_variance=torch.full(shape, log_variance, dtype=torch.float64),
    )


def exact_posterior() -> Posterior:
    variance = 1 / (1 + W.square() / (S * S))
    mean = (variance * W * X / (S * S))[:, None, None]
    return Posterior(mean=mean, log_variance=variance.log().expand_as(mean))


def three(*counts: int, antithetic: bool = False) -> Mixture:
    """The prior, a poor q, and one that is a little off."""
    exact = exact_posterior()
    near = Posterior(mean=exact.mean + 0.2, log_variance=exact.log_variance - 0.3)
    return Mixture(parts=(gaussian(0.0, 0.0), gaussian(0.8, -1.0), near), counts=counts, antithetic=antithetic)


def runs(proposals: Mixture, times: int) -> list:
    return [
        bounds.multiple_importance_bound(log_likelihood, proposals, TOKENS_B, rng=SequenceRng(s, range(B)))
        for s in range(times)
    ]


def test_strata_add_up_to_the_evidence():
    """Gauss-Hermite quadrature over each q_m: sum_m (n_m / K) E_m[p(x, z) / mix(z)] = p(x), to the last digits."""
    nodes, weights = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(150))
    weights, noise = weights / weights.sum(), nodes.view(-1, 1, 1, 1)
    parts = tuple(gaussian(m, v, batch=1, width=1) for m, v in ((0.0, 0.0), (0.4, -0.2), (-0.3, -0.5)))
    prior = parts[0]

    def likelihood(z_BYGD):  # one coin, sigmoid(2 z): half on average over the prior
        return torch.nn.functional.logsigmoid(2 * z_BYGD.flatten())

    def total(counts: tuple[int, ...], density: Mixture) -> float:
        strata = 0.0
        for part, count in zip(parts, counts, strict=True):
            z = part.at(noise)
            log_w = likelihood(z) + prior.log_density(z) - density.log_density(z)
            strata += count / sum(counts) * float(weights @ log_w.exp())
        return strata

    for counts in ((1, 1, 1), (2, 4, 10), (16, 4, 4)):
        sound = Mixture(parts=parts, counts=counts)
        assert total(counts, sound) == pytest.approx(0.5, abs=1e-6)
    one_left_out = Mixture(parts=parts[1:], counts=(4, 10))
    assert total((2, 4, 10), one_left_out) > 0.505


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_mean_weight_is_unbiased_and_its_logarithm_a_lower_bound(antithetic):
    gains = torch.stack([run.nats_B - LOG_EVIDENCE for run in runs(three(2, 4, 2, antithetic=antithetic), 120)])
    assert abs(float(gains.exp().mean()) - 1) < 4 * float(gains.exp().mean(1).std()) / math.sqrt(len(gains))
    assert float(gains.mean()) < -4 * float(gains.mean(1).std()) / math.sqrt(len(gains))


def test_one_gaussian_gives_the_importance_bound():
    q = three(1, 1, 1).parts[-1]
    alone = bounds.importance_bound(log_likelihood, q, TOKENS_B, draws=8, rng=RNG)
    mixed = bounds.multiple_importance_bound(log_likelihood, Mixture(parts=(q,), counts=(8,)), TOKENS_B, rng=RNG)
    torch.testing.assert_close(mixed.nats_B, alone.nats_B, rtol=0, atol=1e-10)
    torch.testing.assert_close(mixed.mc_var_B, alone.mc_var_B, rtol=1e-8, atol=0)
    assert (mixed.kind, mixed.draws, mixed.averaged, mixed.terms) == ("lower_bound", 8, False, {})


def test_with_the_prior_no_weight_exceeds_its_share():
    """p(z) / mix(z) <= K / n_prior everywhere; without it there is no limit."""
    proposals, prior = three(2, 4, 10), gaussian(0.0, 0.0)
    without = Mixture(parts=proposals.parts[1:], counts=(4, 10))
    z = 6 * torch.randn(200, B, 1, 1, Z, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    excess = [
        max(float((prior.log_density(each) - p.log_density(each)).max()) for each in z) for p in (proposals, without)
    ]
    assert excess[0] <= math.log(16 / 2) + 1e-12 < 20 < excess[1]


def test_the_stated_error_of_a_linear_function_is_that_of_its_strata():
    """Of sum z the variance is sum_m (n_m / K)^2 sum sigma_m^2 / n_m, and nothing at all in mirrored pairs."""
    proposals = three(4, 8, 4)
    paired = dataclasses.replace(proposals, antithetic=True)
    expected = sum(
        (n / 16) ** 2 * q.log_variance.exp().flatten(1).sum(1) / n
        for q, n in zip(proposals.parts, proposals.counts, strict=True)
    )

    def of_sums(p: Mixture, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        values_KB = torch.stack([z.flatten(1).sum(1) for z in p.sample(SequenceRng(seed, range(B)).stream("z"))])
        variance_B = p.variance_of_mean(values_KB)
        assert variance_B is not None
        return values_KB.mean(0), variance_B

    means, stated = (torch.stack(each) for each in zip(*(of_sums(proposals, s) for s in range(150)), strict=True))
    assert float((stated.mean(0) / expected).mean()) == pytest.approx(1, abs=0.03)
    assert float((means.var(0) / expected).mean()) == pytest.approx(1, abs=0.06)
    expected_mean = sum(
        n / 16 * q.mean.flatten(1).sum(1) for q, n in zip(proposals.parts, proposals.counts, strict=True)
    )
    mean_B, variance_B = of_sums(paired, 0)
    torch.testing.assert_close(mean_B, expected_mean, rtol=0, atol=1e-12)
    assert float(variance_B.max()) < 1e-25


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_stated_error_is_the_spread_over_runs(antithetic):
    found = runs(three(4, 4, 24, antithetic=antithetic), 120)
    spread_B, stated_B = torch.stack([r.nats_B for r in found]).var(0), torch.stack([r.mc_var_B for r in found]).mean(0)
    assert float(stated_B.sum() / spread_B.sum()) == pytest.approx(1, abs=0.15)


def test_an_error_that_cannot_be_estimated_is_not_stated():
    assert runs(three(1, 4, 4), 1)[0].mc_var_B is None
    assert runs(three(2, 4, 4, antithetic=True), 1)[0].mc_var_B is None
    assert runs(three(2, 2, 2), 1)[0].mc_var_B is not None


@pytest.mark.parametrize(
    ("counts", "antithetic"), [((1, 1), False), ((0, 2, 2), False), ((1, 2, 2), True), ((), False)]
)
def test_numbers_of_draws_that_do_not_fit_are_refused(counts, antithetic):
    with pytest.raises(ValueError, match="draws"):
        three(*counts, antithetic=antithetic)


@pytest.mark.parametrize("draws", [8, 16, 24, 64, 256])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 64])
def test_the_proposals_of_a_fit(steps, draws):
    visited = [gaussian(float(step), 0.0) for step in range(1, steps + 1)]
    proposals = mixture.of_fit(visited, draws)
    assert proposals.draws == draws and proposals.parts[-1] is visited[-1]
    assert proposals.counts[-1] >= draws / 2 and min(proposals.counts) >= 2
    assert float(proposals.parts[0].mean.abs().max()) == 0 and float(proposals.parts[0].log_variance.abs().max()) == 0
    after = [int(part.mean.flatten()[0]) for part in proposals.parts[1:]]
    assert after == sorted(set(after)) and all(2 * a <= b for a, b in itertools.pairwise(after))


@pytest.mark.parametrize("optimizer", ["adam", "natural"])
def test_visited_are_the_fits_of_fewer_steps(optimizer):
    config = PosteriorConfig(steps=5, lr=0.1, lr_schedule="constant", optimizer=optimizer)

    def gradient(z_BYGD, rows=None):
        return (-W * (X - W * z_BYGD[:, 0, 0]) / (S * S))[:, None, None]

    def fitted(steps: int, visited: list[Posterior] | None = None) -> Posterior:
        return fit(
            gradient,
            (1, 1, Z),
            dataclasses.replace(config, steps=steps),
            RNG,
            device=torch.device("cpu"),
            dtype=torch.float64,
            visited=visited,
        )

    visited: list[Posterior] = []
    fitted(5, visited)
    assert len(visited) == 5
    for steps, q in enumerate(visited, 1):
        shorter = fitted(steps)
        assert torch.equal(q.mean, shorter.mean) and torch.equal(q.log_variance, shorter.log_variance)


@pytest.mark.parametrize(
    ("cls", "settings", "parts"),
    [(LatentThoughtModel, (), 5), (LatentThoughtModel, ("posterior.steps=0",), 2), (VAE, (), 2)],
)
def test_the_setting_changes_the_importance_bound_and_what_begins_with_it(cls, settings, parts):
    torch.manual_seed(0)
    model = cls(with_settings(cls.miniature(V + 1, L), settings)).double()
    texts, rng = all_texts()[:6], SequenceRng(0, range(6))
    before = model.log_likelihoods(texts, rng=rng)
    model.config = dataclasses.replace(model.config, importance_proposals="mixture")
    after = model.log_likelihoods(texts, rng=rng)
    assert list(before) == list(after)
    # Without a step, and from an untrained encoder, q is the prior, and so is a mixture of the two.
    # The bound from above begins with that bound and its error, which knows of the strata of a mixture.
    changed = {"tube_upper_bound"} if parts == 2 else {"importance_bound", "tube_upper_bound"}
    for name, estimate in after.items():
        same = torch.allclose(estimate.nats_B, before[name].nats_B, rtol=1e-12, atol=0)
        assert same == (name not in changed)
    importance = after["importance_bound"]
    assert importance.draws == before["importance_bound"].draws and len(importance.q.parts) == parts
    assert torch.equal(importance.q.parts[-1].mean, after["elbo"].q.mean)


def test_of_a_trained_model_it_stays_below_the_integrated_evidence():
    """Two latent dimensions, by quadrature: of likely texts the mean weight is p(x), and its logarithm is less."""
    model, texts = two_dimensional(0, PosteriorConfig(steps=4, lr=0.5), importance_proposals="mixture"), all_texts()
    log_p = evidence(model, texts)
    likeliest, times = log_p.topk(6).indices, 200
    rows = texts[likeliest].repeat(times, 1)
    found = model.log_likelihoods(rows, rng=SequenceRng(0, range(len(rows))), draws=2, only="importance_bound")
    gains = found["importance_bound"].nats_B.view(times, -1) - log_p[likeliest]
    assert len(found["importance_bound"].q.parts) == 4
    error = float(gains.std()) / math.sqrt(gains.numel())
    assert abs(float(gains.exp().mean()) - 1) < 4 * error and float(gains.mean()) < 4 * error


def test_the_prior_saves_a_q_that_is_far_off():
    """Where the fit went wrong, a few draws from the prior are worth more than all of q's."""
    exact = exact_posterior()
    far = Posterior(mean=exact.mean + 2.0, log_variance=exact.log_variance - 2.0)
    alone = bounds.importance_bound(log_likelihood, far, TOKENS_B, draws=64, rng=RNG).nats_B
    mixed = bounds.multiple_importance_bound(log_likelihood, mixture.of_fit([far], 64), TOKENS_B, rng=RNG).nats_B
    assert float(alone.mean()) < float(mixed.mean()) - 1
    assert float(mixed.mean()) < float(LOG_EVIDENCE.mean())


class Mixed(LatentThoughtModel):
    """With the mixture in its miniature."""

    @classmethod
    def miniature(cls, vocab_size, block_length):
        config = LatentThoughtModel.miniature(vocab_size, block_length)
        return dataclasses.replace(config, importance_proposals="mixture")


class MixedVAE(VAE):
    """With the mixture in its miniature."""

    @classmethod
    def miniature(cls, vocab_size, block_length):
        return dataclasses.replace(VAE.miniature(vocab_size, block_length), importance_proposals="mixture")


class TestLikelihoodsOfTheLTM(LikelihoodTests):
    """The contract, with every text enumerated."""

    family = Mixed


class TestLikelihoodsOfTheVAE(LikelihoodTests):
    """The same of an encoder's q and the prior."""

    family = MixedVAE
