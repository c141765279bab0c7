"""Sum a model's claims over next tokens in real text: all next tokens together may share at most 1.

Shapes: N next tokens, L tokens per text, K noises.
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
from tasks.audit.checks.mass import averages, joined, part_of, summed

if TYPE_CHECKING:
    from ltm.harness import HarnessModel

EXHAUSTIVE_VOCABULARY = 2048
"""Vocabularies up to this size are summed exactly; larger ones are sampled."""
FREQUENT_TOKENS = 48
"""The most frequent tokens of the text, always scored in a large vocabulary."""
RANDOM_TOKENS = 1536
"""Budget for random next tokens: 1536 // (context + 1) of them per context."""
PLACES = 32
"""Context lengths, spread over a block, at which a few next tokens are scored."""
FITTED_PLACES = 8
"""The same where each token needs a fit of its own; `decoder_mass` has the other places."""
TOKENS_PER_PLACE = 4
"""Next tokens scored at each of these places: the true one and random ones."""
FREQUENT_PER_PLACE = 12
"""The most frequent tokens scored there too: what a small model copies if it can see what it predicts."""
NOISES = 5
"""Noises under which an averaged claim is scored."""
MORE_NOISES = 64
"""Budget for further noises: 64 // (context + 1) of them, since a text of few tokens has few masks to average over."""
ENOUGH_NOISES = 3
"""Claims that are equal under this many are taken to involve no noise."""
TOKENS_AT_ONCE = 16384
"""Most tokens per batch."""
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}
"""How far a total probability may be from 1, by the dtype of the weights; 0.02 in narrower dtypes."""


def next_token_mass(model: HarnessModel, tokens: Sequence[int]) -> list[CheckResult]:
    """Sum exp(claim) over next tokens, for the model as it is, given no context and given beginnings of real text.

    The sum may be at most 1, and must be 1 if the claim is exact. In vocabularies of more than `EXHAUSTIVE_VOCABULARY`
    tokens, and for bounds, only the true next token, the most frequent ones of this text and some random ones are
    scored. The random ones stand for all the others by their geometric mean, which is below their mean, less three
    standard errors. So a floor under every token shows, but mass on a few of the others is missed. At places all over a
    block a few tokens are scored: a predictor that has seen what it predicts gives nearly 1 to each of them. After one
    token of context all outputs are scored for bounds too, so that a token which costs nothing shows. The check shows
    nothing about how claims about many tokens are combined.

    Args:
        tokens: tokens of real text, at least one.
    """
    reader = model.loaded.model
    exact = all(kind == "exact" for kind, _ in model.offered.values())
    outputs = reader.vocab_size - 1
    everything = exact and outputs <= EXHAUSTIVE_VOCABULARY
    most = min(len(tokens), reader.block_length) - 1
    fitted = isinstance(reader, LatentModel)
    frequent = [] if fitted else _frequent(tokens, outputs)[:FREQUENT_PER_PLACE]
    places = _places(most)[: FITTED_PLACES if fitted else PLACES]
    queries = {length: _few(tokens, length, outputs, frequent) for length in places}
    # A whole block before every token is expensive, and leaves too few random tokens to stand for the others.
    for length in {min(length, most) for length in (0, 1, 5, 24, *([most] if everything else []))}:
        # Some claims about a single token are the same under any noise; a sum of many that are not says little.
        whole = everything or (length == 1 and not fitted and _noiseless(model, tokens))
        wanted, known = (list(range(outputs)), outputs) if whole else _some(tokens, length, outputs)
        # `decoder_mass` sees all tokens of a latent model; here each token needs a fit of its own.
        queries[length] = (wanted[:known] if fitted else wanted), known
    slip, averaged = _slip(model), {bool(length): averages(reader, length) for length in (0, min(1, most))}
    worst: dict[str, CheckResult] = {}
    for length, (wanted, known) in queries.items():
        rows = [[*tokens[:length], token] for token in wanted]
        for which, noises in _next(model, rows, averaged=averaged[bool(length)]).items():
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


def _noiseless(model: HarnessModel, tokens: Sequence[int]) -> bool:
    """True if a claim about the second token of a text is the same under two noises."""
    pair = torch.tensor([list(tokens[:2])] * 2, device=model.device)
    with torch.no_grad():
        rng = SequenceRng(seed_of(model.runner.seed, "one token"), range(2))
        estimates = model.loaded.model.log_likelihoods(pair, context=1, rng=rng, draws=2)
    return all(bool(estimate.nats_B[0] == estimate.nats_B[1]) for estimate in estimates.values())


def decoder_mass(model: HarnessModel, tokens: Sequence[int]) -> list[CheckResult]:
    """Sum a latent model's p(next token | z), which all its claims are made of; it must be 1. Empty for other models.

    In a bound, the KL would hide a small excess. z is drawn from N(0, I); nothing is inferred. As in `next_token_mass`,
    a few tokens are scored at places all over a block, and vocabularies of more than `EXHAUSTIVE_VOCABULARY` tokens
    are sampled.
    """
    reader = model.loaded.model
    if not isinstance(reader, LatentModel):
        return []
    outputs, most = reader.vocab_size - 1, min(len(tokens), reader.block_length) - 1
    frequent = _frequent(tokens, outputs)[:FREQUENT_PER_PLACE]
    queries, results = {length: _few(tokens, length, outputs, frequent) for length in _places(most)[:PLACES]}, []
    for length in {min(length, most) for length in (0, 5, 24)}:
        everything = outputs <= EXHAUSTIVE_VOCABULARY
        queries[length] = (list(range(outputs)), outputs) if everything else _some(tokens, length, outputs)
    for length, (wanted, known) in queries.items():
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
    return TOLERANCES.get(next(weights, torch.float64), 0.02)  # a model without float weights, such as counts, is exact


