"""Exact likelihoods of masked diffusion: a deterministic rule picks the next position from what is visible.

DUEL (arXiv 2603.01367). Sampling draws the token at that position from the network's prediction and shows it; so a text
is made in one order only, which its own beginning determines, and

    log p(x) = sum over steps of log p(x_i | visible tokens),  i = rule(visible tokens),

is exact, at one network pass per token. These probabilities sum to 1 over all texts, as each step's do over its tokens.
That is why the rule may use the predictions and never the tokens behind the masks: an order that the text itself
chooses (its likeliest token first) gives a sum above 1. The law is not the mixture over random orders that the model's
bound is on. Shapes: B texts, L tokens, N candidates, V outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Unmasking = Literal["any_order", "left_to_right", "confidence", "margin", "block_confidence"]
"""any_order: the mixture over orders. left_to_right: the first mask. confidence: the mask whose likeliest token is most
likely. margin: whose likeliest token leads by most. block_confidence: by confidence in the first block that has a mask.
Of equals the first one."""

TOGETHER = 2**26
"""Logits in memory at a time."""


class Predict(Protocol):
    """A network as the rules see it; one call is one pass of each row."""

    def __call__(self, canvas_BL: Tensor, rate_B: Tensor, wanted_BL: Tensor, visible: Tensor | None = None) -> Tensor:
        """Return logits (N, V) where `wanted` is true, row-major; `rate` is the share of masks, `visible` the keys."""


def check(unmasking: str, block: int, *, refused: tuple[str, ...] = (), why: str = "") -> None:
    """Raise ValueError for a rule that a model cannot follow, or a block without tokens."""
    if unmasking in refused:
        possible = ", ".join(rule for rule in get_args(Unmasking) if rule not in refused)
        raise ValueError(f"unmasking={unmasking}: {why}; possible: {possible}")
    if block < 1:
        raise ValueError(f"unmasking_block must be at least 1, found {block}")


def candidates(unmasking: Unmasking, masked_BL: Tensor, block: int) -> Tensor:
    """The masks that a rule chooses among, bool (B, L): all, those of the first block that has any, or the first."""
    if unmasking == "left_to_right":
        return masked_BL & (masked_BL.cumsum(1) == 1)
    if unmasking == "block_confidence":
        first_B1 = masked_BL.int().argmax(1, keepdim=True)
        position_L = torch.arange(masked_BL.shape[1], device=masked_BL.device)
        return masked_BL & (position_L // block == first_B1 // block)
    return masked_BL


def choose(unmasking: Unmasking, logits_NV: Tensor, candidate_BL: Tensor) -> Tensor:
    """The number among the N candidates of the one that each row shows next, (B,); every row has a candidate."""
    log_p_NV = logits_NV.double().log_softmax(1)
    top_N2 = log_p_NV.topk(2, 1).values.exp() if unmasking == "margin" else log_p_NV.max(1, keepdim=True).values
    score_N = top_N2[:, 0] - top_N2[:, 1] if unmasking == "margin" else top_N2[:, 0]
    score_BL = torch.full(candidate_BL.shape, -torch.inf, dtype=torch.float64, device=candidate_BL.device)
    score_BL = score_BL.masked_scatter(candidate_BL, score_N)
    best_BL = candidate_BL & (score_BL == score_BL.max(1, keepdim=True).values)
    number_BL = candidate_BL.flatten().cumsum(0).view(candidate_BL.shape) - 1
    return number_BL[best_BL & (best_BL.cumsum(1) == 1)]


def unmask(
    predict: Predict,
    canvas_BL: Tensor,
    masked_BL: Tensor,
    unmasking: Unmasking,
    show: Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    block: int,
    outputs: int,
    visible: Tensor | None = None,
) -> Tensor:
    """Show all masks one by one in the rule's order; return the canvas without masks.

    Args:
        canvas_BL: with the mask id where `masked_BL`.
        show: maps rows (R,), the positions (R,) that they show next, and logits (R, V) there to tokens (R,).
        block: tokens of a block, for `block_confidence`.
        outputs: V.
        visible: the keys that exist, (B, ...), if some are padding.
    """
    canvas_BL, masked_BL, total_B = canvas_BL.clone(), masked_BL.clone(), masked_BL.sum(1)
    together = max(1, TOGETHER // max(1, outputs * canvas_BL.shape[1]))
    for _ in range(int(total_B.max()) if len(total_B) else 0):
        for rows in masked_BL.any(1).nonzero()[:, 0].split(together):
            candidate_RL = candidates(unmasking, masked_BL[rows], block)
            rate_R = masked_BL[rows].sum(1).double() / total_B[rows]
            logits_NV = predict(canvas_BL[rows], rate_R, candidate_RL, None if visible is None else visible[rows])
            chosen_R = choose(unmasking, logits_NV, candidate_RL)
            position_R = candidate_RL.nonzero()[chosen_R, 1]
            canvas_BL[rows, position_R] = show(rows, position_R, logits_NV[chosen_R])
            masked_BL[rows, position_R] = False
    return canvas_BL


def log_likelihood(
    predict: Predict,
    tokens_BL: Tensor,
    scored_BL: Tensor,
    mask_id: int,
    unmasking: Unmasking,
    *,
    block: int,
    outputs: int,
    visible: Tensor | None = None,
) -> Tensor:
    """log p of the scored tokens under the rule, nats, float64 (B,); arguments as for `unmask`."""
    nats_B = torch.zeros(len(tokens_BL), dtype=torch.float64, device=tokens_BL.device)

    def show(rows: Tensor, position_R: Tensor, logits_RV: Tensor) -> Tensor:
        token_R = tokens_BL[rows, position_R]
        nats_B[rows] += logits_RV.double().log_softmax(1).gather(1, token_R[:, None])[:, 0]
        return token_R

    canvas_BL = tokens_BL.masked_fill(scored_BL, mask_id)
    unmask(predict, canvas_BL, scored_BL, unmasking, show, block=block, outputs=outputs, visible=visible)
    return nats_B


def log_likelihood_by_blocks(
    predict: Callable[[Tensor], Tensor], tokens_BL: Tensor, scored_BL: Tensor, unmasking: Unmasking, size: int
) -> Tensor:
    """As `log_likelihood`, of a model with blocks of S positions after BOS, each given the clean blocks before it.

    A block's order depends on those and on what is visible in it alone, so all blocks take their steps at once, and S
    passes do for a text.

    Args:
        predict: maps the masks left, (B, L), to logits (M, V) where they are, row-major.
        size: S; BOS is the first position of the first block.
    """
    nats_B = torch.zeros(len(tokens_BL), dtype=torch.float64, device=tokens_BL.device)
    masked_BL, L = scored_BL, scored_BL.shape[1]
    while bool(masked_BL.any()):
        masked_XS = F.pad(masked_BL, (1, -(L + 1) % size)).reshape(-1, size)
        block_R = masked_XS.any(1).nonzero()[:, 0]
        candidate_RS = candidates(unmasking, masked_XS[block_R], size)
        logits_NV = predict(masked_BL)[candidate_RS[masked_XS[block_R]]]
        chosen_R = choose(unmasking, logits_NV, candidate_RS)
        shown_XS = torch.zeros_like(masked_XS)
        shown_XS[block_R, candidate_RS.nonzero()[chosen_R, 1]] = True
        shown_BL = shown_XS.view(len(tokens_BL), -1)[:, 1 : L + 1]
        log_p_R = logits_NV[chosen_R].double().log_softmax(1).gather(1, tokens_BL[shown_BL][:, None])[:, 0]
        nats_B = nats_B.index_add(0, shown_BL.nonzero()[:, 0], log_p_R)
        masked_BL = masked_BL & ~shown_BL
    return nats_B
