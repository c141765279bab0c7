"""The known source `dice`: a text is the throws of one loaded die, each independent of the others.

Shapes: N texts, L throws, S sides.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ltm import KnownSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Dice(KnownSource):
    """Settings of `dice`: side k of `sides` comes up with probability proportional to k."""

    name: ClassVar[str] = "dice"
    length: int = 32
    sides: int = 6

    def __post_init__(self) -> None:
        if not 2 <= self.sides <= len(string.ascii_lowercase):
            raise ValueError(f"sides must be from 2 to 26, found {self.sides}")

    @property
    def alphabet(self) -> str:
        """A letter for each side."""
        return string.ascii_lowercase[: self.sides]

    @property
    def numbers(self) -> int:
        """One uniform number per throw."""
        return self.length

    def p(self) -> Tensor:
        """The probability of each side, float64 (S,)."""
        weights_S = torch.arange(1, self.sides + 1, dtype=torch.float64)
        return weights_S / weights_S.sum()

    def draw(self, uniforms: Tensor) -> Tensor:
        """See `KnownSource.draw`."""
        return torch.searchsorted(self.p().cumsum(0), uniforms, right=True).clamp(max=self.sides - 1)

    def log_mass(self, symbols_NL: Tensor) -> Tensor:
        """See `KnownSource.log_mass`."""
        return self.p().log()[symbols_NL].sum(1)
