"""What a model as it is claims of next tokens in real text, added up: at most 1 among all that there are.

Shapes: N next tokens, L tokens of a text, K noises.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ltm.api import LikelihoodEstimate
from ltm.latent.base import LatentModel
from ltm.rng import SequenceRng, seed_of
from tasks.audit.checks.check import CheckResult, beyond
from tasks.audit.checks.evidence import STANDARD_ERRORS
from tasks.audit.checks.mass import averages, joined, summed

if TYPE_CHECKING:
    from ltm.harness import HarnessModel

FULL_VOCABULARY, SUBSET, RANDOM = 2048, 48, 1536
"""Up to how many outputs an exact claim is asked for all of them; else of how many common tokens, and, of all contexts
of one length together, how many tokens of text with a random next one."""
SWEPT, FEW, NOISES, MORE = 32, 4, 5, 64
"""Places where a claim is asked for a few next tokens, and how many; noises under which an averaged claim is asked, and
up to how many more after no token, where each is one and few of them are masked."""
TOKENS_AT_ONCE = 16384
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Of a total probability that must be 1; 0.02 in narrower dtypes."""


def next_token_mass(model: HarnessModel, tokens: Sequence[int]) -> list[CheckResult]:
    """Of the model as it is, the sum of exp(claim) over next tokens, given nothing and given starts of real text.

    At most 1, and 1 if the claim is exact. In vocabularies of more than `FULL_VOCABULARY` tokens, and for bounds, the
    true next token, the commonest of this text and some at random are asked for. What the random ones say of all the
    others is their geometric mean, which is below their mean, less three standard errors: a floor under every token
    shows so, and what only a few of them get is missed. At places through all of a block a few tokens are asked for:
    a predictor that has seen what it predicts gives nearly 1 to each. It shows nothing of how claims of many tokens
    are put together.

    Args:
        tokens: of real text, at least one.
    """
    reader = model.loaded.model
    exact = all(kind == "exact" for kind, _ in model.offered.values())
    outputs = reader.vocab_size - 1
    everything = exact and outputs <= FULL_VOCABULARY
    most = min(len(tokens), reader.block_length) - 1
    asked = {length: _swept(tokens, length, outputs) for length in _places(most)}
    # A whole block before every token is dear, and some random ones are then too few to judge the others by.
    for length in {min(length, most) for length in (0, 1, 5, 24, *([most] if everything else []))}:
        wanted, known = (list(range(outputs)), outputs) if everything else _some(tokens, length, outputs)
        # Of a latent model `decoder_mass` sees all tokens, and each here is a fit.
        asked[length] = (wanted[:known] if isinstance(reader, LatentModel) else wanted), known
    slip = _slip(model)
    worst: dict[str, CheckResult] = {}
    for length, (wanted, known) in asked.items():
        for which, noises in _next(model, [[*tokens[:length], token] for token in wanted]).items():
            result = _next_mass(
                "next_token_mass",
                which,
                noises,
                known=known,
                outputs=outputs,
                slip=slip,
                after=f"after {length} tokens",
            )
            if which not in worst or beyond(result) > beyond(worst[which]):
                worst[which] = result
    return list(worst.values())


