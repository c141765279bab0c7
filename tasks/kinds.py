"""The kinds of task: each is a module that finds its data, says what a result's identity is, and measures.

`tasks.cli` does the rest for all alike: what is there already, provenance, writing, the summary.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from ltm.errors import did_you_mean

if TYPE_CHECKING:
    from ltm.harness import HarnessModel
    from ltm.result import Metric
    from tasks.catalog import TaskEntry

MODULES: Mapping[str, str] = {
    "perplexity": "tasks.likelihood.perplexity_kind",
    "gsm8k": "tasks.problems.kind",
    "generation": "tasks.generation.kind",
    "diagnostics": "tasks.diagnostics.kind",
    "prequential": "tasks.likelihood.prequential_kind",
    "last_word": "tasks.likelihood.last_word_kind",
    "audit": "tasks.audit.kind",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a task found out about a model.

    Attributes:
        metrics: at least one; of each name one is the headline at most.
        records: one plain dict an item, with all that is needed to compute the metrics again or to pair models.
        data: the result's table of that name: corpus, fingerprint, bytes, words, documents, source.
        seconds: of computing, over all runs that had a part in it.
        tokens: scored or generated in that time.
        complete: False when part of the task was left out on request.
        found: fields of `scoring` as they came out, such as blocks and draws; others than the identity's are an error.
        cost: fields of the result's table of that name that this task has otherwise than blocks scored by themselves.
        notes: what the user must know, such as how many items could not be scored; printed.
    """

    metrics: tuple[Metric, ...]
    records: list[dict[str, Any]]
    data: dict[str, Any]
    seconds: float
    tokens: int
    complete: bool = True
    found: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the summary: a metric of the headline, under which header and in which format it is shown.

    `words` stand for 0 and 1.
    """

    metric: str
    header: str
    form: str
    interval: bool = False
    sign: bool = False
    words: tuple[str, str] | None = None


class Kind(Protocol):
    """What the module of a kind has.

    Attributes:
        ITEMS: what its items are called: blocks, problems, samples.
        COLUMNS: of its summary.

    A module may have `beside(result)` too: labels, and metrics by name, of rows below those of the models.
    """

    ITEMS: str
    COLUMNS: Sequence[Column]

    def prepare(self, entry: TaskEntry, options: argparse.Namespace) -> Any:
        """Find the data, before any model is loaded.

        Raises:
            UserError: they are not there, or an option does not fit; says what mends it.
        """

    def identity(
        self, entry: TaskEntry, prepared: Any, model: HarnessModel, options: argparse.Namespace
    ) -> dict[str, Any]:
        """The arguments of `ltm.result.result_key`; `scoring` has everything that can change a number."""

    def measure(self, entry: TaskEntry, prepared: Any, model: HarnessModel, options: argparse.Namespace) -> Measurement:
        """Measure the model.

        Raises:
            UserError: there is no result, and why.
        """


def kind(name: str) -> Kind:
    """The module of a kind.

    Raises:
        UserError: unknown kind, with the nearest known ones.
    """
    if name not in MODULES:
        raise did_you_mean("kind of task", name, MODULES)
    return cast(Kind, import_module(MODULES[name]))
