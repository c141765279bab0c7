"""Print an audit on a terminal of 100 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.audit.checks.evidence import Evidence, power_curve

if TYPE_CHECKING:
    from tasks.audit.run import Audit

BARS = "▁▂▃▄▅▆▇█"
"""The heights of a sparkline's bars."""
WIDTH = 24
"""Bars per sparkline."""


def write(audit: Audit) -> str:
    """Return the report: what was compared, a verdict per likelihood, the reasons for each failure, and the power."""
    n, length = len(audit.claims.reference_N), audit.source.length
    reference = -math.fsum(audit.claims.reference_N) / audit.claims.tokens
    entropy = audit.entropy.nats_per_text / length
    error = f" ± {audit.entropy.stderr / length:.4f}" if audit.entropy.stderr else ""
    lines = [
        f"{audit.subject}, on {audit.source.spec}: {n} fresh texts of {length} tokens",
        f"  the source: {reference:.4f} nats/token on these texts, entropy {entropy:.4f}{error}",
        "",
        f"  {'likelihood':<22} {'verdict':<8} {'claimed':>8} {'log e-value':>13} {'blind below':>12}  over texts",
    ]
    for likelihood in audit.likelihoods:
        verdict = "passed" if audit.passed(likelihood) else "FAILED"
        row = f"  {likelihood:<22} {verdict:<8}"
        if likelihood in audit.claims.claims_N:
            evidence = audit.claims.evidence(likelihood)
            claimed = -math.fsum(audit.claims.claims_N[likelihood]) / audit.claims.tokens
            blind = "-" if evidence.refuted else f"{evidence.blind_below / length:.4f}"
            row += f" {claimed:>8.4f} {evidence.log_e_value:>13,.1f} {blind:>12}  {sparkline(evidence)}"
        lines.append(row)
    line = audit.claims.evidence(next(iter(audit.claims.claims_N))).threshold
    lines += [f"  refuted beyond a log e-value of {line:.2f}; nats/token; no claim may be below the source", ""]
    for likelihood in audit.likelihoods:
        ran = [c for c in audit.checks_of(likelihood) if c.passed is not None]
        against = audit.refutations(likelihood)
        lines.append(f"  {likelihood}: {len(ran) - len(against)} of {len(ran)} checks passed")
        for check in against:
            reason = f"refuted by {check.name}: {check.detail}"
            lines += textwrap.wrap(reason, 98, initial_indent="    ", subsequent_indent="      ")
    lines += [f"  {c.name}: not run, {c.detail}" for c in audit.checks if c.passed is None]
    lines += ["", *power(audit)]
    seconds = ", ".join(f"{check} {seconds:.0f}" for check, seconds in audit.seconds.items())
    lines += textwrap.wrap(f"seconds: {seconds}", 98, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def power(audit: Audit) -> list[str]:
    """Tabulate how many texts it takes to refute claims that are too high by a share of the entropy.

    One row is for a model that equals the source, the other for this model, with its gap to the source.
    """
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
