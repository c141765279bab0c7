"""Ask a model problems: sample answers, also under each control, and measure a latent model's diversity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.problems import prompts as asking
from tasks.problems.dataset import Problem
from tasks.problems.extraction import answer, gold_answer
from tasks.problems.pass_at_k import K
from tasks.problems.prompts import Asked, Settings

if TYPE_CHECKING:
    from ltm.evaluation.rows import Prompt
    from ltm.harness import HarnessModel

DIVERSITY_PROBLEMS = 100
"""The first problems, on which a latent model's diversity by latents alone and by tokens alone is measured."""

Texts = list[list[str]]
"""Texts by problem, then by sample."""


@dataclass(slots=True, kw_only=True)
class Answered:
    """A model's samples of all problems.

    Attributes:
        golds: the right answers.
        asked: the prompts, without a control.
        texts: up to the first stop string.
        controls: the texts under each control.
        diversity: the texts of a latent model whose samples differ by `latents` or `tokens` alone.
        tokens, seconds: tokens generated in total, and how long that took.
    """

    golds: list[str]
    asked: list[Asked] = field(default_factory=list)
    texts: Texts = field(default_factory=list)
    controls: dict[str, Texts] = field(default_factory=dict)
    diversity: dict[str, Texts] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0

    def answers(self, rule: str, texts: Texts | None = None) -> list[list[str | None]]:
        """Extract the answers of all samples under a rule."""
        texts = self.texts if texts is None else texts
        golds = self.golds[: len(texts)]
        return [[answer(rule, text, gold) for text in samples] for samples, gold in zip(texts, golds, strict=True)]

    def right(self, rule: str, texts: Texts | None = None) -> list[int]:
        """Count the right samples of each problem."""
        by_problem = self.answers(rule, texts)
        return [sum(given == gold for given in answers) for answers, gold in zip(by_problem, self.golds, strict=True)]

    def empty(self) -> int:
        """Count generations without any text."""
        return sum(not text.strip() for samples in self.texts for text in samples)


class Solver:
    """Asks one model the problems of one task; the noise depends on the task's name."""

    def __init__(self, model: HarnessModel, task: str, how: Settings):
        self.model, self.task, self.how = model, task, how

    def all_answers(self, problems: Sequence[Problem], train: Sequence[Problem]) -> Answered:
        """Sample answers to every problem, also under each control, and more to measure a latent model's diversity."""
        from ltm.latent.base import LatentModel

        how, tokenizer = self.how, self.model.loaded.tokenizer
        answered = Answered(golds=[gold_answer(problem.answer) for problem in problems])

        def ask(control: str | None = None) -> list[Asked]:
            block_length = self.model.block_length
            return asking.ask(problems, train, how, tokenizer, block_length=block_length, control=control)

        def texts(asked: Sequence[Asked], samples: int, **options: Any) -> Texts:
            prompts = asking.prompts(asked, how, samples=samples, eos_id=tokenizer.eos_id, **options)
            return self._texts(prompts, samples, answered)

        answered.asked = ask()
        answered.texts = texts(answered.asked, how.samples)
        for control in how.controls:
            answered.controls[control] = texts(ask(control), how.samples, name=control)
        if isinstance(self.model.loaded.model, LatentModel):
            few = answered.asked[:DIVERSITY_PROBLEMS]
            answered.diversity["latents"] = texts(few, K, name="greedy", greedy=True)
            answered.diversity["tokens"] = texts(few, K, name="fixed latents", fixed_latents=True)
        return answered

    def _texts(self, prompts: Sequence[Prompt], samples: int, answered: Answered) -> Texts:
        from ltm.harness_requests import cut

        texts = []
        for record in self.model.runner.generations(self.task, prompts):
            answered.tokens += len(record["tokens"])
            answered.seconds += record["seconds"]
            texts.append(cut(self.model.loaded.tokenizer.decode(record["tokens"]), self.how.stop))
        return [texts[start : start + samples] for start in range(0, len(texts), samples)]
