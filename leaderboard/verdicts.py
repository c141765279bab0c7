"""How one model stands to another on a text: the difference between their perplexities, and what may be said of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from leaderboard.entries import Entry
from leaderboard.ranking import all_blocks, claim, headline, other_side, separated, weights
from ltm.statistics import Measured, difference_over_seeds

BETTER, WORSE = "better beyond doubt", "worse beyond doubt"
LOWER, HIGHER = "ahead by the bounds alone", "behind by the bounds alone"
LEVEL = "not told apart"
ESTIMATED = "undecided, by an estimate"
VERDICTS = (BETTER, LOWER, LEVEL, HIGHER, WORSE, ESTIMATED)
NOT_PAIRED = "not paired"
MEANING = (
    "Beyond doubt: whatever is behind the bounds; by the bounds alone: what is behind them may be the other way round."
)
"""What to read beside verdicts."""


def comparable(own: Sequence[Entry], other: Sequence[Entry]) -> tuple[Sequence[Entry], Sequence[Entry]]:
    """Keep what two models say of the same weights, in the same order, where they have weights in common; else all.

    Two ways to score the same trainings differ by less than trainings do.

    Args:
        own, other: a result for every training seed.
    """
    mine, theirs = ({entry.result.model["weights_digest"]: entry for entry in side} for side in (own, other))
    shared = [digest for digest in mine if digest in theirs]
    return ([mine[each] for each in shared], [theirs[each] for each in shared]) if shared else (own, other)


def verdict(own: Sequence[Entry], other: Sequence[Entry]) -> str:
    """Say how a model stands to another on a text, in one of `VERDICTS`.

    Args:
        own, other: a result for every training seed, each with a perplexity, of `comparable` weights.

    Raises:
        UserError: the records of a result do not give its perplexity, or are of other blocks.
    """
    if beyond_doubt(other, own):
        return BETTER
    if beyond_doubt(own, other):
        return WORSE
    mine, theirs = claim(tuple(own)), claim(tuple(other))
    if mine is None or theirs is None:
        return ESTIMATED
    return LOWER if separated(mine, theirs) else HIGHER if separated(theirs, mine) else LEVEL


def difference(own: Sequence[Entry], other: Sequence[Entry]) -> Measured:
    """How many more nats per token a model costs than another, by what each is ranked by, with a 95% interval.

    Paired over blocks, and over training seeds if there are several, where the blocks of all are at hand. Otherwise
    `method` is `NOT_PAIRED`: errors are taken to be independent, which on one text is too wide rather than too narrow.

    Args:
        own, other: a result for every training seed, each with a perplexity, of `comparable` weights.

    Raises:
        UserError: the records of a result do not give its perplexity, or are of other blocks.
    """
    sides = [[(entry, metric) for entry in side if (metric := headline(entry)) is not None] for side in (own, other)]
    of_own, of_other = (all_blocks(side) for side in sides)
    if of_own and of_other:
        return difference_over_seeds(of_own, of_other, same_trainings=weights(own) == weights(other))
    mine, theirs = (fmean(metric.value for _, metric in side) for side in sides)
    value, ends = math.log(mine / theirs), []
    for side in sides:
        intervals = [metric.ci95 for _, metric in side if metric.ci95 is not None]
        if len(intervals) < len(side):
            return Measured(value, None, None, None, NOT_PAIRED)
        ends.append(math.log(max(each.high for each in intervals) / min(each.low for each in intervals)) / 2)
    return Measured(value, None, None, (value - math.hypot(*ends), value + math.hypot(*ends)), NOT_PAIRED)


def seeds(own: Sequence[Entry], other: Sequence[Entry]) -> str:
    """Say how many training seeds two models have: `1 seed`, `3 seeds`, `3 and 1 seeds`."""
    counts = [*dict.fromkeys((len(own), len(other)))]
    return f"{' and '.join(map(str, counts))} {'seed' if counts == [1] else 'seeds'}"


def beyond_doubt(worse: Sequence[Entry], better: Sequence[Entry]) -> bool:
    """Return True if a model is worse than another whatever is behind their bounds; each has a result for every seed.

    Its perplexity, exact or the least that it can be, is above the other's, exact or the most that that can be: by the
    95% interval of the paired difference, over text and seeds, where the blocks of all are at hand, otherwise by
    intervals that do not touch.

    Raises:
        UserError: the records of a result do not give its perplexity, or are of other blocks.
    """
    least = [(entry, metric) for entry in worse if (metric := other_side(entry) or headline(entry)) is not None]
    most = [(entry, metric) for entry in better if (metric := headline(entry)) is not None]
    if not (least and most) or (len(least), len(most)) != (len(worse), len(better)):
        return False
    if any(metric.kind not in ("exact", "upper_bound") for _, metric in least):
        return False
    if any(metric.kind not in ("exact", "lower_bound") for _, metric in most):
        return False
    of_least, of_most = all_blocks(least), all_blocks(most)
    if of_least and of_most:
        interval = difference_over_seeds(of_most, of_least, same_trainings=weights(worse) == weights(better)).ci95
        return interval is not None and interval[1] < 0
    highest = max(metric.ci95.high if metric.ci95 else math.inf for _, metric in most)
    return highest < min(metric.ci95.low if metric.ci95 else 0.0 for _, metric in least)