def _places(most: int) -> list[int]:
    """Return context lengths: those around powers of two, where internal chunks may end, and random others."""
    ends = {2**k + off for k in range(3, most.bit_length()) for off in (-1, 0)}
    others = torch.randperm(most + 1, generator=torch.Generator().manual_seed(0)).tolist()
    return list(dict.fromkeys([*(end for end in sorted(ends) if end <= most), *others]))


def _few(tokens: Sequence[int], at: int, outputs: int, frequent: Sequence[int]) -> tuple[list[int], int]:
    """Return the true next token, a few random ones and the frequent ones, and how many they are."""
    random = torch.randint(outputs, (TOKENS_PER_PLACE,), generator=torch.Generator().manual_seed(at)).tolist()
    few = list(dict.fromkeys([tokens[at], *random]))[:TOKENS_PER_PLACE]
    few = list(dict.fromkeys([*few, *frequent]))
    return few, len(few)


def _frequent(tokens: Sequence[int], outputs: int) -> list[int]:
    counts = torch.tensor(tokens).bincount(minlength=outputs)
    return counts.argsort(descending=True, stable=True)[:FREQUENT_TOKENS].tolist()


def _some(tokens: Sequence[int], at: int, outputs: int) -> tuple[list[int], int]:
    """Return the true next token and frequent ones, followed by random others; and the number of those not random."""
    known = dict.fromkeys([tokens[at], *_frequent(tokens, outputs)])
    shuffled = torch.randperm(outputs, generator=torch.Generator().manual_seed(at)).tolist()
    others = [token for token in shuffled if token not in known]
    return [*known, *others[: RANDOM_TOKENS // (at + 1)]], len(known)


def _next(model: HarnessModel, rows: Sequence[Sequence[int]], *, averaged: bool) -> dict[str, list[LikelihoodEstimate]]:
    """Return the claims about the last token of each row given those before; averaged claims under several noises."""
    reader, rows_NL = model.loaded.model, torch.tensor(rows, device=model.device)
    count, length = len(rows_NL), rows_NL.shape[1] - 1

    def claims(only: str | None, noises: range) -> dict[str, LikelihoodEstimate]:
        # All rows share one noise, as in one predictor; not for averages, whose errors would then add up.
        rows_KL = rows_NL.repeat(len(noises), 1)
        indices = [noise * count + row if averaged else length for noise in noises for row in range(count)]
        estimates: dict[str, LikelihoodEstimate] = {}
        size = max(1, TOKENS_AT_ONCE // (length + 1))
        for start in range(0, len(rows_KL), size):
            rng = SequenceRng(model.runner.seed, indices[start : start + size])
            with torch.no_grad():
                part = reader.log_likelihoods(
                    rows_KL[start : start + size], context=length, rng=rng, draws=2 if length else None, only=only
                )
            estimates = {which: joined(estimates.get(which), estimate) for which, estimate in part.items()}
        return estimates

    def repeated(which: str, noises: range) -> list[LikelihoodEstimate]:
        estimate = claims(which, noises)[which] if noises else None
        return [part_of(estimate, slice(k * count, (k + 1) * count)) for k in range(len(noises))] if estimate else []

    found = {which: [estimate] for which, estimate in claims(None, range(1)).items()}
    for which, noises in found.items():
        if not noises[0].averaged:
            continue
        noises += repeated(which, range(1, ENOUGH_NOISES))
        # A single token may involve no noise at all.
        if not all(torch.equal(noises[0].nats_B, other.nats_B) for other in noises[1:]):
            most = NOISES + min(MORE_NOISES // (length + 1), 2 * TOKENS_AT_ONCE // rows_NL.numel())
            noises += repeated(which, range(ENOUGH_NOISES, most))
    return found


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
    """Check the sum over next tokens; those after the first `known` are a random sample of all the others."""
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
        # Few draws do not tell their own error, so take the mean variance over tokens, weighted by probability.
        values_KN = values_KN[third:]
        variance_N = values_KN.var(0) if len(values_KN) > 1 else torch.zeros_like(chosen_N)
        spread = (chosen_N.softmax(0) * variance_N).nan_to_num(posinf=0.0).sum() / len(values_KN)
        estimate = dataclasses.replace(estimate, mc_var_B=spread.expand(len(chosen_N)))
    estimate = dataclasses.replace(estimate, nats_B=values_KN.mean(0))
    return summed(
        name,
        likelihood,
        estimate,
        chosen_N=chosen_N,
        one_of=PLACES,
        whole=asked == outputs,
        slip=slip,
        count=outputs if others else asked,
        what="next tokens",
        after=after,
    )


def _with_others(values_N: Tensor, known: int, others: int) -> Tensor:
    """Replace the random sample by one lower bound (in nats) on the total share of all other tokens."""
    drawn_N = values_N[known:]
    bound = drawn_N.mean() - STANDARD_ERRORS * drawn_N.std() / math.sqrt(len(drawn_N)) + math.log(others)
    return torch.cat([values_N[:known], bound.nan_to_num(-math.inf)[None]])
