"""Statistics of generated texts: variety within each text and between texts.

A text is a sequence of token ids or words. lm-eval loads this file by its path, so it imports only NumPy, and has no
dataclasses: those look up their module by a name that such a module lacks. Shapes: N texts, P pairs, R resamples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

Text = Sequence[Hashable]

BLEU_ORDER = 4
"""The longest n-grams that BLEU compares."""
MOST_PAIRS = 1000
"""The most pairs of texts that self-BLEU compares."""
SHORTEST_REPEAT = 3
"""The least number of tokens that count as a repetition."""
RESAMPLES = 1000
"""Bootstrap resamples for the error of self-BLEU."""
SEED = 20251
"""Seed of the pairs and of the resamples."""


class Varied(NamedTuple):
    """A number over a set of texts, and its standard error over the choice of texts; None if unknown."""

    value: float
    stderr: float | None


def ngrams(text: Text, order: int) -> list[tuple[Hashable, ...]]:
    """Return all runs of `order` tokens, in order; a shorter text has none."""
    return [tuple(text[start : start + order]) for start in range(len(text) - order + 1)]


def unigram_entropy(text: Text) -> float:
    """Return the entropy of the text's token frequencies, in nats: from 0 (one token only) to the log of its length.

    Raises:
        ValueError: the text is empty.
    """
    if not len(text):
        raise ValueError("an empty text has no entropy")
    share = np.array(list(Counter(text).values()), np.float64) / len(text)
    return float(-(share * np.log(share)).sum()) + 0.0  # no -0.0


def repeated_ngrams(text: Text, order: int) -> float:
    """Return the share of the text's n-grams that occurred before: 1 - distinct / all (seq-rep-n, arXiv 1908.04319).

    Raises:
        ValueError: the text has no n-gram.
    """
    runs = ngrams(text, order)
    if not runs:
        raise ValueError(f"expected a text of at least {order} tokens, found {len(text)}")
    return 1 - len(set(runs)) / len(runs)


def ends_in_repetition(text: Text, shortest: int = SHORTEST_REPEAT) -> bool:
    """True if, for some n >= `shortest`, the text's last n tokens equal the n tokens before them.

    Shorter loops are found too, through a multiple of their length.
    """
    text = list(text)
    return any(text[-n:] == text[-2 * n : -n] for n in range(shortest, len(text) // 2 + 1))


def distinct(texts: Sequence[Text], order: int) -> Varied:
    """Return distinct n-grams over all n-grams of all texts (distinct-n, arXiv 1510.03055), from nearly 0 to 1.

    It falls with the number and the length of texts, so only sets of equal size can be compared. The error is the
    jackknife's, which tends to be too large; a bootstrap repeats texts and would understate the variety.

    Raises:
        ValueError: no text has an n-gram.
    """
    counts_N = [Counter(ngrams(text, order)) for text in texts]
    total = sum(counts.total() for counts in counts_N)
    if not total:
        raise ValueError(f"no text of at least {order} tokens among {len(texts)}")
    holders = Counter(ngram for counts in counts_N for ngram in counts)
    value = len(holders) / total
    # Leaving a text out removes the n-grams that only it has.
    without = [
        (len(holders) - sum(holders[ngram] == 1 for ngram in counts)) / (total - counts.total())
        for counts in counts_N
        if total > counts.total()
    ]
    if len(without) < 2 or len(without) < len(counts_N):
        return Varied(value, None)
    N = len(without)
    return Varied(value, math.sqrt((N - 1) / N * float(((np.array(without) - np.mean(without)) ** 2).sum())))


def bleu(hypothesis: Text, reference: Text) -> float:
    """Return BLEU-4 of one text against another, from 0 to 1.

    It is the geometric mean of clipped n-gram precisions, n = 1..4, times the brevity penalty. For n > 1, one is added
    to matches and totals (Lin and Och 2004), so that a missing 4-gram does not make it 0. A hypothesis of fewer than
    four tokens is compared by the orders that it has; an empty one scores 0.
    """
    return _bleu(_counts(hypothesis), _counts(reference))


def self_bleu(texts: Sequence[Text], *, seed: int = SEED, most_pairs: int = MOST_PAIRS) -> Varied:
    """Return the mean BLEU-4 over pairs of texts: the higher, the more alike they are.

    Pairs are all ordered pairs of different texts, or `most_pairs` of them drawn without replacement. Unlike BLEU
    against all others at once, the mean does not grow with the number of texts. The error is a bootstrap over texts: a
    pair's weight is the product of its texts' counts.

    Raises:
        ValueError: there are fewer than two texts.
    """
    N = len(texts)
    if N < 2:
        raise ValueError(f"expected at least two texts, found {N}")
    rng = np.random.default_rng(seed)
    number_P = rng.choice(N * (N - 1), min(most_pairs, N * (N - 1)), replace=False)
    first_P, step_P = number_P // (N - 1), number_P % (N - 1)
    second_P = step_P + (step_P >= first_P)
    counts = [_counts(text) for text in texts]
    value_P = np.array([_bleu(counts[i], counts[j]) for i, j in zip(first_P, second_P, strict=True)])
    times_RN = rng.multinomial(N, np.full(N, 1 / N), RESAMPLES)
    weight_RP = times_RN[:, first_P] * times_RN[:, second_P]
    weight_R = weight_RP.sum(1)
    resampled = (weight_RP @ value_P)[weight_R > 0] / weight_R[weight_R > 0]
    stderr = float(resampled.std(ddof=1)) if N > 2 and len(resampled) > 1 else None
    return Varied(float(value_P.mean()), stderr)


def _counts(text: Text) -> list[Counter[tuple[Hashable, ...]]]:
    return [Counter(ngrams(text, order)) for order in range(1, BLEU_ORDER + 1)]


def _bleu(hypothesis: Sequence[Counter], reference: Sequence[Counter]) -> float:
    length, reference_length = hypothesis[0].total(), reference[0].total()
    log_precisions = []
    for order, (counts, other) in enumerate(zip(hypothesis, reference, strict=True), start=1):
        if not counts:
            break
        added = int(order > 1)
        matches = sum(min(count, other[ngram]) for ngram, count in counts.items()) + added
        if not matches:
            return 0.0
        log_precisions.append(math.log(matches / (counts.total() + added)))
    if not log_precisions:
        return 0.0
    brevity = min(0.0, 1 - reference_length / length)
    return math.exp(brevity + sum(log_precisions) / len(log_precisions))


def lm_count(texts: Sequence[Text]) -> float:
    """Mean length."""
    return float(np.mean([len(text) for text in texts]))


def lm_empty(texts: Sequence[Text]) -> float:
    """Share of empty texts. Statistics that they lack are means over the other texts, or 0 if there are none."""
    return float(np.mean([float(not len(text)) for text in texts]))


def lm_unigram_entropy(texts: Sequence[Text]) -> float:
    """Mean entropy of a text's own words, in nats."""
    return float(np.mean([unigram_entropy(text) for text in texts if len(text)] or [0.0]))


