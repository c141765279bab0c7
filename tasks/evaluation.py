"""Evaluate models on tasks: find everything first, then write one result for each pair that has none yet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ltm import model_store
from ltm.errors import UserError
from ltm.files import check_writable
from ltm.progress import say
from ltm.result import Identity, Result, read_records, read_result, result_path, write_result
from tasks import catalog, models, results
from tasks.kinds import Task, kind
from tasks.options import EvalOptions
from tasks.provenance import provenance

if TYPE_CHECKING:
    from ltm.harness import HarnessModel


class Evaluation:
    """Models and tasks under one set of options, all of them found before any model is loaded.

    Args:
        models: presets, directories, hub repositories or FAMILY:SOURCE.
        tasks: short or full names, or text:PATH.
        checkpoint: weights of the only model.

    Raises:
        UserError: a model, a task or its data is missing, or an option does not fit; names every missing corpus.
    """

    def __init__(
        self, models: Sequence[str], tasks: Sequence[str], options: EvalOptions, *, checkpoint: str | None = None
    ):
        entries = [catalog.read(name) for name in catalog.resolve(tasks)]
        if checkpoint and len(models) > 1:
            raise UserError(f"--checkpoint is for one model, found {len(models)}: {', '.join(models)}")
        self.options = options
        self.tasks: list[Task] = []
        missing = []
        for entry in entries:
            try:
                self.tasks.append(kind(entry.kind)(entry, options))
            except UserError as error:
                missing.append(str(error))
        if missing:
            raise UserError("\n".join(dict.fromkeys(missing)))
        self.places = {name: model_store.locate(name, checkpoint, options.settings) for name in models}
        check_writable(options.output)

    def run(self, command: str) -> list[tuple[Task, Result]]:
        """Measure what has no result yet, and return all results.

        Args:
            command: what the user typed, for the provenance.
        """
        made = []
        for name, place in self.places.items():
            model = models.open_model(name, place, self.options)
            if model.loaded.info["training"].get("complete") is False:
                say(f"{name}: warning: its training was not finished, as its results will say")
            made += [(task, self._evaluate(model, task, command)) for task in self.tasks]
        return made

    @staticmethod
    def _done(path: Path, identity: Identity) -> tuple[Result, Path] | None:
        """The result of that identity, if it is there with its records; former keys did not contain the family."""
        former = path.with_name(f"{replace(identity, family=None).key[:12]}.json")
        for place in (path, former):
            if os.path.exists(place) and (result := read_result(place)).model["family"] == identity.family:
                try:
                    read_records(place, result)
                except UserError:
                    say(f"{place}: its records are lost or damaged: scoring again")
                    return None
                return result, place
        return None

    def _evaluate(self, model: HarnessModel, task: Task, command: str) -> Result:
        title, identity = f"{model.loaded.name} on {task.entry.name}", task.identity(model)
        path = result_path(self.options.output, model=model.loaded.name, task=task.entry.name, key=identity.key)
        if done := self._done(path, identity):
            from ltm.evaluation.code import model_code

            result, path = done
            say(f"{title}: {result.status}, nothing to do ({path})")
            code = model_code(type(model.loaded.model))
            if result.model.get("code", code) != code:
                say(f"{title}: the model's code has changed since; to score it again, delete {path}")
            return result
        tokens, items = identity.scoring["tokens"], f"{identity.scoring['blocks']:,} {task.items}"
        say(f"{title}: {f'{tokens:,} tokens in {items}' if tokens else items}")
        measurement = task.measure(model, identity)
        record = provenance(
            command,
            str(model.device),
            seconds=measurement.seconds,
            tokens=measurement.tokens,
            matmul=model.loaded.model.inference_matmul,
        )
        result = results.build(identity, measurement, model, record)
        path = write_result(result, self.options.output, records=measurement.records)
        say(f"{title}: written to {path}")
        for note in measurement.notes:
            say(f"{title}: {note}")
        if warning := results.too_good(result):
            say(f"warning: {warning}")
        return result
