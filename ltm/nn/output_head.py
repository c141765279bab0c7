"""Products with the vocabulary, in chunks, so that memory never holds a whole (tokens x vocabulary) matrix.

Shapes: N tokens, D width, V vocabulary. Products run in the dtype of the head, softmax and sums in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = {"cpu": 24 * 2**20, "cuda": 2**29}
"""Bytes of logits per chunk. On a CPU below 32 MiB, from which malloc maps, and faults in, new pages each time."""

CHUNK_TOKENS = {"cpu": 128, "cuda": 2**16}
"""Tokens per chunk for small vocabularies; on a CPU, what stays in its caches."""


FEW_TOKENS = 32
"""Of at most so many tokens, a CPU forms logits as head · hᵀ: as the right factor, the whole head is first copied."""


def logits_of(h_ND: Tensor, head_VD: Tensor) -> Tensor:
    """Return the logits of few enough tokens for all to be in memory, (N, V), in the dtype of the head."""
    h_ND = h_ND.to(head_VD.dtype)
    if len(h_ND) <= FEW_TOKENS and h_ND.device.type == "cpu":
        return (head_VD @ h_ND.T).T.contiguous()
    return h_ND @ head_VD.T


def _chunks(tokens: int, head_VD: Tensor) -> Iterator[slice]:
    device = head_VD.device.type
    fit = CHUNK_BYTES[device] // (len(head_VD) * head_VD.element_size())
    size = min(CHUNK_TOKENS[device], max(16, fit))
    return (slice(start, start + size) for start in range(0, tokens, size))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.no_grad()
def token_nats(h_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return log p(target | h) of each token in nats, (N,), float32 (float64 for a float64 head)."""
    nats_N = h_ND.new_empty(len(targets_N), dtype=_wide(head_VD.dtype))
    for rows in _chunks(len(targets_N), head_VD):
        logits = h_ND[rows].to(head_VD.dtype) @ head_VD.T
        nats_N[rows] = -F.cross_entropy(logits.to(nats_N.dtype), targets_N[rows], reduction="none")
    return nats_N


@torch.no_grad()
def nll_gradient(h_ND: Tensor, head_VD: Tensor, targets_N: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """Return the gradient (N, D) of sum_n weights_n * -log p(target_n | h_n) with respect to h, without the loss.

    Per token it is softmax(h W^T) W - W[target], which is all that the fast loop needs.
    """
    gradient_ND = torch.empty_like(h_ND)
    for rows in _chunks(len(targets_N), head_VD):
        p = torch.softmax(h_ND[rows].to(head_VD.dtype) @ head_VD.T, -1)
        gradient_ND[rows] = (p @ head_VD).to(h_ND.dtype) - head_VD[targets_N[rows]]
    return gradient_ND if weights_N is None else gradient_ND * weights_N[:, None].to(h_ND.dtype)


class _WeightedNll(torch.autograd.Function):
    """The weighted sum of NLLs; the forward pass forms both gradients, with three products and none repeated."""

    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, head_VD: Tensor, targets_N: Tensor, weights_N: Tensor) -> Tensor:
        wide = _wide(head_VD.dtype)
        total = h_ND.new_zeros((), dtype=torch.float64)
        gradient_h = torch.empty_like(h_ND)
        gradient_head = torch.zeros_like(head_VD, dtype=wide)
        for rows in _chunks(len(targets_N), head_VD):
            h, targets, weights = h_ND[rows].to(head_VD.dtype), targets_N[rows], weights_N[rows].to(wide)
            log_p = torch.log_softmax((h @ head_VD.T).to(wide), -1)
            total -= (weights * log_p.gather(1, targets[:, None])[:, 0]).sum(dtype=torch.float64)
            p = log_p.exp_().to(head_VD.dtype)
            gradient_h[rows] = ((p @ head_VD).to(wide) - head_VD[targets]) * weights[:, None]
            weighted_h = h * weights[:, None].to(h.dtype)
            if p.dtype == wide:
                torch.addmm(gradient_head, p.T, weighted_h, out=gradient_head)
            else:
                gradient_head += p.T @ weighted_h
            gradient_head.index_add_(0, targets, weighted_h.to(wide), alpha=-1)
        ctx.save_for_backward(gradient_h, gradient_head)
        ctx.head_dtype = head_VD.dtype
        return total.to(wide)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gradient_h, gradient_head = ctx.saved_tensors
        return gradient_h * upstream, (gradient_head * upstream).to(ctx.head_dtype), None, None


def weighted_nll(h_ND: Tensor, head_VD: Tensor, targets_N: Tensor, weights_N: Tensor) -> Tensor:
    """Return sum_n weights_n * -log p(target_n | h_n), a scalar in nats, differentiable in h and head."""
    return _WeightedNll.apply(h_ND, head_VD, targets_N, weights_N)


def mean_nll(h_BLD: Tensor, head_VD: Tensor, targets_BL: Tensor) -> Tensor:
    """Return the mean NLL in nats per token, differentiable in h and head."""
    targets_N = targets_BL.flatten()
    weights_N = torch.full(targets_N.shape, 1 / targets_N.numel(), dtype=torch.float64, device=h_BLD.device)
    return weighted_nll(h_BLD.flatten(0, 1), head_VD, targets_N, weights_N)


def over_vocabulary(statistic: Callable[..., Tensor], h_ND: Tensor, head_VD: Tensor, *per_token: Tensor) -> Tensor:
    """Return `statistic(logits, *per_token)` of each token, (N, ...), differentiable; backward forms the logits again.

    Args:
        statistic: maps logits (n, V) in float32 or wider, and the n rows of each of `per_token`, to (n, ...).
    """

    def part(h: Tensor, head: Tensor, *rows: Tensor) -> Tensor:
        return statistic((h.to(head.dtype) @ head.T).to(_wide(head.dtype)), *rows)

    parts = []
    for rows in _chunks(len(h_ND), head_VD):
        arguments = h_ND[rows], head_VD, *(each[rows] for each in per_token)
        wants_gradient = torch.is_grad_enabled()
        parts.append(checkpoint(part, *arguments, use_reentrant=False) if wants_gradient else part(*arguments))
    return torch.cat(parts) if parts else statistic(h_ND @ head_VD.T, *per_token)
