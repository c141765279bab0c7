"""Can these numbers be log-likelihoods? Evidence against the claim, from texts whose true likelihood is known.

Let texts x_1 .. x_N be drawn from a source r. Numbers c(x) that are logarithms of a distribution, or of less, have
E exp(c(x) - log r(x)) = sum over x of exp(c(x)) <= 1, so that the product over texts is an e-value: it exceeds
1 / alpha with probability at most alpha (Markov), and so does the largest of its values along the way (Ville). Beyond
that the claim is refuted. Nothing is assumed of the model. A product that is small proves nothing: a model that is far
from the source could claim more than it should, and stay below.

Where c(x) is itself random, E exp(c(x)) <= p(x) is what is needed. The logarithm of a mean of weights has it. A mean of
logarithms is below log p(x) on average only, so it enters three standard errors lower; `slack` says by how much.
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


def threshold(alpha: float = ALPHA) -> float:
    """log(1 / alpha), nats.

    Raises:
        ValueError: not 0 < alpha < 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, found {alpha}")
    return -math.log(alpha)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What texts of a known source say against a claim.

    Attributes:
        log_e_value: total claimed less total true nats, less the slack. inf where more than certainty is claimed.
        threshold: log(1 / alpha); beyond it the claim is refuted.
        texts: N.
        slack: nats that the Monte Carlo error of averaged claims takes off the total; 0 for others.
        curve_N: the log e-value after 1, 2 .. N texts.
    """

    log_e_value: float
    threshold: float
    texts: int
    slack: float
    curve_N: Floats

    @property
    def refuted(self) -> bool:
        """Whether no likelihood can be like this, but for a chance of alpha."""
        return self.log_e_value > self.threshold

    @property
    def blind_below(self) -> float:
        """Nats a text by which all claims could have been higher still without being refuted; below 0 where refuted."""
        return (self.threshold - self.log_e_value) / self.texts


def evidence(
    claims_N: Any, reference_N: Any, mc_var_N: Any = None, *, averaged: bool = False, alpha: float = ALPHA
) -> Evidence:
    """Weigh claimed log-likelihoods of texts against their true ones.

    Args:
        claims_N: nats of whole texts; -inf is a sound claim, and a useless one.
        reference_N: log r of the same texts, which were drawn from r.
        mc_var_N: Monte Carlo variances of the claims, with independent noise; None when unknown.
        averaged: the claims are below log p(x) on average, not their exponentials: see above. An error that is stated
            larger than the spread over texts, of which it is a part, counts as that spread.
        alpha: how often a sound claim may be refuted.

    Raises:
        ValueError: no texts, other texts, a claim that is not a number, or a text that the source cannot have drawn.
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
    # More than certainty of one text cannot be made good by others.
    curve_N = np.where(np.maximum.accumulate(infinite_N), np.inf, np.cumsum(excess_N) - slack_N)
    return Evidence(
        log_e_value=float(curve_N[-1]),
        threshold=line,
        texts=len(claims_N),
        slack=float(slack_N[-1]),
        curve_N=curve_N,
    )


def _slack(excess_N: Floats, mc_var_N: Any) -> Floats:
    """Three standard errors of the total of the first n texts, for each n."""
    count_N, finite = np.arange(1, len(excess_N) + 1), excess_N[np.isfinite(excess_N)]
    spread = float(finite.var(ddof=1)) if len(finite) > 1 else math.inf
    variance_N = spread * count_N
    if mc_var_N is not None:
        variance_N = np.minimum(variance_N, np.cumsum(np.asarray(mc_var_N, np.float64)))
    if not np.isfinite(variance_N[-1]):
        raise ValueError("one averaged claim of unknown error says nothing: more draws or more texts are needed")
    return STANDARD_ERRORS * np.sqrt(variance_N)


def mean_lower_bound(log_values_N: Any, alpha: float = ALPHA) -> float:
    """Log of a lower confidence bound on the mean of values >= 0, from N independent ones; holds for any N and law.

    Were the mean m, each product over n of 1 + b (value / m - 1), 0 <= b <= 1, would be an e-value, and so is their
    average over a few b, which falls as m grows. The bound is the m at which it is 1 / alpha. -inf: nothing is known.

    Raises:
        ValueError: no values, or one that is not a number.
    """
    log_values_N = np.asarray(log_values_N, np.float64)
    if not len(log_values_N) or np.isnan(log_values_N).any():
        raise ValueError("expected values, all of them numbers")
    line, bets = threshold(alpha), np.array([0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 1.0])
    largest = float(log_values_N.max())
    if not math.isfinite(largest):
        return largest

    def log_e_value(log_mean: float) -> float:
        with np.errstate(divide="ignore"):
            stay_B = np.log1p(-bets)
        each_BN = np.logaddexp(stay_B[:, None], np.log(bets)[:, None] + log_values_N - log_mean)
        return float(np.logaddexp.reduce(each_BN.sum(1)) - math.log(len(bets)))

    # At the largest value every factor is at most 1; far below, the product is beyond any line.
    high, low = largest, largest - line - 50.0 - len(log_values_N)
    if log_e_value(low) < line:
        return -math.inf
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if log_e_value(middle) >= line else (low, middle)
    return low


def texts_to_refute(excess: float, *, standard_error: float = 0.0, alpha: float = ALPHA) -> float:
    """How many texts refute claims that are `excess` nats a text too high on average: at their mean, ceil; else inf.

    Args:
        excess: mean of claim less truth, nats a text; what a model lacks of the source counts against it.
        standard_error: Monte Carlo standard error of an averaged claim, nats a text; 0 for others.
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
    """(share, texts needed) when claims are inflated by that share of the source's entropy.

    Args:
        entropy: of a text, nats.
        gap: what the sound claim lies below the source on average, nats a text: all that is inflated within it is
            hidden, since some better model might claim as much.
    """
    return [
        (share, texts_to_refute(share * entropy - gap, standard_error=standard_error, alpha=alpha)) for share in shares
    ]
