"""Checks against exact likelihoods: those of a known source of texts, or of an exact model that proposes them.

Shapes: N texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ltm.api import Sampling
from ltm.data import corpora
from ltm.errors import UserError
from ltm.rng import SequenceRng, seed_of
from tasks.audit.checks.check import CheckResult
from tasks.audit.checks.evidence import ALPHA, Evidence, Floats, evidence, mean_lower_bound, tangent

if TYPE_CHECKING:
    from ltm.api import Kind, LikelihoodEstimate
    from ltm.harness import HarnessModel
    from ltm.known_sources.base import KnownSource

PROPOSED_TEXTS = 256
"""Texts drawn from a proposal."""
PROPOSED_TOKENS = 16
"""Their length: on longer texts two models hardly overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """A model's claims about texts whose log-likelihood is known, in nats of whole texts, by likelihood.

    Attributes:
        kinds: kind of each likelihood.
        claims_N: claimed log-likelihoods.
        mc_var_N: their Monte Carlo variances; None when exact or unknown.
        averaged: names of the likelihoods that hold only on average.
        reference_N: the source's own log-likelihoods.
        tokens: symbols in all texts.
    """

    kinds: Mapping[str, Kind]
    claims_N: Mapping[str, Floats]
    mc_var_N: Mapping[str, Floats | None]
    averaged: frozenset[str]
    reference_N: Floats
    tokens: int

    def evidence(self, likelihood: str) -> Evidence:
        """Return the evidence against one likelihood."""
        return evidence(
            self.claims_N[likelihood],
            self.reference_N,
            self.mc_var_N[likelihood],
            averaged=likelihood in self.averaged,
        )


def claims_on(model: HarnessModel, source: KnownSource, *, texts: int = 256) -> Claims:
    """Score fresh texts of a source, each whole and by itself, as any text is scored.

    Raises:
        UserError: a claim is not finite; the pipeline refuses such numbers.
    """
    from lm_eval.api.instance import Instance

    documents = corpora.split_of(source, "test").texts()[:texts]
    requests = [
        Instance(
            request_type="loglikelihood_rolling",
            doc={},
            arguments=(text,),
            idx=0,
            metadata=(f"audit {source.spec}", i, 1),
        )
        for i, text in enumerate(documents)
    ]
    answers = model.loglikelihood_rolling(requests)
    # No e-value speaks against an upper bound, and a source may be likelier than any model of it.
    names = [name for name in answers[0].likelihoods if model.offered[name][0] != "upper_bound"]
    by_name = {name: [answer.likelihoods[name] for answer in answers] for name in names}
    return Claims(
        kinds={name: parts[0].kind for name, parts in by_name.items()},
        claims_N={name: np.array([part.nats for part in parts]) for name, parts in by_name.items()},
        mc_var_N={
            name: None if parts[0].mc_var_N is None else np.array([np.asarray(part.mc_var_N).sum() for part in parts])
            for name, parts in by_name.items()
        },
        averaged=frozenset(name for name, parts in by_name.items() if parts[0].averaged),
        reference_N=source.log_likelihood(source.symbols(documents)).numpy(),
        tokens=len(documents) * source.length,
    )


def known_source(claims: Claims, *, name: str = "known_source") -> list[CheckResult]:
    """Compare total claims about fresh texts of a source with its own log-likelihood, by an e-value.

    A refutation is proof, except for a chance of one in a hundred: no distribution gives the texts so much probability.
    The absence of one proves little: a false claim as large as the model's shortfall against the source is hidden. The
    result reports that size as `blind below`.
    """
    results = []
    for likelihood in claims.claims_N:
        against = claims.evidence(likelihood)
        tokens_per_text = claims.tokens / against.texts
        slack = f" after {against.slack:,.1f} for Monte Carlo error" if against.slack else ""
        blind = "" if against.refuted else f"; blind below {against.blind_below / tokens_per_text:.4f} nats/token"
        results.append(
            CheckResult(
                name=name,
                likelihood=likelihood,
                passed=not against.refuted,
                value=against.log_e_value,
                limit=against.threshold,
                detail=f"log e-value {against.log_e_value:,.1f}{slack} over {against.texts} texts{blind}",
                evidence=against,
            )
        )
    return results


