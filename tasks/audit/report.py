"""Print an audit on a terminal of 100 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ltm.progress import count
from tasks.audit.checks.evidence import Evidence, power_curve

if TYPE_CHECKING:
    from tasks.audit.checks.check import CheckResult
    from tasks.audit.checks.source import Claims
    from tasks.audit.run import Audit

BARS = "▁▂▃▄▅▆▇█"
"""The heights of a sparkline's bars."""
WIDTH = 24
"""Bars per sparkline."""


def write(audit: Audit, *, passed: str = "passed") -> str:
    """Return the report: what was compared, a line per likelihood, the evidence, its power, and the time.

    Args:
        passed: the verdict on a likelihood that nothing refutes, with its reservations.
    """
    lines = [*_compared(audit), "", *_verdicts(audit, passed), ""]
    if audit.claims is not None:
        lines += [*_evidence(audit.claims, audit.likelihoods), "", *power(audit)]
    return "\n".join([*lines, *_time(audit)])


def _compared(audit: Audit) -> list[str]:
    if audit.claims is None or audit.source is None or audit.entropy is None:
        return [f"{audit.subject}, on real text alone: it was made elsewhere and can have no twin"]
    n, length = len(audit.claims.reference_N), audit.source.length
    reference = -math.fsum(audit.claims.reference_N) / audit.claims.tokens
    entropy = audit.entropy.nats_per_text / length
    error = f" ± {audit.entropy.stderr / length:.4f}" if audit.entropy.stderr else ""
    return [
        f"{audit.subject}, on {audit.source.spec}: {count(n, 'fresh texts')} of {count(length, 'tokens')}",
        f"  the source: {reference:.4f} nats/token on these texts, entropy {entropy:.4f}{error}",
    ]


def _verdicts(audit: Audit, passed: str) -> list[str]:
    """Return a line per likelihood: verdict, checks passed, what they cannot see, and the checks that were not made.

    The checks that refute a likelihood follow its line.
    """
    lines, wide = [], max(len(likelihood) for likelihood in audit.likelihoods)
    for likelihood in audit.likelihoods:
        checks, against = audit.checks_of(likelihood), audit.refutations(likelihood)
        made = [check for check in checks if check.passed is not None]
        counted = f"{len(made) - len(against)} of {len(made)} checks"
        parts = [f"{likelihood:<{wide}}", f"{'FAILED' if against else passed:<{len(passed)}}", counted]
        if audit.claims is not None and likelihood in audit.claims.claims_N:
            evidence = audit.claims.evidence(likelihood)
            blind = evidence.blind_below / (audit.claims.tokens / evidence.texts)
            parts += [] if evidence.refuted else [f"blind below {blind:.4f} nats/token"]
        if missing := [check for check in checks if check.passed is None]:
            parts.append(f"{len(missing)} not made ({_not_made(missing)})")
        lines += _wrapped("  ".join(parts))
        for check in against:
            lines += _wrapped(f"  refuted by {check.name}: {check.detail}")
    reasons = dict.fromkeys(check.detail for check in audit.checks if check.passed is None)
    return lines + [line for reason in reasons for line in _wrapped(reason)]


def _not_made(checks: Sequence[CheckResult]) -> str:
    """Return the names of checks by the short reason for which they were not made: `total_mass, x: no twin`."""
    by_reason: dict[str, list[str]] = {}
    for check in checks:
        by_reason.setdefault(check.detail.partition(":")[0], []).append(check.name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())


def _evidence(claims: Claims, likelihoods: Sequence[str]) -> list[str]:
    """Tabulate what is claimed for the source's texts, and the evidence against it over texts."""
    lines = [f"  {'likelihood':<22} {'claimed':>8} {'log e-value':>13}  over texts"]
    for likelihood in likelihoods:
        if likelihood in claims.claims_N:
            evidence, claimed = claims.evidence(likelihood), -math.fsum(claims.claims_N[likelihood]) / claims.tokens
            lines.append(f"  {likelihood:<22} {claimed:>8.4f} {evidence.log_e_value:>13,.1f}  {sparkline(evidence)}")
    line = claims.evidence(next(iter(claims.claims_N))).threshold
    return [*lines, f"  refuted beyond a log e-value of {line:.2f}; nats/token; no claim may be below the source"]


def _time(audit: Audit) -> list[str]:
    """Say how long the audit took, with the part for the twin, and how long each check took."""
    total, training = sum(audit.seconds.values()), audit.seconds.get("training", 0.0)
    twin = ""
    if audit.twin == "trained now":
        twin = f", {training:.0f} of them for training the twin"
    elif audit.twin is not None:
        twin = f"; the twin was {audit.twin}"
    checks = ", ".join(f"{name} {seconds:.0f}" for name, seconds in audit.seconds.items() if name != "training")
    return _wrapped(f"{count(round(total), 'seconds')} in total{twin}: {checks}")


def _wrapped(text: str) -> list[str]:
    indent = " " * (2 + len(text) - len(text.lstrip()))
    return textwrap.wrap(text.lstrip(), 98, initial_indent=indent, subsequent_indent=f"{indent}  ")


def power(audit: Audit) -> list[str]:
    """Tabulate how many texts it takes to refute claims that are too high by a share of the entropy.

    One row is for a model that equals the source, the other for this model, with its gap to the source. Returns nothing
    without a source.
    """
    if audit.claims is None or audit.entropy is None:
        return []
    headline = next(iter(audit.claims.claims_N))
    evidence, texts = audit.claims.evidence(headline), len(audit.claims.reference_N)
    gap = -(evidence.log_e_value + evidence.slack) / texts
    error = evidence.slack / 3 / math.sqrt(texts)
    perfect = power_curve(audit.entropy.nats_per_text)
    actual = power_curve(audit.entropy.nats_per_text, gap, standard_error=error)
    cells = [("claim too high by", *(f"{share:.1%}" for share, _ in perfect))]
    for label, curve in (("texts, no gap", perfect), ("texts, this model", actual)):
        cells.append((label, *("never" if math.isinf(count) else f"{count:,.0f}" for _, count in curve)))
    return ["  " + f"{label:<18}" + "".join(f"{value:>8}" for value in values) for label, *values in cells]


def sparkline(evidence: Evidence) -> str:
    """Draw the running log e-value over texts, from 0 on the left."""
    curve = [0.0, *evidence.curve_N.tolist()]
    picked = [curve[round(i * (len(curve) - 1) / (WIDTH - 1))] for i in range(WIDTH)]
    return bars(picked)


def bars(values: Sequence[float]) -> str:
    """Draw one bar per value; the least value gets the lowest bar, the greatest the highest."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = (high - low) or 1.0
    level = [1.0 if value == math.inf else max(0.0, (value - low) / span) for value in values]
    return "".join(BARS[round(share * (len(BARS) - 1))] for share in level)
