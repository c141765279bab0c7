"""pass@k and maj@k against enumeration of every choice."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations

import pytest

from ltm.errors import UserError
from tasks.problems.pass_at_k import majority_at_k, pass_at_k, results


@pytest.mark.parametrize("n", range(1, 9))
def test_pass_at_k_is_what_enumeration_finds(n):
    for c in range(n + 1):
        right = [i < c for i in range(n)]
        for k in range(1, n + 1):
            choices = list(combinations(right, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices), abs=1e-15)


def test_pass_at_k_at_its_ends():
    assert pass_at_k(5, 1, 5) == pass_at_k(5, 5, 5) == 1.0 and pass_at_k(5, 0, 5) == 0.0
    assert pass_at_k(20, 3, 1) == 3 / 20
    # Far beyond what products of floats would hold, and next to 1.
    assert 0 < 1 - pass_at_k(2000, 1000, 50) < 1e-14 and pass_at_k(10**5, 1, 5) == pytest.approx(5e-5, rel=1e-12)


def test_pass_at_k_is_unbiased():
    rng, p = random.Random(0), 0.3
    found = [pass_at_k(8, sum(rng.random() < p for _ in range(8)), 3) for _ in range(20_000)]
    assert sum(found) / len(found) == pytest.approx(1 - (1 - p) ** 3, abs=0.008)


def test_too_few_samples_and_impossible_counts():
    with pytest.raises(UserError, match=r"pass@5 needs at least 5 samples per problem, found 3; .*--samples 5"):
        pass_at_k(3, 1, 5)
    with pytest.raises(UserError, match="needs at least 5"):
        majority_at_k(["1"] * 4, "1", 5)
    for n, c, k in ((5, 6, 1), (5, -1, 1), (5, 1, 0)):
        with pytest.raises(ValueError, match="expected 0 <= c <= n"):
            pass_at_k(n, c, k)


def test_majority_breaks_ties_at_random():
    rng = random.Random(0)
    for _ in range(200):
        answers = [rng.choice(["1", "2", "3", None]) for _ in range(5)]
        votes = Counter(answer for answer in answers if answer is not None)
        tied = [answer for answer in votes if votes[answer] == max(votes.values())]
        # Every way to break the tie.
        expected = sum(answer == "1" for answer in tied) / len(tied) if tied else 0.0
        assert majority_at_k(answers, "1", 5) == pytest.approx(expected)
    assert majority_at_k([None] * 5, "1", 5) == 0.0
    assert majority_at_k([None, None, None, None, "1"], "1", 5) == 1.0


def test_majority_of_more_samples_is_the_mean_over_whole_runs():
    answers = ["1"] * 5 + ["2"] * 5 + ["1"] * 3
    assert majority_at_k(answers, "1", 5) == 0.5 and majority_at_k(answers, "1", 13) == 1.0


def test_results_for_lm_eval():
    assert results({"gold": "1,080"}, [["1,080", "5", None, "5", "1"]]) == {"pass@1": 0.2, "pass@5": 1.0, "maj@5": 0.0}
    with pytest.raises(UserError, match="--samples 5"):
        results({"gold": "1"}, [["1"]])
