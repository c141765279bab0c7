"""The embedded corpus `arithmetic`: grade-school word problems made from templates, with their steps and answers.

Train and test share no template, so test measures what was learnt, not what was memorised. Validation has train's
templates with other numbers. The problems are the same everywhere and always: noise is a hash of names and numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ltm.data.split import Split
from ltm.data.word_problem_templates import NAMES, TEST, THINGS, TRAIN, Template
from ltm.errors import did_you_mean
from ltm.rng import seed_of

EDITION = "1"
"""Part of the fingerprint and of the noise; a new edition has other problems."""
SIZES: Mapping[str, int] = {"train": 8000, "validation": 500, "test": 500}
GREATEST = 5000
"""The largest value that a step of a solution may have."""

_STEP = re.compile(r"\{(\w) = (\w+) ([-+*/]) (\w+)\}")
_NUMBERS = re.compile(r"\{([a-d])\}")


def arithmetic(split: str) -> Split:
    """Problems as documents: `Question: ...`, below it `Answer: ...` with one step per line, then `#### 72`.

    No question occurs twice, within a split or across splits.

    Raises:
        UserError: a split other than train, validation and test.
    """
    if split not in SIZES:
        raise did_you_mean("split of arithmetic", split, SIZES)
    taken = set(_problems("train", TRAIN, set())) if split == "validation" else set()
    problems = _problems(split, TEST if split == "test" else TRAIN, taken)
    documents = [f"Question: {question}\nAnswer: {solution}\n\n" for question, solution in problems.items()]
    source: dict[str, Any] = {"kind": "embedded", "package": "ltm.arithmetic", "edition": EDITION}
    return Split.of("arithmetic", split, documents, unit="document", source=source)


def _problems(split: str, templates: Sequence[Template], taken: set[str]) -> dict[str, str]:
    """Solutions by question, from each template in turn. A question that exists already is drawn again."""
    problems: dict[str, str] = {}
    draw = 0
    while len(problems) < SIZES[split]:
        problem = write(templates[len(problems) % len(templates)], (split, draw))
        draw += 1
        if problem is not None and problem[0] not in problems and problem[0] not in taken:
            problems[problem[0]] = problem[1]
    return problems


def write(template: Template, draw: object) -> tuple[str, str] | None:
    """Write a problem by `template`: question and solution; None if the numbers drawn do not fit it."""

    def drawn(what: str, choices: int) -> int:
        return seed_of("arithmetic", EDITION, template.name, draw, what) % choices

    who = drawn("who", len(NAMES))
    words = {
        "who": NAMES[who],
        "other": NAMES[(who + 1 + drawn("other", len(NAMES) - 1)) % len(NAMES)],
        "thing": THINGS[drawn("thing", len(THINGS))],
    }
    numbers = {}
    for name in _NUMBERS.findall(template.question):
        least, greatest = template.ranges.get(name, (2, 20))
        numbers[name] = least + drawn(name, greatest - least + 1)
    solution = solve(template.solution, numbers)
    if solution is None:
        return None
    return template.question.format(**words, **numbers), solution.format(**words, **numbers)


def solve(solution: str, numbers: Mapping[str, int]) -> str | None:
    """Work out the steps of a solution and append `#### answer`; None if a result is not from 1 to `GREATEST`."""
    known = dict(numbers)
    last = 0
    for step in _STEP.finditer(solution):
        name, *operands = step[1], step[2], step[4]
        a, b = (known[operand] if operand in known else int(operand) for operand in operands)
        results = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if a % b == 0 else 0}
        last = known[name] = results[step[3]]
        if not 0 < last <= GREATEST:
            return None
        solution = solution.replace(step[0], f"{a} {step[3]} {b} = {last}")
    return f"{solution}\n#### {last}"
