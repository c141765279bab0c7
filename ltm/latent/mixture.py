"""Several Gaussians as one proposal for z: a fixed number of draws from each, weighed by the density of their mixture.

Shapes: B texts, K draws, M Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltm.latent.posterior import Posterior
from ltm.rng import Stream

LEAST = 2
"""Draws from a Gaussian without which its share in the error cannot be estimated."""
SHARE = 1 / 16
"""Share of the draws that the prior gets, and each of the q's before the last. Of a proposal that is much better than
the last q, a few draws gain most of what there is to gain; one that is worse costs no more than its draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """K draws of z for each text, n_m of them from each of M Gaussians, weighed by sum_m (n_m / K) q_m(z).

    Attributes:
        parts: the q_m. They may depend on the text and on the noise of a fit, never on that of the draws.
        counts: the n_m, each at least 1, and even if `antithetic`.
        antithetic: draws come in pairs that mirror each other about the mean of their Gaussian.
    """

    parts: tuple[Posterior, ...]
    counts: tuple[int, ...]
    antithetic: bool = False

    def __post_init__(self) -> None:
        if not self.parts or len(self.parts) != len(self.counts):
            raise ValueError(f"found {len(self.parts)} Gaussians and {len(self.counts)} numbers of draws")
        if min(self.counts) < 1 or (self.antithetic and any(count % 2 for count in self.counts)):
            raise ValueError(f"draws must be at least 1, and even in pairs, found {self.counts}")

    @property
    def draws(self) -> int:
        """K, of all Gaussians together."""
        return sum(self.counts)

    def log_density(self, z: Tensor) -> Tensor:
        """log sum_m (n_m / K) q_m(z), float64, (B,)."""
        shares = [math.log(count / self.draws) for count in self.counts]
        each = [part.log_density(z) + share for part, share in zip(self.parts, shares, strict=True)]
        return torch.stack(each).logsumexp(0)

    def sample(self, stream: Stream) -> Iterator[Tensor]:
        """The K draws, (B, Y, G, D) each, Gaussian by Gaussian."""
        for part, count in zip(self.parts, self.counts, strict=True):
            mean = part.mean
            for _ in range(count // 2 if self.antithetic else count):
                noise = stream.normal(*mean.shape[1:], dtype=mean.dtype, device=mean.device)
                yield part.at(noise)
                if self.antithetic:
                    yield part.at(-noise)

    def variance_of_mean(self, values_KB: Tensor) -> Tensor | None:
        """Variance of the mean of K values, one of each draw, (B,); None where a Gaussian has a single draw or pair.

        A stratified mean varies only within its strata: sum_m (n_m / K)^2 var_m / n_m. Pairs are draws of their mean.
        """
        variances = []
        for part_NB in values_KB.split(self.counts):
            units_NB = part_NB.unflatten(0, (-1, 2)).mean(1) if self.antithetic else part_NB
            if len(units_NB) < 2:
                return None
            variances.append((len(part_NB) / self.draws) ** 2 * units_NB.var(0) / len(units_NB))
        return torch.stack(variances).sum(0)


def of_fit(visited: Sequence[Posterior], draws: int) -> Mixture:
    """The prior and q's that a fit went through; half of the draws or more are from the last.

    Of T steps, those after T / 2, T / 4, ... are taken as far as the draws go round: neighbours hardly differ at the
    end of a fit, and most at its beginning.

    Args:
        visited: the q after each step; a single one if nothing is fitted.
        draws: K, at least 4.
    """
    last, each, step = visited[-1], max(LEAST, round(SHARE * draws)), len(visited) // 2
    zeros = torch.zeros_like(last.mean)
    others = [Posterior(mean=zeros, log_variance=zeros)]
    while step and 2 * each * (len(others) + 1) <= draws:
        others.insert(1, visited[step - 1])
        step //= 2
    return Mixture(parts=(*others, last), counts=(*[each] * len(others), draws - each * len(others)))


def defended(q: Posterior, draws: int) -> Mixture:
    """q, two q's that are wider, and the prior: proposals without light tails.

    A q that maximises an ELBO is narrower than the posterior, and its weights have heavy tails. A share t of the way to
    the prior, in natural parameters, lies q^(1-t) p^t: wider where q is narrow, and the prior where q is. Of K draws
    the prior gets 1/16 and t = 1/2 gets 3/16; t = 1/4 and q share the others.

    Args:
        draws: K, at least 8.
    """
    zeros = torch.zeros_like(q.mean)
    parts = (Posterior(mean=zeros, log_variance=zeros), _towards_prior(q, 0.5), _towards_prior(q, 0.25))
    counts = tuple(max(LEAST, round(share * draws)) for share in (SHARE, 3 * SHARE, 6 * SHARE))
    return Mixture(
        parts=(*parts, Posterior(mean=q.mean, log_variance=q.log_variance)), counts=(*counts, draws - sum(counts))
    )


def _towards_prior(q: Posterior, share: float) -> Posterior:
    precision = (1 - share) * (-q.log_variance).exp()
    return Posterior(mean=precision * q.mean / (precision + share), log_variance=-(precision + share).log())
