"""The result of a check, and a ranking of results by how bad they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tasks.audit.checks.evidence import Evidence

SAYS_NOTHING = "above 0 nats, where an upper bound says nothing"
"""Why an upper bound is not judged: the likelihood of no text is above 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The result of one check of one likelihood.

    Attributes:
        name: name of the check.
        likelihood: which likelihood; None for all that a model has.
        passed: None if there was nothing to check, as `detail` says.
        value, limit: the value measured and the most that it may be; nan if the result is no number.
        detail: one line for the reader.
        evidence: the evidence from a known source, if the check uses one.
    """

    name: str
    likelihood: str | None
    passed: bool | None
    value: float
    limit: float
    detail: str
    evidence: Evidence | None = None


def beyond(result: CheckResult) -> float:
    """Rank a mass by how bad it is: failures first, then by its excess over the limit, or its distance from 1."""
    off = abs(result.value - 1) if not result.passed else result.value - result.limit
    return math.inf if math.isnan(off) else off + (0 if result.passed else 1e6)
