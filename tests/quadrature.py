"""A latent thought model with two latent dimensions, and its exact evidence by Gauss-Hermite quadrature."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ltm.model import LatentThoughtModel
from ltm.posterior import PosteriorConfig
from ltm.vocabulary import token_nats
from tests.contract.conftest import L, V, train_briefly


def two_dimensional(seed: int, posterior: PosteriorConfig) -> LatentThoughtModel:
    """Trained on the contract's texts, then given other posterior settings; few enough latents to integrate over."""
    torch.manual_seed(seed)
    config = LatentThoughtModel.miniature(V + 1, L)
    decoder = dataclasses.replace(config.decoder, layers=1, width=2, heads=1)
    model = LatentThoughtModel(dataclasses.replace(config, decoder=decoder, latents=1)).double()
    train_briefly(model, 100)
    model.config = dataclasses.replace(model.config, posterior=posterior)
    return model.eval().requires_grad_(False)


def evidence(model, tokens_BL: torch.Tensor, nodes: int = 24) -> torch.Tensor:
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
