"""The twin of a model: its family and settings with a small network, trained on a source whose likelihood is known.

Real text has no true likelihood to compare a model's claims with. Its estimator can still be tested: on the twin,
which is fitted, sampled and summed by the same code under the same settings. A model that was itself trained on a known
source needs no twin.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ltm import files
from ltm.config import config_digest, digest, from_dict, to_dict, unsettled
from ltm.errors import UserError
from ltm.evaluation.code import class_name, code_digest
from ltm.known_sources import base
from ltm.latent.base import LatentModel
from ltm.processes import from_lead
from ltm.training import checkpoint
from ltm.training.config import TrainConfig
from ltm.training.run import train_model

if TYPE_CHECKING:
    from ltm.api import LanguageModel, LoadedModel
    from ltm.known_sources.base import KnownSource

TOKENIZER = "bytes"
"""One byte is one symbol of a source."""
RECIPE = {"budget": "tokens=400k", "batch": 8, "lr": 3e-3, "warmup": 0.1, "ema": 0.99}
"""The same for all twins, so that none gains by more training; about a minute for a latent model on a laptop CPU."""
MORE_STEPS = 256
"""The least number of fast steps for the second scoring of a model that fits q."""


def trained_on(loaded: LoadedModel) -> KnownSource | None:
    """Return the known source that the model was trained on, or None if it was trained on real text."""
    return base.recorded(loaded.info["training"].get("data_source") or {})


def trained_config(loaded: LoadedModel) -> Any:
    """Return the config that the model was trained with, without the settings that it is scored with."""
    if not (loaded.directory / checkpoint.MANIFEST).is_file():
        return loaded.model.config
    return unsettled(from_dict(type(loaded.model).config_class, checkpoint.read_info(loaded.directory)[1]["config"]))


def obstacle(loaded: LoadedModel) -> str | None:
    """Return why a model that was made elsewhere can have no twin; None if it can have one.

    Raises:
        UserError: the model was trained here, so its family must say how it would be smaller.
    """
    try:
        type(loaded.model).twin_config(loaded.model.config, vocab_size=4, block_length=4)
    except UserError as error:
        if loaded.info["training"].get("tokens") is None:
            return str(error)
        raise UserError(f"{loaded.name} cannot be audited: {error}") from error
    return None


def twin(loaded: LoadedModel, source: KnownSource) -> LoadedModel:
    """Return the twin, trained on a source from `source_for`; it is trained now unless the model store has it.

    It is trained under the settings that the model was trained with, and scored under those it is scored with.

    Raises:
        UserError: the family can have no twin.
    """
    cls, directory = type(loaded.model), place(loaded, source)

    def train() -> None:
        # A finished twin is only read, so that audits of two models may share it at the same time.
        if not is_trained(directory):
            train_model(
                directory.name,
                cls,
                _config(loaded, source),
                from_dict(TrainConfig, RECIPE),
                corpus=source.spec,
                tokenizer_name=TOKENIZER,
                output=directory,
                device=loaded.model.device.type,
                wait=True,
            )

    from_lead(train)
    trained = checkpoint.load(directory, device=loaded.model.device.type)
    shape = {"vocab_size": trained.model.vocab_size, "block_length": source.length}
    return reconfigured(trained, cls.twin_config(loaded.model.config, **shape))


def place(loaded: LoadedModel, source: KnownSource) -> Path:
    """Return the directory of the twin in the model store, whether or not it is there."""
    cls, config = type(loaded.model), _config(loaded, source)
    identity = digest([cls.family, class_name(cls), config_digest(config), RECIPE, source.spec, code_digest(cls)])
    return files.home() / "models" / f"audit-{cls.family}-{identity[:12]}"


def is_trained(directory: Path) -> bool:
    """True if a directory has a twin whose training is complete."""
    return bool(checkpoint.steps(directory)) and bool(checkpoint.read_info(directory)[1]["training"].get("complete"))


def _config(loaded: LoadedModel, source: KnownSource) -> Any:
    """Return the config that the twin is trained with, before its tokenizer is known."""
    return type(loaded.model).twin_config(trained_config(loaded), vocab_size=0, block_length=source.length)


def source_for(loaded: LoadedModel, source: KnownSource) -> KnownSource | None:
    """Return the source to compare a model with: the one it was trained on, or this one with texts that fill a block.

    Returns None for a model that was made elsewhere and can have no twin.

    Raises:
        UserError: a model that was trained here can have no twin.
    """
    if obstacle(loaded) is not None:
        return None
    if known := trained_on(loaded):
        return known
    cls = type(loaded.model)
    config = cls.twin_config(loaded.model.config, vocab_size=4, block_length=source.length)
    with torch.device("meta"):
        # The length may differ from what was asked for: some families need texts that fill their blocks.
        return dataclasses.replace(cast(Any, source), length=cls(config).block_length)


def reconfigured(loaded: LoadedModel, config: Any) -> LoadedModel:
    """Return the same weights under another config with the same shapes."""
    weights = loaded.model.state_dict()
    model: LanguageModel = type(loaded.model)(config)
    model.allocate({name: tuple(value.shape) for name, value in weights.items()})
    model.load_state_dict(weights)
    dtype = next((value.dtype for value in weights.values() if value.is_floating_point()), None)
    return dataclasses.replace(
        loaded,
        model=model.to(device=loaded.model.device, dtype=dtype).eval(),
        info={**loaded.info, "config": to_dict(config), "config_digest": config_digest(config)},
    )


def with_more_steps(loaded: LoadedModel, *, least: int = MORE_STEPS) -> tuple[LoadedModel, int] | None:
    """Return the same weights with max(`least`, 4 T) fast steps, all of them, and that number; None if none is fitted.

    An estimate that is no bound rises with the number of steps, as the fit moves the point at which it is evaluated.
    """
    model = loaded.model
    if not isinstance(model, LatentModel) or model.config.fast_steps is None or not model.gaussian_posterior:
        return None
    steps = max(least, 4 * model.config.fast_steps)
    return reconfigured(loaded, model.config.with_fast_steps(steps, all_of_them=True)), steps
