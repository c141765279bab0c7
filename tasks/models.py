"""Models named on the command line: those that are measured, and helpers such as a scorer, a featuriser, a proposal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ltm import model_store, registry
from ltm.errors import UserError
from ltm.files import home
from ltm.training import checkpoint

if TYPE_CHECKING:
    from ltm.api import LanguageModel
    from ltm.harness import HarnessModel
    from tasks.options import EvalOptions


def open_model(
    name: str, place: str | None, options: EvalOptions, *, settings: Sequence[str] = (), label: str | None = None
) -> HarnessModel:
    """Open the model that `model_store.locate` found at `place`; None for a preset that trains itself first.

    Args:
        settings: `field=value` of its config.
        label: how progress calls it, if not by its name.
    """
    from ltm.harness import HarnessModel

    model = HarnessModel(
        pretrained=model_store.trained(name, place),
        draws=options.draws,
        seed=options.seed,
        device=options.device,
        batch_size=options.batch_size,
        dtype=options.dtype,
        settings=list(settings),
        headline_only=options.headline_only,
        limit_blocks=options.limit_blocks,
    )
    model.runner.label = label or model.loaded.name
    return model


@dataclass(slots=True, kw_only=True)
class HelperModel:
    """A model that helps to measure others. Get one from `find_helper`.

    Attributes:
        place: where its weights are; None for a preset that trains itself first.
    """

    name: str
    place: str | None
    family: type[LanguageModel]
    _model: HarnessModel | None = field(default=None, repr=False)

    def model(self, options: EvalOptions) -> HarnessModel:
        """Return the model, loaded once, on the run's device and in its dtype, under its own default settings.

        If it is not from the model store, its name ends in a digest, since several models may share a name.
        """
        if self._model is None:
            plain = dataclasses.replace(options, draws=None, headline_only=True, limit_blocks=None)
            self._model = open_model(self.name, self.place, plain)
            loaded = self._model.loaded
            if self.place and Path(self.place).is_dir() and Path(self.place).parent != home() / "models" / loaded.name:
                name = f"{loaded.name}@{loaded.info['weights_digest'][:8]}"
                self._model.loaded = dataclasses.replace(loaded, name=name)
        return self._model


def find_helper(option: str, name: str) -> HelperModel:
    """Find a model by name before any work starts.

    Raises:
        UserError: there is no such model, or it has no weights; names the option.
    """
    try:
        place = model_store.locate(name, None, ())
        if external := registry.external_model(name):
            family = external[0]
        elif place is None:
            family = registry.preset(name)[0]
        else:
            family = registry.model_family(checkpoint.read_info(Path(place))[1]["family"])
    except UserError as error:
        raise UserError(f"{option} {name}: {error}") from error
    return HelperModel(name=name, place=place, family=family)


def label(model: HarnessModel) -> str:
    """Return a helper's name inside a metric's name: `gpt2-large` for `pretrained:gpt2-large`."""
    return model.loaded.name.rpartition(":")[2]
