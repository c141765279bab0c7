"""A proposal for every model: exact likelihoods of the same tokens, counted in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ltm import registry
from ltm.api import LoadedModel
from ltm.config import config_digest, to_dict
from ltm.nn.left_to_right import ExactModel
from ltm.training.weights import weights_digest

if TYPE_CHECKING:
    from ltm.harness import HarnessModel

CHARACTERS = 400_000
"""The beginning of the text that is counted."""


def counted(model: HarnessModel, text: str) -> HarnessModel | None:
    """Count a text in the model's tokens with the first exact family that learns by counting; None if there is none.

    Which exact model proposes texts decides how much `proposal_mass` can see, never whether it is right.
    """
    tokenizer, block = model.loaded.tokenizer, model.block_length
    for name in registry.names(registry.MODELS):
        family = registry.model_family(name)
        if not (family.learns_by_counting and issubclass(family, ExactModel) and family.presets):
            continue
        config = next(iter(family.presets.values())).config
        config = family.twin_config(config, vocab_size=model.loaded.model.vocab_size, block_length=block)
        exact = family(config)
        ids = torch.from_numpy(tokenizer.encode(text[:CHARACTERS]).astype("int64"))
        whole = len(ids) // exact.block_length * exact.block_length
        if not whole:
            continue
        exact.count(ids[:whole].view(-1, exact.block_length))
        exact.finish()
        info = {
            **model.loaded.info,
            "name": f"{family.family} counted on the audit's text",
            "family": family.family,
            "config": to_dict(config),
            "config_digest": config_digest(config),
            "weights_digest": weights_digest(exact.state_dict()),
        }
        exact = exact.to(model.device).eval().requires_grad_(False)
        loaded = LoadedModel(model=exact, tokenizer=tokenizer, name=info["name"], directory=Path(), info=info)
        return model.like(loaded, draws=None)
    return None
