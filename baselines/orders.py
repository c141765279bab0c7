"""Bounds from both sides on masked diffusion's mixture over orders, at one pass per token and order.

Unmasked one token at a time, each order equally likely, a text has the probability p(x) = E p(x | order): what
`first_hitting` samples from, and what the NELBO bounds by the mean of log p(x | order). A few orders are importance
weights of p(x), the uniform distribution over orders being both proposal and prior, so that all that holds for latents
holds here: the log of their mean is a tighter lower bound, and the tangent at it, with other orders, an upper bound
(`ltm.latent.tube`). Shapes: K orders, B texts, L tokens, V outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.duel import TOGETHER, Predict
from ltm.api import LikelihoodEstimate
from ltm.latent import tube
from ltm.latent.bounds import log_mean_exp
from ltm.rng import SequenceRng

POSITIONS = 2**14
"""Positions of all canvases in one pass."""


def log_likelihoods_in_order(
    predict: Predict,
    tokens_BL: Tensor,
    scored_BL: Tensor,
    order_KBL: Tensor,
    mask_id: int,
    *,
    outputs: int,
    visible: Tensor | None = None,
) -> Tensor:
    """Return log p of the scored tokens, given the others, in each of K orders, nats, float64 (K, B).

    Args:
        predict: a network that is not told the mask rate.
        order_KBL: the positions of each text in the order in which they are shown, the scored ones first.
        outputs: V.
        visible: the keys that exist, (B, ...), if some are padding.
    """
    (K, B, L), device = order_KBL.shape, tokens_BL.device
    total_B, nats_KB = scored_BL.sum(1), torch.zeros(K, B, dtype=torch.float64, device=device)
    together = max(1, min(TOGETHER // outputs, POSITIONS // (L + 1)))
    for part_R in torch.arange(K * B, device=device).split(together):
        order_RL, text_R = order_KBL.flatten(0, 1)[part_R], part_R % B
        targets_RL, n_R = tokens_BL[text_R], total_B[text_R]
        canvas_RL, nats_R = targets_RL.masked_fill(scored_BL[text_R], mask_id), nats_KB.view(-1)[part_R]
        for step in range(int(n_R.max())):
            rows = (step < n_R).nonzero()[:, 0]
            position_R1 = order_RL[rows, step, None]
            wanted_RL = torch.zeros_like(canvas_RL[rows], dtype=torch.bool).scatter(1, position_R1, True)
            rate_R = 1 - step / n_R[rows].double()
            seen = None if visible is None else visible[text_R[rows]]
            log_p_RV = predict(canvas_RL[rows], rate_R, wanted_RL, seen).double().log_softmax(1)
            token_R1 = targets_RL[rows].gather(1, position_R1)
            nats_R[rows] += log_p_RV.gather(1, token_R1)[:, 0]
            canvas_RL[rows, position_R1[:, 0]] = token_R1[:, 0]
        nats_KB.view(-1)[part_R] = nats_R
    return nats_KB


def random_orders(scored_BL: Tensor, rng: SequenceRng, *, orders: int, block_length: int, purpose: str) -> Tensor:
    """Return K random orders of each text's scored positions, which come first, int64 (K, B, L)."""
    noise, L = rng.stream(purpose), scored_BL.shape[1]
    u_KBL = torch.stack([noise.uniform(block_length)[:, :L] for _ in range(orders)]).to(scored_BL.device)
    return u_KBL.masked_fill(~scored_BL, 2.0).argsort(2)


def two_sided(
    predict: Predict,
    tokens_BL: Tensor,
    scored_BL: Tensor,
    mask_id: int,
    rng: SequenceRng,
    *,
    orders: int,
    block_length: int,
    outputs: int,
    visible: Tensor | None = None,
    only: str | None = None,
) -> dict[str, LikelihoodEstimate]:
    """Return `order_importance_bound` and `order_upper_bound`, each from `orders` orders of its own."""
    tokens_B = scored_BL.sum(1)

    def weights(purpose: str) -> Tensor:
        order_KBL = random_orders(scored_BL, rng, orders=orders, block_length=block_length, purpose=purpose)
        return log_likelihoods_in_order(
            predict, tokens_BL, scored_BL, order_KBL, mask_id, outputs=outputs, visible=visible
        )

    log_w_KB = weights("orders of the lower bound")
    lower = log_mean_exp(log_w_KB, tokens_B)
    found = {"order_importance_bound": lower}
    if only in (None, "order_upper_bound"):
        found["order_upper_bound"] = tube.tangent(weights("orders of the upper bound"), tube.log_psi(lower), tokens_B)
    return found if only is None else {only: found[only]}
