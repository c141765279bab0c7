"""Models, corpora and chance models by name, through entry points of any package, loaded only when used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from ltm.api import LanguageModel, Preset

MODELS = "ltm.models"
CORPORA = "ltm.corpora"
CHANCE = "ltm.chance"
TASKS = "ltm.tasks"


def names(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name. Two distributions that claim one name are an error, not a race."""
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        if point.name in points and points[point.name].value != point.value:
            raise UserError(f"two packages offer {point.name!r} in {group}: {points[point.name].value}, {point.value}")
        points[point.name] = point
    return points


def load(group: str, kind: str, name: str) -> Any:
    """The object behind one entry point.

    Raises:
        UserError: unknown name; or the package that offers it cannot be imported.
    """
    known = names(group)
    if name not in known:
        raise did_you_mean(kind, name, known)
    try:
        return known[name].load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"the {kind} {name!r} cannot be imported from {known[name].value}: {error}") from error


def model_family(name: str) -> type[LanguageModel]:
    """The class of a model family, such as `ltm` or `ar`."""
    return load(MODELS, "model family", name)


def external_model(name: str) -> tuple[type[LanguageModel], str] | None:
    """Split a name `FAMILY:SOURCE`, such as `pretrained:gpt2`, into family and source; None for any other name.

    Raises:
        UserError: unknown family.
    """
    family, _, where = name.partition(":")
    if not where or not re.fullmatch(r"[A-Za-z][\w-]+", family):
        return None
    if family not in names(MODELS) and os.path.exists(name):
        return None
    return model_family(family), where


def preset(name: str) -> tuple[type[LanguageModel], Preset]:
    """The family class and preset behind a model name such as `ltm-tiny`.

    Raises:
        UserError: unknown name, with the nearest known ones.
    """
    for family in names(MODELS):
        if name.startswith(f"{family}-"):  # avoids importing all others
            cls = model_family(family)
            if name in cls.presets:
                return cls, cls.presets[name]
    raise did_you_mean("model", name, preset_names())


def preset_names() -> list[str]:
    """All preset names of all families; imports every family."""
    return [preset_name for family in names(MODELS) for preset_name in model_family(family).presets]


def corpus_factory(name: str) -> Callable[..., Any]:
    """The loader of an embedded corpus; see `ltm.data.corpora`."""
    return load(CORPORA, "corpus", name)
