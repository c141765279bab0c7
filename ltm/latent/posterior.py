"""q(z|x) = N(mu, sigma^2), fitted to each text by gradient steps on its ELBO: fast learning.

Algorithm 1 of Latent Thought Models (arXiv 2502.01567). Shapes: B sequences, L tokens, Y layers, G latent vectors
per layer, D width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ltm.devices import Matmul
from ltm.rng import SequenceRng


@dataclass(frozen=True, slots=True, kw_only=True)
class PosteriorConfig:
    """Settings for fitting q: by default Algorithm 1 from the prior; each departure of the published code is a field.

    Attributes:
        steps: T_fast, gradient steps per text.
        lr: step size of Adam on mu and log sigma^2.
        noise: `fresh` draws a new epsilon every step (Algorithm 1). `reused` draws one and keeps it.
        lr_schedule: `constant`, or `cosine`: lr (0.1 + 0.45 (1 + cos(pi s / schedule_steps))), lr/10 beyond. Adam's
            steps are of size lr however small the gradient, so without decay a fit ends in noise of that size,
            which the KL pays for.
        schedule_steps: length of the cosine; longer fits than this stay at lr/10. None means `steps`.
        init_mean_std: mu starts as this times fresh normal noise; 0 is the prior's mean.
        init_log_variance: log sigma^2 starts here; 0 is the prior's.
        init_log_variance_std: plus this times fresh normal noise.
        weight_decay: decoupled decay of mu and log sigma^2 per step, times lr.
        leak_gradients: in training, the decoder also receives the gradients of every fast step, summed over
            tokens, where the slow step averages over them.
        matmul: dtype of matrix products in the fit; any q gives a valid bound, so this changes tightness only. `auto`
            is the fastest that the device has.
    """

    steps: int = 16
    lr: float = 0.3
    noise: Literal["fresh", "reused"] = "fresh"
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    schedule_steps: int | None = None
    init_mean_std: float = 0.0
    init_log_variance: float = 0.0
    init_log_variance_std: float = 0.0
    weight_decay: float = 0.0
    leak_gradients: bool = False
    matmul: Matmul = "auto"

    NAMED: ClassVar[dict[str, PosteriorConfig]] = {}

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, found {self.steps}")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, found {self.lr}")
        if self.schedule_steps is not None and self.schedule_steps < 1:
            raise ValueError(f"schedule_steps must be at least 1, found {self.schedule_steps}")

    def with_reused_noise(self) -> PosteriorConfig:
        """The same fit with one noise for all steps."""
        return dataclasses.replace(self, noise="reused")

    def lr_at(self, step: int) -> float:
        """Learning rate of fast step `step`, counted from 0."""
        if self.lr_schedule == "constant":
            return self.lr
        length = self.schedule_steps or self.steps
        return 0.1 * self.lr if step >= length else self.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * step / length)))


PosteriorConfig.NAMED["algorithm_1"] = PosteriorConfig()
PosteriorConfig.NAMED["published_code"] = PosteriorConfig(
    lr=0.34,
    noise="reused",
    schedule_steps=16,
    init_mean_std=0.01,
    init_log_variance=-5.0,
    init_log_variance_std=0.1,
    weight_decay=0.01,
    leak_gradients=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """A diagonal Gaussian over the latents of each text; all tensors (B, Y, G, D).

    `fitted_noise` is the epsilon of the last fast step, kept for `bounds.reused_noise_estimate`; None before any step.
    """

    mean: Tensor
    log_variance: Tensor
    fitted_noise: Tensor | None = None

    @classmethod
    def prior(cls, batch: int, shape: tuple[int, int, int], *, like: Tensor) -> Posterior:
        """N(0, I) for each of `batch` texts, of `like`'s dtype and device."""
        zeros = torch.zeros(batch, *shape, dtype=like.dtype, device=like.device)
        return cls(mean=zeros, log_variance=zeros)

    def at(self, noise: Tensor) -> Tensor:
        """z = mu + sigma * noise."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) in nats, closed form, float64, by latent vector: (B, Y, G)."""
        mean, log_variance = self.mean.double(), self.log_variance.double()
        return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)

    def log_ratio(self, noise: Tensor) -> Tensor:
        """log p(z) - log q(z) at z = mu + sigma * noise, float64, (B,)."""
        z, noise = self.at(noise).double(), noise.double()
        return 0.5 * (noise.square() - z.square() + self.log_variance.double()).flatten(1).sum(1)


LikelihoodGradient = Callable[[Tensor], Tensor]
"""Maps z (B, Y, G, D) to the gradient of -log p(x|z) in z, summed over tokens, for each text separately."""


def fit(
    gradient: LikelihoodGradient,
    shape: tuple[int, int, int],
    config: PosteriorConfig,
    rng: SequenceRng,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    kl_weight: float = 1.0,
    free_bits: float = 0.0,
    purpose: str = "fit",
    start: Posterior | None = None,
) -> Posterior:
    """Fit q to each text of the batch by `config.steps` Adam steps on mu and log sigma^2.

    Texts are independent: neither batch size nor order changes a fit.

    Args:
        gradient: of the reconstruction term; see `LikelihoodGradient`.
        shape: (Y, G, D) of one text's latents.
        kl_weight: multiplies the KL (warm-up during training; 1 when scoring).
        free_bits: nats per latent vector below which its KL is not pushed further down.
        start: the q to start from, instead of what `config` says.
    """
    stream = rng.stream(purpose)
    draw = functools.partial(stream.normal, *shape, dtype=dtype, device=device)
    if start is None:
        mean = torch.zeros(len(rng.indices), *shape, dtype=dtype, device=device)
        log_variance = torch.full_like(mean, config.init_log_variance)
        if config.init_mean_std:
            mean = config.init_mean_std * draw()
        if config.init_log_variance_std:
            log_variance = log_variance + config.init_log_variance_std * draw()
        start = Posterior(mean=mean, log_variance=log_variance)
    q = start
    parameters = torch.stack([q.mean, q.log_variance])
    first, second = torch.zeros_like(parameters), torch.zeros_like(parameters)
    epsilon: Tensor | None = None
    for step in range(config.steps):
        if epsilon is None or config.noise == "fresh":
            epsilon = draw()
        gradient_z = gradient(q.at(epsilon)).to(dtype)
        sigma = (0.5 * q.log_variance).exp()
        active = kl_weight if free_bits <= 0 else kl_weight * (q.kl() > free_bits).to(dtype)[..., None]
        gradients = torch.stack(
            [gradient_z + active * q.mean, 0.5 * (gradient_z * epsilon * sigma + active * (sigma.square() - 1))]
        )
        # Adam with the usual betas, written out: per-coordinate, so texts stay independent of their batch.
        first.lerp_(gradients, 1 - 0.9)
        second.lerp_(gradients.square(), 1 - 0.999)
        lr = config.lr_at(step)
        update = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        parameters = parameters * (1 - lr * config.weight_decay) - lr * update
        q = Posterior(mean=parameters[0], log_variance=parameters[1])
    return Posterior(mean=q.mean, log_variance=q.log_variance, fitted_noise=epsilon)
