"""Evidence against hand computation, its false alarms on sound claims, and its power on false ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ltm.known_sources.topics import Topics
from tasks.audit.checks.evidence import evidence, mean_lower_bound, power_curve, tangent, texts_to_refute, threshold

SMALL = Topics(length=8, words=5, topics=3, classes=2)


def test_by_hand():
    found = evidence([-1.0, -2.0, -3.0], [-2.0, -4.0, -4.5], alpha=0.05)
    assert found.curve_N.tolist() == [1.0, 3.0, 4.5] and found.log_e_value == 4.5
    assert found.threshold == pytest.approx(math.log(20)) and found.refuted and found.slack == 0
    assert found.blind_below == pytest.approx((math.log(20) - 4.5) / 3)
    assert not evidence([-1.0, -2.0, -3.0], [-2.0, -4.0, -4.5], alpha=0.01).refuted
    assert threshold(0.01) == pytest.approx(4.605, abs=1e-3)


def test_averaged_claims_enter_three_standard_errors_lower():
    claims, truth, variance = [-1.0, -2.0, -3.0], [-2.0, -4.0, -4.5], [0.01, 0.02, 0.01]
    found = evidence(claims, truth, variance, averaged=True)
    assert found.slack == pytest.approx(3 * 0.2) and found.log_e_value == pytest.approx(4.5 - 0.6)
    np.testing.assert_allclose(found.curve_N, [1 - 0.3, 3 - 3 * math.sqrt(0.03), 4.5 - 0.6])
    assert evidence(claims, truth, variance).slack == 0


def test_an_error_stated_too_large_hides_no_more_than_the_spread_over_texts():
    claims, truth = [-1.0, -2.0, -3.0], [-2.0, -4.0, -4.5]
    spread = np.subtract(claims, truth).var(ddof=1)
    assert evidence(claims, truth, [1e6] * 3, averaged=True).slack == pytest.approx(3 * math.sqrt(3 * spread))
    assert evidence(claims, truth, None, averaged=True).slack == pytest.approx(3 * math.sqrt(3 * spread))
    with pytest.raises(ValueError, match="more draws or more texts"):
        evidence([-1.0], [-2.0], None, averaged=True)


def test_claims_that_are_not_finite():
    assert evidence([-1.0, math.inf, -9.0], [-2.0, -2.0, -2.0]).curve_N.tolist() == [1.0, math.inf, math.inf]
    assert evidence([-1.0, math.inf], [-2.0, -2.0]).refuted
    useless = evidence([-1.0, -math.inf], [-2.0, -2.0])
    assert useless.log_e_value == -math.inf and not useless.refuted
    assert evidence([math.inf, -math.inf], [-2.0, -2.0]).refuted
    with pytest.raises(ValueError, match="1 of 2 claims are not numbers"):
        evidence([math.nan, -1.0], [-2.0, -2.0])
    with pytest.raises(ValueError, match="cannot have drawn"):
        evidence([-1.0], [-math.inf])
    with pytest.raises(ValueError, match="same texts"):
        evidence([-1.0, -2.0], [-1.0])


def audits(claims_of, *, texts: int = 32, count: int = 1000, **options) -> float:
    """The share of `count` audits that refute; `claims_of(symbols, log r, generator)` gives claims and variances."""
    symbols = SMALL.sample(texts * count, seed=1, purpose="audits")
    log_r = SMALL.log_likelihood(symbols)
    claims, variance = claims_of(symbols, log_r.numpy(), np.random.default_rng(0))
    claims, true = claims.reshape(count, texts), log_r.numpy().reshape(count, texts)
    variance = [None] * count if variance is None else variance.reshape(count, texts)
    return float(
        np.mean([evidence(c, r, v, **options).refuted for c, r, v in zip(claims, true, variance, strict=True)])
    )


def test_the_source_itself_passes():
    assert audits(lambda symbols, log_r, rng: (log_r, None)) <= 0.01


def test_another_distribution_near_the_source_passes():
    near = Topics(length=8, words=5, topics=3, classes=2, topic_scale=1.03, chain_scale=2.55)

    def claims(symbols, log_r, rng):
        log_p = near.log_likelihood(symbols).numpy()
        # Near enough for single audits to go against it by chance.
        assert 0 < np.mean(log_r - log_p) < 0.01
        return log_p, None

    assert audits(claims) <= 0.01


def test_logarithms_of_unbiased_estimates_pass():
    def claims(symbols, log_r, rng):
        return log_r + rng.normal(-0.02, 0.2, len(log_r)), None  # log-normal weights of mean 1

    assert audits(claims) <= 0.01


def test_averages_around_the_very_truth_pass():
    def claims(symbols, log_r, rng):
        return log_r + rng.normal(0, 0.5, len(log_r)), np.full(len(log_r), 0.25)

    assert audits(claims, averaged=True) <= 0.01
    assert audits(claims) > 0.02  # and would not, did they enter as they are


@pytest.mark.parametrize("excess", [0.05, 0.3, 1.7])
def test_an_overclaiming_toy_fails_at_the_predicted_text(excess):
    n = texts_to_refute(excess)
    symbols = SMALL.sample(n, seed=2, purpose="power")
    log_r = SMALL.log_likelihood(symbols).numpy()
    claims = log_r + excess
    assert evidence(claims, log_r).refuted and not evidence(claims[:-1], log_r[:-1]).refuted
    assert n == math.ceil(math.log(100) / excess)


def test_the_power_with_a_standard_error_solves_its_equation():
    n = texts_to_refute(0.4, standard_error=0.6)
    assert n * 0.4 - 3 * 0.6 * math.sqrt(n) >= threshold() > (n - 1) * 0.4 - 3 * 0.6 * math.sqrt(n - 1)
    assert texts_to_refute(0.0) == texts_to_refute(-1.0) == math.inf


def test_the_power_curve_is_hidden_below_the_gap():
    curve = dict(power_curve(340.0, 10.0, shares=(0.02, 0.05)))
    assert curve == {0.02: math.inf, 0.05: 1}
    assert dict(power_curve(340.0, shares=(0.005,))) == {0.005: 3}


def test_the_lower_bound_on_a_mean_holds_and_is_not_empty():
    rng = np.random.default_rng(0)
    # Log-normal of mean 1, and mostly 0 with a rare large value: neither near normal.
    heavy = np.exp(rng.normal(-0.5, 1.0, (300, 64)))
    rare = np.where(rng.random((300, 64)) < 0.02, 50.0, 0.0)
    for values in (heavy, rare):
        assert np.mean([mean_lower_bound(row) > 1 for row in values]) <= 0.01
    assert 1.4 < mean_lower_bound(np.full(256, 1.5)) <= 1.5
    assert mean_lower_bound(np.zeros(4)) == 0 and mean_lower_bound([math.inf]) == math.inf
    with pytest.raises(ValueError, match="numbers"):
        mean_lower_bound([math.nan])


def test_what_is_below_0_lowers_a_bound_on_a_mean():
    assert mean_lower_bound([1.5] * 200 + [-1.0] * 56) < mean_lower_bound([1.5] * 200 + [0.0] * 56) < 1.5
    # It would otherwise count as 0, and a mean of 1 as more.
    rng = np.random.default_rng(1)
    two_sided = rng.choice([-1.0, 3.0], (300, 256))
    assert np.mean([mean_lower_bound(row) > 1 for row in two_sided]) <= 0.01
    assert np.mean([mean_lower_bound(np.maximum(row, 0)) > 1 for row in two_sided]) > 0.9


def test_a_tangent_stays_below_the_exponential_of_an_expectation():
    values = np.linspace(-3, 3, 7)
    assert np.all(tangent(values, at_N=values) == np.exp(values))
    assert np.all(tangent(values[:, None], at_N=values) <= np.exp(values)[:, None] * (1 + 1e-12))
    assert tangent([-math.inf, 0.0], at_N=[-math.inf, 800.0])[0] == 0
    # Costs with a long tail, whose exponential is far above that of their mean.
    rng, deviation = np.random.default_rng(2), 1.5
    first, second = (-np.exp(rng.normal(0, deviation, 200_000)) for _ in range(2))
    truth = math.exp(-math.exp(deviation**2 / 2))
    assert np.exp(second).mean() > 4 * truth
    assert tangent(second, at_N=np.maximum(first, -5)).mean() < truth * 1.02
    # Gaussian noise: the best that can be had is exp(-variance / 2) of the truth.
    first, second = rng.normal(0, 0.7, (2, 200_000))
    assert tangent(second, at_N=first - 0.49).mean() == pytest.approx(math.exp(-0.49 / 2), abs=0.01)
