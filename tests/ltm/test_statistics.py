"""Nats to perplexities with their errors: identities, coverage, and what must be refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from ltm import statistics
from ltm.errors import UserError

RNG = np.random.default_rng(0)
TOKENS = np.array([127] * 40 + [55])
NATS = -TOKENS * RNG.normal(3.2, 0.3, 41)
BYTES, WORDS = 20_000, 3_700


def test_totals_are_divided_and_ratios_never_averaged():
    cost = statistics.nats_total([-10.0, -1.0], [2, 10])
    assert cost.per_token().value == pytest.approx(11 / 12)
    assert cost.perplexity().value == pytest.approx(math.exp(11 / 12))
    assert abs(cost.perplexity().value - (math.exp(5) + math.exp(0.1)) / 2) > 10


def test_the_units_agree_on_the_total():
    cost = statistics.nats_total(NATS, TOKENS)
    total = -NATS.sum()
    assert math.log(cost.perplexity().value) * TOKENS.sum() == pytest.approx(total, rel=1e-13)
    assert math.log(cost.perplexity(units=WORDS).value) * WORDS == pytest.approx(total, rel=1e-13)
    assert cost.bits_per_byte(BYTES).value * BYTES * math.log(2) == pytest.approx(total, rel=1e-13)


def test_a_model_that_knows_nothing_has_the_size_of_its_vocabulary():
    cost = statistics.nats_total(-TOKENS * math.log(257), TOKENS)
    found = cost.perplexity()
    assert found.value == pytest.approx(257)
    assert found.ci95 == pytest.approx((257, 257)) and found.stderr_data == pytest.approx(0, abs=1e-9)
    assert statistics.nats_total(-TOKENS * math.log(256), TOKENS).bits_per_byte(TOKENS.sum()).value == pytest.approx(8)


def test_parts_add_up_to_the_whole():
    kl = 0.1 * TOKENS
    parts = [statistics.term_per_token(part, TOKENS) for part in (NATS + kl, -kl)]
    assert sum(parts) == pytest.approx(statistics.nats_total(NATS, TOKENS).per_token().value)
    assert parts[1] == pytest.approx(0.1)
    assert math.copysign(1, statistics.term_per_token([-0.0], [3])) == 1


def test_monte_carlo_error_is_that_of_repeated_runs():
    spread, runs = 2.0, 4000
    repeated = [
        statistics.NatsTotal(-(NATS + RNG.normal(0, spread, 41)).sum(), TOKENS.sum(), None, None, None, "")
        .perplexity()
        .value
        for _ in range(runs)
    ]
    found = statistics.nats_total(NATS, TOKENS, np.full(41, spread**2)).perplexity()
    assert found.stderr_mc == pytest.approx(np.std(repeated), rel=0.05)
    assert statistics.nats_total(NATS, TOKENS).perplexity().stderr_mc is None


def test_the_interval_is_the_exp_of_that_in_nats_and_holds_the_value():
    cost = statistics.nats_total(NATS, TOKENS)
    nats, perplexity = cost.per_token(), cost.perplexity()
    assert nats.ci95 is not None and perplexity.ci95 == pytest.approx(tuple(map(math.exp, nats.ci95)))
    assert perplexity.ci95[0] < perplexity.value < perplexity.ci95[1]
    assert "41 blocks" in perplexity.method and perplexity == statistics.nats_total(NATS, TOKENS).perplexity()
    # Close to the textbook error of a ratio of sums.
    residual = -NATS - nats.value * TOKENS
    assert nats.stderr_data == pytest.approx(math.sqrt((residual**2).sum()) / TOKENS.sum(), rel=0.05)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth, covered, trials = 3.0, 0, 60
    for _ in range(trials):
        rates = RNG.gamma(30, truth / 30, 60)
        low, high = statistics.nats_total(-100 * rates, np.full(60, 100)).per_token().ci95
        covered += low <= truth <= high
    assert 0.85 <= covered / trials <= 1


def test_one_block_has_no_interval_and_says_so():
    found = statistics.nats_total([-10.0], [5]).perplexity()
    assert found.ci95 is None and found.stderr_data is None and "no interval" in found.method
    assert found.value == pytest.approx(math.exp(2))


def test_nonsense_is_refused():
    for nats, tokens in [([math.nan], [1]), ([-math.inf], [1]), ([], []), ([-1.0], [0]), ([-1.0, -2.0], [1])]:
        with pytest.raises(ValueError):
            statistics.nats_total(nats, tokens)
    with pytest.raises(ValueError, match="beyond all floats"):
        statistics.nats_total([-1e6], [1]).perplexity()


def blocks(nats, tokens=TOKENS):
    return statistics.Blocks(source="some result", nats_N=np.asarray(nats), tokens_N=np.asarray(tokens))


def test_pairing_sees_what_separate_intervals_do_not():
    better = NATS + 0.01 * TOKENS + RNG.normal(0, 0.1, 41)
    a, b = statistics.nats_total(NATS, TOKENS).per_token(), statistics.nats_total(better, TOKENS).per_token()
    assert b.ci95[1] > a.ci95[0]
    first, second = blocks(NATS), blocks(better)
    difference = statistics.paired_difference(first, second)
    assert 0 < difference.ci95[0] < difference.value < difference.ci95[1]
    assert difference.value == pytest.approx(a.value - b.value)
    assert statistics.paired_difference(second, first).value == pytest.approx(-difference.value)
    assert statistics.paired_difference(first, first).ci95 == (0, 0)


def test_the_bootstrap_of_lm_eval_agrees(monkeypatch):
    from lm_eval.api import metrics

    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    cost = statistics.nats_total(NATS, TOKENS)
    items = list(zip(NATS.tolist(), TOKENS.tolist(), strict=True))
    assert metrics.weighted_perplexity(items) == pytest.approx(cost.perplexity().value, rel=1e-12)
    theirs = metrics.bootstrap_stderr(metrics.weighted_perplexity, items, iters=4000)
    assert cost.perplexity().stderr_data == pytest.approx(theirs, rel=0.05)
    # Its bits per byte and word perplexity are of the same items, with the text's own units as weights.
    blocks = list(zip(NATS.tolist(), (TOKENS * 3.5).tolist(), strict=True))
    found = cost.bits_per_byte(TOKENS.sum() * 3.5)
    assert metrics.bits_per_byte(blocks) == pytest.approx(found.value, rel=1e-12)
    assert metrics.bootstrap_stderr(metrics.bits_per_byte, blocks, iters=4000) == pytest.approx(
        found.stderr_data, rel=0.05
    )


def test_the_legacy_mean_of_perplexities_is_larger_and_has_no_headline():
    legacy = statistics.mean_of_exp([-10.0, -1.0], [2, 10])
    assert legacy == pytest.approx((math.exp(5) + math.exp(0.1)) / 2)
    assert statistics.mean_of_exp(NATS, TOKENS) > statistics.nats_total(NATS, TOKENS).perplexity().value
    same = -2.5 * TOKENS
    assert statistics.mean_of_exp(same, TOKENS) == pytest.approx(statistics.nats_total(same, TOKENS).perplexity().value)
    assert statistics.mean_of_exp([-1e6, -1.0], [1, 1]) == math.inf


def test_different_blocks_are_not_compared():
    for other in (blocks(NATS, TOKENS[::-1]), blocks(NATS[:-1], TOKENS[:-1])):
        with pytest.raises(UserError, match="should cover the same blocks"):
            statistics.paired_difference(blocks(NATS), other)


def test_the_error_of_a_mean_is_what_theory_says():
    values = np.random.default_rng(0).random((2, 400)) < [[0.2], [0.5]]
    for found, row in zip(statistics.means(values, "problems"), values, strict=True):
        expected = row.std() / 20
        assert found.value == row.mean() and found.stderr_data == pytest.approx(expected, rel=0.03)
        assert found.ci95[0] == pytest.approx(found.value - 1.96 * expected, abs=0.1 * expected + 0.0026)
        assert found.ci95[1] == pytest.approx(found.value + 1.96 * expected, abs=0.1 * expected + 0.0026)
        assert "400 problems" in found.method


def test_rows_are_resampled_together():
    a = np.arange(50.0) % 7
    first, second, difference = statistics.means([a + 3, a, (a + 3) - a], "problems")
    assert difference.ci95 == (3.0, 3.0) and difference.stderr_data == pytest.approx(0, abs=1e-12)
    assert first.ci95[0] - second.ci95[0] == pytest.approx(3)


def test_the_interval_of_a_rate_is_exact_and_has_width_where_all_agree():
    none, all_, some, share = statistics.means(
        [[0] * 95, [1] * 95, [1] * 5 + [0] * 90, [0.2] * 95], "texts", rates=range(4)
    )
    # The rule of three, with both ends; and the tail of a binomial at each end is 2.5%.
    assert none.ci95 == pytest.approx((0, 1 - 0.025 ** (1 / 95))) and all_.ci95 == pytest.approx((0.025 ** (1 / 95), 1))
    low, high = some.ci95
    assert binom.cdf(5, 95, high) == pytest.approx(0.025) == binom.sf(4, 95, low)
    assert "exact binomial over 95 texts" in some.method and "bootstrap" in share.method
    (difference,) = statistics.means([[0] * 95], "texts")
    assert difference.ci95 == (0, 0)


def test_one_item_has_no_interval_and_none_is_an_error():
    (found,) = statistics.means([[1.0]], "problems")
    assert found.value == 1 and found.ci95 is None and found.stderr_data is None
    with pytest.raises(ValueError, match="at least one item"):
        statistics.means([[]], "problems")


def test_of_very_many_blocks_groups_of_neighbours_are_resampled(monkeypatch):
    rng = np.random.default_rng(0)
    tokens_N = rng.integers(100, 128, 4000).astype(float)
    nats_N = -tokens_N * rng.normal(3, 0.5, 4000)
    one_by_one = statistics.nats_total(nats_N, tokens_N)
    monkeypatch.setattr(statistics, "MOST_BLOCKS", 3999)
    monkeypatch.setattr(statistics, "GROUPS", 1000)
    grouped = statistics.nats_total(nats_N, tokens_N)
    assert (grouped.nats, grouped.tokens) == (one_by_one.nats, one_by_one.tokens)
    # Of independent blocks, groups say the same about the error, up to that of estimating it from 1,000 of them.
    assert grouped.stderr_data == pytest.approx(one_by_one.stderr_data, rel=0.1)
    assert grouped.method.startswith("percentile bootstrap over 1000 groups of 4 neighbouring blocks")
    # Neighbours that are alike make the error larger, by the root of their number if they are the same.
    alike = statistics.nats_total(np.repeat(nats_N[::4], 4), np.repeat(tokens_N[::4], 4))
    monkeypatch.setattr(statistics, "MOST_BLOCKS", 4000)
    apart = statistics.nats_total(np.repeat(nats_N[::4], 4), np.repeat(tokens_N[::4], 4))
    assert alike.stderr_data == pytest.approx(2 * apart.stderr_data, rel=0.05)
