"""A check of what an ELBO is made of: from q and p(x|z) alone, with everything else written anew.

Shapes: N texts, L tokens, K draws, (Y, G, D) a text's latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ltm.errors import UserError
from ltm.rng import SequenceRng, seed_of
from tasks.audit.evidence import CheckResult

if TYPE_CHECKING:
    from ltm.harness import HarnessModel

TEXTS, DRAWS, ERRORS = 4, 64, 4.0
"""Blocks of real text, draws of z for each, and how many standard errors a claim may be above what they give."""
SLIP = 1e-4
"""Of a KL, and of an ELBO, for the rounding of float32."""


def recomputed_elbo(model: HarnessModel, tokens: Sequence[int]) -> list[CheckResult]:
    """An ELBO may not be above E_q[log p(x|z)] - KL(q || N(0, I)) by other noise, nor state a smaller KL than q's.

    On real text and trained weights, so that the KL is what the model has: the miniature's bound is looser than much of
    what can be left out of one. It takes q and p(x|z) as the model gives them and shows nothing of these, nor anything
    of models without a Gaussian q.

    Args:
        tokens: of real text, at least one.
    """
    from tasks.diagnostics.kind import checked

    try:
        reader = checked(model)
    except UserError:
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
    # The claim's own draws spread like these, whatever error it states.
    limit = ERRORS * math.sqrt(2 * float(values_KN.var(0).sum()) / DRAWS) + SLIP * abs(again)
    excess, detail = float(claim.nats_B.sum()) - again, f"{count} texts, ELBO {again:.5g} nats, of it KL {kl:.4g}"
    passed = excess <= limit
    if "-kl" in claim.terms and not (short := kl + float(claim.terms["-kl"].sum())) <= SLIP * (1 + kl):
        passed, detail = False, f"{detail}; the KL that is stated is {short:.3g} nats short"
    return [
        CheckResult(
            name="recomputed_elbo", likelihood="elbo", passed=passed, value=excess, limit=limit,
            detail=f"{detail}; claimed {excess:+.3g} nats more, at most {limit:.3g}",
        )
    ]  # fmt: skip
