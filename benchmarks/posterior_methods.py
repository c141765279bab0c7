"""Ways to fit q(z|x) that `benchmarks.inference_steps` compares; those of the library are `ltm.latent.posterior.fit`.

All take the gradient of -log p(x|z) in z and return a diagonal Gaussian. Shapes: B texts, (Y, G, D) latents of a text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from ltm.latent.posterior import LikelihoodGradient, Posterior, PosteriorConfig, fit
from ltm.rng import SequenceRng


class Method(Protocol):
    """A way to fit q."""

    @property
    def passes(self) -> int:
        """Gradients per step."""

    def __call__(
        self, gradient: LikelihoodGradient, start: Posterior, shape: tuple[int, int, int], rng: SequenceRng, steps: int
    ) -> Posterior:
        """Return q after `steps` steps from `start`, the prior or another q."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfLibrary:
    """What a `PosteriorConfig` says, with any number of steps.

    Attributes:
        own_start: begin where `config` says, and not at the start given.
    """

    config: PosteriorConfig
    own_start: bool = False
    passes: int = 1

    def __call__(
        self, gradient: LikelihoodGradient, start: Posterior, shape: tuple[int, int, int], rng: SequenceRng, steps: int
    ) -> Posterior:
        """See `Method`."""
        return fit(
            gradient,
            shape,
            dataclasses.replace(self.config, steps=steps),
            rng,
            device=start.mean.device,
            dtype=start.mean.dtype,
            start=None if self.own_start else start,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Natural:
    """Natural-gradient steps as in `ltm.latent.optimizers.NaturalGradient`, and what may be changed of them.

    Attributes:
        lr: of the mean; it falls linearly to a tenth.
        precision_lr: of the precision; 0 stands for 1 / (t + 1), a plain average of curvatures.
        curvature: `stein`: g epsilon / sigma (Price's theorem); `antithetic`: the same from epsilon and -epsilon, the
            gradient being the mean of both; `difference`: a Hessian's product with random signs, by a second gradient a
            tenth of a sigma away; `fisher`: g^2.
        mirrored: every second step takes the noise of the step before with its sign changed.
        momentum: share of the last move that is made again.
        adapt: each text's rate rises by 1.3 while successive moves agree and halves when they do not.
        closed_form: moves are made in natural parameters (Khan and Lin, arXiv 1703.04265): the mean is the closed-form
            one for the sites collected so far, s mu <- (1 - beta) s mu + beta (curvature mu - g).
    """

    lr: float = 0.3
    precision_lr: float = 0.1
    curvature: Literal["stein", "antithetic", "difference", "fisher"] = "stein"
    mirrored: bool = False
    momentum: float = 0.0
    adapt: bool = False
    closed_form: bool = False

    @property
    def passes(self) -> int:
        """Two for curvatures from two gradients."""
        return 2 if self.curvature in ("antithetic", "difference") else 1

    def __call__(
        self, gradient: LikelihoodGradient, start: Posterior, shape: tuple[int, int, int], rng: SequenceRng, steps: int
    ) -> Posterior:
        """See `Method`."""
        stream, mean, precision = rng.stream("fit"), start.mean, (-start.log_variance).exp()
        rate_B = torch.ones(len(mean), 1, 1, 1, dtype=mean.dtype, device=mean.device)
        last, site = torch.zeros_like(mean), mean * precision
        epsilon = torch.zeros_like(mean)
        for step in range(steps):
            epsilon = -epsilon if self.mirrored and step % 2 else stream.normal(*shape).to(mean)
            sigma = precision.rsqrt()
            g, curvature = self._estimated(gradient, mean, sigma, epsilon)
            beta = self.precision_lr or 1 / (step + 1)
            precision = ((1 - beta) * precision + beta * (1 + curvature)).clamp(min=1.0)
            if self.closed_form:
                site = (1 - beta) * site + beta * (curvature * mean - g)
                move = mean - site / precision
            else:
                lr = self.lr * (1 - 0.9 * step / steps)
                move = lr * rate_B * (g + mean) / precision + self.momentum * last
            sigma = precision.rsqrt()
            move = move.clamp(-sigma, sigma)
            if self.adapt and step:
                agree_B = (move * last * precision).flatten(1).sum(1).view(-1, 1, 1, 1) > 0
                rate_B = torch.where(agree_B, 1.3 * rate_B, 0.5 * rate_B).clamp(max=1 / self.lr)
            mean, last = mean - move, move
        return Posterior(mean=mean, log_variance=-precision.log())

    def _estimated(
        self, gradient: LikelihoodGradient, mean: torch.Tensor, sigma: torch.Tensor, epsilon: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        g = gradient(mean + sigma * epsilon)
        if self.curvature == "antithetic":
            other = gradient(mean - sigma * epsilon)
            return (g + other) / 2, (g - other) / 2 * epsilon / sigma
        if self.curvature == "difference":
            signs, width = epsilon.sign(), 0.1
            other = gradient(mean + sigma * epsilon + width * sigma * signs)
            return g, (other - g) * signs / (width * sigma)
        return g, g.square() if self.curvature == "fisher" else g * epsilon / sigma


def _adam(**settings: float | str) -> OfLibrary:
    return OfLibrary(config=dataclasses.replace(PosteriorConfig.NAMED["algorithm_1"], **settings))  # type: ignore[arg-type]


METHODS: Mapping[str, Method] = {
    "Algorithm 1 (Adam, 0.3, cosine)": _adam(),
    "Adam, 0.3, constant": _adam(lr_schedule="constant"),
    "Adam, 0.1": _adam(lr=0.1),
    "Adam, 0.05": _adam(lr=0.05),
    "published code, fresh noise": OfLibrary(
        config=dataclasses.replace(PosteriorConfig.NAMED["published_code"], noise="fresh", leak_gradients=False),
        own_start=True,
    ),
    "natural, 0.3": Natural(),
    "natural, 0.1": Natural(lr=0.1),
    "natural, 0.5": Natural(lr=0.5),
    "natural, 1": Natural(lr=1.0),
    "natural, 0.5, precision 0.3": Natural(lr=0.5, precision_lr=0.3),
    "natural, mirrored": Natural(mirrored=True),
    "natural, mirrored, 0.2, precision 0.05": OfLibrary(config=PosteriorConfig.NAMED["natural_gradient"]),
    "natural, mirrored, 0.4": Natural(lr=0.4, mirrored=True),
    "closed form, mirrored, 1/t": Natural(closed_form=True, precision_lr=0.0, mirrored=True),
    "natural, antithetic": Natural(curvature="antithetic"),
    "natural, antithetic, 1, precision 0.3": Natural(curvature="antithetic", lr=1.0, precision_lr=0.3),
    "natural, differences": Natural(curvature="difference"),
    "natural, Fisher": Natural(curvature="fisher"),
    "natural, momentum 0.5": Natural(lr=0.2, momentum=0.5),
    "natural, adapted rate": Natural(adapt=True),
    "closed form, 0.3": Natural(closed_form=True, precision_lr=0.3),
    "closed form, antithetic, 1/t": Natural(closed_form=True, precision_lr=0.0, curvature="antithetic"),
}
"""By the name that tables show."""

Start = Callable[[int], Posterior]
"""Makes the q's that a fit of so many texts starts from."""


def mean_start(fitted: Posterior) -> Start:
    """The mean of other texts' fitted q's: of their means, and of their log variances."""
    mean, log_variance = fitted.mean.mean(0), fitted.log_variance.mean(0)
    return lambda count: Posterior(
        mean=mean.expand(count, *mean.shape).clone(), log_variance=log_variance.expand(count, *mean.shape).clone()
    )
