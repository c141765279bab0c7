"""The known source `copy`: the second half of a text repeats the first, with noise.

The first half is a stationary Markov chain of symbols; each symbol of the second half is the one half a text before
or, with probability `noise`, one of the others, all equally likely. A window shorter than half a text sees
nothing of the copy.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ltm.known_sources.base import GREATEST_LENGTH, SYMBOLS, Entropy, KnownSource
from ltm.known_sources.building_blocks import Noise, choose, ladder, normal_table, stationary


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(KnownSource):
    """Settings of `copy`.

    Attributes:
        length: symbols per text, an even number.
        characters: how many symbols there are.
        noise: probability that a symbol of the second half is not the copied one.
        chain_scale: scale of the logits of the next symbol in the first half; 0 makes symbols independent and uniform.
        seed: seed of these logits, which are normal.
    """

    name: ClassVar[str] = "copy"
    length: int = 128
    characters: int = 16
    noise: float = 0.05
    chain_scale: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.length <= GREATEST_LENGTH or self.length % 2:
            raise ValueError(f"length must be even, from 2 to {GREATEST_LENGTH}, found {self.length}")
        if not 2 <= self.characters <= len(SYMBOLS):
            raise ValueError(f"characters must be from 2 to {len(SYMBOLS)}, found {self.characters}")
        Noise(symbols=self.characters, rate=self.noise)
        if not 0 <= self.chain_scale <= 5:
            raise ValueError(f"chain_scale must be from 0 to 5, found {self.chain_scale}")

    @property
    def alphabet(self) -> str:
        """The first `characters` of `SYMBOLS`."""
        return SYMBOLS[: self.characters]

    @property
    def numbers(self) -> int:
        """One per symbol."""
        return self.length

    @property
    def copying(self) -> Noise:
        """The noise on the copy."""
        return Noise(symbols=self.characters, rate=self.noise)

    def draw(self, uniforms: Tensor) -> Tensor:
        """Draw the first half symbol by symbol, then its noisy copy."""
        half = self.length // 2
        start, chain = map(ladder, transitions(self))
        last = torch.zeros(len(uniforms), dtype=torch.int64)
        symbols = []
        for step in range(half):
            last = choose(chain if step else start, self.characters, last, uniforms[:, step])
            symbols.append(last)
        first = torch.stack(symbols, 1)
        return torch.cat([first, self.copying.apply(first, uniforms[:, half:])], 1)

    def log_beginnings(self, symbols_NT: Tensor) -> Tensor:
        """The chain's steps, then the noise on each copied symbol; nothing is hidden."""
        (start,), chain = transitions(self)
        half = self.length // 2
        first, second = symbols_NT[:, :half], symbols_NT[:, half:]
        begun, steps = start[first[:, :1]].log(), chain[first[:, :-1], first[:, 1:]].log()
        copied = self.copying.log_mass(first[:, : second.shape[1]], second)
        return torch.cat([begun, steps, copied], 1).cumsum(1)[None]

    def log_mass(self, symbols_NL: Tensor) -> Tensor:
        """The log-mass of the chain plus that of the noise given the first half."""
        return self.log_beginnings(symbols_NL)[0, :, -1]

    def entropy(self) -> Entropy:
        """In closed form: the chain's start, its steps, and the noise."""
        (start,), chain = transitions(self)
        half = self.length // 2
        step = float(start @ torch.special.entr(chain).sum(1))
        nats = float(torch.special.entr(start).sum()) + (half - 1) * step + half * self.copying.entropy
        return Entropy(nats_per_text=nats)

    def uncopied_entropy(self) -> Entropy:
        """A lower bound on the nats per text of any model whose window is too short to see the copied symbol.

        Such a model predicts the noisy half from that half alone; here it is also given the clean symbol before.
        """
        (start,), chain = transitions(self)
        noise = self.copying.rate
        seen = torch.lerp(chain, (1 - chain) / (self.characters - 1), noise)
        half = self.length // 2
        guessing = float(start @ torch.special.entr(seen).sum(1))
        return Entropy(nats_per_text=self.entropy().nats_per_text + half * (guessing - self.copying.entropy))


@functools.lru_cache(maxsize=8)
def transitions(source: Copy) -> tuple[Tensor, Tensor]:
    """p(first symbol), (1, C), and p(next symbol | symbol), (C, C)."""
    shape = (source.characters, source.characters)
    chain = torch.softmax(source.chain_scale * normal_table(*shape, seed=source.seed, purpose="copy chain"), -1)
    return stationary(chain[None]), chain
