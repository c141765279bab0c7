"""Extract the answer from a generated text, under four rules; answers are compared exactly, as numbers.

strict     the number after the first `####` that a number follows
flexible   the last number
first      the first number: after a prompt that ends in `Answer:`, the first one after that
substring  legacy, from published scripts: the gold answer's characters anywhere, so that 30 counts as a 3 too

Answers are canonical: `1,080`, `1 080`, `1{,}080`, `$1080.00`, `1.08e3` and `+1080.` are all 1080. Words are not
numbers.
lm-eval loads this file by its path, so it imports only the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

LEGACY = "substring"
"""The rule that only tests for the right answer and extracts none."""
NUMBERS = ("strict", "flexible", "first")
"""The rules that extract a number."""
RULES = (*NUMBERS, LEGACY)
"""All rules."""

# What may stand between groups of digits: commas as in 1,080 and, in LaTeX, 1{,}080; spaces of every width that cannot
# end a line, and LaTeX's; and as Swiss and program text have it, 1'080 and 1_080.
_COMMA = r",|\{,\}"
_SPACE = "[ \u00a0\u2009\u202f]"
_GROUPED = "|".join(
    (
        # Thousands, with one separator throughout.
        rf"[0-9]{{1,3}}(?P<sep>{_COMMA}|['’_]|\\,|\{{\\,\}})[0-9]{{3}}(?:(?P=sep)[0-9]{{3}})*(?![0-9])",
        # Lakhs and crores, 10,00,000.
        rf"[0-9]{{1,2}}(?P<lakh>{_COMMA})[0-9]{{2}}(?:(?P=lakh)[0-9]{{2}}){{0,9}}(?P=lakh)[0-9]{{3}}(?![0-9])",
        # Spaces group where all numbers in a row are groups; 1 000 20 is a list.
        rf"(?<![0-9]{_SPACE})[0-9]{{1,3}}(?P<gap>{_SPACE})[0-9]{{3}}(?:(?P=gap)[0-9]{{3}})*(?!{_SPACE}?[0-9])",
    )
)
_DIGITS = rf"(?:{_GROUPED}|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+"
# Scientific notation; not the 3 of 1e3x, a name, or of 1e3.5, which is no number.
_EXPONENT = r"(?:[eE](?P<exponent>[-+−]?[0-9]+)(?!\w|\.[0-9]))?"
_CURRENCY = r"(?:\\?[$€£])?"
# A minus is a sign unless it subtracts: 9-4 and 9 - 4 have 9 and 4; $-4 and -$4 are both -4.
_SIGN = rf"(?<![\w)%])(?P<sign>[-+−])?{_CURRENCY}(?P<inner>[-+−])?"
_NUMBER = re.compile(rf"(?:{_SIGN}|(?<![0-9]))(?<![0-9]\.)(?P<digits>{_DIGITS}){_EXPONENT}")
# Part of a number is no answer: not the 1 of 1/2, 1:30, 1e3.5 or 1.2.3.
_STRICT = re.compile(
    rf"####[^\S\n]*(?P<sign>[-+−])?{_CURRENCY}[^\S\n]*(?P<inner>[-+−])?(?P<digits>{_DIGITS}){_EXPONENT}"
    rf"(?![0-9]|(?:{_COMMA}|[./:'’_]|[eE][-+−]?)[0-9])"
)
_LARGEST_EXPONENT = 999
"""A number with a larger one is no answer: written out, it would fill the memory."""


def strict(text: str) -> str | None:
    """Return the number directly after `####`, on the same line."""
    match = _STRICT.search(text)
    return None if match is None else _canonical(match)


def flexible(text: str) -> str | None:
    """Return the last number."""
    matches = list(_NUMBER.finditer(text))
    return _canonical(matches[-1]) if matches else None


def first(text: str) -> str | None:
    """Return the first number."""
    match = _NUMBER.search(text)
    return None if match is None else _canonical(match)


def _canonical(match: re.Match[str]) -> str | None:
    # As text: a model may write more digits than Python converts to a number.
    negative = {match["sign"], match["inner"]} & {"-", "−"}
    whole, _, fraction = re.sub(r"[^0-9.]", "", match["digits"]).partition(".")
    if exponent := match["exponent"]:
        size = exponent.lstrip("-+−").lstrip("0") or "0"
        if len(size) > len(str(_LARGEST_EXPONENT)):
            return None
        point = len(whole) + (-int(size) if exponent[0] in "-−" else int(size))
        digits = "0" * -point + whole + fraction + "0" * (point - len(whole + fraction))
        whole, fraction = digits[: max(point, 0)], digits[max(point, 0) :]
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return f"-{number}" if negative and number != "0" else number


_EXTRACTORS: Mapping[str, Callable[[str], str | None]] = {"strict": strict, "flexible": flexible, "first": first}


def answer(rule: str, text: str, gold: str) -> str | None:
    """Return a text's answer under a rule, or None; under `substring`, the gold answer if the text contains it.

    Args:
        gold: the right answer, as `gold_answer` returns it.
    """
    if rule == LEGACY:
        return gold if gold in text else None
    return _EXTRACTORS[rule](text)


def gold_answer(solution: str) -> str:
    """Return the canonical answer of a solution that ends in `#### 1,080` or is a number itself.

    Raises:
        ValueError: there is none.
    """
    number = strict(solution if "####" in solution else f"#### {solution}")
    if number is None:
        raise ValueError(f"no number after #### in {solution[-60:]!r}")
    return number


# Filters for lm-eval: each takes the texts of every document, and the documents, which have a `gold`.


def strict_answers(texts: Iterable[Sequence[str]], documents: Iterable[Mapping[str, Any]]) -> list[list[str | None]]:
    """Extract answers by `strict`."""
    return _all("strict", texts, documents)


def flexible_answers(texts: Iterable[Sequence[str]], documents: Iterable[Mapping[str, Any]]) -> list[list[str | None]]:
    """Extract answers by `flexible`."""
    return _all("flexible", texts, documents)


def first_answers(texts: Iterable[Sequence[str]], documents: Iterable[Mapping[str, Any]]) -> list[list[str | None]]:
    """Extract answers by `first`."""
    return _all("first", texts, documents)


def substring_answers(texts: Iterable[Sequence[str]], documents: Iterable[Mapping[str, Any]]) -> list[list[str | None]]:
    """Extract answers by the legacy rule."""
    return _all(LEGACY, texts, documents)


def _all(rule: str, texts: Iterable[Sequence[str]], documents: Iterable[Mapping[str, Any]]) -> list[list[str | None]]:
    # Right answers are spelled as the document spells them, since lm-eval then compares strings.
    answers = []
    for samples, document in zip(texts, documents, strict=True):
        gold = gold_answer(document["gold"])
        extracted = [answer(rule, text, gold) for text in samples]
        answers.append([document["gold"] if number == gold else number for number in extracted])
    return answers
