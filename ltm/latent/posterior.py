"""q(z|x) = N(mu, sigma^2), fitted to each text by gradient steps on its ELBO: fast learning.

Algorithm 1 of Latent Thought Models (arXiv 2502.01567). Shapes: B sequences, L tokens, Y layers, G latent vectors
per layer, D width.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from ltm.devices import Matmul
from ltm.latent.optimizers import Adam, NaturalGradient
from ltm.latent.stopping import Moving
from ltm.rng import SequenceRng


@dataclass(frozen=True, slots=True, kw_only=True)
class PosteriorConfig:
    """Settings for fitting q: by default Algorithm 1 from the prior; each departure of the published code is a field.

    Attributes:
        steps: T_fast, gradient steps per text.
        optimizer: `adam` on mu and log sigma^2 (Algorithm 1), or `natural` gradients on mu and the precision; see
            `ltm.latent.optimizers`.
        lr: step size of Adam, or of mu in natural gradients.
        precision_lr: step size of the precision in natural gradients; Adam has none.
        noise: `fresh` draws a new epsilon every step (Algorithm 1). `reused` draws one and keeps it. `mirrored` draws
            one for every two steps, the second of which takes it with its sign changed: what is odd in epsilon cancels,
            which is most of the noise of a natural gradient's curvature while the mean is far from its place.
        lr_schedule: `constant`; `cosine`: lr (0.1 + 0.45 (1 + cos(pi s / schedule_steps))); or `linear`:
            lr (1 - 0.9 s / schedule_steps); lr/10 beyond. Adam's steps are of size lr however small the gradient, so
            without decay a fit ends in noise of that size, which the KL pays for.
        schedule_steps: length of the schedule; longer fits than this stay at lr/10. None means `steps`.
        init_mean_std: mu starts as this times fresh normal noise; 0 is the prior's mean.
        init_log_variance: log sigma^2 starts here; 0 is the prior's.
        init_log_variance_std: plus this times fresh normal noise.
        weight_decay: decoupled decay of mu and log sigma^2 per step, times lr.
        leak_gradients: in training, the decoder also receives the gradients of every fast step, summed over
            tokens, where the slow step averages over them.
        matmul: dtype of matrix products in the fit; any q gives a valid bound, so this changes tightness only. `auto`
            is the fastest that the device has.
        tolerance: nats per text. In scoring and prediction the fit of a text ends before `steps` once it has less than
            this to gain or lose by going on, by the rule of `ltm.latent.stopping`; 0: never. Training takes all steps.
    """

    steps: int = 16
    lr: float = 0.3
    noise: Literal["fresh", "reused", "mirrored"] = "fresh"
    lr_schedule: Literal["constant", "cosine", "linear"] = "cosine"
    schedule_steps: int | None = None
    init_mean_std: float = 0.0
    init_log_variance: float = 0.0
    init_log_variance_std: float = 0.0
    weight_decay: float = 0.0
    leak_gradients: bool = False
    matmul: Matmul = "auto"
    optimizer: Literal["adam", "natural"] = "adam"
    precision_lr: float = 0.1
    tolerance: float = 0.0

    NAMED: ClassVar[dict[str, PosteriorConfig]] = {}

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, found {self.steps}")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, found {self.lr}")
        if not 0 < self.precision_lr <= 1:
            raise ValueError(f"precision_lr must be in (0, 1], found {self.precision_lr}")
        if self.optimizer == "natural" and self.weight_decay:
            raise ValueError("natural gradients have no weight decay: the prior's part of the KL is one")
        if self.schedule_steps is not None and self.schedule_steps < 1:
            raise ValueError(f"schedule_steps must be at least 1, found {self.schedule_steps}")
        if self.tolerance < 0:
            raise ValueError(f"tolerance must be at least 0, found {self.tolerance}")

    def with_reused_noise(self) -> PosteriorConfig:
        """The same fit with one noise for all steps."""
        return dataclasses.replace(self, noise="reused")

    def with_all_steps(self) -> PosteriorConfig:
        """The same fit, never ended early."""
        return dataclasses.replace(self, tolerance=0.0)

    def lr_at(self, step: int) -> float:
        """Learning rate of fast step `step`, counted from 0."""
        if self.lr_schedule == "constant":
            return self.lr
        length = self.schedule_steps or self.steps
        if step >= length:
            return 0.1 * self.lr
        share = step / length
        return self.lr * (
            1 - 0.9 * share if self.lr_schedule == "linear" else 0.1 + 0.45 * (1 + math.cos(math.pi * share))
        )


PosteriorConfig.NAMED["algorithm_1"] = PosteriorConfig()
PosteriorConfig.NAMED["natural_gradient"] = PosteriorConfig(
    optimizer="natural", steps=4, lr=0.2, precision_lr=0.05, noise="mirrored", lr_schedule="linear"
)
PosteriorConfig.NAMED["published_code"] = PosteriorConfig(
    lr=0.34,
    noise="reused",
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
    `steps_B` (int64) is how many fast steps each text took, if a tolerance may have ended some early; None otherwise.
    """

    mean: Tensor
    log_variance: Tensor
    fitted_noise: Tensor | None = None
    steps_B: Tensor | None = None

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

    def log_density(self, z: Tensor) -> Tensor:
        """log q(z), float64, (B,)."""
        mean, log_variance = self.mean.double(), self.log_variance.double()
        squares = (z.double() - mean).square() * (-log_variance).exp()
        return -0.5 * (squares + log_variance + math.log(2 * math.pi)).flatten(1).sum(1)

    def log_ratio(self, noise: Tensor) -> Tensor:
        """log p(z) - log q(z) at z = mu + sigma * noise, float64, (B,)."""
        z, noise = self.at(noise).double(), noise.double()
        return 0.5 * (noise.square() - z.square() + self.log_variance.double()).flatten(1).sum(1)