def proposal_mass(model: HarnessModel, proposal: HarnessModel, *, texts: int = PROPOSED_TEXTS) -> list[CheckResult]:
    """Estimate total probability by importance sampling, with texts x drawn from an exact model q.

    The mean of exp(claim - log q) estimates the sum of exp(claim) over the texts that q can draw, so a lower confidence
    bound above 1 refutes. This test can only refute: if the two models differ, the mean is dominated by texts that are
    never drawn, and the bound is near 0 whatever is claimed. It needs no known source, and uses the model and its
    vocabulary as they are.

    Of an average c the exponential of its expectation is meant, and exp(c) is larger than that, by far if costs have a
    long tail. So two noises are taken: the first says where to put a tangent, the second gives its height there, whose
    expectation is at most exp(E c); see `tangent`.

    Args:
        proposal: an exact model with the same tokenizer.

    Raises:
        UserError: the proposal is not exact, or has another tokenizer.
    """
    name, (kind, _) = next(iter(proposal.offered.items()))
    if kind != "exact":
        raise UserError(
            f"--proposal {proposal.loaded.name}: its {name} is not an exact likelihood; ar and ngram have one"
        )
    if proposal.loaded.tokenizer.fingerprint != model.loaded.tokenizer.fingerprint:
        raise UserError(
            f"--proposal {proposal.loaded.name} has a different tokenizer from {model.loaded.name}: "
            f"{proposal.loaded.tokenizer.name} and {model.loaded.tokenizer.name}"
        )
    length = min(PROPOSED_TOKENS, model.block_length, proposal.block_length)
    noise = SequenceRng(seed_of(model.runner.seed, "proposal"), range(texts))
    with torch.no_grad():
        drawn = proposal.loaded.model.generate([[]] * texts, max_new_tokens=length, sampling=Sampling(), rng=noise)
        tokens_NL = torch.tensor(drawn.tokens, device=model.device)
        log_q_N = _nats(proposal.loaded.model.log_likelihood(tokens_NL.to(proposal.device), rng=noise))
    second, results = None, []
    for which, estimate in estimates(model, tokens_NL, noise).items():
        if estimate.kind == "upper_bound":
            continue
        at_N = heights_N = _nats(estimate) - log_q_N  # where it meets exp, if it is no average
        if estimate.averaged:
            second = second or estimates(model, tokens_NL, SequenceRng(seed_of(noise.seed, "height"), range(texts)))
            heights_N = _nats(second[which]) - log_q_N
            at_N = at_N - (0.0 if estimate.mc_var_B is None else estimate.mc_var_B.double().cpu().numpy())
        weights_N = tangent(heights_N, at_N=at_N)
        bound = mean_lower_bound(weights_N)
        results.append(
            CheckResult(
                name="proposal_mass",
                likelihood=which,
                passed=bound <= 1,
                value=bound,
                limit=1.0,
                detail=f"{texts} texts of {length} tokens from {proposal.loaded.name}: mass at least {bound:.3g} "
                f"({1 - ALPHA:.0%} bound), mean {weights_N.mean():.3g}; this test can only refute",
            )
        )
    return results


def estimates(model: HarnessModel, tokens_NL: torch.Tensor, noise: SequenceRng) -> dict[str, LikelihoodEstimate]:
    """Return all that the model says of whole texts, with the draws that it is scored with."""
    with torch.no_grad():
        return model.loaded.model.log_likelihoods(
            tokens_NL.to(model.device), rng=noise, draws=model.runner.scorer.draws
        )


def _nats(estimate: LikelihoodEstimate) -> Floats:
    return estimate.nats_B.double().cpu().numpy()
