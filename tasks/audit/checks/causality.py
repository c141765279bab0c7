"""A check of exact claims on real text: what comes later changes nothing, and a text is the product of its parts.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltm.evaluation.rows import padded
from ltm.rng import SequenceRng, seed_of
from tasks.audit.checks.bookkeeping import rounding
from tasks.audit.checks.check import CheckResult

if TYPE_CHECKING:
    from ltm.harness import HarnessModel

PLACES = 8
"""Places in a block after which the text is changed: the first, the last, and others between them."""


def future_leak(model: HarnessModel, tokens: Sequence[int]) -> list[CheckResult]:
    """Check that exact claims about the beginning of a block do not depend on what follows. Empty for bounds.

    What a model claims of a beginning beside a continuation is its claim about both less that about the continuation
    given the beginning. This must be its claim about the beginning alone, both for real continuations (the chain rule)
    and for others. So the check finds a model that sees the tokens it predicts, and one that scores a continuation
    otherwise than the end of a text. It shows nothing about leaks that are smaller than rounding, nor about claims of
    the last token of a text, which `next_token_mass` sums.

    Args:
        tokens: real text; at most a block of it is used.
    """
    exact = [name for name, (kind, _) in model.offered.items() if kind == "exact" and model.loaded.model.chain_rule]
    row = list(tokens[: model.block_length])
    if not exact or len(row) < 2:
        return []
    places = sorted({1 + round(n * (len(row) - 2) / (PLACES - 1)) for n in range(PLACES)})
    real_BL = torch.tensor([row] * len(places))
    context_B = torch.tensor(places)
    generator = torch.Generator().manual_seed(seed_of(model.runner.seed, "other ends"))
    # Later tokens of the same text, so that they are as likely as the real ones, in another order.
    shuffled_BL = real_BL.clone()
    for other_L, place in zip(shuffled_BL, places, strict=True):
        other_L[place:] = _others(other_L, place, model.loaded.model.vocab_size - 1, generator)
    starts = padded([real_BL[b, :place].numpy() for b, place in enumerate(places)])
    results, limit = [], rounding(model)
    for name in exact:
        alone_B = _nats(model, name, starts, lengths_B=context_B)
        worst, faults = 0.0, []
        for rows_BL, what in ((real_BL, "the text itself"), (shuffled_BL, "other tokens")):
            whole_B, rest_B = _nats(model, name, rows_BL), _nats(model, name, rows_BL, context_B=context_B)
            off_B = (whole_B - rest_B - alone_B).abs() / whole_B.abs().clamp(min=1)
            worst = max(worst, float(off_B.max()))
            if not float(off_B.max()) <= limit:
                at = places[int(off_B.argmax())]
                faults.append(f"the claim about {at} tokens moves by {float(off_B.max()):.2g} if {what} follow")
        results.append(
            CheckResult(
                name="future_leak",
                likelihood=name,
                passed=not faults,
                value=worst,
                limit=limit,
                detail="; ".join(faults) or f"claims about beginnings, cut after {places} tokens, do not see the rest",
            )
        )
    return results


def _others(row_L: Tensor, place: int, outputs: int, generator: torch.Generator) -> Tensor:
    """Return tokens of the text for the places from `place` on, each another than the one that is there."""
    drawn = row_L[torch.randint(len(row_L), (len(row_L) - place,), generator=generator)]
    return torch.where(drawn == row_L[place:], (drawn + 1) % outputs, drawn)


def _nats(
    model: HarnessModel,
    name: str,
    rows_BL: Tensor,
    *,
    context_B: Tensor | None = None,
    lengths_B: Tensor | None = None,
) -> Tensor:
    """Return the claims about rows after their contexts, float64, scored a batch at a time."""
    scorer, parts = model.runner.scorer, []
    for start in range(0, len(rows_BL), scorer.batch_size):
        part = slice(start, start + scorer.batch_size)
        with torch.no_grad():
            found = scorer.model.log_likelihoods(
                rows_BL[part].to(model.device),
                context=0 if context_B is None else context_B[part].to(model.device),
                lengths=None if lengths_B is None else lengths_B[part].to(model.device),
                rng=SequenceRng(model.runner.seed, range(start, start + len(rows_BL[part]))),
                only=name,
            )
        parts.append(found[name].nats_B.double().cpu())
    return torch.cat(parts)
