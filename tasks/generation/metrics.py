"""Metrics of generated texts, with errors; text_statistics.py defines the statistics.

Shapes: N texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ltm import statistics
from ltm.result import Kind, Metric
from tasks import results
from tasks.generation import text_statistics as counted

REPEATED_ORDER = 4
"""Length of the n-grams whose repetition within a text is measured."""
Direction = Literal["lower", "higher"]


def text_metrics(texts: Sequence[Sequence[int]], prefix: str = "") -> list[Metric]:
    """Measure length, entropy, variety and repetition of tokenised texts; statistics that empty texts lack skip them.

    Args:
        prefix: prefix of the metrics' names, for texts that are not the model's: `human_`.
    """
    N = len(texts)
    some = [text for text in texts if len(text)]
    metrics = [_mean(f"{prefix}empty", [float(not len(text)) for text in texts], "lower", rate=True)]
    metrics += [_mean(f"{prefix}tokens_per_sample", [float(len(text)) for text in texts], "higher")]
    if some:
        metrics += [_mean(f"{prefix}unigram_entropy", [counted.unigram_entropy(text) for text in some], "higher")]
        repetitive = [float(counted.ends_in_repetition(text)) for text in some]
        metrics += [_mean(f"{prefix}repetition", repetitive, "lower", rate=True)]
    long = [text for text in some if len(text) >= REPEATED_ORDER]
    if long:
        repeated = [counted.repeated_ngrams(text, REPEATED_ORDER) for text in long]
        metrics += [_mean(f"{prefix}seq_rep_{REPEATED_ORDER}", repeated, "lower", rate=True)]
    for order in range(1, 5):
        if any(len(text) >= order for text in some):
            metrics.append(
                _varied(f"{prefix}distinct_{order}", counted.distinct(texts, order), N, "jackknife", "higher")
            )
    if len(some) > 1:
        metrics.append(_varied(f"{prefix}self_bleu", counted.self_bleu(some), len(some), "bootstrap", "lower"))
    return metrics


def evaluations(per_sample: Sequence[int]) -> Metric:
    """Make the metric of network evaluations per sample."""
    return _mean("network_evaluations", [float(n) for n in per_sample], "lower")


def _mean(name: str, values: Sequence[float], direction: Direction, *, rate: bool = False) -> Metric:
    (measured,) = statistics.means([values], "samples", rates=[0] if rate else [])
    return metric(name, measured, direction, unit="sample", n=len(values))


def _varied(name: str, statistic: counted.Varied, n: int, method: str, direction: Direction) -> Metric:
    ci95 = None
    if statistic.stderr is not None:
        margin = statistics.NORMAL_95 * statistic.stderr
        ci95 = (max(0.0, statistic.value - margin), min(1.0, statistic.value + margin))
    measured = statistics.Measured(statistic.value, None, statistic.stderr, ci95, f"normal, {method} over {n} samples")
    return metric(name, measured, direction, unit="set", n=n)


def metric(
    name: str,
    measured: statistics.Measured,
    direction: Direction,
    *,
    unit: str,
    n: int,
    kind: Kind = "exact",
    headline: bool = False,
) -> Metric:
    """Make a metric that belongs to no likelihood."""
    return results.metric(
        name, measured, likelihood=None, headline=headline, unit=unit, kind=kind, direction=direction, n=n
    )
