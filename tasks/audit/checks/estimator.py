"""Checks of estimators: recompute a bound from q and p(x|z) alone, and compare stated errors with the actual spread.

Shapes: N texts or copies, L tokens, K draws, (Y, G, D) latents per text.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ltm.api import LikelihoodEstimate
from ltm.latent.base import LatentModel, ScoringBatch
from ltm.rng import SequenceRng, Stream, seed_of
from tasks.audit.checks.check import SAYS_NOTHING, CheckResult

if TYPE_CHECKING:
    from ltm.harness import HarnessModel

TEXTS, TOKENS = 2, 32
"""Beginnings of real text for which bounds are recomputed, and their length."""
NOISES = 32
"""Independent noises under which each is fitted, scored and recomputed. What a bound adds to a text for its latents
stands out more in many short texts than in few long ones at the same cost."""
ERRORS = 4.0
"""Standard errors by which claims may exceed the recomputed values on average."""
SLIP = 1e-4
"""Relative tolerance of a stated KL, for rounding."""
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-6}
"""Relative tolerance of a bound that is computed again by the same operations, by dtype; 0.01 in narrower ones."""
RECOMPUTED = ("elbo", "importance_bound", "tube_upper_bound")
"""The bounds that q, p(x|z) and the prior determine."""

COPIES = 64
"""Copies of one text that are scored under independent noises."""
COPY_TOKENS = 16
"""Tokens in that text."""
MOST = 4.0
"""The largest ratio of the stated variance to the variance over copies, or of the latter to the former."""


class _NoBound(Exception):
    """What makes a claim no bound, whatever its value."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What is claimed of N copies beyond recomputed bounds, nats (2, N) or (3, N), and what the stated KL is short of.

    `known` are the claims and the log of the mean weight, an unbiased estimate of p(x), (2, N); None if not needed.
    """

    beyond: Tensor
    short: float = 0.0
    known: Tensor | None = None


class _Proposals:
    """What z is drawn from: a Gaussian, or several with a number of draws each. Computed apart from `ltm.latent`.

    Args:
        q: a Gaussian, or what has `parts`, `counts` and `antithetic` like `ltm.latent.mixture.Mixture`.
        draws: the number that is claimed.
    """

    def __init__(self, q: Any, draws: int):
        parts, self.counts = getattr(q, "parts", (q,)), getattr(q, "counts", (draws,))
        self.antithetic, self.dtype = getattr(q, "antithetic", False), parts[0].mean.dtype
        self.laws = [Normal(part.mean.double(), (0.5 * part.log_variance.double()).exp()) for part in parts]
        if sum(self.counts) != draws:
            raise _NoBound(f"{draws} draws are claimed and the proposals have {sum(self.counts)}")

    def and_as_many_from(self, law: Normal) -> _Proposals:
        """The same draws, and as many from another law, that of all texts."""
        both = copy.copy(self)
        both.laws = [*self.laws, law.expand(self.laws[0].mean.shape)]
        both.counts = (*self.counts, sum(self.counts))
        return both

    def sample(self, noises: Stream) -> Iterator[Tensor]:
        """The draws, (N, Y, G, D), float64, in the order in which `ltm.latent.bounds` makes them."""
        for law, count in zip(self.laws, self.counts, strict=True):
            for _ in range(count // 2 if self.antithetic else count):
                noise = noises.normal(*law.mean.shape[1:], dtype=self.dtype, device=law.mean.device).double()
                yield law.mean + law.stddev * noise
                if self.antithetic:
                    yield law.mean - law.stddev * noise

    def log_density(self, z: Tensor) -> Tensor:
        """Log of the mean density of the draws, (N,)."""
        each = [
            law.log_prob(z).flatten(1).sum(1) + math.log(count / sum(self.counts))
            for law, count in zip(self.laws, self.counts, strict=True)
        ]
        return torch.stack(each).logsumexp(0)


def recomputed_bounds(model: HarnessModel, tokens: Sequence[int]) -> list[CheckResult]:
    """Refute an ELBO or importance bound that is higher than q, p(x|z) and the prior give under other noise.

    Or an upper bound that is lower: its psi, which the term `log_psi` states, is trusted to be any number, and what is
    added to log psi has to be what other weights give. If psi is from the same draws, it is too little on average.

    Each text is fitted and scored under many noises with the draws that the model is scored with, and recomputed at
    the same q with as many other draws; the differences have mean 0 if the bound is what it claims to be. Selecting
    fits or draws by the reported number, a wrong KL and wrong importance weights all raise it. q and the prior are
    those that the estimate hands over, else what `infer` returns and N(0, I); they and p(x|z) are trusted, but for a
    prior that depends on the text. An importance bound that hands over no q may have better proposals than `infer`, so
    it is refuted only if it is beyond log p(x) too, as weights of the prior and q in equal parts have it. The check
    returns nothing for models without a Gaussian q, and does not judge an upper bound that is above 0 on average and
    so says nothing.

    Args:
        tokens: tokens of real text, at least one.
    """
    reader = model.loaded.model
    if not (isinstance(reader, LatentModel) and reader.gaussian_posterior):
        return []
    length = min(len(tokens), TOKENS, reader.block_length)
    count = max(1, min(TEXTS, len(tokens) // length))
    blocks_NL = torch.tensor(list(tokens[: count * length]), device=model.device).view(count, length)
    rows_NL, found = blocks_NL.repeat(NOISES, 1), dict[str, list[_Found]]()
    dtype, nats, no_bound = next(reader.parameters()).dtype, dict[str, float](), dict[str, str]()
    total = dict.fromkeys(RECOMPUTED, 0.0)
    # Whole sets of texts, so that a prior of one text is seen next to that of another.
    size = max(1, model.runner.scorer.batch_size // count) * count
    for start in range(0, len(rows_NL), size):
        part_NL = rows_NL[start : start + size]
        rng = SequenceRng(seed_of(model.runner.seed, "recomputed bounds"), range(start, start + len(part_NL)))
        with torch.no_grad():
            claims = reader.log_likelihoods(part_NL, rng=rng, draws=model.runner.scorer.draws)
            for name in RECOMPUTED:
                if name in claims:
                    try:
                        found.setdefault(name, []).append(_differences(reader, part_NL, rng, name, claims[name]))
                    except _NoBound as error:
                        no_bound[name] = str(error)
                    nats[name] = max(nats.get(name, 0.0), float(claims[name].nats_B.abs().max()))
                    total[name] += float(claims[name].nats_B.double().sum())
    return [
        _result(name, no_bound[name])
        if name in no_bound
        else _result(name, SAYS_NOTHING, passed=None, value=math.nan)
        if name == "tube_upper_bound" and total[name] > 0
        else _verdict(name, differences, length, count, slip=ROUNDING.get(dtype, 0.01) * (1 + nats[name]))
        for name, differences in found.items()
    ]


def _differences(
    reader: LatentModel, rows_NL: Tensor, rng: SequenceRng, name: str, claim: LikelihoodEstimate
) -> _Found:
    """What is claimed beyond the recomputed bound, and how much KL the claim leaves out.

    The first row is under other noise. The second is under the noise that `ltm.latent.bounds` draws by, where there is
    nothing left of the draws' own error: a wrong formula shows to the last digits.

    Raises:
        _NoBound: the prior differs between texts, or the draws are not as many as claimed.
    """
    batch = reader.scoring_batch(rows_NL, 0, None, rng)
    q = claim.q or reader.infer(batch.tokens_BL, batch.rng, weights_BL=batch.scored_BL)
    proposals, prior = _Proposals(q, max(1, claim.draws)), Normal(0.0, 1.0)
    if claim.prior is not None:
        shape = proposals.laws[0].mean.shape
        of_texts = [value.double().expand(shape) for value in (claim.prior.mean, claim.prior.log_variance)]
        if any(not torch.equal(value, value[:1].expand(shape)) for value in of_texts):
            raise _NoBound("the prior differs between texts, so that it is none")
        prior = Normal(of_texts[0], (0.5 * of_texts[1]).exp())
    # In closed form where there is one.
    kl_N = kl_divergence(proposals.laws[0], prior).flatten(1).sum(1) if len(proposals.laws) == 1 else None
    differences = []
    for noises in (SequenceRng(seed_of(rng.seed, "other draws", name), rng.indices).stream("z"), rng.stream(name)):
        if name == "elbo" and kl_N is not None:
            values = [batch.log_likelihood(z.to(proposals.dtype)) for z in proposals.sample(noises)]
        else:
            values = _log_weights(batch, proposals, prior, noises)
        values_KN = torch.stack(values)
        if name == "importance_bound":
            differences.append(claim.nats_B - (values_KN.logsumexp(0) - math.log(len(values_KN))))
        elif name == "tube_upper_bound":
            log_psi_N = claim.terms["log_psi"]
            ratio_N = (values_KN - log_psi_N).exp().mean(0)
            differences.append(log_psi_N + ratio_N - 1 - claim.nats_B)
            if len(differences) == 1:
                claimed_N = (claim.nats_B - log_psi_N + 1).clamp(min=1e-300)
                nearer_N = ratio_N.log().abs() - claimed_N.log().abs()
        else:
            differences.append(claim.nats_B - (values_KN.mean(0) - (0.0 if kl_N is None else kl_N)))
    if name == "tube_upper_bound":
        # The mean weight must be no nearer to psi than that of other draws is, as it would be if psi knew of it.
        return _Found(torch.stack([*differences, nearer_N]))
    if name == "importance_bound" and claim.q is None:
        # No weight exceeds 2 p(x|z), however narrow q is (Hesterberg, Technometrics 1995).
        noises = SequenceRng(seed_of(rng.seed, "log p(x)"), rng.indices).stream("z")
        weights_KN = torch.stack(_log_weights(batch, proposals.and_as_many_from(prior), prior, noises)).double()
        known = torch.stack([claim.nats_B.double(), weights_KN.logsumexp(0) - math.log(len(weights_KN))])
        return _Found(torch.stack(differences), known=known)
    stated = claim.terms.get("-kl")
    if stated is None or kl_N is None:
        return _Found(torch.stack(differences))
    return _Found(torch.stack(differences), max(0.0, float((kl_N + stated).sum()) - SLIP * (1 + float(kl_N.sum()))))


def _log_weights(batch: ScoringBatch, proposals: _Proposals, prior: Normal, noises: Stream) -> list[Tensor]:
    """log p(x, z) less the log density of z, (N,), for each draw: the mean weight is an unbiased estimate of p(x)."""
    return [
        batch.log_likelihood(z.to(proposals.dtype)) + prior.log_prob(z).flatten(1).sum(1) - proposals.log_density(z)
        for z in proposals.sample(noises)
    ]


def _beyond_log_p(known: Sequence[Tensor], count: int) -> tuple[float, float]:
    """How far claims are beyond log p(x) on average, nats per text, and how far chance may take them."""
    claims_NT, log_p_NT = torch.cat([part.double().cpu() for part in known], 1).view(2, -1, count)
    noises = len(claims_NT)
    log_p_T = log_p_NT.logsumexp(0) - math.log(noises)
    errors = claims_NT.var(0) / noises, (log_p_NT - log_p_T).exp().var(0) / noises
    return float((claims_NT - log_p_T).mean()), ERRORS * float(sum(part.sum() for part in errors)) ** 0.5 / count


def _verdict(name: str, parts: Sequence[_Found], length: int, count: int, *, slip: float) -> CheckResult:
    # The third row, of an upper bound, says how much nearer to psi the mean weight is.
    difference_RN = torch.cat([part.beyond.double().cpu() for part in parts], 1)
    excess_R = difference_RN.mean(1)
    limit_R = ERRORS * difference_RN.std(1) / math.sqrt(difference_RN.shape[1]) + slip
    # The worst of them, in multiples of what is allowed.
    worst = int((excess_R / limit_R).nan_to_num(nan=math.inf).argmax())
    excess, limit = float(excess_R[worst]), float(limit_R[worst])
    short = max(part.short for part in parts)
    under = ("other noise", "the same noise", "other noise, in distance from psi")[worst]
    detail = (
        f"{count} texts of {length} tokens under {NOISES} noises: claimed {excess:+.3g} nats per text "
        f"{'below' if name == 'tube_upper_bound' else 'beyond'} what "
        f"q and p(x|z) give under {under}, at most {limit:.3g}"
    )
    if short:
        detail += f"; the stated KL is {short:.3g} nats short"
    known = [part.known for part in parts if part.known is not None]
    if known and excess > limit:
        # Its proposals are its own, and may be better ones.
        excess, limit = _beyond_log_p(known, count)
        limit += slip
        detail += f"; beyond log p(x) by {excess:+.3g}, at most {limit:.3g}"
    return _result(name, detail, passed=excess <= limit and not short, value=excess, limit=limit)


def _result(
    name: str, detail: str, *, passed: bool | None = False, value: float = math.inf, limit: float = math.nan
) -> CheckResult:
    check = f"recomputed_{name.removesuffix('_bound')}"
    return CheckResult(name=check, likelihood=name, passed=passed, value=value, limit=limit, detail=detail)


def stated_error(model: HarnessModel, tokens: Sequence[int]) -> list[CheckResult]:
    """Score one text under independent noises and compare the spread of its values with the stated Monte Carlo error.

    Averaged claims enter an e-value three standard errors lower, and a total probability may exceed 1 by as much. So an
    overstated error hides a false claim from both, and an understated one refutes a sound claim. Only overstatement is
    refuted for logarithms of means, whose stated errors are approximations and too small if few draws dominate the
    mean, and for a fitted q, since a fit has noise of its own that leaves the bound valid; and it takes more than one
    copy to refute an understated one, since one draw of a long tail is rarer than 64 copies. The check shows nothing
    about the values themselves, and skips claims without a stated error.

    Args:
        tokens: tokens of real text, at least one.
    """
    reader = model.runner.scorer.model
    inner = model.loaded.model
    fitted = isinstance(inner, LatentModel) and inner.config.fast_steps is not None
    length = min(len(tokens), COPY_TOKENS, reader.block_length)
    tokens_NL = torch.tensor(list(tokens[:length]), device=model.device).expand(COPIES, -1)
    with torch.no_grad():
        estimates = reader.log_likelihoods(
            tokens_NL, rng=SequenceRng(model.runner.seed, range(COPIES)), draws=model.runner.scorer.draws
        )
    # Variance that float rounding alone can cause.
    floor = (1e-6 * max(float(estimate.nats_B.abs().max()) for estimate in estimates.values())) ** 2
    results = []
    for name, estimate in estimates.items():
        if estimate.mc_var_B is None:
            continue
        stated, spread = float(estimate.mc_var_B.double().mean()), float(estimate.nats_B.double().var())
        ratio = (stated + floor) / (spread + floor)
        nats_N = estimate.nats_B.double()
        without_one = float(nats_N[(nats_N - nats_N.mean()).abs().argsort()[:-1]].var())
        understated = (stated + floor) / (without_one + floor) < 1 / MOST
        results.append(
            CheckResult(
                name="stated_error",
                likelihood=name,
                passed=ratio <= MOST and (not understated or fitted or not estimate.averaged),
                value=ratio,
                limit=MOST,
                detail=f"stated variance {stated:.3g}, found {spread:.3g} over {COPIES} noises",
            )
        )
    return results
