"""Checks of estimators: recompute an ELBO from q and p(x|z) alone, and compare stated errors with the actual spread.

Shapes: N texts or copies, L tokens, K draws, (Y, G, D) latents per text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ltm.latent.base import LatentModel
from ltm.rng import SequenceRng, seed_of
from tasks.audit.checks.check import CheckResult

if TYPE_CHECKING:
    from ltm.harness import HarnessModel

TEXTS = 4
"""Blocks of real text for which the ELBO is recomputed."""
DRAWS = 64
"""Draws of z per block."""
ERRORS = 4.0
"""Standard errors by which a claim may exceed the recomputed value."""
SLIP = 1e-4
"""Relative tolerance of a KL and of an ELBO for float32 rounding."""

COPIES = 64
"""Copies of one text that are scored under independent noises."""
COPY_TOKENS = 16
"""Tokens in that text."""
MOST = 4.0
"""The largest ratio of the stated variance to the variance over copies, or of the latter to the former."""


def recomputed_elbo(model: HarnessModel, tokens: Sequence[int]) -> list[CheckResult]:
    """Refute an ELBO above E_q[log p(x|z)] - KL(q || N(0, I)) under other noise, or one that understates q's KL.

    It is recomputed on real text with the trained weights, where the KL is the model's own: the tiny model's bound is
    so loose that much could be left out of it. The check trusts the model's q and p(x|z). It returns nothing for models
    without a Gaussian q.

    Args:
        tokens: tokens of real text, at least one.
    """
    reader = model.loaded.model
    if not (isinstance(reader, LatentModel) and reader.gaussian_posterior):
        return []
    length = min(len(tokens), reader.block_length)
    count = max(1, min(TEXTS, len(tokens) // length))
    rows_NL = torch.tensor(list(tokens[: count * length]), device=model.device).view(count, length)
    rng = SequenceRng(model.runner.seed, range(count))
    other = SequenceRng(seed_of(model.runner.seed, "recomputed ELBO"), range(count)).stream("z")
    with torch.no_grad():
        claim = reader.log_likelihoods(rows_NL, rng=rng, draws=DRAWS, only="elbo")["elbo"]
        batch = reader.scoring_batch(rows_NL, 0, None, rng)
        q = reader.infer(batch.tokens_BL, batch.rng, weights_BL=batch.scored_BL)
        mean, sigma = q.mean.double(), (0.5 * q.log_variance.double()).exp()
        noises = (other.normal(*mean.shape[1:], dtype=torch.float64, device=mean.device) for _ in range(DRAWS))
        values_KN = torch.stack([batch.log_likelihood((mean + sigma * noise).to(q.mean.dtype)) for noise in noises])
    law, prior = torch.distributions.Normal(mean, sigma), torch.distributions.Normal(0.0, 1.0)
    kl_N = torch.distributions.kl_divergence(law, prior).flatten(1).sum(1)
    again, kl = float((values_KN.mean(0) - kl_N).sum()), float(kl_N.sum())
    # Assume that the claim's own draws spread like these, whatever error it states.
    limit = ERRORS * math.sqrt(2 * float(values_KN.var(0).sum()) / DRAWS) + SLIP * abs(again)
    excess, detail = float(claim.nats_B.sum()) - again, f"{count} texts, ELBO {again:.5g} nats, of it KL {kl:.4g}"
    passed = excess <= limit
    if "-kl" in claim.terms and not (short := kl + float(claim.terms["-kl"].sum())) <= SLIP * (1 + kl):
        passed, detail = False, f"{detail}; the stated KL is {short:.3g} nats short"
    return [
        CheckResult(
            name="recomputed_elbo", likelihood="elbo", passed=passed, value=excess, limit=limit,
            detail=f"{detail}; claimed {excess:+.3g} nats more, at most {limit:.3g}",
        )
    ]  # fmt: skip


def stated_error(model: HarnessModel, tokens: Sequence[int]) -> list[CheckResult]:
    """Score one text under independent noises and compare the spread of its values with the stated Monte Carlo error.

    Averaged claims enter an e-value three standard errors lower, and a total probability may exceed 1 by as much. So an
    overstated error hides a false claim from both, and an understated one refutes a sound claim. Only overstatement is
    refuted for logarithms of means, whose stated errors are approximations and too small if few draws dominate the
    mean, and for a fitted q, since a fit has noise of its own that leaves the bound valid. The check shows nothing
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
        results.append(
            CheckResult(
                name="stated_error",
                likelihood=name,
                passed=ratio <= MOST and (ratio >= 1 / MOST or fitted or not estimate.averaged),
                value=ratio,
                limit=MOST,
                detail=f"stated variance {stated:.3g}, found {spread:.3g} over {COPIES} noises",
            )
        )
    return results
