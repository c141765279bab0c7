"""A check of bounds beside an exact value: a lower bound must not lie above it, nor an upper bound below.

Shapes: N texts, L tokens.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltm.latent import reliability
from ltm.rng import SequenceRng, seed_of
from tasks.audit.checks.check import CheckResult
from tasks.audit.checks.evidence import evidence
from tasks.audit.checks.source import estimates

if TYPE_CHECKING:
    from ltm.api import LikelihoodEstimate
    from ltm.harness import HarnessModel

TEXTS = 64
"""Texts that are scored, at most."""
ERRORS, OF_A_TEXT = 4.0, 5.0
"""Stated standard errors by which a bound may be beyond the exact value: in total, and on any one text."""
SLIP = 1e-4
"""Nats per text for rounding."""


def against_exact(model: HarnessModel, tokens_NL: Tensor) -> list[CheckResult]:
    """Compare the bounds of texts with their exact log-likelihood, for a model that offers both; others get no results.

    The exact value is the truth about this model, however well it knows any source: other checks are of whether it is
    one. Without it nothing refutes an upper bound text by text. On texts of a source r, E_r log p is at most E_r log r
    for every model p, so an upper bound below log r may be that of a model which is worse than the source.

    The logarithm of a mean weight exceeds the exact value by more than e nats in all in at most exp(-e) of cases,
    whatever its errors are: an e-value. An average is refuted by two noises or not at all, in total by four stated
    standard errors, or on one text by five, no text's error being taken as less than that of all. A stated error that
    is too small thus refutes too. Upper bounds whose weights have heavy tails are not judged.

    Args:
        tokens_NL: whole texts.
    """
    kinds = {name: kind for name, (kind, _) in model.offered.items()}
    exact = next((name for name, kind in kinds.items() if kind == "exact"), None)
    signs = {name: {"lower_bound": 1.0, "upper_bound": -1.0}.get(kind) for name, kind in kinds.items()}
    if exact is None or not any(signs.values()):
        return []
    first, second = (
        estimates(model, tokens_NL, SequenceRng(seed_of(model.runner.seed, purpose), range(len(tokens_NL))))
        for purpose in ("against exact", "against exact again")
    )
    exact_N = first[exact].nats_B.double().cpu()
    results = []
    for name, sign in signs.items():
        if sign is None:
            continue
        both = [claims[name] for claims in (first, second)]
        if both[0].reliability and not reliability.trusted(both[0].reliability):
            results.append(_result(name, None, math.nan, "heavy tails: its stated error is none"))
            continue
        if sign > 0 and not both[0].averaged:
            results.append(_weighed(name, both[0], exact_N))
            continue
        beyond_2N = sign * (torch.stack([each.nats_B.double().cpu() for each in both]) - exact_N)
        variance_2N = torch.stack([_variance(each) for each in both])
        in_all_2 = beyond_2N.sum(1) / (ERRORS * variance_2N.sum(1).sqrt() + SLIP * len(exact_N))
        # Draws that are all alike state no error.
        least_21 = variance_2N.mean(1, keepdim=True)
        of_texts_2N = beyond_2N / (OF_A_TEXT * variance_2N.maximum(least_21).sqrt() + SLIP)
        value = max(float(in_all_2.min()), float(of_texts_2N.min(0).values.max()))
        side = "above" if sign > 0 else "below"
        mean, worst = float(beyond_2N.mean()), float(beyond_2N.min(0).values.max())
        detail = (
            f"{len(exact_N)} texts: {mean:+.3g} nats per text {side} the exact value, at most {worst:+.3g} under both "
            "of two noises"
        )
        results.append(_result(name, value <= 1, value, detail))
    return results


def _weighed(name: str, claims: LikelihoodEstimate, exact_N: Tensor) -> CheckResult:
    """Judge logarithms of means: E exp(claim - log p) is at most 1 for each text, and so for their sum."""
    weighed = evidence(claims.nats_B.double().cpu().numpy(), exact_N.numpy() + SLIP)
    excess = weighed.log_e_value / weighed.texts
    detail = f"{weighed.texts} texts: {excess:+.3g} nats per text above the exact value; log e-value"
    return dataclasses.replace(
        _result(name, not weighed.refuted, weighed.log_e_value, f"{detail} {weighed.log_e_value:.2f}"),
        limit=weighed.threshold,
    )


def _variance(estimate: LikelihoodEstimate) -> Tensor:
    variance_B = estimate.mc_var_B
    return torch.zeros(len(estimate.nats_B)).double() if variance_B is None else variance_B.double().cpu()


def _result(likelihood: str, passed: bool | None, value: float, detail: str) -> CheckResult:
    limit = math.nan if passed is None else 1.0
    return CheckResult(
        name="against_exact", likelihood=likelihood, passed=passed, value=value, limit=limit, detail=detail
    )
