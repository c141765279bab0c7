"""A sum of claimed probability, and how much of it there may be: 1, and what Monte Carlo error explains.

Shapes: B claims of which the sum is taken.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from ltm.api import LanguageModel, LikelihoodEstimate
from ltm.rng import SequenceRng
from tasks.audit.checks.check import CheckResult
from tasks.audit.checks.evidence import STANDARD_ERRORS

ROUGH, AVERAGED_ERRORS, MOST_ERRORS = 0.05, 4.0, 5.0
"""Half a variance of averaged claims beyond which exponentials say little; the standard errors that such claims may be
beyond 1, and the worst of many contexts: weights like 1/t are skew."""


def summed(
    name: str,
    likelihood: str | None,
    estimate: LikelihoodEstimate,
    *,
    chosen_N: Tensor | None = None,
    one_of: int = 1,
    whole: bool = True,
    slip: float = 1e-6,
    count: int | None = None,
    what: str = "texts",
    after: str = "",
) -> CheckResult:
    """The sum of exp(claim), and whether it may be that much; `whole` when no part of what there is was left out.

    The exponential of an average exceeds its probability in expectation, by half its variance where that is small and
    by any amount where it is not. But log sum_w exp(m_w) >= sum_w pi_w (m_w - log pi_w) for every distribution pi, with
    equality for the softmax of m, and the right-hand side is linear in m: with pi from one noise and m from another it
    is not too high on average.

    Args:
        chosen_N: averaged claims of the same under another noise, for pi where they are rough.
        one_of: how many sums the worst is taken of.
        count: of how many there is a sum, where not of the claims alone.
        what: these are.
    """
    nats_B = estimate.nats_B.double()
    variance_B = torch.zeros_like(nats_B) if estimate.mc_var_B is None else estimate.mc_var_B.double()
    p_B = nats_B.exp()
    mass, error = float(p_B.sum()), float((p_B.square() * variance_B).sum().sqrt())
    bias = float((p_B * variance_B).sum()) / 2 if estimate.averaged else 0.0
    limit = 1 + slip + STANDARD_ERRORS * error + bias
    if chosen_N is not None and bias > ROUGH * mass:
        pi_B = chosen_N.double().softmax(0)
        used = pi_B > 0
        mass = math.exp(float((pi_B * (nats_B - pi_B.log()))[used].sum()))
        error = float((pi_B.square() * variance_B).sum().sqrt())
        limit = (1 + slip) * math.exp(min((AVERAGED_ERRORS if one_of == 1 else MOST_ERRORS) * error, 100.0))
    two_sided = estimate.kind == "exact" and whole
    passed = mass <= limit and not (two_sided and mass < 1 - slip)
    beside = [after] if after else []
    if error > 0:
        beside.append(f"standard error {error:.2g}")
    if two_sided:
        beside.append("exact: it must be 1")
    of = f"{len(nats_B) if count is None else count:,} {what}"
    detail = f"{of} share {mass:.6g}, at most {limit:.6g}{''.join(f'; {part}' for part in beside)}"
    return CheckResult(
        name=name, likelihood=likelihood, passed=passed and math.isfinite(mass), value=mass, limit=limit, detail=detail
    )


def averages(reader: LanguageModel, context: int) -> bool:
    """Whether continuations of so many tokens get a mean over draws, and not the logarithm of one."""
    one = torch.zeros(1, context + 1, dtype=torch.int64, device=reader.device)
    with torch.no_grad():
        found = reader.log_likelihoods(one, context=context, rng=SequenceRng(0, [0]), draws=2)
    return any(estimate.averaged for estimate in found.values())


def part_of(estimate: LikelihoodEstimate, rows: slice) -> LikelihoodEstimate:
    variance_B = None if estimate.mc_var_B is None else estimate.mc_var_B[rows]
    return dataclasses.replace(estimate, nats_B=estimate.nats_B[rows], mc_var_B=variance_B)


def joined(before: LikelihoodEstimate | None, new: LikelihoodEstimate) -> LikelihoodEstimate:
    if before is None:
        return new
    known = before.mc_var_B is not None and new.mc_var_B is not None
    variance_B = torch.cat([before.mc_var_B, new.mc_var_B]) if known else None  # type: ignore[list-item]
    return dataclasses.replace(new, nats_B=torch.cat([before.nats_B, new.nats_B]), mc_var_B=variance_B)
