"""Problems with numeric answers: loading them, and writing their prompts.

lm-eval loads this file by its path, so it imports only `ltm` and third-party packages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ltm.data import corpora
from ltm.data.derived.held_out import HOLDOUT, REST
from ltm.data.reading import AS_IT_IS, Reading
from ltm.data.split import Split
from ltm.errors import UserError, did_you_mean
from ltm.progress import count

EXEMPLAR_SEEDS = (0, 1, 2, 3, 4)
"""Problem i gets the exemplars of seed i mod 5, so that no single choice of exemplars decides a number."""
STYLES = ("rationale", "calculations", "answer-only")
"""Styles of exemplar answers: the steps, the steps with their <<48/2=24>>, or the number alone."""


class Problem(NamedTuple):
    """A question, its solution without the last line, and the answer as written there."""

    question: str
    steps: str
    answer: str


class Problems(NamedTuple):
    """The problems to ask, and those that exemplars and chance rows are taken from (`train`)."""

    asked: Split
    train: Split

    def parsed(self) -> tuple[list[Problem], list[Problem]]:
        """Parse both splits; leave out problems of train whose question is also asked, word for word.

        Raises:
            UserError: a document is not a problem.
        """
        asked = problems(self.asked)
        questions = {problem.question for problem in asked}
        return asked, [problem for problem in problems(self.train) if problem.question not in questions]


def find(corpus: str, split: str, *, data_dir: Path | None, reading: Reading = AS_IT_IS) -> Problems:
    """Load a split of a corpus of problems, and its train split, less the problems that are held out of it.

    Raises:
        UserError: one of them is missing, or train is too small to hold problems out.
    """

    def loaded(name: str, purpose: str) -> Split:
        try:
            return corpora.load(corpus, name, data_dir=data_dir, reading=reading)
        except UserError as error:
            raise UserError(f"{purpose}: {error}") from error

    rest = REST if split == HOLDOUT else "train"
    train = loaded(rest, f"{corpus} needs its train split, for exemplars and for the chance rows")
    if split == "train":
        raise UserError(f"{corpus}: exemplars and chance rows come from train, so train cannot be asked; use {HOLDOUT}")
    try:
        return Problems(loaded(split, f"the problems of {corpus}"), train)
    except UserError as error:
        raise UserError(f"{error}. Train is here: {corpus}_{HOLDOUT} asks its last problems") from error


_ENDING = re.compile(r"(?P<steps>.*?)\n?[^\S\n]*####(?P<answer>[^\n]*)", re.DOTALL)


def problems(split: Split) -> list[Problem]:
    """Parse the documents of a split: the question on the first line, the solution below it, `#### 72` at the end.

    The labels `Question: ` and `Answer: ` are optional.

    Raises:
        UserError: a document is not a problem.
    """
    parsed_problems = []
    for number, document in enumerate(split.documents, start=1):
        question, _, solution = document.partition("\n")
        parsed = _ENDING.fullmatch(solution.removeprefix("Answer:").strip())
        if parsed is None or not (answer := parsed["answer"].strip()) or not question.strip():
            raise UserError(
                f"{split.corpus}/{split.split}, problem {number}: expected a question on a line of its own, then a "
                f"solution that ends in a line like '#### 72', found {document[-80:]!r}"
            )
        parsed_problems.append(Problem(question.removeprefix("Question:").strip(), parsed["steps"].strip(), answer))
    return parsed_problems


def asked(problem: Problem) -> str:
    """Return the question as a prompt. It ends without a space, which would split the answer's first token."""
    return f"Question: {problem.question}\nAnswer:"


def exemplar(problem: Problem, style: str) -> str:
    """Return a problem with its solution, to be put before a question."""
    steps = problem.steps if style == "calculations" else re.sub("<<.*?>>", "", problem.steps)
    solution = problem.answer if style == "answer-only" or not steps else f"{steps}\n#### {problem.answer}"
    return f"{asked(problem)} {solution}\n\n"


def exemplars(train: Sequence[Problem], number: int, shots: int) -> list[Problem]:
    """Choose the exemplars of problem `number`; they depend only on its seed of `EXEMPLAR_SEEDS`.

    With more shots, further exemplars are put in front, so that the last ones stay the same.

    Raises:
        UserError: train has fewer problems than shots.
    """
    from ltm.rng import seed_of

    if shots > len(train):
        raise UserError(f"{count(shots, 'shots')}: train has {count(len(train), 'problems')}")
    seed = EXEMPLAR_SEEDS[number % len(EXEMPLAR_SEEDS)]
    chosen: dict[int, None] = {}
    draw = 0
    while len(chosen) < shots:
        chosen[seed_of("exemplar", seed, draw) % len(train)] = None
        draw += 1
    return [train[i] for i in reversed(chosen)]


def check_style(style: str) -> None:
    """Raise UserError if there is no such style of exemplars."""
    if style not in STYLES:
        raise did_you_mean("style of exemplars", style, STYLES)


def load(
    corpus: str, split: str, shots: int = 0, style: str = "rationale", data_dir: str | None = None, **others: Any
) -> dict[str, Any]:
    """Load the problems as a data set for lm-eval, each with its whole prompt.

    lm-eval also passes the model's arguments and the task's metadata, hence `**others`; `--metadata` sets `shots`,
    `style`, `data_dir` and the options of `ltm.data.reading`.
    """
    import datasets

    check_style(style)
    directory = Path(data_dir) if data_dir else None
    asked_problems, train = find(corpus, split, data_dir=directory, reading=Reading.among(others)).parsed()
    documents = [
        {
            "prompt": "".join(exemplar(shot, style) for shot in exemplars(train, number, shots)) + asked(problem),
            "question": problem.question,
            "gold": problem.answer,
        }
        for number, problem in enumerate(asked_problems)
    ]
    return {split: datasets.Dataset.from_list(documents)}


def prompt(document: Mapping[str, Any]) -> str:
    """Return the prompt. A function, since a template could change white space."""
    return document["prompt"]


def gold(document: Mapping[str, Any]) -> str:
    """Return the right answer."""
    return document["gold"]
