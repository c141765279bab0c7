"""Kinds of task. A kind is a class, found through the entry-point group `ltm.tasks`, that measures a model.

`tasks.evaluation` does what all kinds share: skipping existing results, provenance, and writing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ltm import registry

if TYPE_CHECKING:
    from ltm.harness import HarnessModel
    from ltm.result import Identity, Metric, Result
    from tasks.catalog import TaskEntry
    from tasks.options import EvalOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The numbers that a task measured of a model.

    Attributes:
        metrics: at least one; of each name at most one is the headline.
        records: one plain dict per item, with all that is needed to recompute the metrics or to pair models;
            None if there are more than a result may have.
        data: the result's `data` table: corpus, fingerprint, bytes, words, documents, source.
        seconds: time spent computing, over all runs that contributed.
        tokens: tokens scored or generated in that time.
        complete: False when part of the task was left out on request.
        scored: what the identity predicted (blocks, tokens, draws), as measured; any difference is an error.
        cost: overrides of the result's `cost` table, for tasks that do not score blocks independently.
        notes: what the user must know, such as how many items could not be scored; printed.
    """

    metrics: tuple[Metric, ...]
    records: Sequence[Mapping[str, Any]] | None
    data: dict[str, Any]
    seconds: float
    tokens: int
    complete: bool = True
    scored: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the summary table: which headline metric it shows, and how.

    Attributes:
        form: format specification of the value.
        interval: show the 95% interval too.
        sign: put ≤ before a bound and ~ before an estimate.
        words: labels to print instead of 0 and 1; the reservations of an audit follow the latter.
    """

    metric: str
    header: str
    form: str
    interval: bool = False
    sign: bool = False
    words: tuple[str, str] | None = None


class ReferenceRow(NamedTuple):
    """A row of the summary below the models, such as human text or blind guessing: its label, and metrics by column."""

    label: str
    metrics: Mapping[str, Metric]


class Task(ABC):
    """One task under one set of options.

    Attributes:
        items: what its items are called: blocks, problems, samples.
        columns: columns of its summary table.
        formulas: functions that recompute metrics, by name, from a result's records; `ltm-leaderboard check` uses
            them for metrics that it does not know. None from one means that the records cannot give the metric.
    """

    items: ClassVar[str]
    columns: ClassVar[Sequence[Column]]
    formulas: ClassVar[Mapping[str, Callable[[Metric, Result, Sequence[Mapping[str, Any]]], float | None]]] = {}

    def __init__(self, entry: TaskEntry, options: EvalOptions):
        """Find the data, before any model is loaded.

        Raises:
            UserError: the data are not there, or an option does not fit; says what to do.
        """
        self.entry, self.options = entry, options

    @abstractmethod
    def identity(self, model: HarnessModel) -> Identity:
        """Return the identity of the result, known before anything is measured.

        `scoring` has `blocks` (the number of items), `tokens`, and everything else that can change a number.

        Raises:
            UserError: the task cannot be put to this model.
        """

    def unfit(self, model: HarnessModel) -> str | None:
        """Return why the task is left out for this model, where that is no mistake; None if it is not."""
        return None

    @abstractmethod
    def measure(self, model: HarnessModel, identity: Identity) -> Measurement:
        """Measure the model.

        Raises:
            UserError: there is no result, and why.
        """

    @classmethod
    def reference_rows(cls, result: Result) -> Sequence[ReferenceRow]:
        """Return rows for the summary that are the same for all models of the task, such as blind guessing."""
        return ()


def kind(name: str) -> type[Task]:
    """Return the class of a kind of task.

    Raises:
        UserError: the kind is unknown; the message has the nearest known ones.
    """
    return registry.load(registry.TASKS, "kind of task", name)
