"""Models, corpora and chance models by name, through entry points of any package, loaded only when used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from ltm.api import LanguageModel, Preset

MODELS = "ltm.models"
CORPORA = "ltm.corpora"
CHANCE = "ltm.chance"
TASKS = "ltm.tasks"

FAMILY = r"[A-Za-z][A-Za-z0-9_-]+"
"""Names of families; a single letter before a colon would be a drive of Windows."""
LONGEST_NAME = 100
"""Characters of a preset's name, which folders and files are named after."""


def names(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name. Two distributions that claim one name are an error, not a race."""
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        if point.name in points and points[point.name].value != point.value:
            raise UserError(
                f"two packages offer {point.name!r} in {group}: {_origin(points[point.name])}, "
                f"{_origin(point)}; uninstall one"
            )
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
    except Exception as error:  # another package's module may fail in any way
        reason = str(error) if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
        raise UserError(f"the {kind} {name!r} cannot be imported from {_origin(known[name])}: {reason}") from error


def _origin(point: EntryPoint) -> str:
    """Where an entry point leads, and the distribution that declares it, as its users would uninstall it."""
    return point.value + (f" (package {point.dist.name})" if point.dist else "")


def model_family(name: str) -> type[LanguageModel]:
    """The class of a model family, such as `ltm` or `ar`.

    Raises:
        UserError: unknown name; its package cannot be imported; or what it offers is no family of that name, lacks
            part of the contract, or has a preset whose name is not `NAME-SIZE` or is also another family's.
    """
    cls = load(MODELS, "model family", name)
    if fault := _fault_of_class(name, cls) or _fault_of_presets(name, cls.presets):
        raise UserError(f"the model family {name!r} from {_origin(names(MODELS)[name])} cannot be used: {fault}")
    return cls


def _fault_of_class(name: str, cls: Any) -> str | None:
    """What keeps a class from being the family of that name."""
    from ltm.api import LanguageModel

    if not re.fullmatch(FAMILY, name):
        return "its name must be at least two letters, digits, '-' and '_', a letter first"
    if not (isinstance(cls, type) and issubclass(cls, LanguageModel)):
        return "expected a subclass of ltm.LanguageModel"
    if missing := [m for m in ("family", "config_class", "presets") if not hasattr(cls, m)]:
        return f"{cls.__name__} does not define {', '.join(missing)}"
    if cls.__abstractmethods__:
        return f"{cls.__name__} does not implement {', '.join(sorted(cls.__abstractmethods__))}"
    if cls.family != name:
        return f"{cls.__name__}.family is {cls.family!r}, but the entry point is called {name!r}; they must be equal"
    return None


def _fault_of_presets(name: str, presets: Any) -> str | None:
    """What is wrong with the names of a family's presets: each becomes a word of command lines and a folder."""
    from ltm.api import Preset

    if not isinstance(presets, Mapping) or not all(isinstance(preset, Preset) for preset in presets.values()):
        return f"its presets must be a table of names and Presets, found {presets!r}"
    for preset in presets:
        if not (isinstance(preset, str) and re.fullmatch(rf"{name}-[A-Za-z0-9][A-Za-z0-9._-]*", preset)):
            return f"preset {preset!r}: expected {name}-SIZE, SIZE being letters, digits, '.', '_' and '-'"
        if len(preset) > LONGEST_NAME:
            return f"preset {preset!r}: expected at most {LONGEST_NAME} characters"
        # Only a family whose name the preset begins with can have it too.
        for other in (other for other in names(MODELS) if other != name and preset.startswith(f"{other}-")):
            if preset in getattr(load(MODELS, "model family", other), "presets", ()):
                where = _origin(names(MODELS)[other])
                return f"preset {preset!r} is also one of the family {other!r} from {where}; rename either"
    return None


def external_model(name: str) -> tuple[type[LanguageModel], str] | None:
    """Split a name `FAMILY:SOURCE`, such as `pretrained:gpt2`, into family and source; None for any other name.

    Raises:
        UserError: unknown family.
    """
    family, _, where = name.partition(":")
    if not where or not re.fullmatch(FAMILY, family):
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
