"""Unbiased pass@k and maj@k of a problem, from n samples of which c are right.

lm-eval loads this file by its path, so it imports only `ltm` and the standard library.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from ltm.errors import UserError

K = 5
"""The k of the reported pass@k and maj@k."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the probability that k of n samples, drawn without replacement, include a right one.

    It is 1 - C(n - c, k) / C(n, k), in whole numbers up to the last division. With k = n it is 1 if any is right.

    Raises:
        UserError: there are fewer samples than k.
        ValueError: c outside 0..n, or k below 1.
    """
    check_samples(n, k)
    if not 0 <= c <= n or k < 1:
        raise ValueError(f"expected 0 <= c <= n and k >= 1, found n={n}, c={c}, k={k}")
    return float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


def check_samples(n: int, k: int = K) -> None:
    """Raise UserError if there are fewer than k samples."""
    if n < k:
        raise UserError(f"pass@{k} needs at least {k} samples per problem, found {n}; ask for more: --samples {k}")


def majority_at_k(answers: Sequence[str | None], gold: str, k: int) -> float:
    """Return the probability that the majority of k answers is right, with ties broken at random.

    It is a mean over n // k disjoint runs of k answers in order; these are independent, so it is unbiased. None means
    no answer, and has no vote.

    Raises:
        UserError: there are fewer answers than k.
    """
    check_samples(len(answers), k)
    runs = [answers[start : start + k] for start in range(0, len(answers) - k + 1, k)]
    return math.fsum(_majority(run, gold) for run in runs) / len(runs)


def _majority(answers: Sequence[str | None], gold: str) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    most = max(votes.values(), default=0)
    return float(Fraction(votes[gold] == most, sum(n == most for n in votes.values()))) if most else 0.0


def results(document: Mapping[str, Any], results: Sequence[Sequence[str | None]]) -> dict[str, float]:
    """Compute the metrics of one problem for lm-eval, from the answers that a filter of extraction.py returned.

    Raises:
        UserError: there are fewer samples than `K`.
    """
    (answers,) = results
    gold = document["gold"]
    right = sum(answer == gold for answer in answers)
    return {
        "pass@1": pass_at_k(len(answers), right, 1),
        f"pass@{K}": pass_at_k(len(answers), right, K),
        f"maj@{K}": majority_at_k(answers, gold, K),
    }
