"""Nats to the numbers people read, with their errors. Conversions of units happen here and nowhere else.

lm-eval loads this file by its path, so it imports NumPy and SciPy alone, and has no dataclasses: those look their
module up under a name that such a module does not have. Shapes: N blocks.

Two errors, never mixed: Monte Carlo (how far the draws may have led the estimate off) and sampling (how far other
text of the same kind would have: bootstrap over blocks). Both are found for nats a token and carried over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 9999
SEED = 20250


class Measured(NamedTuple):
    """A number and its errors, in its own unit; None where there is no saying.

    `ci95` is (low, high) and `method` says how it was made, or why there is none.
    """

    value: float
    stderr_mc: float | None
    stderr_data: float | None
    ci95: tuple[float, float] | None
    method: str


class NatsTotal(NamedTuple):
    """What a text costs: `nats` in total for `tokens` tokens, with the errors of nats a token as in `Measured`."""

    nats: float
    tokens: float
    stderr_mc: float | None
    stderr_data: float | None
    ci95: tuple[float, float] | None
    method: str

    def per_token(self) -> Measured:
        """Nats a token: the ratio of the totals, never a mean of ratios."""
        return self._through(lambda nats: nats, 1.0, units=self.tokens)

    def perplexity(self, *, units: float | None = None) -> Measured:
        """exp(total nats / units), for units such as words; for tokens when None. Tokens a unit count as fixed."""
        units = units or self.tokens
        return self._through(_exp, _exp(self.nats / units), units=units)

    def bits_per_byte(self, byte_count: float) -> Measured:
        """Total bits over the bytes of the raw text."""
        return self._through(lambda nats: nats / math.log(2), 1 / math.log(2), units=byte_count)

    def _through(self, convert: Callable[[float], float], slope: float, *, units: float) -> Measured:
        # An increasing function of nats a unit: errors by the delta method, the interval end by end.
        ratio = self.tokens / units
        return Measured(
            convert(self.nats / units),
            None if self.stderr_mc is None else slope * ratio * self.stderr_mc,
            None if self.stderr_data is None else slope * ratio * self.stderr_data,
            None if self.ci95 is None else (convert(self.ci95[0] * ratio), convert(self.ci95[1] * ratio)),
            self.method,
        )


def nats_total(nats_N: Any, tokens_N: Any, mc_var_N: Any = None) -> NatsTotal:
    """The cost of a text from its blocks.

    Args:
        nats_N: log-likelihoods of blocks.
        tokens_N: how many tokens each covers.
        mc_var_N: Monte Carlo variances of `nats_N`; blocks have independent noise. None when exact or not known.

    Raises:
        ValueError: no tokens, or a number that is not finite.
    """
    nats_N, tokens_N = np.asarray(nats_N, np.float64), np.asarray(tokens_N, np.float64)
    if nats_N.shape != tokens_N.shape or nats_N.ndim != 1:
        raise ValueError(
            f"expected nats and tokens of the same blocks, found shapes {nats_N.shape} and {tokens_N.shape}"
        )
    if not np.isfinite(nats_N).all() or not tokens_N.sum() > 0:
        raise ValueError("nats must be finite, and there must be tokens")
    tokens = math.fsum(tokens_N)
    stderr_mc = None if mc_var_N is None else math.sqrt(math.fsum(mc_var_N)) / tokens
    return NatsTotal(
        -math.fsum(nats_N), tokens, stderr_mc, *_bootstrap(tuple(nats_N.tolist()), tuple(tokens_N.tolist()))
    )


@lru_cache(maxsize=64)
def _bootstrap(
    nats: tuple[float, ...], tokens: tuple[float, ...]
) -> tuple[float | None, tuple[float, float] | None, str]:
    """Standard error and percentile interval of nats a token, over resamples of (nats, tokens) pairs.

    Percentiles go through exp unharmed, so a perplexity's interval is the exp of this one.
    """
    blocks = len(nats)
    if blocks < 2:
        return None, None, "one block has no spread: no interval"
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.array(nats), np.array(tokens)),
        lambda nats, tokens, axis: -nats.sum(axis) / tokens.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 4_000_000 // blocks),
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    low, high = (float(end) for end in found.confidence_interval)
    return float(found.standard_error), (low, high), f"percentile bootstrap over {blocks} blocks, {RESAMPLES} resamples"


def mean_of_exp(nats_N: Any, tokens_N: Any) -> float:
    """Mean over blocks, the short last one counting as much as any, of their perplexities; inf beyond all floats.

    What some published scripts report. It is larger than exp of the mean and depends on how the text is cut.
    """
    with np.errstate(over="ignore"):
        perplexity_N = np.exp(-np.asarray(nats_N, np.float64) / np.asarray(tokens_N, np.float64))
    return math.fsum(perplexity_N) / len(perplexity_N)


def term_per_token(term_N: Any, tokens_N: Any) -> float:
    """What a named part of the log-likelihood costs in nats a token; the parts add up to the whole."""
    return -math.fsum(term_N) / math.fsum(tokens_N) + 0.0  # no -0.0


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        raise ValueError(
            f"perplexity exp({nats:.6g}) is beyond all floats: the model is worse than useless here"
        ) from None


def paired_difference(nats_A: Any, tokens_A: Any, nats_B: Any, tokens_B: Any) -> Measured:
    """How much more A costs than B, in nats a token, over the same blocks resampled together.

    Negative: A is better. An interval without 0: they differ on this text. exp of it all is the ratio of perplexities.

    Raises:
        ValueError: the blocks are not the same: other text, another tokenizer or another block length.
    """
    nats_A, nats_B = np.asarray(nats_A, np.float64), np.asarray(nats_B, np.float64)
    if not np.array_equal(tokens_A, tokens_B):
        raise ValueError("the two models were scored on different blocks: same text, tokenizer and block length needed")
    return nats_total(nats_A - nats_B, tokens_A).per_token()


# Aggregations for lm-eval. An item is (log-likelihood, bytes, words) of a document: tasks/likelihood/yaml_functions.py.


def lm_token_perplexity(items: Sequence[Any]) -> float:
    """Token perplexity of the headline likelihood."""
    return _perplexity_of(items).value


def lm_token_perplexity_mc_se(items: Sequence[Any]) -> float:
    """Its Monte Carlo standard error."""
    return _perplexity_of(items).stderr_mc or 0.0


def lm_token_perplexity_ci95_low(items: Sequence[Any]) -> float:
    """Lower end of its bootstrap interval."""
    ci95 = _perplexity_of(items).ci95
    assert ci95 is not None
    return ci95[0]


def lm_token_perplexity_ci95_high(items: Sequence[Any]) -> float:
    """Upper end of its bootstrap interval."""
    ci95 = _perplexity_of(items).ci95
    assert ci95 is not None
    return ci95[1]


def lm_token_perplexity_mean_of_exp(items: Sequence[Any]) -> float:
    """Mean of the blocks' own perplexities, a legacy."""
    parts = [value.blocks for value, *_ in items]
    return mean_of_exp(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("nats_N", "tokens_N")))


