"""Checks against exact likelihoods: those of a known source of texts, or of an exact model that proposes them.

Shapes: N texts.
"""

from __future__ import annotations

import math
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
from tasks.audit.checks.evidence import ALPHA, STANDARD_ERRORS, Evidence, Floats, evidence, mean_lower_bound

if TYPE_CHECKING:
    from ltm.api import Kind
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
    vocabulary as they are. Averages are refuted by two noises on different texts or not at all: the exponential of one
    whose costs have a long tail is far too large for some noises.

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
    drawn_from = f"{texts} texts of {length} tokens from {proposal.loaded.name}"
    results, again = [], None
    for which, (log_w_N, averaged) in _log_weights(model, proposal, texts, length, "proposal").items():
        bound = mean_lower_bound(log_w_N)
        if bound > 0 and averaged:
            again = again or _log_weights(model, proposal, texts, length, "proposal again")
            log_w_N = again[which][0]
            bound = mean_lower_bound(log_w_N)
        mean = float(np.logaddexp.reduce(log_w_N)) - math.log(texts)
        results.append(
            CheckResult(
                name="proposal_mass",
                likelihood=which,
                passed=bound <= 0,
                value=math.exp(bound),
                limit=1.0,
                detail=f"{drawn_from}: mass at least {math.exp(bound):.3g} ({1 - ALPHA:.0%} bound), mean "
                f"{math.exp(mean):.3g}; this test can only refute",
            )
        )
    return results


def _log_weights(
    model: HarnessModel, proposal: HarnessModel, texts: int, length: int, purpose: str
) -> dict[str, tuple[Floats, bool]]:
    """Return claim - log q of texts drawn from q, less an average's slack, and whether it is one, by likelihood."""
    noise = SequenceRng(seed_of(model.runner.seed, purpose), range(texts))
    with torch.no_grad():
        drawn = proposal.loaded.model.generate([[]] * texts, max_new_tokens=length, sampling=Sampling(), rng=noise)
        tokens_NL = torch.tensor(drawn.tokens, device=model.device)
        q_N = proposal.loaded.model.log_likelihood(tokens_NL.to(proposal.device), rng=noise).nats_B.double().cpu()
        estimates = model.loaded.model.log_likelihoods(tokens_NL, rng=noise, draws=model.runner.scorer.draws)
    found = {}
    for which, estimate in estimates.items():
        if estimate.kind == "upper_bound":
            continue
        log_w_N = estimate.nats_B.double().cpu() - q_N
        if estimate.averaged and estimate.mc_var_B is not None:
            log_w_N = log_w_N - STANDARD_ERRORS * estimate.mc_var_B.double().cpu().sqrt()
        found[which] = log_w_N.numpy(), estimate.averaged
    return found
