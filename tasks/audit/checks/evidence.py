"""Evidence against the claim that numbers are log-likelihoods, from texts whose true likelihood is known.

Let texts x_1 .. x_N be drawn from a source r. If exp(c(x)) sums to at most 1, as for log-probabilities or bounds on
them, then E exp(c(x) - log r(x)) = sum over x of exp(c(x)) <= 1, so the product over texts is an e-value: it exceeds
1 / alpha with probability at most alpha (Markov), and so does the largest of its running values (Ville). Beyond that,
the claim is refuted. Nothing is assumed about the model. A small product proves nothing: a model that is far from the
source could claim more than it should, and still stay below.

If c(x) is itself random, E exp(c(x)) <= p(x) is needed. The logarithm of a mean of weights satisfies it. A mean of
logarithms is below log p(x) only on average, so it enters three standard errors lower; `slack` is that amount.
Shapes: N texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ALPHA = 0.01
"""How often a sound claim may be refuted."""
STANDARD_ERRORS = 3.0
"""Standard errors that are taken off a claim with Monte Carlo error."""
LARGEST = 700.0
"""Nats, near the largest whose exponential is a number."""


def threshold(alpha: float = ALPHA) -> float:
    """Return log(1 / alpha), in nats.

    Raises:
        ValueError: not 0 < alpha < 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, found {alpha}")
    return -math.log(alpha)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The evidence against a claim from the texts of a known source.

    Attributes:
        log_e_value: total claimed minus total true nats, minus the slack; inf if a claim is beyond certainty.
        threshold: log(1 / alpha); beyond it, the claim is refuted.
        texts: number of texts, N.
        slack: nats taken off the total for the Monte Carlo error of averaged claims; 0 for others.
        curve_N: the log e-value after 1, 2 .. N texts.
    """

    log_e_value: float
    threshold: float
    texts: int
    slack: float
    curve_N: Floats

    @property
    def refuted(self) -> bool:
        """True if the claim is refuted; a sound one is refuted with probability at most alpha."""
        return self.log_e_value > self.threshold

    @property
    def blind_below(self) -> float:
        """Nats per text by which all claims could have been higher without being refuted; negative if refuted."""
        return (self.threshold - self.log_e_value) / self.texts


def evidence(
    claims_N: Any, reference_N: Any, mc_var_N: Any = None, *, averaged: bool = False, alpha: float = ALPHA
) -> Evidence:
    """Compare claimed log-likelihoods of texts with their true ones.

    Args:
        claims_N: nats of whole texts; -inf is a sound claim, if a useless one.
        reference_N: log r of the same texts, which were drawn from r.
        mc_var_N: Monte Carlo variances of the claims, with independent noise; None if unknown.
        averaged: the claims are below log p(x) on average, but their exponentials need not be: see above. A stated
            error larger than the spread over texts, of which it is a part, is replaced by that spread.
        alpha: how often a sound claim may be refuted.

    Raises:
        ValueError: no texts, shapes differ, a claim is not a number, or the source cannot have drawn a text.
    """
    claims_N, reference_N = np.asarray(claims_N, np.float64), np.asarray(reference_N, np.float64)
    if claims_N.shape != reference_N.shape or claims_N.ndim != 1 or not len(claims_N):
        raise ValueError(
            f"expected claims and true values of the same texts, found {claims_N.shape}, {reference_N.shape}"
        )
    if not np.isfinite(reference_N).all():
        raise ValueError("a text has no finite true log-likelihood: the source cannot have drawn it")
    if np.isnan(claims_N).any():
        raise ValueError(f"{int(np.isnan(claims_N).sum())} of {len(claims_N)} claims are not numbers")
    line, infinite_N = threshold(alpha), claims_N == np.inf
    excess_N = np.where(infinite_N, 0.0, claims_N) - reference_N
    slack_N = _slack(excess_N, mc_var_N) if averaged else np.zeros_like(excess_N)
    # Other texts cannot compensate for a claim beyond certainty.
    curve_N = np.where(np.maximum.accumulate(infinite_N), np.inf, np.cumsum(excess_N) - slack_N)
    return Evidence(
        log_e_value=float(curve_N[-1]),
        threshold=line,
        texts=len(claims_N),
        slack=float(slack_N[-1]),
        curve_N=curve_N,
    )


def _slack(excess_N: Floats, mc_var_N: Any) -> Floats:
    """Return three standard errors of the total over the first n texts, for each n."""
    count_N, finite = np.arange(1, len(excess_N) + 1), excess_N[np.isfinite(excess_N)]
    spread = float(finite.var(ddof=1)) if len(finite) > 1 else math.inf
    variance_N = spread * count_N
    if mc_var_N is not None:
        variance_N = np.minimum(variance_N, np.cumsum(np.asarray(mc_var_N, np.float64)))
    if not np.isfinite(variance_N[-1]):
        raise ValueError("one averaged claim of unknown error says nothing: more draws or more texts are needed")
    return STANDARD_ERRORS * np.sqrt(variance_N)


def tangent(log_values_N: Any, *, at_N: Any) -> Floats:
    """Return the tangents of exp at the points `at_N`, at the values c: exp(a) (1 + c - a), which is at most exp(c).

    If c is random and a is independent of it, the expectation is at most exp(E c), as that of exp(c) is not. The best
    point is E c; of an estimate of it with Gaussian error, the best is that estimate less its variance.
    """
    log_values_N, at_N = np.asarray(log_values_N, np.float64), np.minimum(np.asarray(at_N, np.float64), LARGEST)
    # What is impossible under both noises has no weight.
    with np.errstate(invalid="ignore"):
        return np.where(at_N == -math.inf, 0.0, np.exp(at_N) * (1 + log_values_N - at_N))


def mean_lower_bound(values_N: Any, alpha: float = ALPHA) -> float:
    """Return a lower confidence bound on the mean of independent values that are not negative, valid for any N.

    If the mean is m, each product over n of 1 + b (value / m - 1), 0 <= b <= 1, is an e-value (betting; Waudby-Smith
    and Ramdas, arXiv 2010.09686), and so is their average over a few b, which falls as m grows. The bound is the m at
    which it equals 1 / alpha; 0 if nothing is known.

    Values below 0, which are never divided by m, leave a bound above 1 valid, unless one is so far below that a factor
    would be negative: it then ends the product. A bound below 1 is an estimate then.

    Raises:
        ValueError: there are no values, or one is not a number.
    """
    values_N = np.asarray(values_N, np.float64)
    if not len(values_N) or np.isnan(values_N).any():
        raise ValueError("expected at least one value, all of them numbers")
    line, bets_B1 = threshold(alpha), np.array([0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 1.0])[:, None]
    above_N, below_N = np.maximum(values_N, 0.0), np.minimum(values_N, 0.0)
    largest = float(above_N.max())
    if largest in (0.0, math.inf):
        return largest

    def log_e_value(log_mean: float) -> float:
        with np.errstate(divide="ignore", over="ignore"):
            ratios_N = np.exp(np.log(above_N) - log_mean)
            factors_BN = np.maximum(1 - bets_B1 + bets_B1 * (ratios_N + below_N), 0.0)
            return float(np.logaddexp.reduce(np.log(factors_BN).sum(1)) - math.log(len(bets_B1)))

    # At the largest value every factor is at most 1; far below it the product exceeds any threshold.
    high = math.log(largest)
    low = high - line - 50.0 - len(values_N)
    if log_e_value(low) < line:
        return 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if log_e_value(middle) >= line else (low, middle)
    return math.exp(low)


def texts_to_refute(excess: float, *, standard_error: float = 0.0, alpha: float = ALPHA) -> float:
    """Return how many texts it takes, on average, to refute claims that are `excess` nats per text too high; or inf.

    Args:
        excess: mean of claim minus truth, nats per text; a model's shortfall against the source lowers it.
        standard_error: Monte Carlo standard error of an averaged claim, nats per text; 0 for others.
    """
    if excess <= 0:
        return math.inf
    # n excess - 3 se sqrt(n) = log(1 / alpha), solved for sqrt(n).
    b = STANDARD_ERRORS * standard_error
    root = (b + math.sqrt(b * b + 4 * excess * threshold(alpha))) / (2 * excess)
    return math.ceil(root * root - 1e-9)


def power_curve(
    entropy: float,
    gap: float = 0.0,
    *,
    shares: Sequence[float] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2),
    standard_error: float = 0.0,
    alpha: float = ALPHA,
) -> list[tuple[float, float]]:
    """Return pairs of a share and the number of texts needed if claims are inflated by that share of the entropy.

    Args:
        entropy: entropy of the source, nats per text.
        gap: how far the sound claim is below the source on average, nats per text. Inflation within it is hidden, since
            a better model might claim as much.
        standard_error: see `texts_to_refute`.
    """
    return [
        (share, texts_to_refute(share * entropy - gap, standard_error=standard_error, alpha=alpha)) for share in shares
    ]
