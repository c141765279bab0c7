"""Mask rates of masked diffusion and noise levels of score-entropy diffusion at time t in [0, 1].

Bounds in continuous time do not depend on these, apart from their variance, their ends and what the network is
conditioned on; a sampler's grid does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

OFFSET = 1e-4
"""The mask rate at t = 0, the data end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSchedule:
    """Mask rate m(t) = 1 - (1 - OFFSET) a(t), from OFFSET at t = 0 to exactly 1 at t = 1.

    a(t) is 1 - t (linear), 1 - cos(pi/2 (1 - t)) (cosine) or 1 - t^power (polynomial), as in MD4 (arXiv 2406.04329).
    Learned schedules are in `learned_schedule.py`.
    """

    name: Literal["linear", "cosine", "polynomial"]
    power: float

    def rate(self, t: Tensor) -> Tensor:
        """Return the mask rates at times t."""
        if self.name == "cosine":
            gone = torch.sin(t * (math.pi / 2))
        else:
            gone = t if self.name == "linear" else t**self.power
        return 1 - (1 - OFFSET) * (1 - gone)

    def time(self, rate: Tensor) -> Tensor:
        """Return the times with these mask rates; 0 for rates below OFFSET."""
        gone = (1 - (1 - rate) / (1 - OFFSET)).clamp(0, 1)
        if self.name == "cosine":
            return torch.asin(gone) * (2 / math.pi)
        return gone if self.name == "linear" else gone ** (1 / self.power)


def grid(name: Literal["uniform", "cosine"], steps: int) -> Tensor:
    """Return a sampler's falling times 1 .. 0, (steps + 1,) float64: evenly spaced, or denser near t = 1 (cosine)."""
    share = torch.arange(steps + 1, dtype=torch.float64) / steps
    times = 1 - share if name == "uniform" else torch.cos(share * (math.pi / 2))
    times[-1] = 0.0
    return times


SIGMA_LOW, SIGMA_HIGH = 1e-4, -math.log(1e-3)
"""Total noise at t = 0 and 1. By sigma a token is disturbed with probability 1 - exp(-sigma): here 0.0001 and 0.999."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Total noise sigma(t) from SIGMA_LOW to SIGMA_HIGH.

    `geometric`: log sigma is linear in t. `loglinear`: the probability of a disturbance is linear in t.
    """

    name: Literal["loglinear", "geometric"]

    def sigma(self, t: Tensor) -> Tensor:
        """Return the noise levels at times t."""
        if self.name == "geometric":
            return SIGMA_LOW ** (1 - t) * SIGMA_HIGH**t
        return -torch.log((1 - t) * math.exp(-SIGMA_LOW) + t * math.exp(-SIGMA_HIGH))

    def slope(self, t: Tensor) -> Tensor:
        """Return the derivative of sigma at times t."""
        sigma = self.sigma(t)
        if self.name == "geometric":
            return sigma * math.log(SIGMA_HIGH / SIGMA_LOW)
        return (math.exp(-SIGMA_LOW) - math.exp(-SIGMA_HIGH)) * sigma.exp()


def normalised_log_sigma(sigma: Tensor) -> Tensor:
    """Return a network's input for a noise level: log sigma, with SIGMA_LOW .. SIGMA_HIGH mapped to 0 .. 1, clamped."""
    return (torch.log(sigma / SIGMA_LOW) / math.log(SIGMA_HIGH / SIGMA_LOW)).clamp(0, 1)
