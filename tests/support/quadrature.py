"""Models with two latent dimensions, or with codes, and their exact evidence: an integral, or a sum."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from baselines.vae import VAE
from ltm.latent.base import LatentModel
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import PosteriorConfig
from ltm.nn.output_head import token_nats
from ltm.rng import SequenceRng
from ltm.testing.miniatures import L, V, train_briefly

SPAN = 6.0
"""Half the side of what is integrated over: beyond it lie 4e-9 of the prior."""
SQUARES = 8
"""Squares a side at first."""
CUTS = 10
"""How often a square may be cut."""
AT_ONCE = 1 << 17
"""Most texts, times points, in one pass."""


def two_dimensional(
    seed: int,
    posterior: PosteriorConfig | None = None,
    *,
    cls: type[LatentModel] = LatentThoughtModel,
    updates: int = 100,
    **settings: Any,
) -> Any:
    """Trained on the contract's texts, then given other posterior settings; few enough latents to integrate over.

    Args:
        cls: the family.
        settings: other fields of its config, in training already.
    """
    torch.manual_seed(seed)
    config = cls.miniature(V + 1, L)
    decoder = dataclasses.replace(config.decoder, layers=1, width=2, heads=1)
    model: Any = cls(dataclasses.replace(config, decoder=decoder, latents=1, **settings)).double()
    train_briefly(model, updates)
    if posterior is not None:
        model.config = dataclasses.replace(model.config, posterior=posterior)
    return model.eval().requires_grad_(False)


def evidence(model: LatentModel, tokens_BL: torch.Tensor, *, within: float = 1e-3) -> torch.Tensor:
    """log p(x) of each text, (B,), float64: the integral of p(x|z) N(z; 0, I) over squares that are cut where it pays.

    A square is cut in four until that changes no text by more than its share of `within` nats. One Gauss-Hermite rule
    for all models is no match for this: p(x|z) has steps where two channels are normalised, and with 24 nodes a side
    some texts were off by 0.15 nats.

    Raises:
        ArithmeticError: the smallest squares still change it.
    """
    assert model.latent_shape == (1, 1, 2)
    half = SPAN / SQUARES
    middle_Q = torch.arange(-SPAN + half, SPAN, 2 * half, dtype=torch.float64)
    middles_Q2 = torch.cartesian_prod(middle_Q, middle_Q)
    whole_QB = _over_squares(model, tokens_BL, middles_Q2, half)
    done_B = torch.zeros(len(tokens_BL), dtype=torch.float64)
    for _ in range(CUTS):
        half /= 2
        corners_42 = half * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 2)
        quarters_Q42 = middles_Q2[:, None] + corners_42
        quarters_Q4B = _over_squares(model, tokens_BL, quarters_Q42.flatten(0, 1), half).unflatten(0, (-1, 4))
        cut_QB = quarters_Q4B.sum(1)
        total_B = done_B + cut_QB.sum(0)
        moved_Q = ((cut_QB - whole_QB).abs() / total_B).amax(1)
        open_Q = moved_Q > within / len(moved_Q)
        done_B = done_B + cut_QB[~open_Q].sum(0)
        if not open_Q.any():
            return done_B.log()
        middles_Q2, whole_QB = quarters_Q42[open_Q].flatten(0, 1), quarters_Q4B[open_Q].flatten(0, 1)
    raise ArithmeticError(f"{CUTS} cuts still change the evidence by {float(moved_Q[open_Q].sum()):.1g} nats")


def _over_squares(model: LatentModel, tokens_BL: torch.Tensor, middles_Q2: torch.Tensor, half: float) -> torch.Tensor:
    """Integrals over squares of sides 2 `half` by Gauss-Legendre rules of three nodes a side, (Q, B)."""
    nodes, weights = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(3))
    nodes_92, weights_9 = half * torch.cartesian_prod(nodes, nodes), half**2 * torch.outer(weights, weights).flatten()
    B, stack, parts = len(tokens_BL), model.decoder, []
    for part_Q2 in middles_Q2.split(max(1, AT_ONCE // (9 * B))):
        z_N2 = (part_Q2[:, None] + nodes_92).flatten(0, 1)
        texts = tokens_BL.repeat(len(z_N2), 1)
        h = model.hidden(stack, model.prepare(stack, texts), z_N2.repeat_interleave(B, 0).view(-1, 1, 1, 2))
        nats_NB = token_nats(h.flatten(0, 1), stack.head(), texts.flatten()).view(len(z_N2), B, -1).sum(2)
        density_NB = (nats_NB - z_N2.square().sum(1, keepdim=True) / 2).exp() / (2 * math.pi)
        parts.append((density_NB.unflatten(0, (-1, 9)) * weights_9[:, None]).sum(1))
    return torch.cat(parts)


def evidence_of_codes(model: VAE, tokens_BL: torch.Tensor) -> torch.Tensor:
    """log p(x) of each text under a model with codes, (B,), float64: the sum of p(c) p(x|c) over all c."""
    C, N, B = model.config.vq.codes, model.config.latents, len(tokens_BL)
    codes_CN = torch.cartesian_prod(*[torch.arange(C)] * N)
    texts = tokens_BL.repeat_interleave(len(codes_CN), 0)
    z = model.code_vectors(codes_CN.repeat(B, 1))
    given = model.scoring_batch(texts, 0, None, SequenceRng(0, range(len(texts)))).log_likelihood(z)
    return (given.view(B, -1) + model.codebook.log_prior(codes_CN)).logsumexp(1)
