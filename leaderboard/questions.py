"""Questions that a board answers, each about two of its rows: `questions.json` in the results directory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaderboard.board import Row, Section
from leaderboard.labels import readable_identity
from ltm.errors import UserError
from ltm.untrusted import json_text

NAME = "questions.json"
"""The file's name in a results directory."""
LIMITS = json_text.Limits(bytes=1 << 20, values=10_000)
BUDGET = "budget"
"""The field that chooses a row by the budget of its recipe, such as `tokens=2.5M`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """How the row that `first` fits differs from the one that `second` fits, asked in the words of `text`.

    Each maps fields to values that a row has: `model`, a setting such as `posterior.steps`, or `budget`.
    """

    text: str
    first: Mapping[str, Any]
    second: Mapping[str, Any]


def read(results: Path) -> tuple[Question, ...]:
    """Return the questions of a results directory; none without the file.

    Raises:
        UserError: the file is not a list of objects with the fields `question`, `first` and `second`.
    """
    path = results / NAME
    if not os.path.lexists(path):
        return ()
    listed = json_text.read(path, limits=LIMITS)
    if not isinstance(listed, list):
        raise UserError(f"{path}: expected a list of questions")
    return tuple(_question(each, f"{path}, question {n + 1}") for n, each in enumerate(listed))


def _question(given: Any, where: str) -> Question:
    fields = json_text.table(given, where=where, fields=("question", "first", "second"))
    if not isinstance(fields["question"], str) or not fields["question"]:
        raise UserError(f"{where}: `question` should be a text")
    for side in ("first", "second"):
        if not isinstance(fields[side], Mapping) or "model" not in fields[side]:
            raise UserError(
                f'{where}: `{side}` should choose a row, such as {{"model": "ltm-mini", "posterior.steps": 3}}'
            )
    return Question(text=fields["question"], first=fields["first"], second=fields["second"])


def rows(question: Question, sections: Sequence[Section]) -> tuple[Section, Row, Row] | None:
    """Return the first section that has both rows of a question, and the rows; None if there is none.

    Raises:
        UserError: a side of the question fits several rows of a section that has both.
    """
    for section in sections:
        fitting = [[row for row in section.rows if _fits(row, side)] for side in (question.first, question.second)]
        if not all(fitting):
            continue
        for side, found in zip((question.first, question.second), fitting, strict=True):
            if len(found) > 1:
                raise UserError(
                    f"{NAME}: {dict(side)} of “{question.text}” fits several rows, such as {found[0].label} and "
                    f"{found[1].label}; add a field that tells them apart"
                )
        return section, fitting[0][0], fitting[1][0]
    return None


def _fits(row: Row, side: Mapping[str, Any]) -> bool:
    recipe = row.first.training.get("recipe") or {}
    identity = {**readable_identity(row.first), BUDGET: recipe.get("budget")}
    return all(name in identity and identity[name] == value for name, value in side.items())
