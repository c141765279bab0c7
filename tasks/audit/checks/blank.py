"""A check of whole blocks: random texts through the network with all weights zero, where bounds are tight.

Shapes: N texts, L tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ltm.evaluation.rows import padded
from ltm.rng import SequenceRng, seed_of
from tasks.audit.checks.check import CheckResult
from tasks.audit.checks.evidence import Evidence, evidence

if TYPE_CHECKING:
    from ltm.api import LanguageModel, LikelihoodEstimate
    from ltm.harness import HarnessModel

TEXTS = 16
"""Random texts, half of them of a block, the others of the largest prime length below it, which no grid divides."""
MORE_TEXTS = 96
"""Further ones, if claims are averages that have noise even here."""
TOKENS_AT_ONCE = 4096
"""Tokens scored in one batch."""
ERRORS, SLIP = 4.0, 0.01
"""Standard errors, and nats per text for rounding, by which upper bounds may be below the truth in all."""


def blank_text(model: HarnessModel) -> list[CheckResult]:
    """Refute claims on uniformly random texts of a block that exceed -L log(outputs), as an e-value.

    The texts come from a known source, the uniform distribution over outputs, so that a refutation is proof whatever
    the model is (but for one chance in a hundred). With all weights zero predictions are uniform and a bound has no
    looseness to hide an error in: weights of an integral that are wrong at some lengths, a time grid that is too
    coarse, or tokens that are left out show at full length and with the whole vocabulary. The check shows nothing about
    what the trained weights do. An upper bound must not be below the uniform distribution or, if the model offers an
    exact value too, below that, since a model without weights need not be uniform.

    Averages are refuted by two noises or not at all. One of costs with a long tail, such as textbook MDLM's k/t, is
    more than three of its standard errors too low in one of 180 trials, not in one of 740.
    """
    blank = copy.deepcopy(model.loaded.model).requires_grad_(False)
    for parameter in blank.parameters():
        parameter.zero_()
    length, outputs = blank.block_length, blank.vocab_size - 1
    generator = torch.Generator().manual_seed(seed_of(model.runner.seed, "blank text"))
    lengths = [length if n % 2 == 0 else _prime_up_to(length) for n in range(TEXTS + MORE_TEXTS)]
    texts = [torch.randint(outputs, (size,), generator=generator) for size in lengths]
    parts = list(_claims(model, blank, texts, 0, TEXTS))
    reference_N = np.array([-size * math.log(outputs) for size in lengths])
    if any(_noisy([part[name] for part in parts], reference_N[:TEXTS]) for name in parts[0]):
        parts += _claims(model, blank, texts, TEXTS, len(texts))
    else:
        reference_N, lengths = reference_N[:TEXTS], lengths[:TEXTS]
    results, again = [], None
    for name in parts[0]:
        estimates = [part[name] for part in parts]
        nats_N, known = _numbers(estimates)
        if not np.isfinite(nats_N).all():
            results.append(_not_made(name, "without weights its claims are no numbers"))
            continue
        if estimates[0].kind == "upper_bound":
            exact = next((other for other, estimate in parts[0].items() if estimate.kind == "exact"), None)
            truth_N = reference_N if exact is None else _numbers([part[exact] for part in parts])[0]
            results.append(_from_above(name, nats_N - truth_N, known, len(lengths)))
            continue
        weighed = _weighed(estimates, reference_N)
        if weighed.refuted and estimates[0].averaged:
            again = again or list(_claims(model, blank, texts, 0, len(lengths), purpose="blank claims again"))
            estimates = [part[name] for part in again]
            nats_N, weighed = _numbers(estimates)[0], _weighed(estimates, reference_N)
        excess = float((nats_N - reference_N).sum()) / sum(lengths)
        results.append(
            CheckResult(
                name="blank_text",
                likelihood=name,
                passed=not weighed.refuted,
                value=weighed.log_e_value,
                limit=weighed.threshold,
                detail=f"{len(lengths)} random texts of up to {length} tokens, all weights zero: log e-value "
                f"{weighed.log_e_value:,.2f}, {excess:+.4f} nats per token against the uniform distribution",
                evidence=weighed,
            )
        )
    return results


def _numbers(estimates: Sequence[LikelihoodEstimate]) -> tuple[np.ndarray, list[Tensor]]:
    """Return the claims, (N,), and the Monte Carlo variances of the batches that have some."""
    variances = (estimate.mc_var_B for estimate in estimates)
    nats_N = torch.cat([estimate.nats_B.double().cpu() for estimate in estimates]).numpy()
    return nats_N, [variance.double().cpu() for variance in variances if variance is not None]


def _weighed(estimates: Sequence[LikelihoodEstimate], reference_N: np.ndarray) -> Evidence:
    nats_N, known = _numbers(estimates)
    variances_N = torch.cat(known).numpy() if len(known) == len(estimates) else None
    return evidence(nats_N, reference_N, variances_N, averaged=estimates[0].averaged)


def _from_above(name: str, excess_N: np.ndarray, known: Sequence[Tensor], texts: int) -> CheckResult:
    """Check that upper bounds on random texts, all weights zero, are not below what is known of them."""
    variance = float(torch.cat(list(known)).sum()) if known else 0.0
    excess, least = float(excess_N.sum()), -ERRORS * math.sqrt(variance) - SLIP * texts
    detail = f"{texts} random texts, all weights zero: {excess:+.4g} nats above the truth in all, at least {least:.4g}"
    return CheckResult(
        name="blank_text", likelihood=name, passed=excess >= least, value=excess, limit=least, detail=detail
    )


def _claims(
    model: HarnessModel,
    blank: LanguageModel,
    texts: list[Tensor],
    first: int,
    end: int,
    *,
    purpose: str = "blank claims",
) -> Iterator[dict[str, LikelihoodEstimate]]:
    step = max(1, TOKENS_AT_ONCE // len(texts[0]))
    seed = seed_of(model.runner.seed, purpose)
    for start in range(first, end, step):
        part = texts[start : min(start + step, end)]
        with torch.no_grad():
            yield blank.log_likelihoods(
                padded([text.numpy() for text in part]).to(model.device),
                lengths=torch.tensor([len(text) for text in part], device=model.device),
                rng=SequenceRng(seed, range(start, start + len(part))),
                draws=model.runner.scorer.draws,
            )


def _noisy(estimates: Sequence[LikelihoodEstimate], reference_N: np.ndarray) -> bool:
    """True for averages that differ between texts by more than their lengths."""
    nats_N = torch.cat([estimate.nats_B.double().cpu() for estimate in estimates]).numpy()
    return estimates[0].averaged and not float(np.std((nats_N - reference_N) / reference_N)) < 1e-4


def _prime_up_to(number: int) -> int:
    return next((n for n in range(number, 1, -1) if all(n % k for k in range(2, math.isqrt(n) + 1))), 1)


def _not_made(likelihood: str, detail: str) -> CheckResult:
    return CheckResult(
        name="blank_text", likelihood=likelihood, passed=None, value=math.nan, limit=math.nan, detail=detail
    )
