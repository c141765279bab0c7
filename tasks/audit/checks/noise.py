"""A check of the errors that estimates state of themselves: is a value as uncertain as it says?

Shapes: N copies of a text, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ltm.rng import SequenceRng
from tasks.audit.evidence import CheckResult

if TYPE_CHECKING:
    from ltm.harness import HarnessModel

COPIES, TOKENS = 64, 16
MOST = 4.0
"""How many times the variance over copies may be the stated one, or that one the variance over copies."""


def stated_error(model: HarnessModel, tokens: Sequence[int]) -> list[CheckResult]:
    """One text under independent noises: do its values spread as the Monte Carlo error that each of them states?

    Averaged claims enter an e-value three standard errors lower, and a mass may exceed 1 by as much: an error stated
    too large hides a false claim from both, and one stated too small refutes a sound one. Errors of logarithms of means
    are approximations, too small where few draws carry the mean, and where q is fitted the fit has noise of its own,
    of which the bound is right whatever it is: there, only an error that is too large is refuted. It shows nothing of
    the values themselves, and of claims without such an error nothing at all.

    Args:
        tokens: of real text, at least one.
    """
    reader = model.runner.scorer.model
    fitted = getattr(model.loaded.model.config, "posterior", None) is not None
    length = min(len(tokens), TOKENS, reader.block_length)
    tokens_NL = torch.tensor(list(tokens[:length]), device=model.device).expand(COPIES, -1)
    with torch.no_grad():
        found = reader.log_likelihoods(
            tokens_NL, rng=SequenceRng(model.runner.seed, range(COPIES)), draws=model.runner.scorer.draws
        )
    # What is beyond the rounding of floats.
    floor = (1e-6 * max(float(estimate.nats_B.abs().max()) for estimate in found.values())) ** 2
    results = []
    for name, estimate in found.items():
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
