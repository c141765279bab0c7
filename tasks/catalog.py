"""Find tasks and read their YAML files, without lm-eval, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltm import registry
from ltm.errors import UserError, did_you_mean

DIRECTORY = Path(__file__).parent
PREFIX = "ltm_"
FILE = "text:"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEntry:
    """A task, as its YAML file describes it.

    Attributes:
        name: the full one, such as `ltm_ptb`.
        version: grows when the same data would give other numbers.
        kind: name in the entry-point group `ltm.tasks`.
        corpus, split: of `dataset_kwargs`; empty where a task has none.
        path: of the one text file that the task scores instead of a corpus.
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
    """Task files by full name: ours, and those next to the module of a kind that another package offers.

    Raises:
        UserError: two files have one name.
    """
    found: dict[str, Path] = {}
    for folder in (DIRECTORY, *_folders_of_others()):
        for path in sorted(folder.glob(f"{PREFIX}*.yaml")):
            if path.stem in found:
                raise UserError(f"two files for the task {path.stem}: {found[path.stem]}, {path}")
            found[path.stem] = path
    return found


def _folders_of_others() -> list[Path]:
    from importlib.util import find_spec

    modules = {point.module for point in registry.names(registry.TASKS).values()}
    others = sorted(module for module in modules if module.partition(".")[0] != __package__)
    specs = [find_spec(module) for module in others]
    return list(dict.fromkeys(Path(spec.origin).parent for spec in specs if spec is not None and spec.origin))


def names() -> list[str]:
    """Full names of all tasks; a task's file has its name."""
    return sorted(files())


def resolve(wanted: Iterable[str]) -> list[str]:
    """Full names for full or short ones, in order, each once; `text:PATH` stays as it is.

    Raises:
        UserError: unknown name, with the nearest known ones; or none at all.
    """
    known = names()
    short = [name.removeprefix(PREFIX) for name in known]
    found = []
    for name in wanted:
        if name.startswith(FILE):
            found.append(name)
            continue
        full = name if name in known else PREFIX + name
        if full not in known:
            raise UserError(
                f"{did_you_mean('task', name, known if name.startswith(PREFIX) else short)} "
                "(a file of yours: text:PATH; tasks of lm-eval itself: lm_eval --model ltm --model_args "
                "pretrained=MODEL --tasks TASK)"
            )
        found.append(full)
    if not found:
        raise UserError(f"--tasks: expected at least one of {', '.join(short)}")
    return list(dict.fromkeys(found))


def read(name: str) -> TaskEntry:
    """The task of that full name, or the perplexity of the file of `text:PATH`.

    Raises:
        UserError: that file is not there, or is no text file.
    """
    if name.startswith(FILE):
        from ltm.data.local_files import stem

        path = Path(name.removeprefix(FILE)).expanduser()
        named = f"text_{stem(path)}"
        return TaskEntry(name=named, version=1.0, kind="perplexity", corpus=named, split="all", path=path)
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
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):
        """Leaves the functions of a task alone."""

    Loader.add_constructor("!function", lambda loader, node: None)
    settings = yaml.load(path.read_text(), Loader=Loader)
    include = settings.pop("include", None)
    return {**(_settings(path.parent / include) if include else {}), **settings}
