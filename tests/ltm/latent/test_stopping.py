"""Fits that end when they have converged: what is left to gain, what it costs, and what must not matter."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ltm.latent import bounds
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import LikelihoodGradient, Posterior, PosteriorConfig, fit
from ltm.latent.stopping import divergence, natural_gradient
from ltm.nn.flops import StackFlops
from ltm.rng import SequenceRng
from ltm.testing.miniatures import L, V, structured_batch

B, SHAPE = 32, (2, 1, 3)
CPU = torch.device("cpu")
CURVATURE = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
CENTRE_BYGD = 2 * torch.randn(B, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NATURAL = PosteriorConfig(optimizer="natural", steps=600, lr=0.3, precision_lr=0.02, lr_schedule="linear")
MIRRORED = dataclasses.replace(NATURAL, noise="mirrored")
ADAM = PosteriorConfig(steps=600, lr=0.3)
OF_MODEL = dataclasses.replace(NATURAL, steps=40, tolerance=0.01)
TEXTS, RNG = structured_batch(torch.Generator().manual_seed(0), 6), SequenceRng(3, range(6))


def gaussian(z: Tensor, rows: Tensor | None = None, /) -> Tensor:
    """The gradient of -log p(x|z) = sum of curvature (z - centre)^2 / 2, with another centre for each text."""
    return CURVATURE * (z - (CENTRE_BYGD if rows is None else CENTRE_BYGD[rows]))


def fitted(config: PosteriorConfig, gradient: LikelihoodGradient = gaussian) -> Posterior:
    return fit(gradient, SHAPE, config, SequenceRng(0, range(B)), device=CPU, dtype=torch.float64)


def gap(q: Posterior) -> Tensor:
    """Nats by which each text's ELBO is below log p(x): KL(q || posterior), (B,)."""
    variance = 1 / (1 + CURVATURE)
    exact = Normal(variance * CURVATURE * CENTRE_BYGD, variance.sqrt().expand(B, *SHAPE))
    return kl_divergence(Normal(q.mean, (0.5 * q.log_variance).exp()), exact).flatten(1).sum(1)


def steps_of(q: Posterior) -> Tensor:
    assert q.steps_B is not None
    return q.steps_B


def model_with(config: PosteriorConfig, **settings: Any) -> LatentThoughtModel:
    torch.manual_seed(0)
    miniature = LatentThoughtModel.miniature(V + 1, L)
    model = LatentThoughtModel(dataclasses.replace(miniature, posterior=config, **settings)).double()
    with torch.no_grad():
        for p in model.parameters():  # far from initialisation, so that z matters
            p.mul_(8 if p.ndim > 1 else 1)
    return model.eval().requires_grad_(False)


def test_the_divergence_is_that_of_torch() -> None:
    m, v, other_m, other_v = torch.randn(4, 5, *SHAPE, dtype=torch.float64)
    expected = kl_divergence(Normal(m, (0.5 * v).exp()), Normal(other_m, (0.5 * other_v).exp())).flatten(1).sum(1)
    torch.testing.assert_close(divergence(m, v, other_m, other_v), expected)


