"""The exact law of masked diffusion that reveals the tokens of short texts in random order, by dynamic programming.

Running back, the mask rate m falls from 1 to 0, and by the time -log m the token at a masked position i appears at the
rate Z_i, as y with probability p_i(y): Z_i = 1 where logits are those of a softmax, and what they sum to where they are
ratios (`score_entropy`). Both depend on what is visible and may depend on m. So the probability F(S, m) that the masked
positions S of a text become its own tokens obeys

    m dF(S, m) / dm = sum over i in S of Z_i p_i(x_i) F(S - i, m) - F(S, m) sum over i in S of Z_i,

which is solved over all S, small ones first, on a grid of rates. Shapes: B texts, L tokens, C canvases, M rates, V
outputs.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from baselines.diffusion.bd3lm import BD3LM
from baselines.diffusion.masking import MaskedModel
from baselines.diffusion.md4 import MD4
from baselines.diffusion.mdlm import MDLM
from baselines.diffusion.schedules import OFFSET, SIGMA_HIGH, SIGMA_LOW
from baselines.diffusion.sedd import SEDD
from ltm.testing.miniatures import V

RATES = 600
"""Points of the grid, which resolves the fastest wave of a network's time embedding, 100 radians over all times."""


def log_law(model: MaskedModel, texts_BL: Tensor, rates: int = RATES) -> Tensor:
    """log p of each text under random orders, (B,), float64; of a BD3-LM within blocks, one block after the other."""
    if isinstance(model, BD3LM):
        return _of_blocks(model, texts_BL)
    edges = _edges(model, rates)
    L, mask = texts_BL.shape[1], model.mask_id
    canvases_CL = torch.tensor(list(itertools.product((*range(V), mask), repeat=L)))
    log_g_MCLV = torch.stack([_log_rates(model, canvases_CL, m) for m in (edges[1:] + edges[:-1]).div(2).tolist()])
    log_z_MCL = log_g_MCLV.logsumexp(-1)
    places_L = (V + 1) ** torch.arange(L - 1, -1, -1)
    now_B = torch.ones(len(texts_BL), dtype=torch.float64)
    F: dict[tuple[int, ...], Tensor] = {(): torch.ones(len(edges) - 1, len(texts_BL), dtype=torch.float64)}
    span_M = edges.log().diff()
    for size in range(1, L + 1):
        for masked in itertools.combinations(range(L), size):
            canvas_BL = texts_BL.clone()
            canvas_BL[:, list(masked)] = V
            row_B = (canvas_BL * places_L).sum(1)
            total_MB = log_z_MCL[:, row_B][..., list(masked)].exp().sum(-1)
            # F of fewer masks in the middle of each step, where rates are too.
            into_MB = torch.zeros_like(total_MB)
            for i in masked:
                shown_MB = log_g_MCLV[:, row_B, i, texts_BL[:, i]].exp()
                into_MB += shown_MB * F[tuple(j for j in masked if j != i)]
            # At the least rate MD4 guesses what is left; for others nothing changes any more.
            guessed_B = torch.full_like(into_MB[0], float(V) ** -size)
            now_B = guessed_B if isinstance(model, MD4) else into_MB[0] / total_MB[0]
            middles = []
            for step, span in enumerate(span_M.tolist()):
                goal_B, total_B = into_MB[step] / total_MB[step], total_MB[step]
                middles.append(goal_B + (now_B - goal_B) * (-total_B * span / 2).exp())
                now_B = goal_B + (now_B - goal_B) * (-total_B * span).exp()
            F[masked] = torch.stack(middles)
    return now_B.log()


def _edges(model: MaskedModel, rates: int) -> Tensor:
    """Rising mask rates from almost 0 to 1, evenly spaced in what the network is told, (rates + 1,) or a few more."""
    if isinstance(model, MDLM):
        return torch.tensor([0.5, 1.0], dtype=torch.float64)
    if isinstance(model, MD4):
        even, fine = torch.linspace(OFFSET, 1, rates + 1).double(), torch.logspace(math.log10(OFFSET), -2, 40).double()
        return torch.cat([even, fine[1:-1]]).sort().values
    sigma = torch.logspace(math.log10(SIGMA_LOW), math.log10(SIGMA_HIGH), rates, dtype=torch.float64)
    return torch.cat([-torch.expm1(-sigma), torch.ones(1, dtype=torch.float64)])


@torch.no_grad()
def _log_rates(model: MaskedModel, canvases_CL: Tensor, rate: float) -> Tensor:
    """log Z_i p_i(y) of every position of every canvas at a mask rate, (C, L, V)."""
    assert isinstance(model, MDLM | MD4 | SEDD)
    everywhere = torch.ones_like(canvases_CL, dtype=torch.bool)
    rate_C = torch.full((len(canvases_CL),), rate, dtype=torch.float64)
    if isinstance(model, SEDD):
        h_ND = model.hidden_states(canvases_CL, -torch.log1p(-rate_C), everywhere)
        log_g_NV = (h_ND @ model.decoder.head().T) - math.log(V)
    else:
        log_g_NV = model.predict(canvases_CL, rate_C, everywhere).log_softmax(1)
    return log_g_NV.double().view(*canvases_CL.shape, V)


@torch.no_grad()
def _of_blocks(model: BD3LM, texts_BL: Tensor) -> Tensor:
    """The mean over orders in each block, given the clean blocks before it."""
    B, L = texts_BL.shape
    inputs_BN, size = model.lay_out(texts_BL), model.config.block_size
    clean, log_p_B = model.clean_pass(inputs_BN), torch.zeros(B, dtype=torch.float64)
    # BOS is the first position of the first block.
    for start in range(0, L + 1, size):
        positions = [p - 1 for p in range(start, start + size) if 1 <= p <= L]
        orders = list(itertools.permutations(positions))
        nats_OB = torch.zeros(len(orders), B, dtype=torch.float64)
        for o, order in enumerate(orders):
            for step, position in enumerate(order):
                masked_BL = torch.zeros(B, L, dtype=torch.bool)
                masked_BL[:, list(order[step:])] = True
                h_ND = model.masked_pass(inputs_BN, masked_BL, clean)
                log_BSV = (h_ND @ model.decoder.head().T).double().log_softmax(1).view(B, -1, V)
                where = sorted(order[step:]).index(position)
                nats_OB[o] += log_BSV[:, where].gather(1, texts_BL[:, position : position + 1])[:, 0]
        log_p_B += nats_OB.logsumexp(0) - math.log(len(orders))
    return log_p_B
