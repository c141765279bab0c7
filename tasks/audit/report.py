"""An audit in words, for a terminal of 100 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tasks.audit.checks.evidence import Evidence, power_curve

if TYPE_CHECKING:
    from tasks.audit.run import Audit

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 24


def write(found: Audit) -> str:
    """What was held against what, each likelihood's verdict, the reasons of those that failed, and the power."""
    n, length = len(found.claims.reference_N), found.source.length
    reference = -math.fsum(found.claims.reference_N) / found.claims.tokens
    entropy = found.entropy.nats_per_text / length
    error = f" ± {found.entropy.stderr / length:.4f}" if found.entropy.stderr else ""
    lines = [
        f"{found.subject}, on {found.source.spec}: {n} fresh texts of {length} tokens",
        f"  the source: {reference:.4f} nats/token on these texts, entropy {entropy:.4f}{error}",
        "",
        f"  {'likelihood':<22} {'verdict':<8} {'claimed':>8} {'log e-value':>13} {'blind below':>12}  over texts",
    ]
    for likelihood in found.likelihoods:
        verdict = "passed" if found.passed(likelihood) else "FAILED"
        row = f"  {likelihood:<22} {verdict:<8}"
        if likelihood in found.claims.claims_N:
            evidence = found.claims.evidence(likelihood)
            claimed = -math.fsum(found.claims.claims_N[likelihood]) / found.claims.tokens
            blind = "-" if evidence.refuted else f"{evidence.blind_below / length:.4f}"
            row += f" {claimed:>8.4f} {evidence.log_e_value:>13,.1f} {blind:>12}  {sparkline(evidence)}"
        lines.append(row)
    line = found.claims.evidence(next(iter(found.claims.claims_N))).threshold
    lines += [f"  refuted beyond a log e-value of {line:.2f}; nats/token; no claim may be below the source", ""]
    for likelihood in found.likelihoods:
        made = [c for c in found.of(likelihood) if c.passed is not None]
        against = found.refutations(likelihood)
        lines.append(f"  {likelihood}: {len(made) - len(against)} of {len(made)} checks passed")
        for check in against:
            reason = f"refuted by {check.name}: {check.detail}"
            lines += textwrap.wrap(reason, 98, initial_indent="    ", subsequent_indent="      ")
    lines += [f"  {c.name}: not made, {c.detail}" for c in found.checks if c.passed is None]
    lines += ["", *power(found)]
    seconds = ", ".join(f"{check} {seconds:.0f}" for check, seconds in found.seconds.items())
    lines += textwrap.wrap(f"seconds: {seconds}", 98, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def power(found: Audit) -> list[str]:
    """How many texts refute a claim that is too high by a share of the entropy: the source's own, and this one."""
    headline = next(iter(found.claims.claims_N))
    evidence, texts = found.claims.evidence(headline), len(found.claims.reference_N)
    gap = -(evidence.log_e_value + evidence.slack) / texts
    error = evidence.slack / 3 / math.sqrt(texts)
    perfect = power_curve(found.entropy.nats_per_text)
    own = power_curve(found.entropy.nats_per_text, gap, standard_error=error)
    cells = [("claim too high by", *(f"{share:.1%}" for share, _ in perfect))]
    for label, curve in (("texts, no gap", perfect), ("texts, this model", own)):
        cells.append((label, *("never" if math.isinf(count) else f"{count:,.0f}" for _, count in curve)))
    return ["  " + f"{label:<18}" + "".join(f"{value:>8}" for value in values) for label, *values in cells]


def sparkline(evidence: Evidence) -> str:
    """The running log e-value from its least to its largest, 0 and the first texts on the left."""
    curve = [0.0, *evidence.curve_N.tolist()]
    picked = [curve[round(i * (len(curve) - 1) / (WIDTH - 1))] for i in range(WIDTH)]
    return bars(picked)


def bars(values: Sequence[float]) -> str:
    """A bar a value; the lowest and the highest of them have the lowest and the highest bar."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = (high - low) or 1.0
    level = [1.0 if value == math.inf else max(0.0, (value - low) / span) for value in values]
    return "".join(BARS[round(share * (len(BARS) - 1))] for share in level)