def test_the_product_of_two_natural_gradients_is_what_is_left_to_gain() -> None:
    """On average over independent noise, near a Gaussian posterior; the square of one is far from it."""
    noises, variance = 200_000, 1 / (1 + CURVATURE)
    mean = variance * CURVATURE * 2.0 + 0.2 * variance.sqrt()
    log_variance = variance.log() + 0.1
    left = kl_divergence(
        Normal(mean, (0.5 * log_variance).exp()), Normal(mean - 0.2 * variance.sqrt(), variance.sqrt())
    )
    epsilon = torch.randn(2, noises, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = mean + (0.5 * log_variance).exp() * epsilon
    first, second = (
        natural_gradient(mean.expand(noises, 3), log_variance.expand(noises, 3), CURVATURE * (each - 2.0), e, 1.0)
        for each, e in zip(z, epsilon, strict=True)
    )
    products = 0.5 * (first * second).sum(1)
    error = float(products.std()) / noises**0.5
    assert abs(float(products.mean() - left.sum())) < 4 * error + 0.1 * float(left.sum())
    assert float(0.5 * first.square().sum(1).mean()) > 5 * float(left.sum())


@pytest.mark.parametrize(
    ("config", "times"), [(NATURAL, 2), (MIRRORED, 2), (ADAM, 5)], ids=["natural", "mirrored", "adam"]
)
def test_what_is_lost_by_ending_is_of_the_order_of_the_tolerance(config: PosteriorConfig, times: float) -> None:
    ended = []
    for tolerance in (1.0, 0.3, 0.1):
        q = fitted(dataclasses.replace(config, tolerance=tolerance))
        assert float(gap(q).mean()) < times * tolerance
        ended.append(steps_of(q))
    assert float(gap(fitted(dataclasses.replace(config, steps=0))).mean()) > 10
    assert int(ended[0].max()) < 0.2 * config.steps
    for more, fewer in zip(ended[1:], ended, strict=False):
        # The path is the same, so a fit that must come closer ends no earlier.
        assert bool((more >= fewer).all()) and int(more.sum()) > int(fewer.sum())


def test_a_small_rate_is_no_convergence() -> None:
    """Steps of 0.0005 nats, far from the optimum: a rule that looked at the steps alone would end at once."""
    config = PosteriorConfig(optimizer="natural", steps=20, lr=0.005, schedule_steps=2, precision_lr=0.005)
    q = fitted(dataclasses.replace(config, tolerance=0.1))
    assert bool((steps_of(q) == 20).all()) and float(gap(q).min()) > 0.5


@pytest.mark.parametrize("config", [NATURAL, ADAM], ids=["natural", "adam"])
def test_an_end_that_never_comes_changes_no_bit(config: PosteriorConfig) -> None:
    config = dataclasses.replace(config, steps=30)
    fixed, watched = fitted(config), fitted(dataclasses.replace(config, tolerance=1e-12))
    assert fixed.steps_B is None and bool((steps_of(watched) == 30).all())
    for field in ("mean", "log_variance", "fitted_noise"):
        assert torch.equal(getattr(fixed, field), getattr(watched, field))


def test_where_z_says_nothing_two_steps_do() -> None:
    model = model_with(dataclasses.replace(NATURAL, steps=50, tolerance=1e-6), cross_start="zero")
    q = model.infer(TEXTS, RNG)
    assert bool((steps_of(q) == 2).all()) and float(q.kl().max()) == 0


def test_adam_goes_on_where_it_strays_with_nothing_to_gain() -> None:
    """A gradient of 0.001 moves Adam by its whole rate: the prior was better than where the first steps lead."""
    q = fitted(dataclasses.replace(ADAM, steps=6, tolerance=0.2), lambda z, rows=None: 0.001 * torch.ones_like(z))
    assert bool((steps_of(q) > 2).all())


def test_a_text_ends_as_it_would_alone_and_costs_no_more() -> None:
    model = model_with(OF_MODEL)
    together = model.infer(TEXTS, RNG)
    steps = steps_of(together).tolist()
    assert len(set(steps)) > 3 and min(steps) < 10 and max(steps) == 40
    for row in range(len(TEXTS)):
        alone = model.infer(TEXTS[row : row + 1], RNG.select([row]))
        assert steps_of(alone).tolist() == [steps[row]]
        for field in ("mean", "log_variance", "fitted_noise"):
            torch.testing.assert_close(
                getattr(alone, field)[0], getattr(together, field)[row], rtol=0, atol=1e-9, msg=field
            )
        # The noise of its last step is the one that its stream gave then.
        stream = RNG.select([row]).stream("fit")
        noises = [stream.normal(*model.latent_shape, dtype=torch.float64) for _ in range(steps[row])]
        torch.testing.assert_close(alone.fitted_noise, noises[-1])


@pytest.mark.parametrize("noise", ["fresh", "reused"])
def test_gradients_are_computed_for_moving_texts_alone(noise: str) -> None:
    asked: list[int] = []

    def counting(z: Tensor, rows: Tensor | None = None, /) -> Tensor:
        asked.append(len(z))
        return gaussian(z, rows)

    q = fitted(dataclasses.replace(NATURAL, noise=noise, tolerance=0.3), counting)  # type: ignore[arg-type]
    assert sum(asked) == int(steps_of(q).sum()) < 0.3 * NATURAL.steps * B and len(asked) == int(steps_of(q).max())


def test_scoring_reports_the_steps_that_it_executed() -> None:
    """The counted operations are those of `cost` less the gradients of the steps that were left out."""
    model = model_with(OF_MODEL)
    cost = model.cost(L)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        elbo = model.log_likelihoods(TEXTS, rng=RNG, only="elbo")["elbo"]
    assert elbo.fast_steps_B is not None
    left_out = (40 * len(TEXTS) - int(elbo.fast_steps_B.sum())) * L
    gradient = StackFlops.of(model.config.decoder, V, L, model.latent_shape[1]).latent_gradient
    expected = cost.score_flops_per_token * TEXTS.numel() - left_out * gradient
    assert left_out > 0
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_evaluation_noise_does_not_touch_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(OF_MODEL)
    first = model.log_likelihoods(TEXTS, rng=RNG, draws=2)
    monkeypatch.setattr(bounds, "fresh_noises", functools.partial(_other_noise, bounds.fresh_noises))
    second = model.log_likelihoods(TEXTS, rng=RNG, draws=2)
    for name in ("elbo", "importance_bound"):
        one, other = first[name], second[name]
        assert float((one.nats_B - other.nats_B).abs().min()) > 0
        assert one.fast_steps_B is not None and torch.equal(one.fast_steps_B, steps_of(other.q))
        assert torch.equal(one.q.mean, other.q.mean) and torch.equal(one.q.log_variance, other.q.log_variance)


def _other_noise(sound, q, draws, rng, purpose):
    return sound(q, draws, rng, f"another {purpose}")


def test_training_takes_all_steps() -> None:
    config = dataclasses.replace(NATURAL, steps=5)
    fixed, watched = (model_with(each) for each in (config, dataclasses.replace(config, tolerance=1e6)))
    assert bool((steps_of(watched.infer(TEXTS, RNG)) == 2).all())
    losses = [model.training_loss(TEXTS, rng=RNG).value for model in (fixed, watched)]
    assert torch.equal(*losses)


def test_a_tolerance_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="tolerance must be at least 0, found -0"):
        PosteriorConfig(tolerance=-0.1)


def test_a_mixture_of_all_steps_and_fits_that_end_early_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"posterior\.tolerance=0"):
        dataclasses.replace(model_with(OF_MODEL).config, importance_proposals="mixture")
