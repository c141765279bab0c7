"""Miniatures of families: three tokens, texts of four, trained for a moment in float64; all texts can be summed.

Shapes: B texts, L tokens.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from ltm.api import LanguageModel
from ltm.rng import SequenceRng

V, L = 3, 4
"""Tokens that a miniature can output (BOS is a fourth id), and tokens of its block."""

Texts = Callable[[torch.Generator, int], Tensor]


class FamilyTests:
    """What all tests of a family share."""

    family: ClassVar[type[LanguageModel]]

    @pytest.fixture
    def model(self) -> LanguageModel:
        """A trained miniature, which no test may change."""
        return trained(self.family)


def all_texts(vocabulary: int = V, length: int = L) -> Tensor:
    """Every text over the vocabulary, (vocabulary^length, length)."""
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))


def structured_batch(generator: torch.Generator, count: int) -> Tensor:
    """Texts whose tokens mostly repeat a hidden first choice: something for a latent to carry."""
    topic = torch.randint(V, (count, 1), generator=generator)
    noise = torch.randint(V, (count, L), generator=generator)
    return torch.where(torch.rand(count, L, generator=generator) < 0.8, topic, noise)


def skewed_batch(generator: torch.Generator, count: int) -> Tensor:
    """Texts of which every token is 0 in eight of ten cases: something that any model can learn."""
    return torch.multinomial(torch.tensor([0.8, 0.1, 0.1]), count * L, True, generator=generator).view(count, L)


def untrained(family: type[LanguageModel]) -> LanguageModel:
    """A miniature in float64, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return family(family.miniature(V + 1, L)).double()


def train_briefly(
    model: LanguageModel, updates: int, seed: int = 0, lr: float = 0.02, texts: Texts = structured_batch
) -> None:
    """Plain Adam, or counting; enough for a model to become far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    if model.learns_by_counting:
        for _ in range(updates):
            model.count(texts(generator, 32))
        model.finish()
        return
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    for update in range(updates):
        adam.zero_grad()
        rng = SequenceRng(seed, range(update * 32, update * 32 + 32))
        model.training_loss(texts(generator, 32), rng=rng, progress=update / updates).value.backward()
        adam.step()


@functools.cache
def trained(family: type[LanguageModel]) -> LanguageModel:
    """A miniature trained on `structured_batch`; shared between tests, so none may change it."""
    model = untrained(family)
    train_briefly(model, 150)
    return model.eval().requires_grad_(False)
