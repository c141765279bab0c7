"""The laws that samplers of models that are not exact draw from, computed exactly for texts of two tokens."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from ltm import registry
from ltm.latent.posterior import PosteriorConfig
from ltm.testing.miniatures import trained
from tests.support.canvas_laws import nodes
from tests.support.quadrature import evidence, two_dimensional


def law(family: str, texts_BL: Tensor):
    """Return a trained model of the family that generates unprompted, and the log-probability of each text, (B,)."""
    if family in ("ltm", "vae"):
        posterior = PosteriorConfig() if family == "ltm" else None
        cls: Any = registry.model_family(family)
        latent = two_dimensional(0, posterior, cls=cls)
        return latent, evidence(latent, texts_BL)
    model: Any = trained(registry.model_family(family))
    if family in ("mdlm", "md4"):
        return model, first_hitting(model, texts_BL)
    if family == "bd3lm":
        from tests.baselines.diffusion.test_bd3lm import enumerated_law

        return model, enumerated_law(model, texts_BL).log()
    if family == "sedd":
        from tests.baselines.diffusion.test_sedd import sampler_law

        return model, sampler_law(model, texts_BL).log()
    if family == "duo":
        from tests.baselines.diffusion import test_duo

        return model, test_duo.sampler_law(model, texts_BL).log()
    raise ValueError(f"the law of {family}'s sampler is not known")


def first_hitting(model, texts_BL: Tensor) -> Tensor:
    """Mean over both orders, and over the times of both reveals by Gauss-Legendre quadrature.

    With n masks left at rate m, the next is revealed at m u^(1/n), u uniform.
    """
    total = torch.zeros(len(texts_BL), dtype=torch.float64)
    for (u, w), (v, x) in itertools.product(nodes(0, 1, 12), nodes(0, 1, 12)):
        rates = u**0.5, u**0.5 * v
        for order in ((0, 1), (1, 0)):
            canvas, p = torch.full_like(texts_BL, model.mask_id), torch.full_like(total, w * x / 2)
            for position, rate in zip(order, rates, strict=True):
                wanted = torch.zeros_like(texts_BL, dtype=torch.bool)
                wanted[:, position] = True
                logits = model.predict(canvas, torch.full_like(total, rate), wanted)
                p = p * logits.softmax(1).gather(1, texts_BL[:, position : position + 1])[:, 0]
                canvas[:, position] = texts_BL[:, position]
            total += p
    return total.log()
