"""Checks against what is known exactly: a source that texts are drawn from, or an exact model that proposes them.

Shapes: N texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ltm.data import corpora
from ltm.rng import SequenceRng, seed_of
from tasks.audit.checks.check import CheckResult
from tasks.audit.checks.evidence import ALPHA, STANDARD_ERRORS, Evidence, Floats, evidence, mean_lower_bound

if TYPE_CHECKING:
    from ltm.api import Kind
    from ltm.harness import HarnessModel
    from ltm.known_sources.base import KnownSource

PROPOSED, PROPOSED_TOKENS = 256, 16
"""Texts drawn from a proposal, and their length: longer ones of two models hardly overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a model says of texts whose log-likelihood is known; nats of whole texts.

    `tokens` are the source's symbols in all texts; `averaged` has the names of claims that hold on average only.
    """

    kinds: Mapping[str, Kind]
    claims_N: Mapping[str, Floats]
    mc_var_N: Mapping[str, Floats | None]
    averaged: frozenset[str]
    reference_N: Floats
    tokens: int

    def evidence(self, likelihood: str) -> Evidence:
        """Against one likelihood."""
        return evidence(
            self.claims_N[likelihood],
            self.reference_N,
            self.mc_var_N[likelihood],
            averaged=likelihood in self.averaged,
        )


def claims_on(model: HarnessModel, source: KnownSource, *, texts: int = 256) -> Claims:
    """Score fresh texts of a source, each by itself and whole, as any text is scored.

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
    found = model.loglikelihood_rolling(requests)
    names = list(found[0].likelihoods)
    parts = {name: [one.likelihoods[name] for one in found] for name in names}
    return Claims(
        kinds={name: own[0].kind for name, own in parts.items()},
        claims_N={name: np.array([part.nats for part in own]) for name, own in parts.items()},
        mc_var_N={
            name: None if own[0].mc_var_N is None else np.array([np.asarray(part.mc_var_N).sum() for part in own])
            for name, own in parts.items()
        },
        averaged=frozenset(name for name, own in parts.items() if own[0].averaged),
        reference_N=source.log_likelihood(source.symbols(documents)).numpy(),
        tokens=len(documents) * source.length,
    )


def known_source(claims: Claims, *, name: str = "known_source") -> list[CheckResult]:
    """Total claims on fresh texts of a source against its own log-likelihood, as an e-value; refuted beyond log 100.

    A refutation is proof, but for one chance in a hundred: no distribution gives the texts so much. That nothing is
    refuted proves nothing where the model is far from the source: what it lacks hides as much of a false claim. How
    much is said as `blind below`.
    """
    results = []
    for likelihood in claims.claims_N:
        found = claims.evidence(likelihood)
        a_token = claims.tokens / found.texts
        slack = f" after {found.slack:,.1f} for Monte Carlo error" if found.slack else ""
        blind = "" if found.refuted else f"; blind below {found.blind_below / a_token:.4f} nats/token"
        results.append(
            CheckResult(
                name=name,
                likelihood=likelihood,
                passed=not found.refuted,
                value=found.log_e_value,
                limit=found.threshold,
                detail=f"log e-value {found.log_e_value:,.1f}{slack} over {found.texts} texts{blind}",
                evidence=found,
            )
        )
    return results


def proposal_mass(model: HarnessModel, proposal: HarnessModel, *, texts: int = PROPOSED) -> list[CheckResult]:
    """Total probability by importance sampling: x drawn from an exact model q, the mean of exp(claim - log q) is a part
    of the sum over all texts of exp(claim), so that a lower confidence bound above 1 refutes.

    This test can only refute. Where the two models differ, the mean is carried by texts that are never drawn, and the
    bound is near 0, whatever is claimed. It needs no known source, and works on the model and the vocabulary as they
    are.

    Args:
        proposal: an exact model with the same tokenizer.

    Raises:
        UserError: it is not exact, or has other tokens.
    """
    from ltm.api import Sampling
    from ltm.errors import UserError

    name, (kind, _) = next(iter(proposal.offered.items()))
    if kind != "exact":
        raise UserError(f"--proposal {proposal.loaded.name}: its {name} is no exact likelihood; ar and ngram have one")
    if proposal.loaded.tokenizer.fingerprint != model.loaded.tokenizer.fingerprint:
        raise UserError(
            f"--proposal {proposal.loaded.name} has another tokenizer than {model.loaded.name}: "
            f"{proposal.loaded.tokenizer.name} and {model.loaded.tokenizer.name}"
        )
    length = min(PROPOSED_TOKENS, model.block_length, proposal.block_length)
    noise = SequenceRng(seed_of(model.runner.seed, "proposal"), range(texts))
    with torch.no_grad():
        drawn = proposal.loaded.model.generate([[]] * texts, max_new_tokens=length, sampling=Sampling(), rng=noise)
        tokens_NL = torch.tensor(drawn.tokens, device=model.device)
        q_N = proposal.loaded.model.log_likelihood(tokens_NL.to(proposal.device), rng=noise).nats_B.double().cpu()
        found = model.loaded.model.log_likelihoods(tokens_NL, rng=noise, draws=model.runner.scorer.draws)
    results, drawn_from = [], f"{texts} texts of {length} tokens from {proposal.loaded.name}"
    for which, estimate in found.items():
        log_w_N = estimate.nats_B.double().cpu() - q_N
        if estimate.averaged and estimate.mc_var_B is not None:
            log_w_N = log_w_N - STANDARD_ERRORS * estimate.mc_var_B.double().cpu().sqrt()
        bound = mean_lower_bound(log_w_N.numpy())
        mean = float(torch.logsumexp(log_w_N, 0)) - math.log(texts)
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
