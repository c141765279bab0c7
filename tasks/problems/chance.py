"""Blind guessing: the score of models that read little or nothing, on the same problems and extraction rules."""

from __future__ import annotations

from collections.abc import Sequence

from ltm import registry
from tasks.problems.dataset import Problem
from tasks.problems.extraction import RULES, answer, gold_answer
from tasks.problems.pass_at_k import K

Rows = dict[str, dict[str, list[float]]]
"""By chance model and extraction rule: for each problem, 1 if one of K answers is right, else 0."""


def chance_names() -> list[str]:
    """Return the names of the chance models of all installed packages."""
    return sorted(registry.names(registry.CHANCE))


def chance_rows(problems: Sequence[Problem], train: Sequence[Problem], *, seed: int) -> Rows:
    """Ask every chance model for K answers per problem; some give K different ones, the best they can do."""
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
