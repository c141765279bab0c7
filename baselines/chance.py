"""What blind guessing scores on questions with a number for an answer: the rows that a model has to beat.

Each sees the training questions and answers, and at most the numbers of the question it is asked; none reads a word.
What they write goes through the same extraction as any model's text.
"""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import permutations
from typing import Literal

import torch

from ltm.errors import UserError

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


class ChanceModel(ABC):
    """Fit it, then ask it; it may be asked before it is fitted only where it learns nothing."""

    @abstractmethod
    def fit(self, questions: Sequence[str], answers: Sequence[str]) -> ChanceModel:
        """Learn from training data; returns itself.

        Args:
            answers: each a number, or a solution with the number after `####`.

        Raises:
            UserError: as many questions as answers were expected, or there are none.
        """

    @abstractmethod
    def answers(self, question: str, n: int, generator: torch.Generator) -> list[str]:
        """The texts of `n` generations for one question, empty where there is nothing to say."""


def final_number(answer: str) -> str:
    """The answer itself, of a solution what follows `####`; without commas."""
    return answer.rpartition("####")[2].strip().replace(",", "")


def numbers_in(question: str) -> list[str]:
    """The numbers written in digits, in order, without commas: "1,200 for 2.50" has 1200 and 2.50."""
    return [match.replace(",", "") for match in _NUMBER.findall(question)]


def text_of(numbers: Sequence[str]) -> str:
    """A generation that says some numbers, the last of them as the answer."""
    return " ".join([*numbers[:-1], "####", numbers[-1]]) if numbers else ""


@dataclass(slots=True, kw_only=True)
class Constants(ChanceModel):
    """The commonest training answers, one a generation, the same for every question; in turn beyond the `k` of them."""

    k: int = 5
    _commonest: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        _at_least_one("k", self.k)

    def fit(self, questions: Sequence[str], answers: Sequence[str]) -> Constants:
        """Count the answers; of two as common, the one that comes first."""
        _check(questions, answers)
        self._commonest = tuple(number for number, _ in Counter(map(final_number, answers)).most_common(self.k))
        return self

    def answers(self, question: str, n: int, generator: torch.Generator) -> list[str]:
        """Nothing is drawn."""
        _check_fitted(self._commonest)
        return [text_of([self._commonest[i % len(self._commonest)]]) for i in range(n)]


@dataclass(slots=True, kw_only=True)
class Prior(ChanceModel):
    """Numbers drawn independently from those of the training answers, or of the training questions.

    Attributes:
        numbers: how many a generation says; the last is its answer. Under a rule that looks for the answer anywhere in
            the text, more is better.
    """

    numbers: int = 1
    source: Literal["answers", "questions"] = "answers"
    _values: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        _at_least_one("numbers", self.numbers)
        if self.source not in ("answers", "questions"):
            raise UserError(f"source: expected answers or questions, found {self.source!r}")

    def fit(self, questions: Sequence[str], answers: Sequence[str]) -> Prior:
        """Keep every number, as often as it occurs."""
        _check(questions, answers)
        if self.source == "answers":
            self._values = tuple(map(final_number, answers))
        else:
            self._values = tuple(number for question in questions for number in numbers_in(question))
        return self

    def answers(self, question: str, n: int, generator: torch.Generator) -> list[str]:
        """Draws with replacement."""
        _check_fitted(self._values)
        drawn = torch.randint(len(self._values), (n, self.numbers), generator=generator)
        return [text_of([self._values[i] for i in row]) for row in drawn.tolist()]


@dataclass(slots=True, kw_only=True)
class Copied(ChanceModel):
    """Numbers of the question, in random order, each said once before any is said again."""

    def fit(self, questions: Sequence[str], answers: Sequence[str]) -> Copied:
        """There is nothing to learn."""
        return self

    def answers(self, question: str, n: int, generator: torch.Generator) -> list[str]:
        """Distinct numbers of the question."""
        return _without_repeats(numbers_in(question), n, generator)


@dataclass(slots=True, kw_only=True)
class OneOperation(ChanceModel):
    """Sums, differences, products and quotients of two numbers of the question, whole and positive ones, at random.

    As for `Copied`, each distinct result is said once before any is said again.
    """

    def fit(self, questions: Sequence[str], answers: Sequence[str]) -> OneOperation:
        """There is nothing to learn."""
        return self

    def answers(self, question: str, n: int, generator: torch.Generator) -> list[str]:
        """Distinct results."""
        return _without_repeats(one_operation(numbers_in(question)), n, generator)


def one_operation(numbers: Iterable[str]) -> list[str]:
    """The distinct whole, positive results of one operation on two of the numbers, taken from different places."""
    results: dict[Fraction, None] = {}
    for a, b in permutations(map(Fraction, numbers), 2):
        for result in (a + b, a - b, a * b, *([a / b] if b else [])):
            if result > 0 and result.denominator == 1:
                results[result] = None
    return [str(result) for result in results]


def _without_repeats(candidates: Sequence[str], n: int, generator: torch.Generator) -> list[str]:
    distinct = list(dict.fromkeys(candidates))
    order = torch.randperm(len(distinct), generator=generator).tolist()
    return [text_of([distinct[order[i % len(order)]]] if order else []) for i in range(n)]


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name}: expected at least 1, found {value}")


def _check(questions: Sequence[str], answers: Sequence[str]) -> None:
    if len(questions) != len(answers) or not answers:
        raise UserError(f"expected as many questions as answers, found {len(questions)} and {len(answers)}")


def _check_fitted(learnt: Sequence[str]) -> None:
    if not learnt:
        raise UserError("this chance model has learnt no number; fit it on training questions and answers first")


# Under names of their own, for the entry points.
TwoNumbers = functools.partial(Prior, numbers=2)
FiveNumbers = functools.partial(Prior, numbers=5)
QuestionNumbers = functools.partial(Prior, source="questions")
