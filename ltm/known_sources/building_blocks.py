"""Building blocks of known sources: tables from a seed, stationary chains, draws from tables, and noise on symbols.

Shapes: R rows of a table of K outcomes, C classes of a chain. All in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltm.rng import seed_of


def normal_table(*shape: int, seed: int, purpose: str) -> Tensor:
    """Standard normal numbers, float64, for the parameters of a source, from its setting `seed`."""
    bits = np.random.Philox(key=seed_of("known source", "parameters", seed, purpose))
    raw = bits.random_raw(math.prod(shape)) >> np.uint64(11)
    return torch.special.ndtri(torch.from_numpy((raw + 0.5) * 2.0**-53)).view(shape)


def stationary(transitions_RCC: Tensor) -> Tensor:
    """The stationary distribution (R, C) of each chain; its transition probabilities (from, to) must be positive."""
    equations = transitions_RCC.transpose(-1, -2) - torch.eye(transitions_RCC.shape[-1], dtype=torch.float64)
    equations[:, -1] = 1
    right = torch.zeros_like(equations[..., :1])
    right[:, -1] = 1
    return torch.linalg.solve(equations, right)[..., 0]


def ladder(table_RK: Tensor) -> Tensor:
    """Turn rows of probabilities into one ascending row (R K,) for `choose`: cumulative, row r from r to r + 1."""
    cumulative = table_RK.cumsum(-1)
    return (cumulative / cumulative[:, -1:] + torch.arange(len(table_RK))[:, None]).flatten()


def choose(ladder_RK: Tensor, outcomes: int, rows: Tensor, uniforms: Tensor) -> Tensor:
    """Draw outcomes from the given rows of a table by inverting its cumulative sums; one uniform number each."""
    drawn = torch.searchsorted(ladder_RK, rows + uniforms, right=True) - rows * outcomes
    return drawn.clamp(max=outcomes - 1)  # a number near 1 may round up to the next row


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Each symbol stays with probability 1 - `rate`, else becomes one of the `symbols` - 1 others, equally likely."""

    symbols: int
    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"noise must be in [0, 1), found {self.rate}")

    def apply(self, clean: Tensor, uniforms: Tensor) -> Tensor:
        """Apply noise to symbols, by one uniform number each."""
        if not self.rate:
            return clean
        # A number below the rate, stretched to [0, 1), selects one of the others.
        shift = 1 + (uniforms / self.rate * (self.symbols - 1)).long().clamp(max=self.symbols - 2)
        return torch.where(uniforms < self.rate, (clean + shift) % self.symbols, clean)

    def log_mass(self, clean_NL: Tensor, noisy_NL: Tensor) -> Tensor:
        """log p(noisy | clean) of each symbol, (N, L)."""
        kept, changed = torch.tensor([1 - self.rate, self.rate / (self.symbols - 1)], dtype=torch.float64).log()
        return torch.where(clean_NL == noisy_NL, kept, changed)

    @property
    def entropy(self) -> float:
        """Entropy of one symbol given the clean one, in nats."""
        keep = 0.0 if not self.rate else -self.rate * math.log(self.rate) - (1 - self.rate) * math.log1p(-self.rate)
        return keep + self.rate * math.log(self.symbols - 1)
