"""From a model's name on the command line to the model: what is wrong with it is said before any work starts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ltm.errors import UserError

if TYPE_CHECKING:
    from ltm.harness import HarnessModel


def locate(name: str, checkpoint: str | None, settings: Sequence[str]) -> str | None:
    """What `HarnessModel` takes for a model; None for a preset that is to be trained, or trained further, first.

    Raises:
        UserError: there is no such model, it has no weights, or a setting does not fit it.
    """
    from ltm import registry

    if found := registry.source(name):
        if checkpoint is not None:
            raise UserError(f"--checkpoint is for presets; {name} already says where its weights are")
        found[0].check_source(found[1], settings)
        return name
    directory = _find(name, checkpoint)
    _check_settings(name, directory, settings)
    return None if directory is None else str(directory)


def _find(name: str, checkpoint: str | None) -> Path | None:
    from ltm import checkpoint as checkpoints
    from ltm import registry

    itself = False
    if checkpoint is None and "/" not in name and not Path(name).is_dir():
        itself = registry.preset(name)[1].trains_itself
    try:
        directory = checkpoints.find(name, checkpoint)
    except UserError:
        if itself:
            return None
        raise
    if itself and not checkpoints.read_info(directory)[1]["training"].get("complete", True):
        return None
    return directory


def _check_settings(name: str, directory: Path | None, settings: Sequence[str]) -> None:
    from ltm import checkpoint as checkpoints
    from ltm import registry
    from ltm.config import from_dict, with_settings

    if not settings:
        return
    if directory is None:
        config = registry.preset(name)[1].config
    else:
        info = checkpoints.read_info(directory)[1]
        config = from_dict(registry.model_family(info["family"]).config_class, info["config"])
    try:
        with_settings(config, settings)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def open_model(name: str, found: str | None, options: argparse.Namespace) -> HarnessModel:
    """The model that `locate` found, under the options of `ltm-eval`; trained first where it is to be."""
    from ltm.harness import HarnessModel

    if found is None:
        from ltm.train_cli import train_preset

        print(
            f"{name}: no finished weights yet; training it first, as ltm-train {name} would",
            file=sys.stderr,
            flush=True,
        )
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
