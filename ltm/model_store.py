"""A model's name to its weights, or to the command that trains them.

A name is a preset, whose weights are in `$LTM_HOME/models`; a directory; a repository of the hub; or `FAMILY:SOURCE`,
for a family that opens models made elsewhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm import hub, registry
from ltm.config import from_dict, with_settings
from ltm.errors import UserError
from ltm.files import expanded, home
from ltm.progress import duration
from ltm.training import checkpoint as checkpoints
from ltm.training.checkpoint import MANIFEST, SCORED, step_folder, steps
from ltm.training.config import DEFAULT_CORPUS, TrainConfig, parse_budget
from ltm.untrusted.display import shown

if TYPE_CHECKING:
    from ltm.api import LanguageModel, LoadedModel


def find(name_or_path: str, checkpoint: str | None = None) -> Path:
    """The directory of a model's weights: `checkpoint`, an existing path, the model store, or a hub repository.

    Raises:
        UserError: nothing there; for a preset, with the command that trains it and its estimated cost.
    """
    if checkpoint is not None:
        return step_folder(expanded(checkpoint)).resolve()
    path = expanded(name_or_path)
    if os.path.isdir(path) and ("/" in name_or_path or (path / MANIFEST).is_file() or steps(path)):
        return step_folder(path).resolve()
    stored = home() / "models" / name_or_path
    if "/" not in name_or_path:
        if os.path.isdir(stored) and steps(stored):
            return step_folder(stored)
        raise UserError(f"{name_or_path} has no weights in {stored}. {training_advice(name_or_path)}")
    return _from_hub(name_or_path)


def _from_hub(repository: str) -> Path:
    """The files of a step folder, at the top of a hub repository."""
    if not re.fullmatch(r"\w[\w.-]{,95}/\w[\w.-]{,95}", repository):
        name = shown(repository)[1:-1]
        raise UserError(f"there is no directory {name}: expected a run of ltm-train or one of its step folders")
    try:
        return hub.fetch(repository, "model", (MANIFEST, *SCORED)).files[0].parent
    except hub.HubError as error:
        raise UserError(f"model {repository}: no such directory here, and as a hub repository: {error}") from error


def training_advice(name: str) -> str:
    """What to type to get the weights of a preset, and what that costs: for the error that says there are none."""
    import dataclasses

    import torch

    cls, preset = registry.preset(name)
    outputs = {"gpt2": 50258, "bytes": 258}.get(preset.tokenizer) or int(preset.tokenizer.rpartition("-")[2]) + 1
    with torch.device("meta"):
        model: LanguageModel = cls(dataclasses.replace(preset.config, vocab_size=outputs))
    cost = model.cost(model.block_length)
    budget = preset.training.get("budget", TrainConfig().budget)
    unit, amount = parse_budget(budget)
    corpus = DEFAULT_CORPUS if preset.trains_itself else "openwebtext --data-dir DIR"
    command = f"Train it with:\n  ltm-train {name} --corpus {corpus} --budget {budget}\n"
    if unit == "seconds":
        return f"{command}or name weights with --checkpoint"
    tokens = amount if unit == "tokens" else amount / cost.train_flops_per_token
    if cls.learns_by_counting:
        return (
            f"{command}which costs no FLOPs to speak of, since it counts: about {duration(tokens / 3e5)} at 300,000 "
            "tokens per second; or name weights with --checkpoint"
        )
    flops, paper = tokens * cost.train_flops_per_token, tokens * cost.paper_train_flops_per_token
    return (
        f"{command}which costs {flops:.2g} FLOPs as executed ({paper:.2g} in the paper's convention), about "
        f"{duration(flops / 2e14)} at 200 TFLOP/s or {duration(flops / 2e11)} at 0.2 TFLOP/s (a laptop CPU); "
        "or name weights with --checkpoint"
    )


def load(source: Any, checkpoint: Any, settings: str | Sequence[str], device: str) -> LoadedModel:
    """The model that `source` names, or is, under `settings`: `field=value`, several as a list or separated by `;`.

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
        return found[0].from_source(found[1], settings=settings, device=device)
    directory = find(str(source), None if checkpoint is None else str(checkpoint))
    return checkpoints.load(directory, device=device, settings=settings)


def locate(name: str, checkpoint: str | None, settings: Sequence[str]) -> str | None:
    """What `HarnessModel` takes for a model; None for a preset that is to be trained, or trained further, first.

    Raises:
        UserError: there is no such model, it has no weights, or a setting does not fit it.
    """
    if found := registry.external_model(name):
        if checkpoint is not None:
            raise UserError(f"--checkpoint is for presets; {name} already says where its weights are")
        found[0].check_source(found[1], settings)
        return name
    directory = _find(name, checkpoint)
    _check_settings(name, directory, settings)
    return None if directory is None else str(directory)


def trained(name: str, place: str | None) -> str:
    """What `locate` returned, or where a preset's weights are after training it, as `ltm-train NAME` does."""
    if place is not None:
        return place
    from ltm.progress import say
    from ltm.training.run import train_preset

    say(f"{name}: no finished weights yet; training it first, as ltm-train {name} would")
    return str(train_preset(name))


def _find(name: str, checkpoint: str | None) -> Path | None:
    itself = False
    if checkpoint is None and "/" not in name and not os.path.isdir(name):
        itself = registry.preset(name)[1].trains_itself
    try:
        directory = find(name, checkpoint)
    except UserError:
        if itself:
            return None
        raise
    if itself and not checkpoints.read_info(directory)[1]["training"].get("complete", True):
        return None
    return directory


def _check_settings(name: str, directory: Path | None, settings: Sequence[str]) -> None:
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
