"""Random numbers that depend on (seed, sequence index, purpose) only: never on batch size, order or rank."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any printable parts; unlike `hash`, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


class SequenceRng:
    """One independent stream of noise per sequence of a batch.

    Args:
        seed: the run's seed.
        indices: the global index of each of the B sequences of the batch.

    Draws are made on the CPU and moved, so that every device sees the same noise.
    """

    def __init__(self, seed: int, indices: Iterable[int]):
        self.seed = int(seed)
        self.indices = [int(i) for i in indices]

    @classmethod
    def of(cls, rng: SequenceRng | torch.Generator, batch: int) -> SequenceRng:
        """`rng` itself, checked to have `batch` sequences, or fresh streams seeded from a torch.Generator."""
        if isinstance(rng, torch.Generator):
            seed = int(torch.randint(2**62, (), generator=rng, device=rng.device))
            return cls(seed, range(batch))
        if len(rng.indices) != batch:
            raise ValueError(f"rng has {len(rng.indices)} sequence indices for a batch of {batch}")
        return rng

    def select(self, rows: Sequence[int]) -> SequenceRng:
        """The streams of some rows of the batch."""
        return SequenceRng(self.seed, [self.indices[r] for r in rows])

    def generators(self, purpose: str) -> list[torch.Generator]:
        """B generators for one purpose; asking again starts the same streams afresh."""
        return [torch.Generator().manual_seed(seed_of(self.seed, i, purpose)) for i in self.indices]

    def stream(self, purpose: str) -> Stream:
        """A stream to draw successive batches of numbers from, for one purpose."""
        return Stream(self.generators(purpose))


class Stream:
    """Successive draws for each of B sequences; see `SequenceRng.stream`."""

    def __init__(self, generators: list[torch.Generator]):
        self.generators = generators

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers, (B, *shape). Always drawn in float32, so that no dtype changes the noise."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators]).to(device, dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), float64, (B, *shape)."""
        return torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in self.generators])
