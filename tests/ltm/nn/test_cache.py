"""The cache of keys and values against a list of positions."""

from __future__ import annotations

import itertools
import random

import torch

from ltm.nn.cache import KeyValueCache


def position(length: int) -> torch.Tensor:
    return torch.randn(2, 3, length, 4)


def test_what_is_held_is_what_was_added_kept_and_not_dropped():
    torch.manual_seed(0)
    chance, cache = random.Random(0), KeyValueCache()
    keys, values = position(0), position(0)
    for _ in range(300):
        k, v = position(length := chance.choice([1, 1, 1, 2, 5, 40])), position(length)
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        held = cache.add(k, v)
        assert torch.equal(held[0], keys) and torch.equal(held[1], values)
        if chance.random() < 0.3:
            drop = chance.randint(0, 3)
            cache.drop(drop)
            end = max(0, keys.shape[2] - drop)
            keys, values = keys[:, :, :end], values[:, :, :end]
        if chance.random() < 0.5:
            most = chance.choice([0, 1, 7, 30])
            cache.keep(most)
            start = max(0, keys.shape[2] - most)
            keys, values = keys[:, :, start:], values[:, :, start:]
        assert len(cache) == keys.shape[2]


def buffers(cache: KeyValueCache, positions: int, window: int | None) -> int:
    """How many times what is held moves while positions are added one by one."""
    places = []
    for _ in range(positions):
        k, _ = cache.add(position(1), position(1))
        places.append(k.untyped_storage().data_ptr())
        if window is not None:
            cache.keep(window - 1)
    return sum(a != b for a, b in itertools.pairwise(places))


def test_positions_are_not_copied_for_every_later_one():
    assert buffers(KeyValueCache(), 1000, None) <= 10  # 2, 4, ... 1,024
    assert buffers(KeyValueCache(), 1000, 32) <= 1000 / 32 + 5