class LikelihoodGradient(Protocol):
    """Maps z (B, Y, G, D) to the gradient of -log p(x|z) in z, summed over tokens, for each text separately."""

    def __call__(self, z_BYGD: Tensor, rows: Tensor | None = None, /) -> Tensor:
        """The gradient; with `rows`, the numbers of some texts of the batch, z is of these alone."""


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
    visited: list[Posterior] | None = None,
) -> Posterior:
    """Fit q to each text of the batch by `config.steps` gradient steps, Adam's or natural ones.

    A text that has converged to within `config.tolerance` takes no more steps, and its gradients are not computed.
    Texts are independent: neither batch size nor order changes a fit, nor does it matter when others end.

    Args:
        gradient: of the reconstruction term; asked for some rows only once `config.tolerance` has ended a text.
        shape: (Y, G, D) of one text's latents.
        kl_weight: multiplies the KL (warm-up during training; 1 when scoring).
        free_bits: nats per latent vector below which its KL is not pushed further down.
        start: the q to start from, instead of what `config` says.
        visited: gets the q after each step, in order.
    """
    stream = rng.stream(purpose)

    def draw() -> Tensor:
        return stream.normal(*shape, dtype=dtype, device=device)

    if start is None:
        mean = torch.zeros(len(rng.indices), *shape, dtype=dtype, device=device)
        log_variance = torch.full_like(mean, config.init_log_variance)
        if config.init_mean_std:
            mean = config.init_mean_std * draw()
        if config.init_log_variance_std:
            log_variance = log_variance + config.init_log_variance_std * draw()
        start = Posterior(mean=mean, log_variance=log_variance)
    q = start
    optimizer: Adam | NaturalGradient
    if config.optimizer == "natural":
        optimizer = NaturalGradient(q.mean, q.log_variance, precision_lr=config.precision_lr)
    else:
        optimizer = Adam(q.mean, q.log_variance, weight_decay=config.weight_decay)
    apart = 2 if config.noise == "mirrored" else 1
    moving = Moving(q.mean, q.log_variance, config.tolerance, apart=apart) if config.tolerance else None
    epsilon: Tensor | None = None
    for step in range(config.steps):
        if epsilon is not None and config.noise == "mirrored" and step % 2:
            epsilon = -epsilon
        elif epsilon is None or config.noise != "reused":
            epsilon = draw()
        active = kl_weight if free_bits <= 0 else kl_weight * (q.kl() > free_bits).to(dtype)[..., None]
        of_some = () if moving is None or moving.rows is None else (moving.rows,)
        gradient_z, lr = gradient(q.at(epsilon), *of_some).to(dtype), config.lr_at(step)
        mean, log_variance = optimizer.step(gradient_z, epsilon, active, lr)
        kept = None if moving is None else moving.after(mean, log_variance, epsilon, gradient_z, active, lr)
        if kept is not None:
            mean, log_variance, epsilon = mean[kept], log_variance[kept], epsilon[kept]
            optimizer.keep(kept)
            stream = stream.select(kept.tolist())
        q = Posterior(mean=mean, log_variance=log_variance)
        if visited is not None:
            visited.append(q)
        if not len(mean):
            break
    if moving is not None and epsilon is not None:
        mean, log_variance, epsilon = moving.last
        return Posterior(mean=mean, log_variance=log_variance, fitted_noise=epsilon, steps_B=moving.steps_B)
    return Posterior(mean=q.mean, log_variance=q.log_variance, fitted_noise=epsilon)
