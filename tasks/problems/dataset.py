"""Problems with a number for an answer: where they come from, and the prompts that ask them.

lm-eval loads this file by its path, so it imports `ltm` and third-party packages alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ltm.data.split import Split
from ltm.errors import UserError, did_you_mean

HOLDOUT, HELD_OUT_PROBLEMS = "train_holdout", 1000
"""A split made of the last problems of train; exemplars and chance rows then come from the others."""
EXEMPLAR_SEEDS = (0, 1, 2, 3, 4)
"""Problem i is asked after the exemplars of seed i mod 5, so that no single choice of them decides a number."""
STYLES = ("rationale", "calculations", "answer-only")
"""How exemplars answer: with the steps, with the steps and their <<48/2=24>>, or with the number alone."""


class Problem(NamedTuple):
    """A question, its solution without the last line, and the answer as it is written there."""

    question: str
    steps: str
    answer: str


class Problems(NamedTuple):
    """The problems to ask, and those to learn from: `train` is where exemplars and chance rows come from."""

    asked: Split
    train: Split

    def parsed(self) -> tuple[list[Problem], list[Problem]]:
        """Both as problems; those of train that are asked word for word are left out.

        Raises:
            UserError: a document that is no problem.
        """
        asked = problems(self.asked)
        questions = {problem.question for problem in asked}
        return asked, [problem for problem in problems(self.train) if problem.question not in questions]


def find(corpus: str, split: str, *, data_dir: Path | None) -> Problems:
    """A split of a corpus of problems, with its train split.

    Raises:
        UserError: one of them is not there, or train is too small to hold problems out of.
    """
    from ltm.data import corpora

    def loaded(name: str, purpose: str) -> Split:
        try:
            return corpora.load(corpus, name, data_dir=data_dir)
        except UserError as error:
            raise UserError(f"{purpose}: {error}") from error

    train = loaded("train", f"{corpus} needs its train split, for exemplars and for the chance rows")
    if split == "train":
        raise UserError(f"{corpus}: exemplars and chance rows come from train, so train cannot be asked; use {HOLDOUT}")
    if split != HOLDOUT:
        try:
            return Problems(loaded(split, f"the problems of {corpus}"), train)
        except UserError as error:
            raise UserError(f"{error}. Of train, which is here, {corpus}_{HOLDOUT} asks the last problems") from error
    if len(train.documents) < 2 * HELD_OUT_PROBLEMS:
        raise UserError(
            f"{corpus}/{HOLDOUT} is the last {HELD_OUT_PROBLEMS} problems of train, which has {len(train.documents)}; "
            f"expected at least {2 * HELD_OUT_PROBLEMS}"
        )
    parts = {HOLDOUT: train.documents[-HELD_OUT_PROBLEMS:], "train": train.documents[:-HELD_OUT_PROBLEMS]}
    asked, rest = (
        Split.of(corpus, name, documents, unit=train.unit, source=train.source) for name, documents in parts.items()
    )
    return Problems(asked, rest)


_ENDING = re.compile(r"(?P<steps>.*?)\n?[^\S\n]*####(?P<answer>[^\n]*)", re.DOTALL)


def problems(split: Split) -> list[Problem]:
    """The documents of a split as problems: the question on the first line, below it the solution, last `#### 72`.

    `Question: ` and `Answer: ` before them are optional.

    Raises:
        UserError: a document that is none.
    """
    found = []
    for number, document in enumerate(split.documents, start=1):
        question, _, solution = document.partition("\n")
        parsed = _ENDING.fullmatch(solution.removeprefix("Answer:").strip())
        if parsed is None or not (answer := parsed["answer"].strip()) or not question.strip():
            raise UserError(
                f"{split.corpus}/{split.split}, problem {number}: expected a question on a line of its own, then a "
                f"solution that ends in a line like '#### 72', found {document[-80:]!r}"
            )
        found.append(Problem(question.removeprefix("Question:").strip(), parsed["steps"].strip(), answer))
    return found


def asked(problem: Problem) -> str:
    """The question as a prompt. It ends without a space, which would split the answer's first token."""
    return f"Question: {problem.question}\nAnswer:"


def exemplar(problem: Problem, style: str) -> str:
    """A problem with its solution, to stand before a question."""
    steps = problem.steps if style == "calculations" else re.sub("<<.*?>>", "", problem.steps)
    solution = problem.answer if style == "answer-only" or not steps else f"{steps}\n#### {problem.answer}"
    return f"{asked(problem)} {solution}\n\n"


def exemplars(train: Sequence[Problem], number: int, shots: int) -> list[Problem]:
    """The exemplars of problem `number`: the same ones in the same order for the same seed of `EXEMPLAR_SEEDS`.

    More shots of one seed have the fewer ones last, next to the question.

    Raises:
        UserError: train has fewer problems than shots.
    """
    from ltm.rng import seed_of

    if shots > len(train):
        raise UserError(f"{shots} shots: train has {len(train)} problems")
    seed = EXEMPLAR_SEEDS[number % len(EXEMPLAR_SEEDS)]
    chosen: dict[int, None] = {}
    draw = 0
    while len(chosen) < shots:
        chosen[seed_of("exemplar", seed, draw) % len(train)] = None
        draw += 1
    return [train[i] for i in reversed(chosen)]


def check_style(style: str) -> None:
    """Raise UserError unless there is such a style of exemplars."""
    if style not in STYLES:
        raise did_you_mean("style of exemplars", style, STYLES)


def load(
    corpus: str, split: str, shots: int = 0, style: str = "rationale", data_dir: str | None = None, **_: Any
) -> dict[str, Any]:
    """The problems as a data set of lm-eval, each with its whole prompt.

    lm-eval passes the model's arguments and the task's metadata along, hence `**_`; `--metadata` sets `shots`,
    `style` and `data_dir`.
    """
    import datasets

    check_style(style)
    found, train = find(corpus, split, data_dir=Path(data_dir) if data_dir else None).parsed()
    documents = [
        {
            "prompt": "".join(exemplar(shot, style) for shot in exemplars(train, number, shots)) + asked(problem),
            "question": problem.question,
            "gold": problem.answer,
        }
        for number, problem in enumerate(found)
    ]
    return {split: datasets.Dataset.from_list(documents)}


def prompt(document: Mapping[str, Any]) -> str:
    """What is asked. A function, since a template could touch white space."""
    return document["prompt"]


def gold(document: Mapping[str, Any]) -> str:
    """The right answer."""
    return document["gold"]
