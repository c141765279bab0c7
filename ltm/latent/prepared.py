"""What passes over the same texts with other latents have in common.

Shapes: B texts, L positions, D width, H heads, C channels of a head.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Prepared(NamedTuple):
    """The part of a pass that does not depend on z: the first layer's self-attention and cross-attention queries."""

    x_BLD: Tensor
    first_queries: Tensor
    rotations_LC: Tensor

    def part(self, start: int, end: int) -> Prepared:
        """The part for positions `start` .. `end` - 1."""
        return Prepared(self.x_BLD[:, start:end], self.first_queries[:, :, start:end], self.rotations_LC[start:end])

    def of(self, rows: Tensor) -> Prepared:
        """The part for some texts of the batch."""
        return Prepared(self.x_BLD[rows], self.first_queries[rows], self.rotations_LC)

    def repeated(self, times: int) -> Prepared:
        """The part for as many copies of all texts, one copy after the other."""
        if times == 1:
            return self
        return Prepared(self.x_BLD.repeat(times, 1, 1), self.first_queries.repeat(times, 1, 1, 1), self.rotations_LC)
