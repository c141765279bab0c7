"""Natural gradients: the closed-form posterior of a Gaussian likelihood, and the prior where z says nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ltm.latent.posterior import Posterior, PosteriorConfig, fit
from ltm.rng import SequenceRng

SHAPE = (2, 1, 3)
CURVATURE = torch.tensor([0.5, 2.0, 20.0], dtype=torch.float64)
CENTRE = torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
NAMED = PosteriorConfig.NAMED["natural_gradient"]


def gaussian(z: Tensor) -> Tensor:
    """The gradient of -log p(x|z) = sum of curvature (z - centre)^2 / 2."""
    return CURVATURE * (z - CENTRE)


def fitted(
    gradient: Callable[[Tensor], Tensor], config: PosteriorConfig, kl_weight: float = 1.0, texts: int = 64
) -> Posterior:
    rng, cpu = SequenceRng(0, range(texts)), torch.device("cpu")

    def of_all(z: Tensor, rows: Tensor | None = None, /) -> Tensor:
        return gradient(z)

    return fit(of_all, SHAPE, config, rng, device=cpu, dtype=torch.float64, kl_weight=kl_weight)


@pytest.mark.parametrize("kl_weight", [1.0, 0.25])
def test_the_posterior_of_a_gaussian_likelihood_is_found(kl_weight: float) -> None:
    # p(x|z)^(1/w) N(z; 0, I) has precision 1 + h / w, and mean h c / (h + w).
    config = PosteriorConfig(optimizer="natural", steps=1500, lr=0.02, precision_lr=0.02, lr_schedule="constant")
    q = fitted(gaussian, config, kl_weight)
    precision, mean = 1 + CURVATURE / kl_weight, CURVATURE * CENTRE / (CURVATURE + kl_weight)
    # Every text and layer has other noise, whose mean is the fixed point.
    torch.testing.assert_close((-q.log_variance).exp().mean((0, 1, 2)), precision, rtol=0.03, atol=0)
    torch.testing.assert_close(q.mean.mean((0, 1, 2)), mean, rtol=0.03, atol=0.01)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_where_z_says_nothing_q_stays_at_the_prior(steps: int) -> None:
    config = PosteriorConfig(optimizer="natural", steps=steps, lr=0.3)
    assert float(fitted(torch.zeros_like, config).kl().abs().max()) == 0


def test_where_z_says_little_adam_pays_and_natural_gradients_do_not() -> None:
    natural, adam = (fitted(lambda z: 0.01 * z, c).kl().sum((1, 2)) for c in (NAMED, PosteriorConfig(steps=4, lr=0.3)))
    # The best q has a KL of 1e-4 nats for these six dimensions.
    assert float(natural.mean()) < 0.002 < 0.01 < float(adam.mean())


def test_q_is_never_wider_than_the_prior() -> None:
    q = fitted(lambda z: -3 * z, PosteriorConfig(optimizer="natural", steps=20, lr=0.01))
    assert float(q.log_variance.max()) == 0


@pytest.mark.parametrize("curvature", [0.3, 3.0, 30.0, 300.0])
@pytest.mark.parametrize("centre", [0.0, 2.0])
def test_four_steps_are_nearer_to_the_posterior_than_four_of_adam(curvature: float, centre: float) -> None:
    def gap(config: PosteriorConfig) -> float:
        """Nats by which the ELBO of the fit is below log p(x): the KL of q to the posterior."""
        q = fitted(lambda z: curvature * (z - centre), config)
        precision = 1 + curvature
        apart = (q.mean - curvature * centre / precision).square() + q.log_variance.exp()
        return float(0.5 * (precision * apart - 1 - math.log(precision) - q.log_variance).mean())

    natural, adam = gap(NAMED), gap(PosteriorConfig(steps=4, lr=0.3))
    assert 0 < natural < 0.95 * adam


def test_mirrored_noise_comes_in_pairs_and_quietens_the_curvature() -> None:
    seen: list[Tensor] = []

    def noting(z: Tensor) -> Tensor:
        seen.append(z)
        return gaussian(z)

    still = {"optimizer": "natural", "steps": 4, "lr": 1e-9, "precision_lr": 1e-9, "lr_schedule": "constant"}
    config = PosteriorConfig(noise="mirrored", **still)  # type: ignore[arg-type]
    fitted(noting, config)
    for first, second in (seen[:2], seen[2:]):  # q stays at the prior, so that z is the noise
        torch.testing.assert_close(first, -second)
    assert not torch.allclose(seen[0], seen[2])

    def spread(noise: str) -> float:
        moving = {"optimizer": "natural", "steps": 20, "lr": 1e-9, "precision_lr": 0.01, "lr_schedule": "constant"}
        q = fitted(lambda z: 2 * (z - 4), PosteriorConfig(noise=noise, **moving), texts=256)  # type: ignore[arg-type]
        return float((-q.log_variance).exp().std((0, 1, 2)).mean())

    # Of g epsilon / sigma = 2 epsilon^2 - 8 epsilon the second part cancels, and the first comes twice.
    assert spread("mirrored") < 0.7 * spread("fresh")


def test_the_schedule_falls_in_a_straight_line_to_a_tenth() -> None:
    config = PosteriorConfig(steps=8, lr=0.5, lr_schedule="linear", schedule_steps=4)
    expected = [0.5, 0.3875, 0.275, 0.1625, 0.05, 0.05, 0.05, 0.05]
    assert [config.lr_at(step) for step in range(8)] == pytest.approx(expected)
    assert math.isclose(NAMED.lr_at(NAMED.steps), 0.1 * NAMED.lr)


@pytest.mark.parametrize(
    "changes", [{"precision_lr": 0.0}, {"precision_lr": 1.5}, {"optimizer": "natural", "weight_decay": 0.1}]
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"precision_lr|weight decay"):
        PosteriorConfig(**changes)  # type: ignore[arg-type]
