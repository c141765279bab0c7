"""Generated texts to the metrics of a result. What each statistic is stands in text_statistics.py; here are its errors.

Shapes: N texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ltm.errors import UserError
from ltm.result import Metric
from tasks import bootstrap, results, stats
from tasks.generation import text_statistics as counted
from tasks.generation.gen_perplexity import ScoredTexts, mean_of_exp
from tasks.generation.mauve import KMEANS_SEEDS, Mauve

REPEATED_ORDER = 4
_NORMAL_95 = 1.959964
_Direction = Literal["lower", "higher"]


def statistics(texts: Sequence[Sequence[int]], prefix: str = "") -> list[Metric]:
    """Length, entropy, variety and repetition of texts as their tokens; what empty texts lack is over the others.

    Args:
        prefix: of the metrics' names, for texts that are not the model's: `human_`.
    """
    N = len(texts)
    some = [text for text in texts if len(text)]
    found = [_shares(f"{prefix}empty", [float(not len(text)) for text in texts], "lower")]
    found += [_shares(f"{prefix}tokens_per_sample", [float(len(text)) for text in texts], "higher")]
    if some:
        found += [_shares(f"{prefix}unigram_entropy", [counted.unigram_entropy(text) for text in some], "higher")]
        found += [_shares(f"{prefix}repetition", [float(counted.ends_in_repetition(text)) for text in some], "lower")]
    long = [text for text in some if len(text) >= REPEATED_ORDER]
    if long:
        repeated = [counted.repeated_ngrams(text, REPEATED_ORDER) for text in long]
        found += [_shares(f"{prefix}seq_rep_{REPEATED_ORDER}", repeated, "lower")]
    for order in range(1, 5):
        if any(len(text) >= order for text in some):
            found.append(_varied(f"{prefix}distinct_{order}", counted.distinct(texts, order), N, "jackknife", "higher"))
    if len(some) > 1:
        found.append(_varied(f"{prefix}self_bleu", counted.self_bleu(some), len(some), "bootstrap", "lower"))
    return found


def evaluations(per_sample: Sequence[int]) -> Metric:
    """Network evaluations a sample."""
    return _shares("network_evaluations", [float(n) for n in per_sample], "lower")


def gen_ppl(scored: ScoredTexts, scorer: str, prefix: str = "") -> list[Metric]:
    """Gen PPL, exp(total nats / total tokens), and the mean of perplexities that some papers report, as an estimate.

    Nothing for texts without a token.

    Raises:
        UserError: the number is beyond all floats.
    """
    if not scored.tokens_N.sum():
        return []
    some = scored.tokens_N > 0
    variances = None if scored.mc_var_N is None else scored.mc_var_N[some]
    try:
        measured = stats.nats_total(scored.nats_N[some], scored.tokens_N[some], variances).perplexity()
    except ValueError as error:
        raise UserError(f"no Gen PPL by {scorer}: {error}") from error
    common: dict[str, Any] = {"unit": "token", "n": int(some.sum())}
    measured = measured._replace(method=measured.method.replace("block", "sample"))
    found = [_metric(f"{prefix}gen_ppl[{scorer}]", measured, "lower", kind=scored.kind, **common)]
    if np.isfinite(value := mean_of_exp(scored.nats_N, scored.tokens_N)):
        legacy = stats.Measured(value, None, None, None, "")
        found.append(
            _metric(f"{prefix}gen_ppl_mean_of_exp[{scorer}]", legacy, "lower", kind="estimate", **common),
        )
    return found


def mauve(found: Mauve, featuriser: str, n: int, *, compared: str = "") -> list[Metric]:
    """MAUVE, its spread over k-means seeds, and MAUVE*; `compared` names texts that are not the model's: `human_`."""
    rest: dict[str, Any] = {"unit": "set", "n": n}
    mean = stats.Measured(found.mean, found.sd / math.sqrt(KMEANS_SEEDS), None, None, "")
    sd, star = (stats.Measured(value, None, None, None, "") for value in (found.sd, found.star))
    return [
        _metric(f"{compared}mauve[{featuriser}]", mean, "higher", headline=not compared, **rest),
        _metric(f"{compared}mauve_kmeans_sd[{featuriser}]", sd, "lower", **rest),
        _metric(f"{compared}mauve_star[{featuriser}]", star, "higher", **rest),
    ]


def _shares(name: str, values: Sequence[float], direction: _Direction) -> Metric:
    (measured,) = bootstrap.means([values], "samples")
    return _metric(name, measured, direction, unit="sample", n=len(values))


def _varied(name: str, found: counted.Varied, n: int, method: str, direction: _Direction) -> Metric:
    ci95 = None
    if found.stderr is not None:
        margin = _NORMAL_95 * found.stderr
        ci95 = (max(0.0, found.value - margin), min(1.0, found.value + margin))
    measured = stats.Measured(found.value, None, found.stderr, ci95, f"normal, {method} over {n} samples")
    return _metric(name, measured, direction, unit="set", n=n)


def _metric(
    name: str,
    measured: stats.Measured,
    direction: _Direction,
    *,
    unit: str,
    n: int,
    kind: Literal["exact", "lower_bound", "estimate"] = "exact",
    headline: bool = False,
) -> Metric:
    return results.metric(
        name, measured, likelihood=None, headline=headline, unit=unit, kind=kind, direction=direction, n=n
    )
