"""Models that judge what others wrote: found before any work starts, loaded once, under their own default settings."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ltm.errors import UserError

if TYPE_CHECKING:
    from ltm.api import LanguageModel
    from ltm.harness import HarnessModel


@dataclass(slots=True, kw_only=True)
class Judge:
    """A model named on the command line. Get one from `find`.

    Attributes:
        place: where its weights are; None for a preset that trains itself first.
    """

    name: str
    place: str | None
    family: type[LanguageModel]
    _model: HarnessModel | None = field(default=None, repr=False)

    def model(self, options: argparse.Namespace) -> HarnessModel:
        """The model, on the device and in the dtype of the run; settings of the judged models are not its own."""
        from tasks import opening

        if self._model is None:
            own: dict[str, object] = {"set": [], "draws": None, "headline_only": True, "limit_blocks": None}
            self._model = opening.open_model(self.name, self.place, argparse.Namespace(**{**vars(options), **own}))
        return self._model


def find(option: str, name: str) -> Judge:
    """The judge of that name.

    Raises:
        UserError: there is no such model, or it has no weights; names the option.
    """
    from ltm import checkpoint, registry
    from tasks import opening

    try:
        place = opening.locate(name, None, ())
        if source := registry.source(name):
            family = source[0]
        elif place is None:
            family = registry.preset(name)[0]
        else:
            family = registry.model_family(checkpoint.read_info(Path(place))[1]["family"])
    except UserError as error:
        raise UserError(f"{option} {name}: {error}") from error
    return Judge(name=name, place=place, family=family)


def label(model: HarnessModel) -> str:
    """The judge's name in a metric's name: `gpt2-large` for `pretrained:gpt2-large`."""
    return model.loaded.name.removeprefix("pretrained:")
