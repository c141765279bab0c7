"""Sum claimed probabilities and compare the total with 1, allowing for Monte Carlo error.

Shapes: B claims to sum.
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

ROUGH = 0.05
"""Averaged claims whose half variance exceeds this are bounded by the two-noise inequality, not exponentiated."""
AVERAGED_ERRORS = 4.0
"""Standard errors by which the sum of such claims may exceed 1."""
WORST_OF_MANY_ERRORS = 5.0
"""The same where the worst of many contexts is reported; errors are skewed, since weights are like 1/t."""


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
    """Sum exp(claim) and check the total.

    The exponential of an average exceeds its probability in expectation, by half its variance where that is small and
    by any amount otherwise. But log sum_w exp(m_w) >= sum_w pi_w (m_w - log pi_w) for every distribution pi, with
    equality for the softmax of m, and the right-hand side is linear in m: with pi from one noise and m from another, it
    is not too high on average.

    Args:
        chosen_N: the same averaged claims under another noise, which pi is taken from if the claims are rough.
        one_of: number of sums of which the worst is reported.
        whole: the claims cover everything there is, so that exact ones must sum to 1.
        slip: relative rounding error to allow.
        count: number of items that the sum stands for, if not the number of claims.
        what: name of the items.
        after: comment for the detail line.
    """
    nats_B = estimate.nats_B.double()
    variance_B = torch.zeros_like(nats_B) if estimate.mc_var_B is None else estimate.mc_var_B.double()
    p_B = nats_B.exp()
    mass, error = float(p_B.sum()), float((p_B.square() * variance_B).sum().sqrt())
    if estimate.kind == "upper_bound":
        return _from_above(name, likelihood, mass, error, slip=slip, whole=whole, what=f"{len(nats_B):,} {what}")
    bias = float((p_B * variance_B).sum()) / 2 if estimate.averaged else 0.0
    many = WORST_OF_MANY_ERRORS if one_of > 1 else AVERAGED_ERRORS
    limit = 1 + slip + (many if estimate.averaged else STANDARD_ERRORS) * error + bias
    if chosen_N is not None and bias > ROUGH * mass:
        pi_B = chosen_N.double().softmax(0)
        used = pi_B > 0
        mass = math.exp(float((pi_B * (nats_B - pi_B.log()))[used].sum()))
        error = float((pi_B.square() * variance_B).sum().sqrt())
        limit = (1 + slip) * math.exp(min(many * error, 100.0))
    two_sided = estimate.kind == "exact" and whole
    passed = mass <= limit and not (two_sided and mass < 1 - slip)
    comments = [after] if after else []
    if error > 0:
        comments.append(f"standard error {error:.2g}")
    if two_sided:
        comments.append("exact: it must be 1")
    items = f"{len(nats_B) if count is None else count:,} {what}"
    detail = f"{items} share {mass:.6g}, at most {limit:.6g}{''.join(f'; {part}' for part in comments)}"
    return CheckResult(
        name=name, likelihood=likelihood, passed=passed and math.isfinite(mass), value=mass, limit=limit, detail=detail
    )


def _from_above(
    name: str, likelihood: str | None, mass: float, error: float, *, slip: float, whole: bool, what: str
) -> CheckResult:
    """Check that upper bounds of everything there is sum to 1 or more: noise raises their exponentials on average."""
    least = 1 - slip - AVERAGED_ERRORS * error
    detail = f"{what}, bounded from above, share {mass:.6g}, at least {least:.6g}"
    passed = (mass >= least or not whole) and not math.isnan(mass)
    return CheckResult(name=name, likelihood=likelihood, passed=passed, value=mass, limit=least, detail=detail)


def averages(reader: LanguageModel, context: int) -> bool:
    """True if continuations of `context` tokens get a mean of logarithms over draws, not the logarithm of a mean."""
    one = torch.zeros(1, context + 1, dtype=torch.int64, device=reader.device)
    with torch.no_grad():
        estimates = reader.log_likelihoods(one, context=context, rng=SequenceRng(0, [0]), draws=2)
    return any(estimate.averaged for estimate in estimates.values())


def part_of(estimate: LikelihoodEstimate, rows: slice) -> LikelihoodEstimate:
    """Select rows of an estimate."""
    variance_B = None if estimate.mc_var_B is None else estimate.mc_var_B[rows]
    return dataclasses.replace(estimate, nats_B=estimate.nats_B[rows], mc_var_B=variance_B)


def joined(before: LikelihoodEstimate | None, new: LikelihoodEstimate) -> LikelihoodEstimate:
    """Append the rows of one estimate to those of another, if there is one."""
    if before is None:
        return new
    known = before.mc_var_B is not None and new.mc_var_B is not None
    variance_B = torch.cat([before.mc_var_B, new.mc_var_B]) if known else None  # type: ignore[list-item]
    return dataclasses.replace(new, nats_B=torch.cat([before.nats_B, new.nats_B]), mc_var_B=variance_B)
