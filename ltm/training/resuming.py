"""What a finished or interrupted run may be gone on with: the same command, or a larger budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm.config import leaves, to_dict, without_later_settings
from ltm.errors import UserError, first_line
from ltm.progress import count
from ltm.training.config import TrainConfig, parse_budget
from ltm.untrusted.display import bare, shown

if TYPE_CHECKING:
    from ltm.api import LanguageModel

NO_EFFECT = ("checkpoint_seconds", "data_source")
"""Settings that may differ when a run is resumed: the weights do not depend on them."""


def recorded_recipe(directory: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of the checkpoint in `directory`. Raises UserError if there is none."""
    recipe = info["training"].get("recipe")
    if recipe is None:
        raise UserError(f"{directory} does not say how it was trained. Add --fresh to replace it")
    return dict(recipe)


def grown(info: Mapping[str, Any], config: TrainConfig, total: int | None) -> bool:
    """True if the run is finished and the budget, of `total` updates or in seconds, is more than it has had."""
    training = info["training"]
    if not training.get("complete") or (training.get("recipe") or {}).get("budget") == config.budget:
        return False
    return parse_budget(config.budget)[1] > training["seconds"] if total is None else total > training["steps"]


def extended(directory: Path, info: Mapping[str, Any], config: TrainConfig, *, extend: bool) -> str:
    """What the recipe says of a finished run that goes on. Raises UserError unless that was asked for."""
    training = info["training"]
    budget = training["recipe"]["budget"]
    if not extend:
        raise UserError(
            f"{directory} holds another run: its budget is {budget!r}, this command's {config.budget!r}, and it is "
            "finished: its learning rate has fallen to the end, where that of the larger budget would still be high. "
            "Add --extend to go on from it all the same, with the optimiser anew and the learning rate of the larger "
            "budget from here on, which its record will say; --fresh to replace it; or --output to write elsewhere"
        )
    earlier = training["recipe"].get("extended")
    return f"{f'{earlier}, then ' if earlier else ''}{budget} ({count(training['steps'], 'updates')})"


def too_large(config: TrainConfig, step: int, error: BaseException) -> UserError:
    """What to say when memory does not hold an update: the settings that make the same one in less."""
    smaller = "Try "
    if config.batch % 2 == 0:
        halves = f"--set training.batch={config.batch // 2} --set training.accumulation={2 * config.accumulation}"
        smaller = f"{halves} makes the same updates of half as many at a time, and goes on from what is saved; or try "
    return UserError(
        f"out of memory in step {step}, with {count(config.batch, 'sequences')} at a time: {first_line(error)}. "
        f"{smaller}more processes, another --device, or a smaller model"
    )


def refuse_other_run(
    directory: Path, info: Mapping[str, Any], model: LanguageModel, recipe: Mapping[str, Any], but: Sequence[str] = ()
) -> None:
    """Raise UserError unless the checkpoint in `directory` was made with exactly this model config and recipe.

    Args:
        but: fields of the recipe that may differ.
    """
    recorded = {k: v for k, v in recorded_recipe(directory, info).items() if k not in NO_EFFECT}
    theirs = leaves({**recorded, "model": without_later_settings(info["config"])})
    ours = leaves({**recipe, "model": without_later_settings(to_dict(model.config))})
    if (size := _sequences_per_update(ours)) is not None and size == _sequences_per_update(theirs):
        # In other parts it is the same update, but for the rounding of sums.
        but = (*but, "batch", "accumulation")
    for key in sorted(theirs.keys() | ours.keys()):
        if key == "extended" and key not in but and key in theirs and key not in ours:
            raise UserError(
                f"{directory} holds a run that was extended from {theirs[key]}; add --extend to go on with it, --fresh "
                "to replace it, or --output to write elsewhere"
            )
        if theirs.get(key) != ours.get(key) and key not in but:
            raise UserError(
                f"{directory} holds another run: its {bare(key)} is {shown(theirs.get(key))}, this command's "
                f"{shown(ours.get(key))}. Add --fresh to replace it, or --output to write elsewhere"
            )


def _sequences_per_update(recipe: Mapping[str, Any]) -> int | None:
    batch, accumulation = recipe.get("batch"), recipe.get("accumulation")
    return batch * accumulation if isinstance(batch, int) and isinstance(accumulation, int) else None
