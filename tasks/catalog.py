"""The tasks there are, read from their YAML files without lm-eval, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltm.errors import UserError, did_you_mean

DIRECTORY = Path(__file__).parent
PREFIX = "ltm_"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEntry:
    """A perplexity task: its full name, such as `ltm_ptb`, its version, and the split that it scores."""

    name: str
    version: float
    corpus: str
    split: str


def names() -> list[str]:
    """Full names of all tasks; a task's file has its name."""
    return sorted(path.stem for path in DIRECTORY.glob(f"{PREFIX}*.yaml"))


def resolve(wanted: Iterable[str]) -> list[str]:
    """Full names for full or short ones, in order, each once.

    Raises:
        UserError: unknown name, with the nearest known ones; or none at all.
    """
    known = names()
    short = [name.removeprefix(PREFIX) for name in known]
    found = []
    for name in wanted:
        full = name if name in known else PREFIX + name
        if full not in known:
            raise UserError(
                f"{did_you_mean('task', name, known if name.startswith(PREFIX) else short)} "
                "(tasks of lm-eval itself: lm_eval --model ltm --model_args pretrained=MODEL --tasks TASK)"
            )
        found.append(full)
    if not found:
        raise UserError(f"--tasks: expected at least one of {', '.join(short)}")
    return list(dict.fromkeys(found))


def read(name: str) -> TaskEntry:
    """The task of that full name."""
    settings = _settings(DIRECTORY / f"{name}.yaml")
    return TaskEntry(
        name=settings["task"], version=float(settings["metadata"]["version"]), **settings["dataset_kwargs"]
    )


def _settings(path: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):
        """Leaves the functions of a task alone."""

    Loader.add_constructor("!function", lambda loader, node: None)
    settings = yaml.load(path.read_text(), Loader=Loader)
    include = settings.pop("include", None)
    return {**(_settings(path.parent / include) if include else {}), **settings}