def lm_word_perplexity(items: Sequence[Any]) -> float:
    """exp(total nats / words of the raw text)."""
    return _exp(-math.fsum(item[0] for item in items) / sum(item[2] for item in items))


def lm_bits_per_byte(items: Sequence[Any]) -> float:
    """Total bits over the bytes of the raw text."""
    return -math.fsum(item[0] for item in items) / sum(item[1] for item in items) / math.log(2)


def lm_kl_per_token(items: Sequence[Any]) -> float:
    """KL part of the headline likelihood, nats a token."""
    return _term_of(items, "-kl")


def lm_reconstruction_per_token(items: Sequence[Any]) -> float:
    """Reconstruction part of the headline likelihood, nats a token."""
    return _term_of(items, "reconstruction")


def lm_importance_bound_token_perplexity(items: Sequence[Any]) -> float:
    """Token perplexity of the importance bound."""
    return _perplexity_of(items, "importance_bound").value


def lm_reused_noise_token_perplexity_estimate(items: Sequence[Any]) -> float:
    """Token perplexity of the reused-noise estimate, which is not a bound."""
    return _perplexity_of(items, "reused_noise_estimate").value


def _perplexity_of(items: Sequence[Any], likelihood: str | None = None) -> Measured:
    parts = [value.likelihoods[likelihood or value.headline] for value, *_ in items]
    tokens_N = np.concatenate([part.tokens_N for part in parts])
    known = all(part.mc_var_N is not None for part in parts)
    mc_var_N = np.concatenate([part.mc_var_N for part in parts]) if known else None
    return nats_total(np.concatenate([part.nats_N for part in parts]), tokens_N, mc_var_N).perplexity()


def _term_of(items: Sequence[Any], term: str) -> float:
    parts = [value.blocks for value, *_ in items]
    return term_per_token(
        np.concatenate([part.terms[term] for part in parts]), np.concatenate([part.tokens_N for part in parts])
    )
