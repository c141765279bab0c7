"""An LTM scored as the public code scores it, which is no bound: q is fitted to one noise and judged at the same.

Shapes: B blocks, N positions of a block, L = N - 1 targets.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ltm.latent.base import GivenLatents
from ltm.latent.posterior import Posterior, PosteriorConfig, fit
from ltm.published_protocol import PublishedProtocol
from ltm.rng import SequenceRng


class AsPublished:
    """What `LatentThoughtModel` has of `ltm.published_protocol.ScoresAsPublished`."""

    def published_protocol(self: Any) -> PublishedProtocol:
        """See `ltm.published_protocol.ScoresAsPublished`."""
        return PublishedProtocol(
            source="mingluzhao/Latent-Thought-LM at 498e39e",
            eos_after_rows=True,
            wrapped=False,
            given=1,
            mean_of_exp=True,
            told="KL and likelihood at the one noise that q was fitted to, by the published code's optimiser",
        )

    @torch.no_grad()
    def published_nats(self: Any, ids_BN: Tensor, rng: SequenceRng) -> Tensor:
        """See `ltm.published_protocol.ScoresAsPublished`: T steps of `published_code`, no BOS, the first id given."""
        config = dataclasses.replace(PosteriorConfig.NAMED["published_code"], steps=self.config.posterior.steps)
        tokens_BL, inputs_BL = ids_BN[:, 1:], ids_BN[:, :-1]
        gradient = self.likelihood_gradient(tokens_BL, None, matmul=config.matmul, inputs_BL=inputs_BL)
        dtype, device = self.decoder.embedding.dtype, tokens_BL.device
        q = fit(gradient, self.latent_shape, config, rng, device=device, dtype=dtype, purpose="published fit")
        return self.published_value(tokens_BL, inputs_BL, q)

    def published_value(self: Any, tokens_BL: Tensor, inputs_BL: Tensor, q: Posterior) -> Tensor:
        """Return -log p(x|z) at the noise of the fit plus KL, float64 (B,)."""
        prepared, everything = self.prepare(self.decoder, tokens_BL, inputs_BL), torch.ones_like(tokens_BL) > 0
        noise = torch.zeros_like(q.mean) if q.fitted_noise is None else q.fitted_noise
        log_p_B = GivenLatents(self, prepared, tokens_BL, everything)(q.at(noise))
        return q.kl().flatten(1).sum(1) - log_p_B
