"""How often problems are solved in k tries, from n samples each of which c are right: exact, without bias.

lm-eval loads this file by its path, so it imports `ltm` and the standard library alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from ltm.errors import UserError

K = 5


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of the n samples, drawn without replacement, have a right one: 1 - C(n - c, k) / C(n, k).

    In whole numbers up to the last division. With k = n it is 1 when any sample is right.

    Raises:
        UserError: fewer samples than k.
        ValueError: c outside 0..n, or k below 1.
    """
    check_samples(n, k)
    if not 0 <= c <= n or k < 1:
        raise ValueError(f"expected 0 <= c <= n and k >= 1, found n={n}, c={c}, k={k}")
    return float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


def check_samples(n: int, k: int = K) -> None:
    """Raise UserError unless there are k samples to choose."""
    if n < k:
        raise UserError(f"pass@{k} needs at least {k} samples a problem, found {n}; ask for more: --samples {k}")


def majority_at_k(answers: Sequence[str | None], gold: str, k: int) -> float:
    """The chance that the majority of k answers is right, a tie broken at random; a mean over runs of k in order.

    None is no answer and has no vote. Of n answers, n // k whole runs of k count: independent, so without bias.

    Raises:
        UserError: fewer answers than k.
    """
    check_samples(len(answers), k)
    runs = [answers[start : start + k] for start in range(0, len(answers) - k + 1, k)]
    return math.fsum(_majority(run, gold) for run in runs) / len(runs)


def _majority(answers: Sequence[str | None], gold: str) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    most = max(votes.values(), default=0)
    return float(Fraction(votes[gold] == most, sum(n == most for n in votes.values()))) if most else 0.0


def results(document: Mapping[str, Any], results: Sequence[Sequence[str | None]]) -> dict[str, float]:
    """The metrics of one problem for lm-eval, from what a filter of extraction.py left of its samples.

    Raises:
        UserError: fewer samples than `K`.
    """
    (answers,) = results
    gold = document["gold"]
    right = sum(answer == gold for answer in answers)
    return {
        "pass@1": pass_at_k(len(answers), right, 1),
        f"pass@{K}": pass_at_k(len(answers), right, K),
        f"maj@{K}": majority_at_k(answers, gold, K),
    }
