"""The bounds against evidence that is known exactly: a linear-Gaussian decoder, and quadrature over two latents."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ltm.latent import bounds
from ltm.latent.posterior import Posterior, PosteriorConfig, fit
from ltm.rng import SequenceRng
from ltm.testing.miniatures import all_texts
from tests.support.quadrature import evidence, two_dimensional

B, Z = 64, 6
RNG = SequenceRng(0, range(B))
TOKENS_B = torch.full((B,), Z)


@pytest.fixture(scope="module")
def gaussian():
    """x = w * z + s * noise, coordinate by coordinate: evidence and posterior in closed form, in float64."""
    torch.manual_seed(0)
    w, s = torch.linspace(0.3, 3.0, Z, dtype=torch.float64), 0.7
    x = torch.randn(B, Z, dtype=torch.float64) * (w.square() + s * s).sqrt()

    def log_likelihood(z_BYGD):
        residual = (x - w * z_BYGD[:, 0, 0]) / s
        return -0.5 * (residual.square() + math.log(2 * math.pi * s * s)).sum(1)

    def gradient(z_BYGD):
        return (-w * (x - w * z_BYGD[:, 0, 0]) / (s * s))[:, None, None]

    total = w.square() + s * s
    log_evidence = -0.5 * (x.square() / total + torch.log(2 * math.pi * total)).sum(1)
    variance = 1 / (1 + w.square() / (s * s))
    exact = Posterior(mean=(variance * w * x / (s * s))[:, None, None], log_variance=variance.log().expand(B, 1, 1, Z))
    return log_likelihood, gradient, log_evidence, exact


def test_exact_posterior_makes_both_bounds_tight(gaussian):
    log_likelihood, _, log_evidence, q = gaussian
    importance = bounds.importance_bound(log_likelihood, q, TOKENS_B, draws=4, rng=RNG)
    torch.testing.assert_close(importance.nats_B, log_evidence, rtol=0, atol=1e-9)
    elbo = bounds.elbo(log_likelihood, q, TOKENS_B, draws=512, rng=RNG)
    error = elbo.mc_var_B.sum().sqrt()
    assert abs(float((elbo.nats_B - log_evidence).sum())) < 4 * float(error)


def test_order_of_bounds(gaussian):
    """elbo <= importance bound, growing with draws <= log p(x), for a q that is off."""
    log_likelihood, _, log_evidence, exact = gaussian
    q = Posterior(mean=exact.mean + 0.3, log_variance=exact.log_variance + 0.5)
    values = [bounds.elbo(log_likelihood, q, TOKENS_B, draws=256, rng=RNG)]
    values += [bounds.importance_bound(log_likelihood, q, TOKENS_B, draws=k, rng=RNG) for k in (2, 16, 256)]
    totals = [float(v.nats_B.sum()) for v in values]
    assert totals == sorted(totals)
    slack = 4 * float(values[-1].mc_var_B.sum().sqrt())
    assert totals[-1] <= float(log_evidence.sum()) + slack
    assert totals[0] < float(log_evidence.sum()) - 5  # the test has teeth: q is far enough off to see


def test_importance_weights_are_unbiased_for_the_evidence(gaussian):
    """The mean over many estimates of exp(importance bound) is p(x): what makes it a bound at all."""
    log_likelihood, _, log_evidence, exact = gaussian
    q = Posterior(mean=exact.mean + 0.2, log_variance=exact.log_variance + 0.3)
    ratios = torch.stack(
        [
            (
                bounds.importance_bound(log_likelihood, q, TOKENS_B, draws=2, rng=SequenceRng(s, range(B))).nats_B
                - log_evidence
            ).exp()
            for s in range(100)
        ]
    )
    assert abs(float(ratios.mean()) - 1) < 4 * float(ratios.std()) / math.sqrt(ratios.numel())


def test_elbo_is_unbiased_and_its_error_is_honest(gaussian):
    """Over repetitions, the spread of the estimate is the standard error that it reports."""
    log_likelihood, _, _, exact = gaussian
    q = Posterior(mean=exact.mean, log_variance=exact.log_variance + 1.0)
    runs = [bounds.elbo(log_likelihood, q, TOKENS_B, draws=8, rng=SequenceRng(s, range(B))) for s in range(80)]
    spread = torch.stack([r.nats_B for r in runs]).var(0).mean()
    reported = torch.stack([r.mc_var_B for r in runs]).mean()
    assert float(reported) == pytest.approx(float(spread), rel=0.1)


def test_fitting_finds_the_posterior(gaussian):
    log_likelihood, gradient, log_evidence, exact = gaussian
    config = PosteriorConfig(steps=600, lr=0.05, lr_schedule="cosine")
    q = fit(gradient, (1, 1, Z), config, RNG, device=torch.device("cpu"), dtype=torch.float64)
    elbo = bounds.elbo(log_likelihood, q, TOKENS_B, draws=256, rng=RNG)
    gap = float((log_evidence - elbo.nats_B).mean())
    assert -3 * float(elbo.mc_var_B.mean().sqrt()) / math.sqrt(B) < gap < 0.1
    torch.testing.assert_close(q.mean, exact.mean, rtol=0, atol=0.25)


def test_reused_noise_claims_more_than_the_evidence(gaussian):
    """Scored at the noise that it was fitted to, q beats log p(x); on fresh noise it cannot."""
    log_likelihood, gradient, log_evidence, _ = gaussian
    config = PosteriorConfig(steps=600, lr=0.05, noise="reused")
    q = fit(gradient, (1, 1, Z), config, RNG, device=torch.device("cpu"), dtype=torch.float64)
    claimed = bounds.reused_noise_estimate(log_likelihood, q, TOKENS_B)
    assert claimed.kind == "estimate"
    assert float((claimed.nats_B - log_evidence).mean()) > 0.5
    valid = bounds.elbo(log_likelihood, q, TOKENS_B, draws=256, rng=RNG)
    assert float(valid.nats_B.sum()) < float(log_evidence.sum())


def test_no_steps_no_reused_noise(gaussian):
    log_likelihood, gradient, _, _ = gaussian
    q = fit(gradient, (1, 1, Z), PosteriorConfig(steps=0), RNG, device=torch.device("cpu"), dtype=torch.float64)
    assert float(q.kl().abs().max()) == 0  # no step: q is the prior
    with pytest.raises(ValueError, match="0 steps"):
        bounds.reused_noise_estimate(log_likelihood, q, TOKENS_B)
    with pytest.raises(ValueError, match="draws"):
        bounds.elbo(log_likelihood, q, TOKENS_B, draws=0, rng=RNG)


def test_bounds_of_the_model_stay_below_its_integrated_evidence():
    """A trained latent thought model with two latent dimensions, its evidence by quadrature."""
    model, texts = two_dimensional(0, PosteriorConfig(steps=30, lr=0.1)), all_texts()
    log_p = evidence(model, texts)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-6)
    found = model.log_likelihoods(texts, rng=SequenceRng(0, range(len(texts))), draws=64)
    elbo, importance = found["elbo"], found["importance_bound"]
    weight = log_p.exp()
    gaps = [float((weight * (log_p - e.nats_B)).sum()) for e in (elbo, importance)]
    errors = [float((weight.square() * e.mc_var_B).sum().sqrt()) for e in (elbo, importance)]
    assert -3 * errors[0] <= gaps[0] and -3 * errors[1] <= gaps[1] <= gaps[0] + 3 * errors[0]
    assert float(elbo.terms["-kl"].max()) < 0  # z is in use, or the comparison says nothing


def test_predictive_bound_against_the_exact_conditional():
    """A normalised predictive cannot beat p(y|x) on average over p(y|x), and a good fit comes close to it."""
    model, texts = two_dimensional(1, PosteriorConfig(steps=60, lr=0.05)), all_texts()
    exact = evidence(model, texts) - evidence(model, texts[:, :2])
    same_noise_for_one_context = SequenceRng(0, [i // 9 for i in range(len(texts))])
    found = model.log_likelihoods(texts, context=2, rng=same_noise_for_one_context, draws=64)["predictive_bound"]
    divergence_of_context = (exact.exp() * (exact - found.nats_B)).view(9, 9).sum(1)
    assert float(divergence_of_context.min()) >= -1e-6
    assert float(divergence_of_context.mean()) < 0.1


def test_which_exponentials_stay_below_the_evidence_in_expectation():
    """One coin with p(heads|z) = sigmoid(10 z), by quadrature over one and two draws: why the ELBO is `averaged`."""
    nodes, weights = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(200))
    weights = weights / weights.sum()

    def log_likelihood(z_BYGD):
        return torch.nn.functional.logsigmoid(10 * z_BYGD.flatten())

    q = Posterior(
        mean=torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64),
        log_variance=torch.full((1, 1, 1, 1), 2 * math.log(0.6), dtype=torch.float64),
    )
    noise = nodes.view(-1, 1, 1, 1)
    log_w = log_likelihood(q.at(noise)) + q.log_ratio(noise)
    p = 0.5  # by symmetry
    assert float(weights @ log_w.exp()) == pytest.approx(p, rel=1e-6)
    # A mean of two log weights: exp of it is their geometric mean, at most their arithmetic one.
    geometric = weights @ torch.exp((log_w[:, None] + log_w) / 2) @ weights
    assert float(geometric) < p
    # With the KL in closed form the exponential of one draw is above p on average, though the ELBO is below log p.
    values = log_likelihood(q.at(noise)) - q.kl().sum()
    assert float(weights @ values) < math.log(p) < math.log(float(weights @ values.exp()))
    one = torch.ones(1, dtype=torch.int64)
    rng = SequenceRng(0, [0])
    assert bounds.elbo(lambda z: log_likelihood(z), q, one, draws=2, rng=rng).averaged
    assert not bounds.importance_bound(lambda z: log_likelihood(z), q, one, draws=2, rng=rng).averaged
