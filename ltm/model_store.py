"""A model's name to its weights, or to the command that trains them.

A name is a preset, whose weights are in `$LTM_HOME/models`; a directory; a repository of the hub; or `FAMILY:SOURCE`,
for a family that opens models made elsewhere.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm import hub, registry
from ltm.config import from_dict, to_dict, with_settings
from ltm.devices import flops_per_second
from ltm.errors import UserError, did_you_mean
from ltm.files import expanded, home
from ltm.progress import duration
from ltm.training import checkpoint as checkpoints
from ltm.training.checkpoint import HUB_NAMES, MANIFEST, SCORED, step_folder, steps
from ltm.training.config import DEFAULT_CORPUS, TrainConfig, parse_budget
from ltm.untrusted.display import bare, shown

if TYPE_CHECKING:
    from ltm.api import Cost, LanguageModel, LoadedModel, Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A model that was found, before it is opened.

    Attributes:
        name: as it was asked for.
        place: what `HarnessModel` takes; None for a preset that is to be trained, or trained further, first.
        info: `name` and `family`; of our checkpoints all of `model.json`; of a preset without weights its `config`.
    """

    name: str
    place: str | None
    info: Mapping[str, Any]


def find(name_or_path: str, checkpoint: str | None = None) -> Path:
    """The directory of a model's weights: `checkpoint`, an existing path, the model store, or a hub repository.

    Raises:
        UserError: nothing there; for a preset, with the command that trains it and its estimated cost.
    """
    path = expanded(name_or_path if checkpoint is None else checkpoint)
    there = os.path.isdir(path)  # unlike Path.is_dir, false for a name that no file system can have
    ours = there and ((path / MANIFEST).is_file() or bool(steps(path)))
    if there and not ours and (path / "config.json").is_file():
        raise UserError(
            f"{path} is no run of ltm-train, but has a config.json, as models of transformers have; did you mean "
            f"{_external(str(path))}?"
        )
    if checkpoint is not None:
        return step_folder(path).resolve()
    if ours or (there and "/" in name_or_path):
        return step_folder(path).resolve()
    if "/" in name_or_path:
        return _from_hub(name_or_path)
    stored = home() / "models" / name_or_path
    if os.path.isdir(stored) and steps(stored):
        return step_folder(stored)
    _preset(name_or_path)
    raise UserError(
        f"{name_or_path} has no weights in {stored}. {_quicker(name_or_path)}{training_advice(name_or_path)}"
    )


def _preset(name: str) -> tuple[type[LanguageModel], Preset]:
    """The preset of that name; the error for an unknown one knows what public models are called."""
    try:
        return registry.preset(name)
    except UserError as error:
        if public := difflib.get_close_matches(name.lower(), hub.PUBLIC, n=1, cutoff=0.85):
            raise UserError(f"unknown model {shown(name)}; did you mean {_external(public[0])}?") from error
        raise UserError(
            f"{error} (models of transformers: {_external('NAME')}, a hub repository or a directory)"
        ) from None


def _external(source: str) -> str:
    return f"pretrained:{source}"


def _from_hub(repository: str) -> Path:
    """The files of a step folder, at the top of a hub repository."""
    if not hub.is_repository(repository):
        name = bare(repository)
        raise UserError(f"there is no directory {name}: expected a run of ltm-train or one of its step folders")
    errors = []
    for files in (HUB_NAMES.values(), SCORED):
        try:
            return hub.fetch(repository, "model", (MANIFEST, *files)).files[0].parent
        except hub.HubError as error:
            errors.append(error)
    raise UserError(
        f"model {repository}: no such directory here, and as a hub repository: {errors[0]}. If it "
        f"holds a model of transformers, did you mean {_external(repository)}?"
    )


def _quicker(name: str) -> str:
    """Faster ways to a number than training a preset: public weights where they can be had, and a smaller preset."""
    cls, preset = registry.preset(name)
    ways = []
    public = hub.cached(hub.PUBLIC["gpt2"], "model", ("config.json",)) or hub.reachable()
    if preset.tokenizer in hub.PUBLIC and public and "pretrained" in registry.names(registry.MODELS):
        ways.append(f"  --model {_external(preset.tokenizer)}: public weights of another model, over the same tokens")
    if (smaller := self_training(name)) and smaller != name:
        seconds = _training_cost(cls, cls.presets[smaller])[1]
        time = "" if seconds is None else f", in about {duration(seconds)} here"
        ways.append(f"  --model {smaller}: trains itself on first use, on text that comes with Python{time}")
    return "".join(f"{line}\n" for line in ("Sooner to a number:", *ways)) if ways else ""


