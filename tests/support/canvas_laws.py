"""Exact laws at V=3: canvases enumerated, distributions carried from step to step, and chi-square against draws."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import chisquare

from ltm.api import LanguageModel
from ltm.testing.miniatures import L, V, train_briefly

MASK = V + 1  # the id after BOS


@functools.cache
def trained(cls: type[LanguageModel], updates: int = 150, **settings) -> LanguageModel:
    """A miniature in float64, trained on the structured texts; shared, so none may change it."""
    torch.manual_seed(0)
    model = cls(dataclasses.replace(cls.miniature(V + 1, L), **settings)).double()
    train_briefly(model, updates)
    return model.eval().requires_grad_(False)


def canvases(length: int, states: tuple[int, ...]) -> torch.Tensor:
    """Every canvas of these states, (states^length, length), the last position moving fastest."""
    return torch.tensor(list(itertools.product(states, repeat=length)))


def nodes(low: float, high: float, count: int) -> list[tuple[float, float]]:
    """Points and weights of Gauss-Legendre quadrature."""
    points, weights = np.polynomial.legendre.leggauss(count)
    half = (high - low) / 2
    return [(low + half * (x + 1), half * w) for x, w in zip(points.tolist(), weights.tolist(), strict=True)]


def carry(
    law: torch.Tensor, length: int, states: tuple[int, ...], moves: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """One step of a distribution over all canvases, (states^length,).

    Args:
        moves: from canvases (C, length) to the law of each position's next state, (C, length, states).
    """
    after = torch.zeros_like(law)
    for p, each in zip(law.tolist(), moves(canvases(length, states)), strict=True):
        if p:
            after += p * functools.reduce(lambda a, b: torch.outer(a, b).flatten(), each)
    return after


def p_value(texts: list[list[int]], law: torch.Tensor) -> float:
    """Chi-square of drawn texts over V tokens against their law, (V^length,); texts too rare for it share a result."""
    length = round(math.log(len(law), V))
    codes = torch.tensor(texts) @ torch.tensor([V ** (length - 1 - i) for i in range(length)])
    found, expected = torch.bincount(codes, minlength=len(law)).double(), law / law.sum() * len(texts)
    rare = expected < 5
    results = [torch.cat([x[~rare], x[rare].sum()[None]]) for x in (found, expected)]
    keep = results[1] > 0
    return float(chisquare(results[0][keep].numpy(), results[1][keep].numpy()).pvalue)
