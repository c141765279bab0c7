"""Evaluate models on tasks: find everything first, then write one result for each pair that has none yet."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ltm import model_store
from ltm.data import corpora
from ltm.errors import UserError
from ltm.evaluation.labels import model_labels
from ltm.files import check_writable
from ltm.processes import from_lead
from ltm.progress import count, say
from ltm.result import Identity, Result, check_records, read_result, result_path, write_result
from tasks import catalog, models, results
from tasks.kinds import Task, kind
from tasks.options import EvalOptions
from tasks.provenance import provenance

if TYPE_CHECKING:
    from ltm.harness import HarnessModel

Given = TypeVar("Given")
Found = TypeVar("Found")


class Evaluated(NamedTuple):
    """A result, its task, and what the model is called among those of the run."""

    task: Task
    result: Result
    label: str


class Evaluation:
    """Models and tasks under one set of options, all of them found before any model is loaded.

    Args:
        models: presets, directories, hub repositories or FAMILY:SOURCE.
        tasks: short or full names, or text:PATH.
        checkpoint: weights of the only model.

    Raises:
        UserError: a model, a task or its data is missing, or an option does not fit; names all that is missing.
    """

    def __init__(
        self, models: Sequence[str], tasks: Sequence[str], options: EvalOptions, *, checkpoint: str | None = None
    ):
        names = catalog.resolve(tasks)
        if options.protocol == "published":
            names += [catalog.published(name) for name in names if not name.startswith(catalog.FILE)]
        entries = [catalog.read(name) for name in names]
        if checkpoint and len(models) > 1:
            raise UserError(f"--checkpoint is for one model, found {len(models)}: {', '.join(models)}")
        self.options = options
        self.tasks, wrong_tasks = _each(entries, lambda entry: kind(entry.kind)(entry, options))
        located, wrong_models = _each(models, lambda name: model_store.located(name, checkpoint))
        if not wrong_models:
            self.settings = model_store.settings_of(located, options.settings)
            pairs = zip(located, self.settings, strict=True)
            _, wrong_models = _each(pairs, lambda pair: model_store.check_settings(*pair))
            if wrong_models and options.settings and len(located) > 1:
                first = f"{located[0].info['family']}.FIELD=VALUE"
                wrong_models.append(f"a setting for some of the models only has their family or name first: {first}")
        if wrong_tasks or wrong_models:
            hint = _at_hand(entries, located[0].name if located else model_store.self_training(models[0]), options)
            raise UserError("\n".join((*([hint] if hint else []), *wrong_tasks, *wrong_models)))
        self.models = located
        infos = [{**model.info, "place": _shown_place(model)} for model in located]
        self.labels = model_labels([info["name"] for info in infos], infos)
        check_writable(options.output)

    def run(self, command: str) -> list[Evaluated]:
        """Measure what has no result yet, and return all results.

        Args:
            command: what the user typed, for the provenance.
        """
        made = []
        for found, settings, label in zip(self.models, self.settings, self.labels, strict=True):
            model = models.open_model(found.name, found.place, self.options, settings=settings, label=label)
            if model.loaded.info["training"].get("complete") is False:
                say(f"{label}: warning: its training was not finished, as its results will say")
            for task in self.tasks:
                if reason := task.unfit(model):
                    say(f"{label} on {task.entry.name}: left out: {reason}")
                else:
                    made.append(Evaluated(task, self._evaluate(model, task, command), label))
        return made

    @staticmethod
    def _done(path: Path, identity: Identity) -> tuple[Result, Path] | None:
        """The result of that identity, if it is there with its records; former keys did not contain the family."""
        former = path.with_name(f"{replace(identity, family=None).key[:12]}.json")
        for place in (path, former):
            if os.path.exists(place) and (result := read_result(place)).model["family"] == identity.family:
                try:
                    check_records(place, result)
                except UserError:
                    say(f"{place}: its records are lost or damaged: scoring again")
                    return None
                return result, place
        return None

    def _written(
        self, path: Path, identity: Identity, result: Result, records: Sequence[Mapping[str, Any]] | None
    ) -> tuple[Result, Path]:
        """Write a result, unless another command has done so meanwhile; return the one that is there."""
        if done := self._done(path, identity):
            return done
        return result, write_result(result, self.options.output, records=records)

    def _evaluate(self, model: HarnessModel, task: Task, command: str) -> Result:
        title, identity = f"{model.runner.label} on {task.entry.name}", task.identity(model)
        path = result_path(self.options.output, model=model.loaded.name, task=task.entry.name, key=identity.key)
        if found := from_lead(lambda: self._done(path, identity)):
            from ltm.evaluation.code import model_code

            result, path = found
            say(f"{title}: {result.status}, nothing to do ({path})")
            code = model_code(type(model.loaded.model))
            if result.model.get("code", code) != code:
                say(f"{title}: the model's code has changed since; to score it again, delete {path}")
            return result
        tokens, items = identity.scoring["tokens"], count(identity.scoring["blocks"], task.items)
        say(f"{title}: {count(tokens, 'tokens') + ' in ' if tokens else ''}{items}")
        measurement = task.measure(model, identity)
        record = provenance(
            command,
            str(model.device),
            seconds=measurement.seconds,
            tokens=measurement.tokens,
            matmul=model.loaded.model.inference_matmul,
        )
        result = results.build(identity, measurement, model, record)
        own = result.provenance
        result, path = from_lead(lambda: self._written(path, identity, result, measurement.records))
        say(f"{title}: written {'' if result.provenance == own else 'meanwhile by another command '}to {path}")
        for note in measurement.notes:
            say(f"{title}: {note}")
        if warning := results.too_good(result):
            say(f"warning: {warning}")
        return result


def _each(given: Iterable[Given], find: Callable[[Given], Found]) -> tuple[list[Found], list[str]]:
    """Return what is found of each thing given, and what is wrong with the others, each complaint once."""
    found, wrong = [], []
    for one in given:
        try:
            found.append(find(one))
        except UserError as error:
            wrong.append(str(error))
    return found, list(dict.fromkeys(wrong))


def _at_hand(entries: Sequence[catalog.TaskEntry], model: str | None, options: EvalOptions) -> str | None:
    """Return what is missing in a line, and a command that gives a number without it; None if no data are missing."""
    named = [entry for entry in entries if entry.path is None and entry.corpus]
    try:
        missing = [one for one in named if not corpora.at_hand(one.corpus, one.split, data_dir=options.data_dir)]
    except UserError:  # of the directory itself, which the tasks have complained of
        return None
    if not missing or model is None:
        return None
    names = ", ".join(f"{entry.corpus}/{entry.split}" for entry in missing)
    return (
        f"no data here for {names}. A number with what is here:\n"
        f"  ltm-eval --model {shlex.quote(model)} --tasks pydocs\n"
        "What is missing, and where to get it:"
    )


def _shown_place(model: model_store.Located) -> str | None:
    """Where a model is, as far as it was said: a path or repository as typed."""
    return model.name.partition(":")[2] or model.name