def self_training(name: str) -> str | None:
    """The first preset of the family of `name` that trains itself; of the LTM's for a name of no family."""
    families = [family for family in registry.names(registry.MODELS) if name.startswith(f"{family}-")]
    for family in families or ["ltm"]:
        for preset_name, preset in registry.model_family(family).presets.items():
            if preset.trains_itself:
                return preset_name
    return None


def _training_cost(cls: type[LanguageModel], preset: Preset) -> tuple[tuple[float, Cost] | None, float | None]:
    """Tokens of a preset's budget with the cost of each, and seconds of matrix products here; None where unknown."""
    import dataclasses

    import torch

    outputs = {"gpt2": 50258, "bytes": 258}.get(preset.tokenizer) or int(preset.tokenizer.rpartition("-")[2]) + 1
    with torch.device("meta"):
        model: LanguageModel = cls(dataclasses.replace(preset.config, vocab_size=outputs))
    cost = model.cost(model.block_length)
    unit, amount = parse_budget(preset.training.get("budget", TrainConfig().budget))
    if unit == "seconds":
        return None, amount
    tokens = amount if unit == "tokens" else amount / cost.train_flops_per_token
    if cls.learns_by_counting:
        return (tokens, cost), None
    return (tokens, cost), tokens * cost.train_flops_per_token / flops_per_second(_width(model))


def _width(model: LanguageModel) -> int:
    from ltm.nn.transformer import Stack

    return next((module.config.width for module in model.modules() if isinstance(module, Stack)), 512)


def training_advice(name: str) -> str:
    """What to type to get the weights of a preset, and what that costs: for the error that says there are none.

    The time is that of the matrix products alone, at the rate that this machine has just shown.
    """
    cls, preset = registry.preset(name)
    budget = preset.training.get("budget", TrainConfig().budget)
    corpus = DEFAULT_CORPUS if preset.trains_itself else "openwebtext --data-dir DIR"
    command = f"Train it with:\n  ltm-train {name} --corpus {corpus} --budget {budget}\n"
    needed, seconds = _training_cost(cls, preset)
    if needed is None:
        return f"{command}or name weights with --checkpoint"
    tokens, cost = needed
    if seconds is None:
        return f"{command}which costs no FLOPs to speak of, since it counts; or name weights with --checkpoint"
    flops, paper = tokens * cost.train_flops_per_token, tokens * cost.paper_train_flops_per_token
    return (
        f"{command}which costs {flops:.2g} FLOPs as executed ({paper:.2g} in the paper's convention): about "
        f"{duration(seconds)} at the {flops / seconds / 1e12:.2g} TFLOP/s that matrix products reach on this machine, "
        f"as just measured, and {duration(flops / 2e14)} at the 200 TFLOP/s of a large GPU; or name weights with "
        "--checkpoint"
    )


def load(
    source: Any, checkpoint: Any, settings: str | Sequence[str], device: str, *, dtype: str = "float32"
) -> LoadedModel:
    """The model that `source` names, or is, under `settings`: `field=value`, several as a list or separated by `;`.

    Args:
        dtype: what the model will be cast to; one made elsewhere may be loaded in it.

    Raises:
        UserError: there is no such model, it has no weights, or a setting does not fit it.
    """
    from ltm.api import LoadedModel

    settings = [s for s in settings.split(";") if s] if isinstance(settings, str) else list(settings)
    if isinstance(source, LoadedModel):
        if settings or checkpoint is not None:
            raise UserError("settings and checkpoint are for models loaded by name or path")
        return source
    if found := registry.external_model(str(source)):
        if checkpoint is not None:
            raise UserError(f"checkpoint is for presets; {source} already says where its weights are")
        if own := _own_checkpoint(*found):
            return checkpoints.load(own, device=device, settings=settings)
        # A family of another package may not know of dtypes, which only spare memory.
        asked = {"dtype": dtype} if "dtype" in inspect.signature(found[0].from_source).parameters else {}
        return found[0].from_source(found[1], settings=settings, device=device, **asked)
    directory = find(str(source), None if checkpoint is None else str(checkpoint))
    return checkpoints.load(directory, device=device, settings=settings)


def locate(name: str, checkpoint: str | None, settings: Sequence[str]) -> str | None:
    """What `HarnessModel` takes for a model; None for a preset that is to be trained, or trained further, first.

    Raises:
        UserError: there is no such model, it has no weights, or a setting does not fit it.
    """
    model = located(name, checkpoint)
    check_settings(model, settings)
    return model.place


