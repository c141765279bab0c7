"""Products with the vocabulary, in pieces, so that memory never holds a whole (tokens x vocabulary) matrix.

Shapes: N tokens, D width, V vocabulary. Products run in the dtype of the head, softmax and sums in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = {"cpu": 24 * 2**20, "cuda": 2**29}
"""Bytes of logits per chunk. On a CPU below 32 MiB, from which malloc maps, and faults in, new pages each time."""

CHUNK_TOKENS = {"cpu": 128, "cuda": 2**16}
"""Tokens per chunk for small vocabularies; on a CPU, what stays in its caches."""


BLOCK_BYTES = {"cpu": 2**20, "cuda": 2**29}
"""Bytes of logits per block of the vocabulary, where no row has to be whole: on a CPU, what stays in the caches."""

GROUP_TOKENS = {"cpu": 512, "cuda": 2**16}
"""Tokens that share a pass over the blocks."""

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


def _groups(tokens: int, device: str) -> Iterator[slice]:
    return (slice(start, start + GROUP_TOKENS[device]) for start in range(0, tokens, GROUP_TOKENS[device]))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _blocks(h_ND: Tensor, head_VD: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield parts of the vocabulary: the first id, the part of the head, and its logits, which stay in the caches."""
    size = max(1, BLOCK_BYTES[head_VD.device.type] // (len(h_ND) * head_VD.element_size()))
    for start in range(0, len(head_VD), size):
        block_WD = head_VD[start : start + size]
        yield start, block_WD, h_ND @ block_WD.T


class _Softmax:
    """A softmax over logits that come in blocks: a running maximum, and sums rescaled when it rises (arXiv 1805.02867).

    Attributes:
        sum_N: of exp(logit - top_N) so far, in `wide`.
        top_N: the highest logit so far.
    """

    def __init__(self, h_ND: Tensor, wide: torch.dtype):
        self.sum_N = h_ND.new_zeros(len(h_ND), dtype=wide)
        self.top_N = h_ND.new_full((len(h_ND),), -torch.inf)

    def add(self, logits_NW: Tensor) -> tuple[Tensor, Tensor]:
        """Return exp(logit - top) of a block, which overwrites it, and what earlier sums are to be multiplied by."""
        top_N = torch.maximum(self.top_N, logits_NW.amax(1))
        earlier_N = (self.top_N - top_N).to(self.sum_N.dtype).exp_()
        weights_NW = logits_NW.sub_(top_N[:, None]).exp_()
        self.sum_N.mul_(earlier_N).add_(weights_NW.sum(1, dtype=self.sum_N.dtype))
        self.top_N = top_N
        return weights_NW, earlier_N


@torch.no_grad()
def token_nats(h_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return log p(target | h) of each token in nats, (N,), float32 (float64 for a float64 head)."""
    nats_N = h_ND.new_empty(len(targets_N), dtype=_wide(head_VD.dtype))
    for rows in _groups(len(targets_N), h_ND.device.type):
        h = h_ND[rows].to(head_VD.dtype)
        softmax = _Softmax(h.to(nats_N.dtype), nats_N.dtype)
        of_target_N = torch.zeros_like(softmax.top_N)
        for start, block_WD, narrow_NW in _blocks(h, head_VD):
            logits_NW = narrow_NW.to(nats_N.dtype)
            place_N = targets_N[rows] - start
            inside_N = (place_N >= 0) & (place_N < len(block_WD))
            found_N = logits_NW.gather(1, place_N.clamp(0, len(block_WD) - 1)[:, None])[:, 0]
            of_target_N = torch.where(inside_N, found_N, of_target_N)
            softmax.add(logits_NW)
        nats_N[rows] = of_target_N - softmax.top_N - softmax.sum_N.log()
    return nats_N


@torch.no_grad()
def nll_gradient(h_ND: Tensor, head_VD: Tensor, targets_N: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """Return the gradient (N, D) of sum_n weights_n * -log p(target_n | h_n) with respect to h, without the loss.

    Per token it is softmax(h W^T) W - W[target], which is all that the fast loop needs.
    """
    gradient_ND = torch.empty_like(h_ND)
    for rows in _groups(len(targets_N), h_ND.device.type):
        h, wide = h_ND[rows].to(head_VD.dtype), _wide(head_VD.dtype)
        softmax, mean_ND = _Softmax(h, wide), torch.zeros_like(h, dtype=wide)
        for _, block_WD, logits_NW in _blocks(h, head_VD):
            weights_NW, earlier_N = softmax.add(logits_NW)
            mean_ND.mul_(earlier_N[:, None])
            if wide == block_WD.dtype:
                torch.addmm(mean_ND, weights_NW, block_WD, out=mean_ND)
            else:
                mean_ND.add_(weights_NW @ block_WD)
        mean_ND.div_(softmax.sum_N[:, None])
        torch.sub(mean_ND.to(h_ND.dtype), head_VD[targets_N[rows]], out=gradient_ND[rows])
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
