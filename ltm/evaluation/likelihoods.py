"""A log-likelihood that passes through lm-eval as a float and keeps its components.

Shapes: N blocks (those of a text, or one for a continuation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltm.api import Kind
from ltm.latent.reliability import trusted
from ltm.result_schema import VACUOUS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLikelihoods:
    """One likelihood for every block of a text; the fields are those of `ltm.api.LikelihoodEstimate`, in NumPy."""

    kind: Kind
    draws: int
    nats_N: Floats
    tokens_N: Ints
    mc_var_N: Floats | None = None
    terms: Mapping[str, Floats] = field(default_factory=dict)
    averaged: bool = False
    fast_steps_N: Ints | None = None
    reliability: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def nats(self) -> float:
        """The total, rounded once, so that it does not depend on order or batch size."""
        return math.fsum(self.nats_N)


class LikelihoodFloat(float):
    """Total nats of the headline likelihood, a float to code that does not look further.

    Attributes:
        headline: the name of that likelihood, such as `exact` or `elbo`.
        likelihoods: every likelihood that was computed, by name, the headline among them.
        stream_tokens: tokens of the whole text; more than were scored when the number of blocks was limited.
        seconds: scoring time, over all runs that contributed.

    Raises:
        ValueError: the headline is an upper bound, which whoever compares floats would take for the likelihood.

    Arithmetic gives plain floats. Pickling, copying and gathering keep everything.
    """

    __slots__ = ("headline", "likelihoods", "seconds", "stream_tokens")

    headline: str
    likelihoods: Mapping[str, BlockLikelihoods]
    stream_tokens: int
    seconds: float

    def __new__(
        cls, likelihoods: Mapping[str, BlockLikelihoods], *, headline: str, stream_tokens: int, seconds: float = 0.0
    ) -> LikelihoodFloat:
        if likelihoods[headline].kind == "upper_bound":
            raise ValueError(f"{headline} is an upper bound on log p: nothing may be ranked by it")
        self = super().__new__(cls, likelihoods[headline].nats)
        self.headline = headline
        self.likelihoods = likelihoods
        self.stream_tokens = stream_tokens
        self.seconds = seconds
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.likelihoods, self.headline, self.stream_tokens, self.seconds)

    @property
    def blocks(self) -> BlockLikelihoods:
        """The headline likelihood, block by block."""
        return self.likelihoods[self.headline]

    @property
    def kind(self) -> Kind:
        """`exact`, `lower_bound` or `estimate`; never `upper_bound`."""
        return self.blocks.kind

    @property
    def draws(self) -> int:
        """Monte Carlo draws per block; 0 when exact."""
        return self.blocks.draws

    @property
    def tokens(self) -> int:
        """The number of tokens scored."""
        return int(self.blocks.tokens_N.sum())

    @property
    def complete(self) -> bool:
        """True if the whole text was scored."""
        return self.tokens == self.stream_tokens

    @property
    def mc_variance(self) -> float | None:
        """Monte Carlo variance of the total; blocks have independent noise. None when exact or not known."""
        return None if self.blocks.mc_var_N is None else math.fsum(self.blocks.mc_var_N)

    @property
    def terms(self) -> dict[str, float]:
        """Named parts that add up to the total, such as `reconstruction` and `-kl`."""
        return {name: math.fsum(part_N) for name, part_N in self.blocks.terms.items()}


def _restore(cls: Any, likelihoods: Any, headline: str, stream_tokens: int, seconds: float) -> LikelihoodFloat:
    return cls(likelihoods, headline=headline, stream_tokens=stream_tokens, seconds=seconds)


def gather(records: Sequence[Any], *, stream_tokens: int, headline: str) -> LikelihoodFloat:
    """Combine the records of one text or continuation; `headline` is the name to use if there are no records.

    An upper bound whose draws cannot be trusted is an estimate (`ltm.latent.reliability`).
    """
    headline = records[0]["headline"] if records else headline
    likelihoods = {}
    # The same order whether a record comes from the model or from disk: the headline, then by name.
    names = records[0]["likelihoods"] if records else [headline]
    for name in sorted(names, key=lambda name: (name != headline, name)):
        parts = [record["likelihoods"][name] for record in records]
        known = bool(parts) and all(part["mc_var"] is not None for part in parts)
        kind: Kind = parts[0]["kind"] if parts else "exact"
        found = {
            of: np.array([part["reliability"][of] for part in parts], np.float64)
            for of in (parts[0].get("reliability", {}) if parts else {})
        }
        if kind == "upper_bound" and found and not trusted(found):
            kind = "estimate"
        likelihoods[name] = BlockLikelihoods(
            kind=kind,
            draws=parts[0]["draws"] if parts else 0,
            nats_N=np.array([part["nats"] for part in parts], np.float64).clip(max=VACUOUS),
            tokens_N=np.array([part["tokens"] for part in parts], np.int64),
            mc_var_N=np.array([part["mc_var"] for part in parts], np.float64).clip(max=VACUOUS**2) if known else None,
            terms={
                term: np.array([p["terms"][term] for p in parts], np.float64)
                for term in sorted(parts[0]["terms"] if parts else ())
            },
            averaged=any(part["averaged"] for part in parts),
            fast_steps_N=np.array([p["fast_steps"] for p in parts], np.int64)
            if parts and all("fast_steps" in p for p in parts)
            else None,
            reliability=found,
        )
    return LikelihoodFloat(
        likelihoods, headline=headline, stream_tokens=stream_tokens, seconds=math.fsum(r["seconds"] for r in records)
    )


def together(parts: Sequence[LikelihoodFloat], *, stream_tokens: int) -> LikelihoodFloat:
    """Join the likelihoods of successive blocks of one text, whose `stream_tokens` are given."""
    likelihoods = {}
    for name, first in parts[0].likelihoods.items():
        own = [part.likelihoods[name] for part in parts]
        variances = [part.mc_var_N for part in own if part.mc_var_N is not None]
        steps = [part.fast_steps_N for part in own if part.fast_steps_N is not None]
        found = {of: np.concatenate([part.reliability[of] for part in own]) for of in first.reliability}
        kind = first.kind
        if any(part.kind == "upper_bound" for part in own):  # some alone may not have been trusted
            kind = "upper_bound" if not found or trusted(found) else "estimate"
        likelihoods[name] = BlockLikelihoods(
            kind=kind,
            draws=first.draws,
            nats_N=np.concatenate([part.nats_N for part in own]),
            tokens_N=np.concatenate([part.tokens_N for part in own]),
            mc_var_N=np.concatenate(variances) if len(variances) == len(own) else None,
            terms={term: np.concatenate([part.terms[term] for part in own]) for term in first.terms},
            averaged=any(part.averaged for part in own),
            fast_steps_N=np.concatenate(steps) if len(steps) == len(own) else None,
            reliability=found,
        )
    seconds = math.fsum(part.seconds for part in parts)
    return LikelihoodFloat(likelihoods, headline=parts[0].headline, stream_tokens=stream_tokens, seconds=seconds)
