"""Find tasks and read their YAML files, without lm-eval, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ltm import registry
from ltm.data.local_files import label
from ltm.errors import UserError, did_you_mean
from ltm.files import expanded

DIRECTORY = Path(__file__).parent
"""The folder of our task files."""
PREFIX = "ltm_"
"""Full names of tasks begin with it; short names leave it out."""
FILE = "text:"
"""Prefix of a path that is given instead of a task's name."""
PUBLISHED = "published_"
"""Before the short name of a perplexity task: the same text as a family's public code scores it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEntry:
    """A task, as its YAML file describes it.

    Attributes:
        name: full name, such as `ltm_ptb`.
        version: raised when the same data would give different numbers.
        kind: name in the entry-point group `ltm.tasks`.
        corpus, split: from `dataset_kwargs`; empty if a task has none.
        path: path of the text file that the task scores instead of a corpus.
        settings: the whole YAML file, with what it includes; functions are None.
    """

    name: str
    version: float
    kind: str
    corpus: str
    split: str
    path: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def files() -> dict[str, Path]:
    """Return task files by full name: ours, and those next to a kind's module in another package.

    Raises:
        UserError: two files have the same name.
    """
    paths: dict[str, Path] = {}
    for folder in (DIRECTORY, *_folders_of_others()):
        for path in sorted(folder.glob(f"{PREFIX}*.yaml")):
            if path.stem in paths:
                raise UserError(f"two files for the task {path.stem}: {paths[path.stem]}, {path}")
            paths[path.stem] = path
    return paths


def _folders_of_others() -> list[Path]:
    modules = {point.module for point in registry.names(registry.TASKS).values()}
    others = sorted(module for module in modules if module.partition(".")[0] != __package__)
    specs = [find_spec(module) for module in others]
    return list(dict.fromkeys(Path(spec.origin).parent for spec in specs if spec is not None and spec.origin))


def names() -> list[str]:
    """Return the full names of all tasks; a task's file is named after it."""
    return sorted(files())


def resolve(wanted: Iterable[str]) -> list[str]:
    """Return full names for full or short ones, in order and without duplicates; `text:PATH` stays as it is.

    Raises:
        UserError: a name is unknown (the message has the nearest known ones), or none is given.
    """
    known = names()
    short = [name.removeprefix(PREFIX) for name in known]
    resolved = []
    for name in wanted:
        if name.startswith(FILE):
            resolved.append(name)
            continue
        full = name if name.startswith(PREFIX) else PREFIX + name
        as_published = full.startswith(PREFIX + PUBLISHED) and is_perplexity(full.removeprefix(PREFIX + PUBLISHED))
        if full not in known and not as_published:
            raise UserError(
                f"{did_you_mean('task', name, known if name.startswith(PREFIX) else short)} "
                "(for your own file: text:PATH; for tasks of lm-eval itself: lm_eval --model ltm --model_args "
                "pretrained=MODEL --tasks TASK)"
            )
        resolved.append(full)
    if not resolved:
        raise UserError(f"--tasks: expected at least one of {', '.join(short)}")
    return list(dict.fromkeys(resolved))


def is_perplexity(short: str) -> bool:
    """Return whether a task of that short name scores a split of a corpus."""
    return PREFIX + short in files() and read(PREFIX + short).kind == "perplexity"


def published(name: str) -> str:
    """The full name of a task of `resolve`, as public code scores its text. Raises UserError: it is no perplexity."""
    short = name.removeprefix(PREFIX)
    if not is_perplexity(short):
        known = ", ".join(other for full in names() if is_perplexity(other := full.removeprefix(PREFIX)))
        raise UserError(f"--protocol published is for perplexity on a corpus ({known}), found {short}")
    return f"{PREFIX}{PUBLISHED}{short}"


def read(name: str) -> TaskEntry:
    """Read the task of that full name; `text:PATH` is the perplexity of a file.

    Raises:
        UserError: the file is missing.
    """
    if name.startswith(FILE):
        path = expanded(name.removeprefix(FILE))
        full = f"text_{label(path)}"
        return TaskEntry(name=full, version=1.0, kind="perplexity", corpus=full, split="all", path=path)
    if name.startswith(PREFIX + PUBLISHED) and name not in files():
        of = read(PREFIX + name.removeprefix(PREFIX + PUBLISHED))
        return replace(of, name=name, version=1.0, kind="published")
    settings = _settings(files()[name])
    data = settings.get("dataset_kwargs", {})
    return TaskEntry(
        name=settings["task"],
        version=float(settings["metadata"]["version"]),
        kind=settings["metadata"].get("kind", "perplexity"),
        corpus=data.get("corpus", ""),
        split=data.get("split", ""),
        settings=settings,
    )


def _settings(path: Path) -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        """Reads a task's functions as None."""

    Loader.add_constructor("!function", lambda loader, node: None)
    settings = yaml.load(path.read_text(), Loader=Loader)
    include = settings.pop("include", None)
    return {**(_settings(path.parent / include) if include else {}), **settings}
