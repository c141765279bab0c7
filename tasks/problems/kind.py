"""Problems with numeric answers, such as GSM8K: pass@k and maj@k, next to blind guessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ltm.data.derived.held_out import HOLDOUT, REST
from ltm.errors import UserError
from ltm.progress import count
from tasks import results
from tasks.kinds import Column, Measurement, ReferenceRow, Task
from tasks.problems import chance, prompts, solver
from tasks.problems import metrics as problem_metrics
from tasks.problems.dataset import find
from tasks.problems.pass_at_k import K

if TYPE_CHECKING:
    from ltm.data.split import Split
    from ltm.harness import HarnessModel
    from ltm.result import Identity, Metric, Result
    from tasks.catalog import TaskEntry
    from tasks.options import EvalOptions
    from tasks.problems.prompts import Settings


class Problems(Task):
    """Solving the problems of a split."""

    items = "problems"
    columns = (
        Column(metric=f"pass@{K}", header=f"Pass@{K} [95%]", form=".1%", interval=True),
        Column(metric="pass@1", header="Pass@1", form=".1%"),
        Column(metric=f"maj@{K}", header=f"Maj@{K}", form=".1%"),
        Column(metric=problem_metrics.ABOVE_CHANCE, header="Above chance [95%]", form="+.1%", interval=True),
    )

    def __init__(self, entry: TaskEntry, options: EvalOptions):
        """Find the problems, and those that exemplars and chance rows are taken from.

        Raises:
            UserError: they are not there, or an option does not fit.
        """
        super().__init__(entry, options)
        self.how = prompts.settings(entry, options)
        self.splits = find(entry.corpus, entry.split, data_dir=options.data_dir, reading=options.reading)
        problems, self.train = self.splits.parsed()
        self.problems = problems[: options.limit_problems]
        if self.how.shots > len(self.train):
            raise UserError(f"--shots {self.how.shots}: {entry.corpus}/train has {count(len(self.train), 'problems')}")
        self._chance: dict[int, chance.Rows] = {}

    def identity(self, model: HarnessModel) -> Identity:
        """Identify the result by the problems, how they are asked, and the chance models."""
        return results.identity(
            self.entry,
            self.splits.asked,
            model,
            blocks=len(self.problems),
            draws=self.how.samples,
            **self.how.in_key(),
            train=self.splits.train.fingerprint[:16],
            chance=chance.chance_names(),
        )

    def measure(self, model: HarnessModel, identity: Identity) -> Measurement:
        """Ask the model every problem; chance rows are the same for all models under a seed and are made once.

        Raises:
            UserError: the model was trained on the problems.
        """
        if trained_on(self.splits.asked, model.loaded.info["training"]):
            corpus, split = self.entry.corpus, self.entry.split
            raise UserError(
                f"{model.loaded.name} was trained on {corpus}/{split}: its answers would show what it remembers. Train "
                + (f"on {corpus}/{REST}, which leaves them out" if split == HOLDOUT else "on another split")
            )
        seed = model.runner.seed
        if seed not in self._chance:
            self._chance[seed] = chance.chance_rows(self.problems, self.train, seed=seed)
        rows = self._chance[seed]
        answered = solver.Solver(model, self.entry.name, self.how).all_answers(self.problems, self.train)
        metrics = problem_metrics.metrics(answered, rows, self.how)
        return Measurement(
            metrics=metrics,
            records=problem_metrics.records(self.problems, answered, rows),
            data=results.data(self.splits.asked),
            seconds=answered.seconds,
            tokens=answered.tokens,
            complete=len(self.problems) == len(self.splits.asked.documents),
            notes=notes(metrics, answered, self.how),
        )

    @classmethod
    def reference_rows(cls, result: Result) -> Sequence[ReferenceRow]:
        """Return the chance rows."""
        rows = problem_metrics.chance_metrics({metric.name: metric for metric in result.metrics})
        return [ReferenceRow(f"chance: {name}", {f"pass@{K}": metric}) for name, metric in rows.items()]


def trained_on(asked: Split, training: Mapping[str, Any] | None) -> bool:
    """Return whether a checkpoint's record of its training names the split, or train where that has the problems."""
    if not training:
        return False
    whole = {"corpus": training.get("corpus"), "split": training.get("split")}
    parts = (training.get("data_source") or {}).get("parts") or [whole]
    having = {asked.split, "train"} if asked.split == HOLDOUT else {asked.split}
    return any(part["corpus"] == asked.corpus and part["split"] in having for part in parts)


def notes(metrics: Sequence[Metric], answered: solver.Answered, how: Settings) -> tuple[str, ...]:
    """Return the verdict against chance, and what did not fit the block."""
    value = {metric.name: metric for metric in metrics}
    name, best = max(problem_metrics.chance_metrics(value).items(), key=lambda row: row[1].value)
    gap = value[problem_metrics.ABOVE_CHANCE].ci95
    verdict = "above chance" if gap and gap.low > 0 else "not above chance"
    lines = [
        f"{verdict}: pass@{K} {value[f'pass@{K}'].value:.1%} ({how.rule}), the best blind guess, {name}, "
        f"{best.value:.1%}"
    ]
    asked = answered.asked
    dropped = [how.shots - problem.shots for problem in asked]
    for prompts_so, what in (
        (
            sum(map(bool, dropped)),
            f"lost exemplars to fit the block, {sum(dropped) / len(asked):.1f} of {how.shots} on average",
        ),
        (sum(p.new_tokens < how.tokens for p in asked), f"left room for fewer than {how.tokens} new tokens"),
        (sum(p.cut > 0 for p in asked), "had a question too long for the block, cut at its front"),
    ):
        if prompts_so:
            lines.append(f"{prompts_so} of {len(asked)} prompts {what}")
    if empty := answered.empty():
        lines.append(f"{empty} of {len(asked) * how.samples} generations came out empty, which counts as wrong")
    return tuple(lines)
