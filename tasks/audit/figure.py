"""The figure of an audit: evidence against each claim over texts, the claims themselves, and the power of the test."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import results
from tasks.audit.checks.evidence import power_curve

if TYPE_CHECKING:
    from tasks.audit.checks.source import Claims
    from tasks.audit.run import Audit


def draw(audit: Audit, *, title: str, key: str, output: Path) -> str:
    """Write the figure as SVG next to the result of that key; return a sentence that says where, or why not."""
    if audit.claims is None or audit.source is None or audit.entropy is None:
        return "no figure: without a twin, no claims are compared with a known source"
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return results.NO_FIGURE
    figure = Figure(figsize=(12.6, 3.6), layout="constrained")
    running, claimed, power = figure.subplots(1, 3)
    parts = [(audit.claims, "")]
    if audit.more_steps is not None:
        parts.append((audit.more_steps[0], f", {audit.more_steps[1]} steps"))
    _running(running, parts)
    _claimed(claimed, audit, parts, entropy=audit.entropy.nats_per_text / audit.source.length)
    shares = [10 ** (exponent / 10) for exponent in range(-35, -4)]
    for gap, label in ((0.0, "of the source itself"), (_gap(audit.claims), "of this headline")):
        curve = [(100 * s, n) for s, n in power_curve(audit.entropy.nats_per_text, gap, shares=shares) if n < math.inf]
        power.loglog(*zip(*curve, strict=True) if curve else ([], []), label=label)
    power.axvline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    power.set(xlabel="claim too high, % of the entropy", ylabel="texts that refute it")
    power.legend(fontsize=7)
    for axis in (running, claimed, power):
        axis.grid(alpha=0.3)
    figure.suptitle(f"{title}: {audit.subject}, {audit.source.spec}", fontsize=10)
    return results.write_figure(figure, title=title, key=key, output=output)


def _running(axis: Any, parts: list[tuple[Claims, str]]) -> None:
    line = 0.0
    for claims, suffix in parts:
        for name in claims.claims_N:
            evidence = claims.evidence(name)
            line = evidence.threshold
            axis.plot(range(1, evidence.texts + 1), evidence.curve_N, linewidth=1.2, label=name + suffix)
    axis.axhline(line, color="black", linewidth=1, linestyle="--", label="refuted above")
    axis.set_yscale("symlog", linthresh=10)
    axis.set(xlabel="texts", ylabel="log e-value, nats")
    axis.legend(fontsize=7)


def _claimed(axis: Any, audit: Audit, parts: list[tuple[Claims, str]], *, entropy: float) -> None:
    rows = [
        (name + suffix, -claims_N.sum() / claims.tokens, suffix == "" and not audit.passed(name))
        for claims, suffix in parts
        for name, claims_N in claims.claims_N.items()
    ]
    for place, (_, value, failed) in enumerate(rows):
        axis.plot(value, place, "X" if failed else "o", color="crimson" if failed else "C0")
    axis.set_yticks(range(len(rows)), [name for name, *_ in rows], fontsize=7)
    axis.margins(0.15)
    axis.invert_yaxis()
    claims, _ = parts[0]
    reference = -claims.reference_N.sum() / claims.tokens
    axis.axvline(reference, color="crimson", linestyle="--", label="source, same texts")
    axis.axvline(entropy, color="0.4", label="source, entropy")
    axis.set(xlabel="claimed nats/token")
    axis.legend(fontsize=7, loc="lower right")


def _gap(claims: Claims) -> float:
    evidence = claims.evidence(next(iter(claims.claims_N)))
    return -(evidence.log_e_value + evidence.slack) / evidence.texts
