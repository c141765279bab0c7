"""The known source `arith`: sums with carry, such as `0482+7157=07639;`, one after another.

Operands have `digits` digits, drawn uniformly, and the result one more. Texts end in `;` where no further sum fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ltm.known_sources.base import GREATEST_LENGTH, Entropy, KnownSource
from ltm.known_sources.building_blocks import Noise

_DIGITS = "0123456789"
_PLUS, _EQUALS, _END = 10, 11, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Arith(KnownSource):
    """Settings of `arith`.

    Attributes:
        length: symbols per text; a sum takes 3 `digits` + 4 of them.
        digits: digits of each of the two operands.
        noise: probability that a digit of a result is wrong.
    """

    name: ClassVar[str] = "arith"
    length: int = 128
    digits: int = 4
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= 17:
            raise ValueError(f"digits must be from 1 to 17, found {self.digits}")
        least = self.sum_length
        if not least <= self.length <= GREATEST_LENGTH:
            raise ValueError(f"length must be from {least}, that of one sum, to {GREATEST_LENGTH}, found {self.length}")
        Noise(symbols=10, rate=self.noise)

    @property
    def alphabet(self) -> str:
        """The digits and `+=;`."""
        return f"{_DIGITS}+=;"

    @property
    def sum_length(self) -> int:
        """Symbols per sum, with its `;`."""
        return 3 * self.digits + 4

    @property
    def sums(self) -> int:
        """Whole sums per text."""
        return self.length // self.sum_length

    @property
    def numbers(self) -> int:
        """One per digit."""
        return self.sums * (3 * self.digits + 1)

    @property
    def mistaking(self) -> Noise:
        """The noise on results."""
        return Noise(symbols=10, rate=self.noise)

    def draw(self, uniforms: Tensor) -> Tensor:
        """Draw operands, then results; all sums of all texts at once."""
        drawn = uniforms.view(-1, 3 * self.digits + 1)
        operands = (drawn[:, : 2 * self.digits] * 10).long()
        results = self.mistaking.apply(self._added(operands), drawn[:, 2 * self.digits :])
        return self._written(operands, results, len(uniforms))

    def log_mass(self, symbols_NL: Tensor) -> Tensor:
        """-inf if a sign is out of place or, without noise, a result is wrong."""
        sums = symbols_NL[:, : self.sums * self.sum_length].reshape(-1, self.sum_length)
        d = self.digits
        operands, results = torch.cat([sums[:, :d], sums[:, d + 1 : 2 * d + 1]], 1), sums[:, 2 * d + 2 : -1]
        in_place = (self._written(operands, results, len(symbols_NL)) == symbols_NL).all(1)
        are_digits = ((operands < 10).all(1) & (results < 10).all(1)).view(len(symbols_NL), -1).all(1)
        results_N = self.mistaking.log_mass(self._added(operands), results).view(len(symbols_NL), -1).sum(1)
        log_r = results_N - self.sums * 2 * d * math.log(10)
        return torch.where(in_place & are_digits, log_r, -math.inf)

    def entropy(self) -> Entropy:
        """In closed form: two operands of uniform digits per sum, and the noise of its result."""
        nats = 2 * self.digits * math.log(10) + (self.digits + 1) * self.mistaking.entropy
        return Entropy(nats_per_text=self.sums * nats)

    def _added(self, operands: Tensor) -> Tensor:
        """Add operands, given as digits side by side; return the digits of the sums."""
        places = 10 ** torch.arange(self.digits, -1, -1)
        first, second = (operands.unflatten(1, (2, self.digits)) * places[1:]).sum(2).T
        return (first + second)[:, None] // places % 10

    def _written(self, operands: Tensor, results: Tensor, texts: int) -> Tensor:
        """Assemble texts from sums, with signs and padding at the end."""
        sign = operands.new_ones(len(operands), 1)
        first, second = operands.chunk(2, 1)
        sums = torch.cat([first, _PLUS * sign, second, _EQUALS * sign, results, _END * sign], 1).view(texts, -1)
        return torch.nn.functional.pad(sums, (0, self.length - sums.shape[1]), value=_END)