def lm_repetition(texts: Sequence[Text]) -> float:
    """Share of texts that end in a repetition."""
    return float(np.mean([float(ends_in_repetition(text)) for text in texts if len(text)] or [0.0]))


def lm_seq_rep_4(texts: Sequence[Text]) -> float:
    """Mean share of repeated 4-grams."""
    return float(np.mean([repeated_ngrams(text, 4) for text in texts if len(text) >= 4] or [0.0]))


def lm_self_bleu(texts: Sequence[Text]) -> float:
    """Mean BLEU-4 between texts."""
    some = [text for text in texts if len(text)]
    return self_bleu(some).value if len(some) > 1 else 0.0


def lm_distinct_1(texts: Sequence[Text]) -> float:
    """Distinct words over all words."""
    return _distinct(texts, 1)


def lm_distinct_2(texts: Sequence[Text]) -> float:
    """Distinct pairs of adjacent words over all pairs."""
    return _distinct(texts, 2)


def lm_distinct_3(texts: Sequence[Text]) -> float:
    """Distinct runs of three words over all such runs."""
    return _distinct(texts, 3)


def lm_distinct_4(texts: Sequence[Text]) -> float:
    """Distinct runs of four words over all such runs."""
    return _distinct(texts, 4)


def _distinct(texts: Sequence[Text], order: int) -> float:
    return distinct(texts, order).value if any(len(text) >= order for text in texts) else 0.0
