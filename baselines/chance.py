"""Blind guessing on questions whose answer is a number: reference rows that a model has to beat.

Each guesser sees the training questions and answers, and at most the numbers of the question asked; none reads a word.
Their texts go through the same extraction as any model's text.
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
    """A guesser: `fit`, then ask for `answers`. Only one that learns nothing may be asked before it is fitted."""

    @abstractmethod
    def fit(self, questions: Sequence[str], answers: Sequence[str]) -> ChanceModel:
        """Learn from training data; return the model itself.

        Args:
            answers: each a number, or a solution with the number after `####`.

        Raises:
            UserError: not as many questions as answers, or none.
        """

    @abstractmethod
    def answers(self, question: str, n: int, generator: torch.Generator) -> list[str]:
        """Return the texts of `n` generations for one question, empty if there is no number to give.

        Raises:
            UserError: the model has something to learn and was not fitted.
        """


def final_number(answer: str) -> str:
    """Return the answer without commas; from a solution, what follows `####`."""
    return answer.rpartition("####")[2].strip().replace(",", "")


def numbers_in(question: str) -> list[str]:
    """Return the numbers written in digits, in order, without commas: "1,200 for 2.50" gives 1200 and 2.50."""
    return [match.replace(",", "") for match in _NUMBER.findall(question)]


def text_of(numbers: Sequence[str]) -> str:
    """Return a text with these numbers, the last of them as the answer."""
    return " ".join([*numbers[:-1], "####", numbers[-1]]) if numbers else ""


@dataclass(slots=True, kw_only=True)
class Constants(ChanceModel):
    """The `k` most common training answers, one per generation, repeated in turn; the same for every question."""

    k: int = 5
    _commonest: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        _at_least_one("k", self.k)

    def fit(self, questions: Sequence[str], answers: Sequence[str]) -> Constants:
        """Count the answers; ties go to the one that occurs first."""
        _check(questions, answers)
        self._commonest = tuple(number for number, _ in Counter(map(final_number, answers)).most_common(self.k))
        return self

    def answers(self, question: str, n: int, generator: torch.Generator) -> list[str]:
        """Return the most common answers in turn; nothing is drawn."""
        _check_fitted(self._commonest)
        return [text_of([self._commonest[i % len(self._commonest)]]) for i in range(n)]


@dataclass(slots=True, kw_only=True)
class Prior(ChanceModel):
    """Numbers drawn independently from the training answers, or from the training questions.

    Attributes:
        numbers: numbers per generation; the last is its answer. If a rule looks for the answer anywhere in the text,
            more numbers score better.
        source: where numbers are drawn from.
    """

    numbers: int = 1
    source: Literal["answers", "questions"] = "answers"
    _values: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        _at_least_one("numbers", self.numbers)
        if self.source not in ("answers", "questions"):
            raise UserError(f"source: expected answers or questions, found {self.source!r}")

    def fit(self, questions: Sequence[str], answers: Sequence[str]) -> Prior:
        """Keep every number as often as it occurs."""
        _check(questions, answers)
        if self.source == "answers":
            self._values = tuple(map(final_number, answers))
        else:
            self._values = tuple(number for question in questions for number in numbers_in(question))
        return self

    def answers(self, question: str, n: int, generator: torch.Generator) -> list[str]:
        """Draw with replacement."""
        _check_fitted(self._values)
        drawn = torch.randint(len(self._values), (n, self.numbers), generator=generator)
        return [text_of([self._values[i] for i in row]) for row in drawn.tolist()]


@dataclass(slots=True, kw_only=True)
class Copied(ChanceModel):
    """Numbers of the question in random order, each used once before any is repeated."""

    def fit(self, questions: Sequence[str], answers: Sequence[str]) -> Copied:
        """There is nothing to learn."""
        return self

    def answers(self, question: str, n: int, generator: torch.Generator) -> list[str]:
        """Return distinct numbers of the question."""
        return _without_repeats(numbers_in(question), n, generator)


@dataclass(slots=True, kw_only=True)
class OneOperation(ChanceModel):
    """Whole, positive sums, differences, products and quotients of two numbers of the question, in random order.

    As in `Copied`, each distinct result is used once before any is repeated.
    """

    def fit(self, questions: Sequence[str], answers: Sequence[str]) -> OneOperation:
        """There is nothing to learn."""
        return self

    def answers(self, question: str, n: int, generator: torch.Generator) -> list[str]:
        """Return distinct results."""
        return _without_repeats(one_operation(numbers_in(question)), n, generator)


def one_operation(numbers: Iterable[str]) -> list[str]:
    """Return the distinct whole, positive results of one operation on two of the numbers, at different positions."""
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


# Variants of `Prior`, named so that entry points can refer to them.
TwoNumbers = functools.partial(Prior, numbers=2)
FiveNumbers = functools.partial(Prior, numbers=5)
QuestionNumbers = functools.partial(Prior, source="questions")
