"""Metrics of solved problems: means and bootstrap intervals over problems.

All metrics are resampled together, so the difference between a model and a chance row is paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ltm import statistics
from tasks import results
from tasks.problems.chance import Rows
from tasks.problems.dataset import Problem
from tasks.problems.extraction import LEGACY, NUMBERS, RULES
from tasks.problems.pass_at_k import K, majority_at_k, pass_at_k
from tasks.problems.solver import DIVERSITY_PROBLEMS, Answered

if TYPE_CHECKING:
    from ltm.result import Metric
    from tasks.problems.prompts import Settings

CHANCE = "chance_"
"""Prefix of the metrics of chance models."""
CONTROL = "control_"
"""Prefix of the metrics under controls."""
ABOVE_CHANCE = f"pass@{K}_above_best_chance"
"""The metric that compares a model with the best chance model."""


def metrics(answered: Answered, chance: Rows, how: Settings) -> tuple[Metric, ...]:
    """Compute all metrics; those without a rule in their name are under the headline's rule."""
    rows: dict[str, list[float]] = {}
    for rule in (how.rule, *(rule for rule in RULES if rule != how.rule)):
        rows |= {f"{name}{ending(rule, how)}": row for name, row in _rates(answered, rule).items()}
    for control, texts in answered.controls.items():
        right = answered.right(how.rule, texts)
        rows[f"{CONTROL}{control}_pass@{K}"] = [pass_at_k(how.samples, c, K) for c in right]
    for name, by_rule in chance.items():
        rows |= {f"{CHANCE}{name}_pass@{K}{ending(rule, how)}": by_rule[rule] for rule in (how.rule, LEGACY)}
    best = max((by_rule[how.rule] for by_rule in chance.values()), key=sum)
    rows[ABOVE_CHANCE] = [solved - guessed for solved, guessed in zip(rows[f"pass@{K}"], best, strict=True)]
    answers = answered.answers(how.rule)
    rows["unanswered"] = [samples.count(None) / len(samples) for samples in answers]
    rows["distinct_answers"] = [float(distinct(samples[:K])) for samples in answers]
    rows["exemplars_dropped"] = [float(how.shots - problem.shots) for problem in answered.asked]
    rows["answer_shortened"] = [float(problem.new_tokens < how.tokens) for problem in answered.asked]
    rows["question_cut"] = [float(problem.cut > 0) for problem in answered.asked]
    diversity: dict[str, list[float]] = {}
    if answered.diversity:
        # All three over the same problems, so that they can be compared.
        diversity["distinct_answers_first_problems"] = rows["distinct_answers"][:DIVERSITY_PROBLEMS]
        for source, texts in answered.diversity.items():
            varied = answered.answers(how.rule, texts)
            diversity[f"distinct_answers_by_{source}_alone"] = [float(distinct(samples)) for samples in varied]
    return (*_measured(rows), *(_measured(diversity) if diversity else ()))


def ending(rule: str, how: Settings) -> str:
    """Return the suffix of a metric's name that names its rule; empty for the headline's rule."""
    return "" if rule == how.rule else f"_legacy_{rule}" if rule == LEGACY else f"_{rule}"


def distinct(answers: Sequence[str | None]) -> int:
    """Count different answers; None is not one."""
    return len(set(answers) - {None})


def _rates(answered: Answered, rule: str) -> dict[str, list[float]]:
    samples = len(answered.texts[0])
    right = answered.right(rule)
    rates = {f"pass@{k}": [pass_at_k(samples, c, k) for c in right] for k in (K, 1)}
    if rule in NUMBERS:  # the legacy rule extracts no answers to vote for
        pairs = zip(answered.answers(rule), answered.golds, strict=True)
        rates[f"maj@{K}"] = [majority_at_k(samples, gold, K) for samples, gold in pairs]
    return rates


_COUNTS = ("distinct_answers", "exemplars_dropped")
"""Metrics, and beginnings of them, that count things per problem."""
_LOWER = ("unanswered", "exemplars_dropped", "answer_shortened", "question_cut")
"""Metrics of which less is better."""


def _measured(rows: dict[str, list[float]]) -> list[Metric]:
    rates = [i for i, name in enumerate(rows) if name != ABOVE_CHANCE and not name.startswith(_COUNTS)]
    found = dict(zip(rows, statistics.means(list(rows.values()), "problems", rates=rates), strict=True))
    above = rows.get(ABOVE_CHANCE, ())
    if len(above) > 1 and not any(above):
        # No problem has told the two apart; as many might, either way, as no problem in a sample of these excludes.
        most = statistics.rate_interval(0, len(above))[1]
        found[ABOVE_CHANCE] = found[ABOVE_CHANCE]._replace(
            ci95=(-most, most), method=f"exact over {len(above)} problems"
        )
    return [
        results.metric(
            name,
            value,
            likelihood=None,
            headline=name == f"pass@{K}",
            unit="problem",
            kind="exact",
            direction="lower" if name in _LOWER else "higher",
            n=len(rows[name]),
        )
        for name, value in found.items()
    ]


def chance_metrics(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return the chance rows under the headline's rule, by the name of the chance model."""
    ending = f"_pass@{K}"
    return {
        name.removeprefix(CHANCE).removesuffix(ending): metric
        for name, metric in metrics.items()
        if name.startswith(CHANCE) and name.endswith(ending)
    }


def records(problems: Sequence[Problem], answered: Answered, chance: Rows) -> list[dict[str, Any]]:
    """Make one record per problem: every text, its answer under every rule, and which chance models were right."""
    by_rule = {rule: answered.answers(rule) for rule in RULES}
    return [
        {
            "problem": i,
            "question": problem.question,
            "gold": answered.golds[i],
            "texts": answered.texts[i],
            "answers": {rule: answers[i] for rule, answers in by_rule.items()},
            "chance": {name: {rule: int(row[i]) for rule, row in rows.items()} for name, rows in chance.items()},
            "controls": {control: texts[i] for control, texts in answered.controls.items()},
            "diversity": {source: texts[i] for source, texts in answered.diversity.items() if i < len(texts)},
            "shots": answered.asked[i].shots,
            "prompt_tokens": len(answered.asked[i].tokens),
            "new_tokens": answered.asked[i].new_tokens,
            "question_tokens_cut": answered.asked[i].cut,
        }
        for i, problem in enumerate(problems)
    ]
