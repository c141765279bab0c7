"""Langevin chains from the prior towards p(z|x), without Metropolis correction, and the weights that make them exact.

Along the chain the target goes from p(z) to p(z) p(x|z)^b with b = 1/T, 2/T, ... 1. A step of size h is the Langevin
equation dz = (-z + b g(z)) dt / 2 + dW, g the gradient of log p(x|z), held fixed for a time h while the prior's part is
solved exactly, so that without a likelihood the chain keeps N(0, I) whatever h and however many dimensions:

    F(z'|z) = N(a z + (1 - a) b g(z), (1 - a^2) I),   a = exp(-h / 2).

Annealed importance sampling (Neal, 1998) in the extended space of whole paths, with the same kernels backwards:

    w = p(x, z_T) prod_t F_t(z_{t-1} | z_t) / (p(z_0) prod_t F_t(z_t | z_{t-1})),   E[w] = p(x)

for any kernels, step sizes and gradients, however wrong, since the numerator integrates to p(x) over z_0 .. z_{T-1} and
then z_T, and the denominator is the law of the path. One gradient per point of the path serves both directions. The
kernels' quadratic terms telescope against p(z_T) / p(z_0); what each step leaves is

    log = b / (1 + a) [(z - a z') . g' - (z' - a z) . g] - b^2 (1 - a) / (2 (1 + a)) (|g'|^2 - |g|^2).

Shapes: B texts, Y layers, G latent vectors per layer, D width, K chains.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltm.api import LikelihoodEstimate
from ltm.devices import Matmul
from ltm.latent.posterior import LikelihoodGradient
from ltm.rng import Stream

CHAINS = 4
"""Default chains per text, for the AIS bound and the predictive bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LangevinConfig:
    """Settings of Langevin chains.

    Attributes:
        steps: T, points of the chain after the first; each costs a gradient of the likelihood.
        step_size: h. Larger steps mix faster, until the gradient changes too much within one.
        matmul: dtype of matrix products in the gradient; the bound holds for any gradient, so this changes tightness.
            `auto` is the fastest that the device has.
    """

    steps: int = 16
    step_size: float = 0.3
    matmul: Matmul = "auto"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, found {self.steps}")
        if self.step_size <= 0:
            raise ValueError(f"step_size must be positive, found {self.step_size}")


Chains = Iterator[tuple[Tensor, Tensor]]
"""The end z_T (B, Y, G, D) of each chain, and log w - log p(x|z_T), (B,), float64."""


def chains(
    gradient: LikelihoodGradient,
    shape: tuple[int, int, int],
    config: LangevinConfig,
    stream: Stream,
    *,
    count: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    weigh: bool = True,
    starts: Sequence[Tensor] | None = None,
) -> Chains:
    """Run `count` independent chains for each text, one after the other.

    Args:
        gradient: of -log p(x|z); see `LikelihoodGradient`.
        weigh: compute the weight, which takes a gradient at the last point too; otherwise the log ratio is 0.
        starts: one z (B, Y, G, D) per chain to continue from, instead of the prior: the target of every step is then
            p(z) p(x|z) itself, and there is no weight.

    Raises:
        ValueError: fewer than one chain; `starts` with weights, or not one per chain.
    """
    if count < 1:
        raise ValueError(f"draws must be at least 1, found {count}")
    if starts is not None and (weigh or len(starts) != count):
        raise ValueError(f"{len(starts)} starts for {count} chains, weigh={weigh}: expected one each, and no weights")
    draw = functools.partial(stream.normal, *shape, dtype=dtype, device=device)
    a = math.exp(-config.step_size / 2)
    for k in range(count):
        z = draw() if starts is None else starts[k]
        g = -gradient(z).to(dtype)
        log_ratio_B = torch.zeros(len(z), dtype=torch.float64, device=device)
        for step in range(1, config.steps + 1):
            b = step / config.steps if starts is None else 1.0
            moved = a * z + (1 - a) * b * g + math.sqrt(1 - a * a) * draw()
            if weigh or step < config.steps:
                g_moved = -gradient(moved).to(dtype)
            if weigh:
                crossed = _dot(z - a * moved, g_moved) - _dot(moved - a * z, g)
                log_ratio_B += b / (1 + a) * crossed
                log_ratio_B -= b * b * (1 - a) / (2 * (1 + a)) * (_dot(g_moved, g_moved) - _dot(g, g))
            z, g = moved, g_moved
        yield z, log_ratio_B


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left.double() * right.double()).flatten(1).sum(1)


def langevin_estimate(values_KB: Tensor, tokens_B: Tensor) -> LikelihoodEstimate:
    """log p(x | z_T), a mean over K chains, without KL or weight. Not a bound: z_T was moved towards this very text."""
    draws = len(values_KB)
    return LikelihoodEstimate(
        nats_B=values_KB.mean(0),
        tokens_B=tokens_B,
        kind="estimate",
        draws=draws,
        mc_var_B=values_KB.var(0) / draws if draws > 1 else None,
        averaged=True,
    )
