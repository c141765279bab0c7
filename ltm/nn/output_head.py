"""Products with the vocabulary, in pieces, so that memory never holds a whole (tokens x vocabulary) matrix.

Shapes: N tokens, D width, V vocabulary. Products run in the dtype of the head, softmax and sums in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ltm.nn.compiled import compiled, runs_compiled

R = TypeVar("R")

CHUNK_BYTES = {"cpu": 24 * 2**20, "cuda": 2**30}
"""Bytes of logits per chunk. On a CPU below 32 MiB, from which malloc maps, and faults in, new pages each time."""

CHUNK_TOKENS = {"cpu": 128, "cuda": 2**16}
"""Tokens per chunk for small vocabularies; on a CPU, what stays in its caches."""


BLOCK_BYTES = 2**20
"""Bytes of logits per block of the vocabulary, where no row has to be whole: on a CPU, what stays in the caches."""

GROUP_TOKENS = 512
"""Tokens that share a pass over the blocks."""

ROW_MULTIPLE = 64
"""A GPU multiplies faster by matrices whose rows begin at multiples of so many numbers, unlike those of 50,257."""

HIGHEST = 80.0
"""Nats above another token's at which a logit is cut in a gradient, so that its exponential is finite in float32."""

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


def _groups(tokens: int) -> Iterator[slice]:
    return (slice(start, start + GROUP_TOKENS) for start in range(0, tokens, GROUP_TOKENS))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _blocks(h_ND: Tensor, head_VD: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield parts of the vocabulary: the first id, the part of the head, and its logits, which stay in the caches."""
    size = max(1, BLOCK_BYTES // (len(h_ND) * head_VD.element_size()))
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


def keeps_rows_whole(head_VD: Tensor) -> bool:
    """Whether rows of logits are formed whole, and so aligned: on a GPU, which has memory for many and few caches."""
    return head_VD.is_cuda


class _WholeRows:
    """A head whose rows of logits are formed whole, on a GPU aligned: further rows of zeros get -inf from a bias."""

    def __init__(self, head_VD: Tensor):
        added = -len(head_VD) % ROW_MULTIPLE if keeps_rows_whole(head_VD) else 0
        self.head_WD = F.pad(head_VD, (0, 0, 0, added)) if added else head_VD
        self.bias_W = F.pad(head_VD.new_zeros(len(head_VD)), (0, added), value=-torch.inf) if added else None

    def logits(self, h_ND: Tensor) -> Tensor:
        """(N, W), W being V or the next multiple of `ROW_MULTIPLE`."""
        return F.linear(h_ND.to(self.head_WD.dtype), self.head_WD, self.bias_W)

    def each_row(self, function: Callable[..., R], h_ND: Tensor, *per_token: Tensor) -> R:
        """Return `function(logits, wide dtype, *per_token)`, compiled where that is possible."""
        logits_NW = self.logits(h_ND)
        run = compiled(function) if runs_compiled(logits_NW) else function
        return run(logits_NW, _wide(logits_NW.dtype), *per_token)


def _nats(logits_NW: Tensor, wide: torch.dtype, targets_N: Tensor) -> Tensor:
    """Return log p(target) of each row, (N,)."""
    return logits_NW.gather(1, targets_N[:, None])[:, 0].to(wide) - logits_NW.to(wide).logsumexp(1)


def _softmax_and_nats(logits_NW: Tensor, wide: torch.dtype, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax of each row, in the dtype of the logits, and log p(target)."""
    logs_NW = logits_NW.to(wide).log_softmax(1)
    of_target_N = logs_NW.gather(1, targets_N[:, None])[:, 0]
    return logs_NW.exp_().to(logits_NW.dtype), of_target_N


def _weights_and_sums(logits_NW: Tensor, wide: torch.dtype, shift_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(logit - shift) of each row, in the dtype of the logits, and the row's sum, in one pass over memory.

    The softmax of a row is their quotient, whatever the shift; a logit that lies more than `HIGHEST` above it is cut.
    """
    weights_NW = (logits_NW.to(wide) - shift_N[:, None]).clamp_(max=HIGHEST).exp_()
    return weights_NW.to(logits_NW.dtype), weights_NW.sum(1)


@torch.no_grad()
def token_nats(h_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return log p(target | h) of each token in nats, (N,), float32 (float64 for a float64 head)."""
    nats_N = h_ND.new_empty(len(targets_N), dtype=_wide(head_VD.dtype))
    if keeps_rows_whole(head_VD):
        head = _WholeRows(head_VD)
        for rows in _chunks(len(targets_N), head_VD):
            nats_N[rows] = head.each_row(_nats, h_ND[rows], targets_N[rows])
        return nats_N
    for rows in _groups(len(targets_N)):
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

    Per token it is softmax(h W^T) W - W[target], which is all that the fast loop needs. On a GPU this saturates for
    tokens that are e^80 times less likely than another, see `HIGHEST`.
    """
    each = _gradient_of_whole_rows if keeps_rows_whole(head_VD) else _gradient_by_blocks
    gradient_ND = each(h_ND, head_VD, targets_N)
    return gradient_ND if weights_N is None else gradient_ND * weights_N[:, None].to(h_ND.dtype)


def _gradient_of_whole_rows(h_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    gradient_ND, wide, head = torch.empty_like(h_ND), _wide(head_VD.dtype), _WholeRows(head_VD)
    for rows in _chunks(len(targets_N), head_VD):
        of_target_ND = head_VD[targets_N[rows]]
        # A target's own logit is known before the pass, and near the highest unless the model all but excludes it.
        shift_N = torch.linalg.vecdot(h_ND[rows].to(wide), of_target_ND.to(wide))
        weights_NW, sums_N = head.each_row(_weights_and_sums, h_ND[rows], shift_N)
        gradient_ND[rows] = ((weights_NW @ head.head_WD) / sums_N[:, None] - of_target_ND).to(h_ND.dtype)
    return gradient_ND


def _gradient_by_blocks(h_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> Tensor:
    gradient_ND, wide = torch.empty_like(h_ND), _wide(head_VD.dtype)
    for rows in _groups(len(targets_N)):
        h = h_ND[rows].to(head_VD.dtype)
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
    return gradient_ND


class _WeightedNll(torch.autograd.Function):
    """The weighted sum of NLLs; the forward pass forms both gradients, with three products and none repeated."""

    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, head_VD: Tensor, targets_N: Tensor, weights_N: Tensor) -> Tensor:
        wide = _wide(head_VD.dtype)
        total = h_ND.new_zeros((), dtype=torch.float64)
        gradient_h = torch.empty_like(h_ND)
        head = _WholeRows(head_VD)
        gradient_head = torch.zeros_like(head.head_WD, dtype=wide)
        for rows in _chunks(len(targets_N), head_VD):
            h, targets, weights = h_ND[rows].to(head_VD.dtype), targets_N[rows], weights_N[rows].to(wide)
            p, nats = head.each_row(_softmax_and_nats, h, targets)
            total -= (weights * nats).sum(dtype=torch.float64)
            gradient_h[rows] = ((p @ head.head_WD).to(wide) - head_VD[targets]) * weights[:, None]
            weighted_h = h * weights[:, None].to(h.dtype)
            if p.dtype == wide:
                torch.addmm(gradient_head, p.T, weighted_h, out=gradient_head)
            else:
                gradient_head += p.T @ weighted_h
            gradient_head.index_add_(0, targets, weighted_h.to(wide), alpha=-1)
        ctx.save_for_backward(gradient_h, gradient_head[: len(head_VD)])
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
