"""Categorical draws in float64 from explicit uniforms.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltm.api import Sampling

TOGETHER = {"cpu": 2**17, "cuda": 2**24}
"""Float64 probabilities in memory at a time; on a CPU, what stays in its caches and needs no new pages."""


def rows_together(device: torch.device, columns: int, *, least: int = 1) -> int:
    """Return of how many rows the float64 probabilities are formed at a time."""
    return max(least, TOGETHER[device.type] // columns)


def probabilities(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Return float64 probabilities (B, V) after temperature, top-k and top-p; the token that crosses top_p is kept."""
    logits_BV = logits_BV.double()
    if sampling.temperature == 0:
        return torch.zeros_like(logits_BV).scatter_(1, logits_BV.argmax(1, keepdim=True), 1.0)
    if sampling.temperature != 1:
        logits_BV = logits_BV / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits_BV.shape[1]:
        smallest_kept = logits_BV.topk(sampling.top_k, dim=1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_kept, -torch.inf)
    p_BV = logits_BV.softmax(1)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = p_BV.sort(dim=1, descending=True)
        mass_before = ordered.cumsum(1) - ordered
        p_BV = torch.zeros_like(p_BV).scatter_(1, order, ordered.masked_fill(mass_before >= sampling.top_p, 0.0))
        p_BV = p_BV / p_BV.sum(1, keepdim=True)
    return p_BV


def draw(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> Tensor:
    """Draw one token id per row by inverting the cumulative distribution in float64, (B,) int64."""
    rows = rows_together(logits_BV.device, logits_BV.shape[1])
    parts = zip(logits_BV.split(rows), uniforms_B.split(rows), strict=True)
    return torch.cat([invert(probabilities(logits, sampling), uniforms) for logits, uniforms in parts])


def invert(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Draw one column per row with probability proportional to its weight, by inversion in float64, (B,) int64."""
    cumulative = weights_BV.double().cumsum(1)
    threshold = uniforms_B.to(cumulative)[:, None] * cumulative[:, -1:]
    # `right`: a uniform of exactly 0 must not pick a leading column of weight 0.
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=cumulative.shape[1] - 1)


def up_to_stop(tokens: list[int], stop_ids: tuple[int, ...]) -> list[int]:
    """Return the tokens up to the first stop id, with it, or all of them."""
    return tokens[: next((n + 1 for n, token in enumerate(tokens) if token in stop_ids), len(tokens))]
