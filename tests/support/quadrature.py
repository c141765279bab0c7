"""Models with two latent dimensions, or with codes, and their exact evidence, by Gauss-Hermite quadrature or a sum."""

from __future__ import annotations

import dataclasses
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


def evidence(model: LatentModel, tokens_BL: torch.Tensor, nodes: int = 24) -> torch.Tensor:
    """log p(x) of each text, (B,), float64: the integral of p(x|z) N(z; 0, I) over a grid of nodes^2 points."""
    assert model.latent_shape == (1, 1, 2)
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    grid = torch.tensor(np.stack(np.meshgrid(x, x), -1).reshape(-1, 2))
    log_w = torch.tensor(np.log(np.outer(w, w).reshape(-1) / (2 * np.pi)))
    B, G, stack = len(tokens_BL), len(grid), model.decoder
    texts = tokens_BL.repeat_interleave(G, 0)
    h = model.hidden(stack, model.prepare(stack, texts), grid.repeat(B, 1).view(-1, 1, 1, 2))
    nats = token_nats(h.flatten(0, 1), stack.head(), texts.flatten()).view(B, G, -1).sum(2)
    return (nats + log_w).logsumexp(1)


def evidence_of_codes(model: VAE, tokens_BL: torch.Tensor) -> torch.Tensor:
    """log p(x) of each text under a model with codes, (B,), float64: the sum of p(c) p(x|c) over all c."""
    C, N, B = model.config.vq.codes, model.config.latents, len(tokens_BL)
    codes_CN = torch.cartesian_prod(*[torch.arange(C)] * N)
    texts = tokens_BL.repeat_interleave(len(codes_CN), 0)
    z = model.code_vectors(codes_CN.repeat(B, 1))
    given = model.scoring_batch(texts, 0, None, SequenceRng(0, range(len(texts)))).log_likelihood(z)
    return (given.view(B, -1) + model.codebook.log_prior(codes_CN)).logsumexp(1)
