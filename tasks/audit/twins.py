"""The twin of a model: its family and settings with a small network, trained on a source whose likelihood is known.

What a model claims of real text has no true value to be held against. Its estimator can be tried all the same: on the
twin, which is fitted, drawn and summed by the same code under the same settings. A model that was itself trained on a
known source needs none.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

from ltm.errors import UserError

if TYPE_CHECKING:
    from ltm.api import LanguageModel, LoadedModel
    from ltm.known_sources.base import KnownSource

TOKENIZER = "bytes"
RECIPE = {"budget": "tokens=400k", "batch": 8, "lr": 3e-3, "warmup": 0.1, "ema": 0.99}
"""The same for all, so that no claim is helped by more training: a minute for a latent model on a laptop CPU."""
MORE_STEPS = 256


def trained_on(loaded: LoadedModel) -> KnownSource | None:
    """The known source that the model was trained on; None when it was real text."""
    from ltm.known_sources import base

    return base.recorded(loaded.info["training"].get("data_source") or {})


def trained_config(loaded: LoadedModel) -> Any:
    """The config that the model was trained under, without the settings that it is scored with."""
    from ltm.config import from_dict, unsettled
    from ltm.training import checkpoint

    if not (loaded.directory / checkpoint.MANIFEST).is_file():
        return loaded.model.config
    return unsettled(from_dict(type(loaded.model).config_class, checkpoint.read_info(loaded.directory)[1]["config"]))


def check(loaded: LoadedModel) -> None:
    """Raise UserError where there can be no twin, and so no audit."""
    try:
        type(loaded.model).twin_config(loaded.model.config, vocab_size=4, block_length=4)
    except UserError as error:
        raise UserError(f"{loaded.name} cannot be audited: {error}") from error


def twin(loaded: LoadedModel, source: KnownSource) -> LoadedModel:
    """The twin, trained on this source of `source_for` now or before.

    It is trained as the model was, by its settings then, and scored by those of now. It lies in the model store.

    Raises:
        UserError: the family can have none.
    """
    from ltm import files
    from ltm.config import config_digest, digest, from_dict
    from ltm.evaluation.code import class_name, code_digest
    from ltm.training import checkpoint
    from ltm.training.config import TrainConfig
    from ltm.training.run import train_model

    cls, shape = type(loaded.model), {"vocab_size": 0, "block_length": source.length}
    config = cls.twin_config(trained_config(loaded), **shape)
    identity = digest([cls.family, class_name(cls), config_digest(config), RECIPE, source.spec, code_digest(cls)])
    name = f"audit-{cls.family}-{identity[:12]}"
    folder = train_model(
        name,
        cls,
        config,
        from_dict(TrainConfig, RECIPE),
        corpus=source.spec,
        tokenizer_name=TOKENIZER,
        output=files.home() / "models" / name,
        device=loaded.model.device.type,
    )
    found = checkpoint.load(folder, device=loaded.model.device.type)
    shape["vocab_size"] = found.model.vocab_size
    return reconfigured(found, cls.twin_config(loaded.model.config, **shape))


def source_for(loaded: LoadedModel, source: KnownSource) -> KnownSource:
    """What a model is held against: the source that it was trained on, or this one with texts that fill the twin.

    Raises:
        UserError: it can have no twin.
    """
    import torch

    check(loaded)
    if own := trained_on(loaded):
        return own
    cls = type(loaded.model)
    config = cls.twin_config(loaded.model.config, vocab_size=4, block_length=source.length)
    with torch.device("meta"):
        # Not quite as asked for where a text is made of blocks, which must be filled.
        return dataclasses.replace(cast(Any, source), length=cls(config).block_length)


def reconfigured(loaded: LoadedModel, config: Any) -> LoadedModel:
    """The same weights under another config of the same shapes."""
    from ltm.config import config_digest, to_dict

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
    """The same weights with `least` fast steps or 4 T, and how many that is; None where nothing is fitted.

    The more a fit moves what the value is then taken at, the more a value that is no bound rises.
    """
    from ltm.latent.base import LatentModel

    model = loaded.model
    if not isinstance(model, LatentModel) or model.config.fast_steps is None or not model.gaussian_posterior:
        return None
    steps = max(least, 4 * model.config.fast_steps)
    return reconfigured(loaded, model.config.with_fast_steps(steps)), steps
