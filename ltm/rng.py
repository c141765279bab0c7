"""Random numbers that depend only on (seed, sequence index, purpose), never on batch size, order or rank."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_GOLDEN = 0.6180339887498949
_PLASTIC = 0.7548776662466927


def seed_of(*parts: object) -> int:
    """Make a 63-bit seed from any printable parts; unlike `hash`, the same in every process."""
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
        """Return `rng`, checked to have `batch` sequences, or fresh streams seeded from a torch.Generator."""
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
        """B generators for one purpose; calling this again restarts the same streams."""
        return [torch.Generator().manual_seed(seed_of(self.seed, i, purpose)) for i in self.indices]

    def stratified(self, purpose: str, draws: int, points: int = 1) -> Tensor:
        """Uniform numbers in [0, 1), float64, (draws, B, points), spread evenly over the draws, points and sequences.

        Each number is uniform over seeds, so an average over them estimates an integral without bias. Together they
        are a low-discrepancy set: the draws of a point cut [0, 1) into equal strata, with one offset that advances
        by the golden ratio from point to point of a run of indices (a Kronecker sequence, randomly rotated), and by
        another irrational from text to text (2^32 indices each). Draws 2j and 2j + 1 mirror each other about 1/2,
        so that what is linear in the number cancels in their mean. An unpaired last draw covers the whole [0, 1).
        """
        offset = seed_of(self.seed, purpose, "offset") / 2**63
        texts = torch.tensor([i >> 32 for i in self.indices], dtype=torch.float64)
        runs = torch.tensor([i & (2**32 - 1) for i in self.indices], dtype=torch.float64)
        counter_BP = runs[:, None] * points + torch.arange(points)
        v_BP = (offset + texts[:, None] * _PLASTIC + counter_BP * _GOLDEN).remainder(1.0)
        pairs = draws // 2
        mirrored = [(pair + v_BP) / (2 * pairs) for pair in range(pairs)]
        paired = [number for half in mirrored for number in (half, 1 - half)]
        # 1 - 0 is outside the interval.
        return torch.stack(paired + [v_BP] * (draws % 2)).clamp(max=1 - 2**-53)

    def stream(self, purpose: str) -> Stream:
        """A stream of successive draws for one purpose."""
        return Stream(self.generators(purpose))


class SplitNoise(SequenceRng):
    """Noise with one index for drawing tokens and another for all else, so that latents can stay fixed as tokens vary.

    Args:
        indices: for drawing tokens, the purpose `tokens`.
        others: for all other noise; if they are equal to `indices`, this is a `SequenceRng`.
    """

    def __init__(self, seed: int, indices: Iterable[int], others: Iterable[int]):
        super().__init__(seed, indices)
        self.others = [int(i) for i in others]

    def select(self, rows: Sequence[int]) -> SplitNoise:
        """The streams of some rows of the batch."""
        return SplitNoise(self.seed, [self.indices[r] for r in rows], [self.others[r] for r in rows])

    def generators(self, purpose: str) -> list[torch.Generator]:
        """As `SequenceRng.generators`."""
        return SequenceRng(self.seed, self.indices if purpose == "tokens" else self.others).generators(purpose)


class Stream:
    """Successive draws for each of B sequences; see `SequenceRng.stream`."""

    def __init__(self, generators: list[torch.Generator]):
        self.generators = generators

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers, (B, *shape). Always drawn in float32, so that no dtype changes the noise.

        A GPU that is busy is not waited for: it copies them from pinned memory when it comes to them.
        """
        gpu = torch.device(device).type == "cuda"
        numbers = torch.empty(len(self.generators), *shape, pin_memory=gpu)
        for own, generator in zip(numbers, self.generators, strict=True):
            torch.randn(shape, generator=generator, out=own)
        return numbers.to(device, dtype, non_blocking=gpu)

    def select(self, rows: Sequence[int]) -> Stream:
        """The streams of some rows of the batch, going on where they are."""
        return Stream([self.generators[r] for r in rows])

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), float64, (B, *shape)."""
        return torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in self.generators])
