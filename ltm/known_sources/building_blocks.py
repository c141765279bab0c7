"""What known sources are made of: tables from a seed, stationary chains, draws from tables, and noise on symbols.

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
    """Standard normal numbers, float64: what the parameters of a source are made of, from its setting `seed`."""
    bits = np.random.Philox(key=seed_of("known source", "parameters", seed, purpose))
    raw = bits.random_raw(math.prod(shape)) >> np.uint64(11)
    return torch.special.ndtri(torch.from_numpy((raw + 0.5) * 2.0**-53)).view(shape)


def stationary(transitions_RCC: Tensor) -> Tensor:
    """The distribution (R, C) that each chain keeps, of transition probabilities (from, to) that are all positive."""
    equations = transitions_RCC.transpose(-1, -2) - torch.eye(transitions_RCC.shape[-1], dtype=torch.float64)
    equations[:, -1] = 1
    right = torch.zeros_like(equations[..., :1])
    right[:, -1] = 1
    return torch.linalg.solve(equations, right)[..., 0]


def ladder(table_RK: Tensor) -> Tensor:
    """Rows of probabilities as one ascending row (R K,) for `choose`: cumulative, row r from r to r + 1."""
    cumulative = table_RK.cumsum(-1)
    return (cumulative / cumulative[:, -1:] + torch.arange(len(table_RK))[:, None]).flatten()


def choose(ladder_RK: Tensor, outcomes: int, rows: Tensor, uniforms: Tensor) -> Tensor:
    """Outcomes drawn from the given rows of a table by inverting its cumulative sums; one uniform number each."""
    found = torch.searchsorted(ladder_RK, rows + uniforms, right=True) - rows * outcomes
    return found.clamp(max=outcomes - 1)  # a number near 1 may round up to the next row


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Each symbol stays with probability 1 - `rate`, or else becomes one of the `symbols` - 1 others, all alike."""

    symbols: int
    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"noise must be in [0, 1), found {self.rate}")

    def apply(self, clean: Tensor, uniforms: Tensor) -> Tensor:
        """The symbols after noise, from a uniform number each."""
        if not self.rate:
            return clean
        # Below the rate the number, stretched to [0, 1), says which of the others.
        shift = 1 + (uniforms / self.rate * (self.symbols - 1)).long().clamp(max=self.symbols - 2)
        return torch.where(uniforms < self.rate, (clean + shift) % self.symbols, clean)

    def log_mass(self, clean_NL: Tensor, noisy_NL: Tensor) -> Tensor:
        """log p(noisy | clean) of each row, (N,)."""
        changed = (clean_NL != noisy_NL).sum(1)
        kept = clean_NL.shape[1] - changed
        others = self.rate / (self.symbols - 1)
        return torch.special.xlogy(kept, torch.tensor(1 - self.rate, dtype=torch.float64)) + torch.special.xlogy(
            changed, torch.tensor(others, dtype=torch.float64)
        )

    @property
    def entropy(self) -> float:
        """Of one symbol given the clean one, nats."""
        keep = 0.0 if not self.rate else -self.rate * math.log(self.rate) - (1 - self.rate) * math.log1p(-self.rate)
        return keep + self.rate * math.log(self.symbols - 1)