def decoder_mass(model: HarnessModel, tokens: Sequence[int]) -> list[CheckResult]:
    """Of a latent model, what all its claims are made of: given z, next tokens share 1; nothing of other models.

    In a bound the divergence hides a little too much of them. z comes from N(0, I), nothing is inferred. As in
    `next_token_mass`, vocabularies of more than `FULL_VOCABULARY` tokens are asked for some.
    """
    reader = model.loaded.model
    if not isinstance(reader, LatentModel):
        return []
    outputs, most = reader.vocab_size - 1, min(len(tokens), reader.block_length) - 1
    everything, results = outputs <= FULL_VOCABULARY, []
    for length in sorted({min(length, most) for length in (0, 5, *([most] if everything else [24]))}):
        wanted, known = (list(range(outputs)), outputs) if everything else _some(tokens, length, outputs)
        rows_NL = torch.tensor([[*tokens[:length], token] for token in wanted], device=model.device)
        stream = SequenceRng(model.runner.seed, [length]).stream("decoder mass")
        z_1YGD = stream.normal(*reader.latent_shape, dtype=next(reader.parameters()).dtype, device=model.device)
        values = []
        for part_NL in rows_NL.split(max(1, TOKENS_AT_ONCE // (length + 1))):
            with torch.no_grad():
                batch = reader.scoring_batch(part_NL, length, None, SequenceRng(0, range(len(part_NL))))
                values.append(batch.log_likelihood(z_1YGD.expand(len(part_NL), -1, -1, -1)))
        estimate = LikelihoodEstimate(
            nats_B=torch.cat(values), tokens_B=torch.ones(len(wanted), dtype=torch.int64), kind="exact"
        )
        after = f"given z and {length} tokens"
        results.append(
            _next_mass("decoder_mass", None, [estimate], known=known, outputs=outputs, slip=_slip(model), after=after)
        )
    return [max(results, key=beyond)]


def _slip(model: HarnessModel) -> float:
    weights = (p.dtype for p in model.loaded.model.parameters() if p.is_floating_point())
    return TOLERANCES.get(next(weights, torch.float64), 0.02)  # what has none, such as counts, is exact


def _places(most: int) -> list[int]:
    """Lengths of contexts, among them those about powers of two, where pieces that a text is worked on in may end."""
    ends = {2**k + off for k in range(3, most.bit_length()) for off in (-1, 0)}
    others = torch.randperm(most + 1, generator=torch.Generator().manual_seed(0)).tolist()
    return list(dict.fromkeys([*(end for end in sorted(ends) if end <= most), *others]))[:SWEPT]


def _swept(tokens: Sequence[int], at: int, outputs: int) -> tuple[list[int], int]:
    """The true next token and a few random ones, and how many."""
    random = torch.randint(outputs, (FEW,), generator=torch.Generator().manual_seed(at)).tolist()
    few = list(dict.fromkeys([tokens[at], *random]))[:FEW]
    return few, len(few)


def _some(tokens: Sequence[int], at: int, outputs: int) -> tuple[list[int], int]:
    """The true next token and common ones, how many of them, and behind them random ones of all the others."""
    counts = torch.tensor(tokens).bincount(minlength=outputs)
    common = counts.argsort(descending=True, stable=True)[:SUBSET].tolist()
    known = dict.fromkeys([tokens[at], *common])
    shuffled = torch.randperm(outputs, generator=torch.Generator().manual_seed(at)).tolist()
    others = [token for token in shuffled if token not in known]
    return [*known, *others[: RANDOM // (at + 1)]], len(known)


def _next(model: HarnessModel, rows: Sequence[Sequence[int]]) -> dict[str, list[LikelihoodEstimate]]:
    """What is claimed of the last tokens given those before; of averaged claims under several noises."""
    reader, rows_NL = model.loaded.model, torch.tensor(rows, device=model.device)
    length = rows_NL.shape[1] - 1
    averaged = averages(reader, length)

    def claims(seed: int, only: str | None) -> dict[str, LikelihoodEstimate]:
        found: dict[str, LikelihoodEstimate] = {}
        first = 0
        for part_NL in rows_NL.split(max(1, TOKENS_AT_ONCE // (length + 1))):
            # One noise for all, as one predictor would have; not for averages, whose errors would then add up.
            own = range(first, first + len(part_NL)) if averaged else [length] * len(part_NL)
            with torch.no_grad():
                part = reader.log_likelihoods(
                    part_NL, context=length, rng=SequenceRng(seed, own), draws=2 if length else None, only=only
                )
            found = {which: joined(found.get(which), estimate) for which, estimate in part.items()}
            first += len(part_NL)
        return found

    noises = {which: [estimate] for which, estimate in claims(model.runner.seed, None).items()}
    for which in [which for which, (estimate,) in noises.items() if estimate.averaged]:
        own = noises[which]
        for noise in range(1, NOISES + min(MORE // (length + 1), 2 * TOKENS_AT_ONCE // rows_NL.numel())):
            # Of one token there may be nothing to draw.
            if len(own) > 2 and all(torch.equal(own[0].nats_B, other.nats_B) for other in own[1:]):
                break
            own.append(claims(seed_of(model.runner.seed, noise), which)[which])
    return noises


def _next_mass(
    name: str,
    likelihood: str | None,
    noises: Sequence[LikelihoodEstimate],
    *,
    known: int,
    outputs: int,
    slip: float,
    after: str,
) -> CheckResult:
    """Whether next tokens share too much; those beyond the first `known` were drawn at random from all the others."""
    estimate = noises[0]
    asked = len(estimate.nats_B)
    others = outputs - known if known < asked < outputs else 0
    values_KN = torch.stack([each.nats_B.double() for each in noises])
    if others:
        values_KN = torch.stack([_with_others(values_N, known, others) for values_N in values_KN])
        if estimate.mc_var_B is not None:
            estimate = dataclasses.replace(estimate, mc_var_B=F.pad(estimate.mc_var_B[:known], (0, 1)))
        after += f"; {others:,} of them judged by {asked - known:,}"
    third = -(-len(noises) // 3)
    chosen_N = values_KN[:third].mean(0) if estimate.averaged else None
    if chosen_N is not None and len(noises) > 1:
        # Few draws may not know their own error: that of all tokens together, each as much as it counts.
        values_KN = values_KN[third:]
        found_N = values_KN.var(0) if len(values_KN) > 1 else torch.zeros_like(chosen_N)
        spread = (chosen_N.softmax(0) * found_N).nan_to_num(posinf=0.0).sum() / len(values_KN)
        estimate = dataclasses.replace(estimate, mc_var_B=spread.expand(len(chosen_N)))
    estimate = dataclasses.replace(estimate, nats_B=values_KN.mean(0))
    return summed(
        name,
        likelihood,
        estimate,
        chosen_N=chosen_N,
        one_of=SWEPT,
        whole=asked == outputs,
        slip=slip,
        count=outputs if others else asked,
        what="next tokens",
        after=after,
    )


def _with_others(values_N: Tensor, known: int, others: int) -> Tensor:
    """Claims of the known tokens, and in place of those drawn at random a lower bound on what all others share."""
    drawn_N = values_N[known:]
    bound = drawn_N.mean() - STANDARD_ERRORS * drawn_N.std() / math.sqrt(len(drawn_N)) + math.log(others)
    return torch.cat([values_N[:known], bound.nan_to_num(-math.inf)[None]])