def located(name: str, checkpoint: str | None) -> Located:
    """Find a model; whether a model made elsewhere can be opened is left to `check_settings`.

    Raises:
        UserError: there is no such model, or it has no weights.
    """
    if found := registry.external_model(name):
        if checkpoint is not None:
            raise UserError(f"--checkpoint is for presets; {name} already says where its weights are")
        if own := _own_checkpoint(*found):
            return Located(name=name, place=str(own), info=checkpoints.read_info(own)[1])
        source = expanded(found[1])
        called = f"{found[0].family}:{source.resolve().name}" if os.path.isdir(source) else name
        return Located(name=name, place=name, info={"name": called, "family": found[0].family})
    to_train = None
    if checkpoint is None and "/" not in name and not os.path.isdir(name):
        cls, preset = _preset(name)
        if preset.trains_itself:
            known = {"name": name, "family": cls.family, "config": to_dict(preset.config)}
            to_train = Located(name=name, place=None, info=known)
            if not steps(home() / "models" / name):
                return to_train
    directory = find(name, checkpoint)
    info = checkpoints.read_info(directory)[1]
    if to_train and not info["training"].get("complete", True):
        return to_train
    return Located(name=name, place=str(directory), info=info)


def _own_checkpoint(cls: type[LanguageModel], source: str) -> Path | None:
    """The step folder of `FAMILY:DIRECTORY`, if there is a checkpoint of ours in the directory.

    Raises:
        UserError: it is of another family.
    """
    path = expanded(source)
    if not os.path.isdir(path) or not ((path / MANIFEST).is_file() or steps(path)):
        return None
    folder = step_folder(path).resolve()
    if (family := checkpoints.read_info(folder)[1]["family"]) != cls.family:
        name = bare(source)
        raise UserError(
            f"{cls.family}:{name} holds a model of the family {bare(family)}; name it {bare(family)}:{name}"
        )
    return folder


def check_settings(model: Located, settings: Sequence[str]) -> None:
    """Raise UserError unless the settings fit the model; of a model made elsewhere, unless it can be opened."""
    found = registry.external_model(model.name)
    if found and "config" not in model.info:
        found[0].check_source(found[1], settings)
    elif settings:
        config: Any = from_dict(registry.model_family(model.info["family"]).config_class, model.info["config"])
        try:
            with_settings(config, settings)
        except UserError as error:
            raise UserError(f"{model.name}: {error}") from error


def settings_of(models: Sequence[Located], settings: Iterable[str]) -> list[list[str]]:
    """Return the settings of each model of a run, as plain `field=value`.

    A setting after a family or a model and a dot, `ltm.posterior.steps=16`, is for these alone. Any other is for all
    models, and must fit all of them.

    Raises:
        UserError: what is before the dot is a family of no model here, or looks like a misspelt family or model.
    """
    own = [{model.name, model.info["name"], model.info["family"]} for model in models]
    everyone = set().union(*own)
    classes = [registry.model_family(model.info["family"]).config_class for model in models]
    known = {field.name for cls in classes for field in fields(cls)}
    given: list[list[str]] = [[] for _ in models]
    for setting in settings:
        path = setting.partition("=")[0]
        qualifier = max((name for name in everyone if path.startswith(f"{name}.")), key=len, default=None)
        first, dot, _ = path.partition(".")
        if qualifier is None and dot and first not in known:
            here = ", ".join(sorted(everyone))
            if first in registry.names(registry.MODELS):
                raise UserError(
                    f"--set {setting}: no model here is of the family {first}; before a setting may be: {here}"
                )
            if difflib.get_close_matches(first, everyone) and not difflib.get_close_matches(first, known, cutoff=0.8):
                raise did_you_mean("model or family before a setting", first, everyone)
        for names, mine in zip(own, given, strict=True):
            if qualifier is None:
                mine.append(setting)
            elif qualifier in names:
                mine.append(setting.removeprefix(f"{qualifier}."))
    return given


def trained(name: str, place: str | None) -> str:
    """What `locate` returned, or where a preset's weights are after training it, as `ltm-train NAME` does."""
    if place is not None:
        return place
    from ltm.processes import from_lead
    from ltm.progress import say
    from ltm.training.run import train_preset

    say(f"{name}: no finished weights yet; training it first, as ltm-train {name} would")
    return from_lead(lambda: str(train_preset(name, wait=True)))
