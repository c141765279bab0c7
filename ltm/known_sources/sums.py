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

    def log_beginnings(self, symbols_NT: Tensor) -> Tensor:
        """Every digit of an operand at a tenth, a result given its operands, and signs in their places; none hidden."""
        T, d = symbols_NT.shape[1], self.digits
        # What a text that ends early leaves open comes after all that is asked for.
        symbols_NL = torch.nn.functional.pad(symbols_NT, (0, self.length - T))
        sums = symbols_NL[:, : self.sums * self.sum_length].reshape(-1, self.sum_length)
        operands, results = torch.cat([sums[:, :d], sums[:, d + 1 : 2 * d + 1]], 1), sums[:, 2 * d + 2 : -1]
        possible = symbols_NL == self._written(operands % 10, results % 10, len(symbols_NL))
        digits = torch.zeros(len(sums), self.sum_length, dtype=torch.float64)
        digits[:, :d] = digits[:, d + 1 : 2 * d + 1] = -math.log(10)
        digits[:, 2 * d + 2 : -1] = self.mistaking.log_mass(self._added(operands), results)
        log_r = torch.nn.functional.pad(digits.view(len(symbols_NL), -1), (0, self.length % self.sum_length))
        return torch.where(possible, log_r, -math.inf).cumsum(1)[None, :, :T]

    def log_mass(self, symbols_NL: Tensor) -> Tensor:
        """-inf if a sign is out of place or, without noise, a result is wrong."""
        return self.log_beginnings(symbols_NL)[0, :, -1]

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
