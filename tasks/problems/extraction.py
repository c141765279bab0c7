"""The answer that a generated text gives, under four rules, compared as numbers and exactly.

strict     the number after the first `####` that a number follows
flexible   the last number
first      the first number: after a prompt that ends in `Answer:`, the first one after that
substring  legacy, of the published scripts: the gold answer's characters anywhere, so that 30 gives a 3 too

An answer is written canonically: `1,080`, `$1080.00` and `+1080.` are all 1080. Words are no numbers.
lm-eval loads this file by its path, so it imports the standard library alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

LEGACY = "substring"
NUMBERS = ("strict", "flexible", "first")
RULES = (*NUMBERS, LEGACY)

# Commas group thousands; others stand between numbers.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+"
# A minus is a sign unless something is subtracted: 9-4 has 9 and 4, and so has 9 - 4; $-4 and -$4 are both -4.
_SIGN = r"(?<![\w)%])(?P<sign>[-+−])?[$€£]?(?P<inner>[-+−])?"
_NUMBER = re.compile(rf"(?:{_SIGN}|(?<![0-9]))(?<![0-9]\.)(?P<digits>{_DIGITS})")
# Half a number is no answer: not the 1 of 1/2, 1:30, 1e3 or 1.2.3.
_STRICT = re.compile(
    rf"####[^\S\n]*(?P<sign>[-+−])?[$€£]?[^\S\n]*(?P<inner>[-+−])?(?P<digits>{_DIGITS})(?![0-9]|[,./:eE][0-9])"
)


def strict(text: str) -> str | None:
    """The number directly after `####`, on the same line."""
    found = _STRICT.search(text)
    return None if found is None else _written(found)


def flexible(text: str) -> str | None:
    """The last number."""
    found = list(_NUMBER.finditer(text))
    return _written(found[-1]) if found else None


def first(text: str) -> str | None:
    """The first number."""
    found = _NUMBER.search(text)
    return None if found is None else _written(found)


def _written(found: re.Match[str]) -> str:
    # As text: a model may write more digits than Python turns into a number.
    negative = {found["sign"], found["inner"]} & {"-", "−"}
    whole, _, fraction = found["digits"].replace(",", "").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return f"-{number}" if negative and number != "0" else number


_EXTRACTORS: Mapping[str, Callable[[str], str | None]] = {"strict": strict, "flexible": flexible, "first": first}


def answer(rule: str, text: str, gold: str) -> str | None:
    """What a text answers under a rule, None for nothing; under `substring`, which finds no answer, the gold or None.

    Args:
        gold: the right answer, as `gold_answer` gives it.
    """
    if rule == LEGACY:
        return gold if gold in text else None
    return _EXTRACTORS[rule](text)


def gold_answer(solution: str) -> str:
    """The right answer, of a solution that ends in `#### 1,080` or is a number: canonical.

    Raises:
        ValueError: it has none.
    """
    found = strict(solution if "####" in solution else f"#### {solution}")
    if found is None:
        raise ValueError(f"no number after #### in {solution[-60:]!r}")
    return found


# Filters of lm-eval: each takes the texts of every document and the documents, which have a `gold`.


def strict_answers(texts: Iterable[Sequence[str]], documents: Iterable[Mapping[str, Any]]) -> list[list[str | None]]:
    """By `strict`."""
    return _all("strict", texts, documents)


def flexible_answers(texts: Iterable[Sequence[str]], documents: Iterable[Mapping[str, Any]]) -> list[list[str | None]]:
    """By `flexible`."""
    return _all("flexible", texts, documents)


def first_answers(texts: Iterable[Sequence[str]], documents: Iterable[Mapping[str, Any]]) -> list[list[str | None]]:
    """By `first`."""
    return _all("first", texts, documents)


def substring_answers(texts: Iterable[Sequence[str]], documents: Iterable[Mapping[str, Any]]) -> list[list[str | None]]:
    """By the legacy rule."""
    return _all(LEGACY, texts, documents)


def _all(rule: str, texts: Iterable[Sequence[str]], documents: Iterable[Mapping[str, Any]]) -> list[list[str | None]]:
    # A right answer comes out spelled as the document spells it: what compares them next knows no numbers.
    answers = []
    for own, document in zip(texts, documents, strict=True):
        gold = gold_answer(document["gold"])
        found = [answer(rule, text, gold) for text in own]
        answers.append([document["gold"] if said == gold else said for said in found])
    return answers
