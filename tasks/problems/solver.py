"""What a model answers to problems, what blind guessing gets on them through the same extraction, and the metrics.

Every rate is a mean over problems with a bootstrap interval over problems, all of them resampled together, so that
the difference between a model and a chance row is paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ltm import registry
from tasks import results
from tasks.problems import prompts as asking
from tasks.problems.dataset import Problem
from tasks.problems.extraction import LEGACY, NUMBERS, RULES, answer, gold_answer
from tasks.problems.pass_at_k import K, majority_at_k, pass_at_k
from tasks.problems.prompts import Asked, Settings

if TYPE_CHECKING:
    from ltm.evaluation.rows import Prompt
    from ltm.harness import HarnessModel
    from ltm.result import Metric

CHANCE, CONTROL = "chance_", "control_"
ABOVE_CHANCE = f"pass@{K}_above_best_chance"
DIVERSITY_PROBLEMS = 100
"""How many of the first problems the two partial diversities of a latent model are measured on."""

Texts = list[list[str]]
"""Of each problem, of each sample."""

Rows = dict[str, dict[str, list[float]]]
"""By chance model and rule, for each problem: 1 where one of K generations is right, else 0."""


@dataclass(slots=True, kw_only=True)
class Answered:
    """What a model said.

    Attributes:
        golds: the right answers.
        asked: the prompts, without a control.
        texts: up to the first stop string.
        controls: the texts under each control.
        diversity: the texts of a latent model whose samples differ by `latents` or `tokens` alone.
        tokens, seconds: generated in all, and how long that took.
    """

    golds: list[str]
    asked: list[Asked] = field(default_factory=list)
    texts: Texts = field(default_factory=list)
    controls: dict[str, Texts] = field(default_factory=dict)
    diversity: dict[str, Texts] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0

    def answers(self, rule: str, texts: Texts | None = None) -> list[list[str | None]]:
        """The answers of all samples under a rule."""
        texts = self.texts if texts is None else texts
        golds = self.golds[: len(texts)]
        return [[answer(rule, text, gold) for text in own] for own, gold in zip(texts, golds, strict=True)]

    def right(self, rule: str, texts: Texts | None = None) -> list[int]:
        """How many samples of each problem are right."""
        found = self.answers(rule, texts)
        return [sum(said == gold for said in own) for own, gold in zip(found, self.golds, strict=True)]

    def empty(self) -> int:
        """Generations without any text."""
        return sum(not text.strip() for own in self.texts for text in own)


class Solver:
    """Asks one model under one task's name, on which its noise depends."""

    def __init__(self, model: HarnessModel, task: str, how: Settings):
        self.model, self.task, self.how = model, task, how

    def all_answers(self, problems: Sequence[Problem], train: Sequence[Problem]) -> Answered:
        """The samples of each problem, under each control too, and what tells a latent model's diversity."""
        from ltm.latent.base import LatentModel

        how, tokenizer = self.how, self.model.loaded.tokenizer
        found = Answered(golds=[gold_answer(problem.answer) for problem in problems])

        def ask(control: str | None = None) -> list[Asked]:
            block_length = self.model.block_length
            return asking.ask(problems, train, how, tokenizer, block_length=block_length, control=control)

        def texts(asked: Sequence[Asked], samples: int, **options: Any) -> Texts:
            prompts = asking.prompts(asked, how, samples=samples, eos_id=tokenizer.eos_id, **options)
            return self._texts(prompts, samples, found)

        found.asked = ask()
        found.texts = texts(found.asked, how.samples)
        for control in how.controls:
            found.controls[control] = texts(ask(control), how.samples, name=control)
        if isinstance(self.model.loaded.model, LatentModel):
            few = found.asked[:DIVERSITY_PROBLEMS]
            found.diversity["latents"] = texts(few, K, name="greedy", greedy=True)
            found.diversity["tokens"] = texts(few, K, name="fixed latents", fixed_latents=True)
        return found

    def _texts(self, prompts: Sequence[Prompt], samples: int, found: Answered) -> Texts:
        texts = []
        for record in self.model.runner.generations(self.task, prompts):
            found.tokens += len(record["tokens"])
            found.seconds += record["seconds"]
            texts.append(cut(self.model.loaded.tokenizer.decode(record["tokens"]), self.how.stop))
        return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def cut(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop strings."""
    ends = [at for string in stop if (at := text.find(string)) >= 0]
    return text[: min(ends)] if ends else text


def chance_names() -> list[str]:
    """The chance models there are, of all packages installed."""
    return sorted(registry.names(registry.CHANCE))


def chance_rows(problems: Sequence[Problem], train: Sequence[Problem], *, seed: int) -> Rows:
    """Ask every chance model for K generations a problem: their best, since some say each of K answers once."""
    import torch

    from ltm.rng import seed_of

    questions, answers = [p.question for p in train], [p.answer for p in train]
    rows: Rows = {}
    for name in chance_names():
        model = registry.load(registry.CHANCE, "chance model", name)().fit(questions, answers)
        rows[name] = {rule: [] for rule in RULES}
        for number, problem in enumerate(problems):
            generator = torch.Generator().manual_seed(seed_of(seed, "chance", name, number))
            texts, gold = model.answers(problem.question, K, generator), gold_answer(problem.answer)
            for rule in RULES:
                right = any(answer(rule, text, gold) == gold for text in texts)
                rows[name][rule].append(float(right))
    return rows


def metrics(found: Answered, chance: Rows, how: Settings) -> tuple[Metric, ...]:
    """All metrics. Those without a rule in their name are of the headline's rule."""
    rows: dict[str, list[float]] = {}
    for rule in (how.rule, *(rule for rule in RULES if rule != how.rule)):
        rows |= {f"{name}{ending(rule, how)}": row for name, row in _rates(found, rule).items()}
    for control, texts in found.controls.items():
        right = found.right(how.rule, texts)
        rows[f"{CONTROL}{control}_pass@{K}"] = [pass_at_k(how.samples, c, K) for c in right]
    for name, by_rule in chance.items():
        rows |= {f"{CHANCE}{name}_pass@{K}{ending(rule, how)}": by_rule[rule] for rule in (how.rule, LEGACY)}
    best = max((by_rule[how.rule] for by_rule in chance.values()), key=sum)
    rows[ABOVE_CHANCE] = [own - guessed for own, guessed in zip(rows[f"pass@{K}"], best, strict=True)]
    answers = found.answers(how.rule)
    rows["unanswered"] = [sum(said is None for said in own) / len(own) for own in answers]
    rows["distinct_answers"] = [float(distinct(own[:K])) for own in answers]
    rows["exemplars_dropped"] = [float(how.shots - problem.shots) for problem in found.asked]
    rows["answer_shortened"] = [float(problem.new_tokens < how.tokens) for problem in found.asked]
    rows["question_cut"] = [float(problem.cut > 0) for problem in found.asked]
    diversity: dict[str, list[float]] = {}
    if found.diversity:
        # The three side by side, over the same problems.
        diversity["distinct_answers_first_problems"] = rows["distinct_answers"][:DIVERSITY_PROBLEMS]
        for source, texts in found.diversity.items():
            own = found.answers(how.rule, texts)
            diversity[f"distinct_answers_by_{source}_alone"] = [float(distinct(said)) for said in own]
    return (*_measured(rows), *(_measured(diversity) if diversity else ()))


def ending(rule: str, how: Settings) -> str:
    """What a metric's name ends in, to tell the rules apart; nothing for the headline's."""
    return "" if rule == how.rule else f"_legacy_{rule}" if rule == LEGACY else f"_{rule}"


def distinct(answers: Sequence[str | None]) -> int:
    """Different answers; no answer is not one."""
    return len(set(answers) - {None})


def _rates(found: Answered, rule: str) -> dict[str, list[float]]:
    samples = len(found.texts[0])
    right = found.right(rule)
    rates = {f"pass@{k}": [pass_at_k(samples, c, k) for c in right] for k in (K, 1)}
    if rule in NUMBERS:  # the legacy rule finds no answer that could be voted for
        pairs = zip(found.answers(rule), found.golds, strict=True)
        rates[f"maj@{K}"] = [majority_at_k(own, gold, K) for own, gold in pairs]
    return rates


_LOWER = ("unanswered", "exemplars_dropped", "answer_shortened", "question_cut")


def _measured(rows: dict[str, list[float]]) -> list[Metric]:
    from tasks.bootstrap import means

    return [
        results.metric(
            name,
            value,
            likelihood=None,
            headline=name == f"pass@{K}",
            unit="problem",
            kind="exact",
            direction="lower" if name in _LOWER else "higher",
            n=len(row),
        )
        for (name, row), value in zip(rows.items(), means(list(rows.values()), "problems"), strict=True)
    ]


def records(problems: Sequence[Problem], found: Answered, chance: Rows) -> list[dict[str, Any]]:
    """One a problem: every text and its answer under every rule, and who guessed right."""
    by_rule = {rule: found.answers(rule) for rule in RULES}
    return [
        {
            "problem": i,
            "question": problem.question,
            "gold": found.golds[i],
            "texts": found.texts[i],
            "answers": {rule: answers[i] for rule, answers in by_rule.items()},
            "chance": {name: {rule: int(row[i]) for rule, row in rows.items()} for name, rows in chance.items()},
            "controls": {control: texts[i] for control, texts in found.controls.items()},
            "diversity": {source: texts[i] for source, texts in found.diversity.items() if i < len(texts)},
            "shots": found.asked[i].shots,
            "prompt_tokens": len(found.asked[i].tokens),
            "new_tokens": found.asked[i].new_tokens,
            "question_tokens_cut": found.asked[i].cut,
        }
        for i, problem in enumerate(problems)
    ]
