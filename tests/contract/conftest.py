"""Every registered family in miniature, trained a little on texts with structure, in float64."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from ltm import registry
from ltm.rng import SequenceRng

V, L = 3, 4


def all_texts(vocabulary: int = V, length: int = L) -> torch.Tensor:
    """Every sequence over the vocabulary, (V^L, L)."""
    return torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))


def structured_batch(generator: torch.Generator, count: int) -> torch.Tensor:
    """Texts whose tokens mostly repeat a hidden first choice: something for a latent to carry."""
    topic = torch.randint(V, (count, 1), generator=generator)
    noise = torch.randint(V, (count, L), generator=generator)
    return torch.where(torch.rand(count, L, generator=generator) < 0.8, topic, noise)


def train_briefly(model, updates: int, seed: int = 0, lr: float = 0.02) -> None:
    """Plain Adam on `structured_batch`, or counting; enough for a model to become far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    if model.learns_by_counting:
        for _ in range(updates):
            model.count(structured_batch(generator, 32))
        model.finish()
        return
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    for update in range(updates):
        adam.zero_grad()
        rng = SequenceRng(seed, range(update * 32, update * 32 + 32))
        model.training_loss(structured_batch(generator, 32), rng=rng, progress=update / updates).value.backward()
        adam.step()


@functools.cache
def trained(family: str):
    """A trained miniature; shared between tests, so none may change it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cls = registry.model_family(family)
        model = cls(cls.miniature(V + 1, L)).double()
        train_briefly(model, 150)
    return model.eval().requires_grad_(False)


@pytest.fixture(params=sorted(registry.names(registry.MODELS)))
def model(request):
    """One registered family after the other."""
    return trained(request.param)
