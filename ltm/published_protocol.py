"""How public code scores a text, so that a difference from a reported number can be attributed.

None of it is a bound as ours are: ends of integrals are cut off, one draw stands for an expectation, positions without
text count, blocks are averaged after the exponential. Numbers of it are estimates, and never ranked. Shapes: B blocks,
N positions of a block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol as Interface
from typing import runtime_checkable

import numpy as np
from torch import Tensor

from ltm.rng import SequenceRng

EPSILON = 1e-3
"""The smallest time, and the share of tokens that is left undisturbed at time 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedProtocol:
    """How a family's public scripts cut a text, and what they average.

    Attributes:
        source: whose scripts.
        eos_after_rows: an EOS after every row of the data set.
        wrapped: a block is EOS, N - 2 tokens, EOS; otherwise N tokens. The rest of the text is dropped.
        given: leading positions of a block that are not counted.
        mean_of_exp: the mean over blocks of exp(nats / counted positions); otherwise exp of the mean.
        told: what the value is, in words.
    """

    source: str
    eos_after_rows: bool
    wrapped: bool
    given: int
    mean_of_exp: bool
    told: str


@runtime_checkable
class ScoresAsPublished(Interface):
    """A model that can score as its public code does."""

    def published_protocol(self) -> PublishedProtocol:
        """Return how its public code cuts and averages."""

    def published_nats(self, ids_BN: Tensor, rng: SequenceRng) -> Tensor:
        """Return what public code adds up for whole blocks, nats, float64 (B,): a cost, positive."""


def blocks_of(rows: Iterable[np.ndarray], protocol: PublishedProtocol, *, eos: int, positions: int) -> np.ndarray:
    """Cut rows of ids into blocks of `positions`, int64 (B, N); what is left at the end is dropped.

    Public scripts cut in batches of rows and drop a remainder for each, so they score somewhat less.
    """
    end = np.array([eos], np.int64)
    parts = [part for row in rows for part in ((row, end) if protocol.eos_after_rows else (row,))]
    ids = np.concatenate([np.asarray(part, np.int64) for part in parts]) if parts else np.empty(0, np.int64)
    size = positions - 2 if protocol.wrapped else positions
    whole = ids[: len(ids) // size * size].reshape(-1, size)
    return np.pad(whole, ((0, 0), (1, 1)), constant_values=eos) if protocol.wrapped else whole


def times(rng: SequenceRng, points: int = 1) -> Tensor:
    """One time in [1e-3, 1] for each point of each block, (B, points) float64, evenly spread as the scripts do."""
    return EPSILON + (1 - EPSILON) * rng.stratified("published times", 1, points)[0]


def disturbed(rng: SequenceRng, chance_BN: Tensor) -> Tensor:
    """Which positions are disturbed, each by itself, bool (B, N)."""
    return rng.stream("published positions").uniform(chance_BN.shape[1]).to(chance_BN.device) < chance_BN


def log_linear(t: Tensor) -> tuple[Tensor, Tensor]:
    """Noise levels sigma at times t, and their slope: a share of (1 - 1e-3) t is disturbed."""
    left = 1 - (1 - EPSILON) * t
    return -left.log(), (1 - EPSILON) / left
