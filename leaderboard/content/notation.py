"""Numbers as text: the sign for the kind of a number, its interval, and short forms of large counts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from leaderboard.content.document import FAILED, NOTHING, Value
from leaderboard.entries import Entry
from ltm.progress import count
from ltm.result import Metric

SIGNS = {"exact": "", "lower_bound": "≤ ", "upper_bound": "≥ ", "estimate": "~ "}
"""The sign by kind of likelihood. A lower bound on log p is an upper bound on perplexity, hence ≤; and vice versa."""

PASSED = "passed"
"""The verdict on a likelihood that no check refutes; the other one is `FAILED`."""

LEGEND = (
    "`23.10` is exact. `≤ 24.31` is a bound: the model's perplexity is at most that, up to the error shown. `~ 22.80` "
    "is an estimate that bounds nothing, and takes no rank. Of a model whose likelihood failed its audit, every number "
    "by that likelihood is an estimate. `≥ 22.90, ≤ 24.31` has both sides: the perplexity is between them.",
    "`[24.02, 24.60]` is the 95% interval over the choice of text. `± 0.12 (n=3)` is the standard deviation over three "
    "training seeds, beside their mean; without it there is one training seed.",
    "A rank is one more than the number of models that are better beyond doubt: by the 95% interval of the paired "
    "difference over the same blocks, and over training seeds where there are several, if the blocks are at hand, "
    "otherwise by 95% intervals that do not touch. `=` marks a shared rank: not separated. Bounds are ranked as they "
    "stand, by the `≤`; the model behind a bound may be better than its rank, but not than its `≥`. *Mean rank* is the "
    "mean place in order of perplexity over all texts, separated or not, with its standard deviation over seeds.",
    "In brackets after a name stands in what a model differs from most others of that name.",
    "FLOPs/token: *paper* is the convention of the published tables, *counted* is what this code executes, once for "
    "training and once for scoring; a multiply-add is two.",
    "*Rows in italics* are what papers report, under protocols of their own. They take no rank.",
)

SHORT_LEGEND = (
    "≤ bound: at most that; ≥ at least; ~ estimate: bounds nothing; no sign: exact. [95% interval over the text]. "
    "± spread over n training seeds. = rank shared: not separated."
)


def number(value: float, digits: int = 4) -> str:
    """Format to `digits` significant digits, without an exponent from 1e-6 to 1e15: `24.31`, `258.9`, `41250`."""
    if value == 0:
        return "0"
    rounded = f"{value:.{digits - 1}e}"
    if not 1e-6 <= abs(value) < 1e15:
        return rounded
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(float(rounded)))))}f}"


def short(value: float | None) -> str:
    """Format to three significant digits and a power of a thousand: `38.4M`, `4.07G`, `950`; a dash for None."""
    if value is None:
        return NOTHING
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        scaled = float(f"{value / 10**power:.3g}")
        if scaled >= 1:
            return f"{scaled:.{max(0, 2 - math.floor(math.log10(scaled)))}f}{letter}"
    return f"{value:.3g}"


def value(metrics: Sequence[Metric | None]) -> str:
    """Format the mean over training seeds with its sign: `≤ 24.31`; a dash without any value."""
    known = [metric for metric in metrics if metric is not None]
    if not known:
        return NOTHING
    return _sign(known) + number(statistics.fmean(metric.value for metric in known))


def value_and_error(metrics: Sequence[Metric | None], least: Sequence[Metric | None] = ()) -> str:
    """Format like `value`, followed by the 95% interval of a single seed or the standard deviation over several.

    Args:
        least: the other side of each bound, which comes first if all have one: `≥ 22.90, ≤ 24.31 [24.02, 24.60]`.
    """
    known = [metric for metric in metrics if metric is not None]
    if least and all(metric is not None for metric in least):
        return f"{value(least)}, {value_and_error(metrics)}"
    if len(known) > 1:
        spread = statistics.stdev(metric.value for metric in known)
        return f"{value(known)} ± {number(spread, digits=2)} (n={len(known)})"
    interval = known[0].ci95 if known else None
    return value(known) + (f" [{number(interval.low)}, {number(interval.high)}]" if interval else "")


def _sign(metrics: Sequence[Metric]) -> str:
    # The weakest kind decides.
    return next(SIGNS[kind] for kind in reversed(SIGNS) if any(metric.kind == kind for metric in metrics))


def audit(entry: Entry, likelihood: str | None) -> str:
    """Return the audits' verdict on a likelihood: `passed`, with its reservations, `failed` or `not audited`."""
    verdict = entry.audit.get(likelihood or "")
    if verdict is None:
        return "not audited"
    return PASSED + entry.reservations.get(likelihood or "", "") if verdict else FAILED


def describe(entry: Entry, metric: Metric) -> str:
    """Return all that is known about a number in one line: kind, interval, draws, audit, and where it comes from."""
    result, kinds = entry.result, {"exact": "exact", "lower_bound": "a bound: at most that"}
    kinds |= {"upper_bound": "a bound: at least that", "estimate": "an estimate"}
    by = "" if metric.likelihood in (None, metric.kind) else f", by {metric.likelihood}"
    parts = [f"{kinds[metric.kind]}{by}"]
    if metric.ci95 is not None:
        low, high = number(metric.ci95.low), number(metric.ci95.high)
        parts.append(f"95% interval {low} to {high} ({metric.ci95.method})")
    elif metric.n:
        parts.append(f"n {metric.n}, no interval")
    if metric.likelihood is not None:
        error = "" if metric.stderr_mc is None else f", Monte Carlo s.e. {number(metric.stderr_mc, 2)}"
        parts.append(f"{count(result.scoring['draws'], 'draws')}{error}" if result.scoring["draws"] else "no draws")
        parts.append(f"audit: {audit(entry, metric.likelihood)}")
    seed = result.training["seed"]
    parts.append(f"{'no training seed' if seed is None else f'training seed {seed}'}; {provenance(entry)}")
    return "; ".join(parts)


def provenance(entry: Entry) -> str:
    """Return commit, device, date and file of a result in one line."""
    origin = entry.result.provenance
    commit = (origin["commit"] or "commit unknown")[:12] + (" with changes" if origin["dirty"] else "")
    return f"{commit}, on {origin['device']}, {origin['date'][:10]}, {entry.name}"


def with_tooltip(text: str, entries: Sequence[Entry], metrics: Sequence[Metric | None]) -> str | Value:
    """Attach to a text what is known about its numbers; `metrics` has one for each of `entries`."""
    known = [describe(e, m) for e, m in zip(entries, metrics, strict=True) if m is not None]
    return Value(text=text, tip=" | ".join(known)) if known else text
