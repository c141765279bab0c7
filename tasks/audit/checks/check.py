"""The outcome of a check, and an order of outcomes by how bad they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tasks.audit.checks.evidence import Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The outcome of one check of one likelihood.

    Attributes:
        name: name of the check.
        likelihood: which one; None for all that a model has.
        passed: None where there was nothing to check, as `detail` says.
        value, limit: the value found and the most that it may be; nan where there is no number.
        detail: one line for a reader.
        evidence: the evidence of a known source, if the check is about one.
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
