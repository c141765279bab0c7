"""Problems with a number for an answer, such as GSM8K: pass@k and maj@k beside blind guessing on the same problems."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError
from tasks import results
from tasks.kinds import Column, Measurement
from tasks.problems import prompts, solver
from tasks.problems.dataset import Problem, Problems, find
from tasks.problems.pass_at_k import K

if TYPE_CHECKING:
    from ltm.harness import HarnessModel
    from ltm.result import Metric, Result
    from tasks.catalog import TaskEntry
    from tasks.problems.prompts import Settings

ITEMS = "problems"
COLUMNS = (
    Column(metric=f"pass@{K}", header=f"Pass@{K} [95%]", form=".1%", interval=True),
    Column(metric="pass@1", header="Pass@1", form=".1%"),
    Column(metric=f"maj@{K}", header=f"Maj@{K}", form=".1%"),
    Column(metric=solver.ABOVE_CHANCE, header="Above chance [95%]", form="+.1%", interval=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The problems, how they are asked, and the chance rows once known, by seed: they are the same for all models."""

    splits: Problems
    problems: list[Problem]
    train: list[Problem]
    how: Settings
    chance: dict[int, solver.Rows] = field(default_factory=dict)


def prepare(entry: TaskEntry, options: argparse.Namespace) -> Prepared:
    """The problems of the task, and those that exemplars and chance rows come from.

    Raises:
        UserError: they are not there, or an option does not fit.
    """
    how = prompts.settings(entry, options)
    splits = find(entry.corpus, entry.split, data_dir=options.data_dir)
    problems, train = splits.parsed()
    if how.shots > len(train):
        raise UserError(f"--shots {how.shots}: {entry.corpus}/train has {len(train)} problems")
    return Prepared(splits=splits, problems=problems[: options.limit_problems], train=train, how=how)


def identity(entry: TaskEntry, prepared: Prepared, model: HarnessModel, options: argparse.Namespace) -> dict[str, Any]:
    """What a result's key is made of."""
    return results.identity(
        entry,
        prepared.splits.asked,
        model,
        blocks=len(prepared.problems),
        draws=prepared.how.samples,
        **prepared.how.in_key(),
        train=prepared.splits.train.fingerprint[:16],
        chance=solver.chance_names(),
    )


def measure(entry: TaskEntry, prepared: Prepared, model: HarnessModel, options: argparse.Namespace) -> Measurement:
    """Ask the model, and blind guessing, every problem."""
    seed = model.runner.seed
    if seed not in prepared.chance:
        prepared.chance[seed] = solver.chance_rows(prepared.problems, prepared.train, seed=seed)
    answers = solver.Solver(model, entry.name, prepared.how).all_answers(prepared.problems, prepared.train)
    chance, split = prepared.chance[seed], prepared.splits.asked
    metrics = solver.metrics(answers, chance, prepared.how)
    complete = len(prepared.problems) == len(split.documents)
    return Measurement(
        metrics=metrics,
        records=solver.records(prepared.problems, answers, chance),
        data=results.data(split),
        seconds=answers.seconds,
        tokens=answers.tokens,
        complete=complete,
        notes=notes(metrics, answers, prepared.how),
    )


def notes(metrics: Sequence[Metric], answers: solver.Answered, how: Settings) -> tuple[str, ...]:
    """The verdict against chance, and what did not fit the window."""
    value = {metric.name: metric for metric in metrics}
    name, best = max(chance_metrics(value).items(), key=lambda row: row[1].value)
    gap = value[solver.ABOVE_CHANCE].ci95
    verdict = "above chance" if gap and gap.low > 0 else "not above chance"
    said = [
        f"{verdict}: pass@{K} {value[f'pass@{K}'].value:.1%} ({how.rule}), the best blind guess, {name}, "
        f"{best.value:.1%}"
    ]
    asked = answers.asked
    dropped = [how.shots - problem.shots for problem in asked]
    for count, what in (
        (
            sum(map(bool, dropped)),
            f"lost exemplars to fit the block, {sum(dropped) / len(asked):.1f} of {how.shots} on average",
        ),
        (sum(p.new_tokens < how.tokens for p in asked), f"left room for fewer than {how.tokens} new tokens"),
        (sum(p.cut > 0 for p in asked), "had a question too long for the block, cut at its front"),
    ):
        if count:
            said.append(f"{count} of {len(asked)} prompts {what}")
    if empty := answers.empty():
        said.append(f"{empty} of {len(asked) * how.samples} generations were empty; they count as wrong")
    return tuple(said)


def chance_metrics(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """The chance rows under the rule of the headline, by the name of the chance model."""
    ending = f"_pass@{K}"
    return {
        name.removeprefix(solver.CHANCE).removesuffix(ending): metric
        for name, metric in metrics.items()
        if name.startswith(solver.CHANCE) and name.endswith(ending)
    }


def beside(result: Result) -> list[tuple[str, dict[str, Metric]]]:
    """The chance rows, for the summary."""
    rows = chance_metrics({metric.name: metric for metric in result.metrics})
    return [(f"chance: {name}", {f"pass@{K}": metric}) for name, metric in rows.items()]
