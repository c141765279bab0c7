"""From a model's name on the command line to the model: what is wrong with it is said before any work starts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ltm.progress import say

if TYPE_CHECKING:
    from ltm.harness import HarnessModel


def open_model(name: str, found: str | None, options: argparse.Namespace) -> HarnessModel:
    """The model that `locate` found, under the options of `ltm-eval`; trained first where it is to be."""
    from ltm.harness import HarnessModel

    if found is None:
        from ltm.training.run import train_preset

        say(f"{name}: no finished weights yet; training it first, as ltm-train {name} would")
        found = str(train_preset(name))
    return HarnessModel(
        pretrained=found,
        draws=options.draws,
        seed=options.seed,
        device=options.device,
        batch_size=options.batch_size,
        dtype=options.dtype,
        settings=options.set,
        headline_only=options.headline_only,
        limit_blocks=options.limit_blocks,
    )
