"""Sum claimed probability over every text of a tiny model: a likelihood must not assign more than 1 in total.

The tiny model has the audited model's settings and so few tokens that every text can be scored.
Shapes: N texts, L tokens per text.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltm.api import LanguageModel, LikelihoodEstimate
from ltm.latent.base import LatentConfig, LatentModel
from ltm.latent.prequential import Prequential
from ltm.rng import SequenceRng
from tasks.audit.checks.check import CheckResult, beyond
from tasks.audit.checks.mass import averages, part_of, summed

TOKENS = 3
"""Vocabulary of the enumerable model."""
LENGTH = 4
"""Tokens per text; some families need one more."""
UPDATES = 150
"""Training updates of the enumerable model."""
BATCH = 32
"""Texts per update."""
LEARNING_RATE = 0.02
"""Adam's learning rate."""
FAST_STEPS = 200
"""The least number of fast steps to score with: a fit that goes wrong shows after many."""
TRAINED_STEPS = 16
"""The most fast steps to train with, to save time."""
FEW_DRAWS = 32
"""Draws per text."""
DRAWS = 512
"""Draws per text when the headline is scored again, because `FEW_DRAWS` left too large a Monte Carlo error."""
CONFIRMING = 4
"""How many times more draws, under fresh noise, a bound gets before it is refuted.

By chance alone one sum in several hundred is beyond three standard errors; an error of the claim is so again.
"""
ROOM = 0.05
"""The excess over 1 that the Monte Carlo error may hide."""
MINIATURE_KL = 0.5
"""KL weight throughout training: low enough that z carries information, high enough that a Gaussian still fits the
posterior."""
PREQUENTIAL_NOISES = 3
"""Noises under each of which a prequential reading is summed."""
ENCODER_UPDATES = 60
"""Further updates of the inference network alone at KL weight 1: a tight bound hides little."""


def enumerable_model(model: LanguageModel, trained: Any = None, *, seed: int = 0) -> LanguageModel:
    """Train a network for `TOKENS` tokens under the model's settings, briefly and in float64; score with many steps.

    Its texts mostly repeat one token, so that a latent carries information and a window of two does not see it all: a
    missing KL, a leaked token or a forgotten weight then shows as excess probability.

    Args:
        trained: the config that the model was trained with, if it is scored with another.
    """
    cls, shape = type(model), {"vocab_size": TOKENS + 1, "block_length": LENGTH, "width": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mini = cls(_trainable(cls.twin_config(trained or model.config, **shape))).double()
    generator = torch.Generator().manual_seed(seed)
    batches = ((_repetitive(generator, mini.block_length), update) for update in itertools.count())
    if cls.learns_by_counting:
        for tokens_BL, _ in itertools.islice(batches, UPDATES):
            mini.count(tokens_BL)
        mini.finish()
        return _scored(mini, cls.twin_config(model.config, **shape))

    def train(updates: int, parameters: Sequence[Tensor], progress: float) -> None:
        adam = torch.optim.Adam(parameters, lr=LEARNING_RATE)
        for tokens_BL, update in itertools.islice(batches, updates):
            adam.zero_grad()
            rng = SequenceRng(seed, range(update * BATCH, (update + 1) * BATCH))
            mini.training_loss(tokens_BL, rng=rng, progress=progress).value.backward()
            adam.step()

    train(UPDATES, list(mini.parameters()), 0.0)
    inferring = [value for name, value in mini.named_parameters() if not name.startswith("decoder.")]
    if isinstance(mini, LatentModel) and inferring:
        train(ENCODER_UPDATES, inferring, 1.0)
    return _scored(mini, cls.twin_config(model.config, **shape))


def informative(config: Any) -> Any:
    """Give a latent model's config the KL weight `MINIATURE_KL`; other configs stay as they are."""
    if not isinstance(config, LatentConfig):
        return config
    return dataclasses.replace(config, kl_warmup=1.0, kl_weight_start=MINIATURE_KL)


def _trainable(config: Any) -> Any:
    config = informative(config)
    if isinstance(config, LatentConfig) and config.fast_steps is not None:
        config = config.with_fast_steps(min(TRAINED_STEPS, config.fast_steps))
    return config


def _repetitive(generator: torch.Generator, length: int) -> Tensor:
    first = torch.randint(TOKENS, (BATCH, 1), generator=generator)
    others = torch.randint(TOKENS, (BATCH, length), generator=generator)
    return torch.where(torch.rand(BATCH, length, generator=generator) < 0.8, first, others)


def _scored(trained: LanguageModel, config: Any) -> LanguageModel:
    if isinstance(config, LatentConfig) and config.fast_steps is not None:
        config = config.with_fast_steps(max(FAST_STEPS, config.fast_steps))
    weights = trained.state_dict()
    scored = type(trained)(config)
    scored.allocate({name: tuple(value.shape) for name, value in weights.items()})
    scored.double().load_state_dict(weights)
    return scored.eval().requires_grad_(False)


def total_mass(mini: LanguageModel, *, name: str = "total_mass") -> list[CheckResult]:
    """Sum exp(claim) over every text of a block, and of half a block: at most 1, and 1 if the claim is exact.

    Any error that raises the sum shows; for this tiny model it proves the claim, up to the stated error. Errors that
    only longer texts, a larger vocabulary or other weights bring out do not show.
    """
    texts_NL, shorter_NL = _every_text(mini.block_length), _every_text(-(-mini.block_length // 2))
    whole, padding = len(texts_NL), (0, mini.block_length - shorter_NL.shape[1])
    rows_NL = torch.cat([texts_NL, F.pad(shorter_NL, padding)])
    lengths_N = torch.tensor([mini.block_length] * whole + [shorter_NL.shape[1]] * len(shorter_NL))
    few, headline = _claims(mini, rows_NL, 2, lengths=lengths_N, draws=FEW_DRAWS), mini.headline()

    def both(which: str, estimate: LikelihoodEstimate, chosen_N: Tensor | None = None) -> CheckResult:
        of_blocks, of_shorter = (
            summed(
                name, which, part_of(estimate, part), chosen_N=None if chosen_N is None else chosen_N[part], after=after
            )
            for part, after in ((slice(whole), ""), (slice(whole, None), "of half a block"))
        )
        return of_shorter if of_blocks.passed and not of_shorter.passed else of_blocks

    results = {which: both(which, estimate) for which, estimate in few.items()}
    refuted = [
        which for which in few if few[which].kind in ("lower_bound", "upper_bound") and not results[which].passed
    ]
    if results[headline].limit > 1 + ROOM:
        many = _claims(mini, rows_NL, 1, lengths=lengths_N, draws=DRAWS, only=headline)[headline]
        results[headline] = both(headline, many, few[headline].nats_B)
        refuted = [which for which in refuted if which != headline]
    for which in refuted:
        fresh = _claims(mini, rows_NL, 1, lengths=lengths_N, draws=CONFIRMING * FEW_DRAWS, only=which)[which]
        results[which] = both(which, fresh, few[which].nats_B)
    return list(results.values())


def continuation_mass(mini: LanguageModel) -> list[CheckResult]:
    """Sum exp(claim) over all continuations of each context: at most 1. Returns the worst context per likelihood.

    Contexts of one token and of half a block are scored in one batch, as a task's are.

    Continuations of a context share their noise, since a proper predictive distribution sums to 1 under each noise.
    Averages do not share it, as their errors would then add up.
    """
    texts_NL, contexts = _every_text(mini.block_length), sorted({1, mini.block_length // 2})
    averaged = averages(mini, contexts[-1])
    context_N = torch.tensor(contexts).repeat_interleave(len(texts_NL))
    groups = [TOKENS ** (mini.block_length - context) for context in contexts]
    noise = [
        c * len(texts_NL) + row // (1 if averaged else group)
        for c, group in enumerate(groups)
        for row in range(len(texts_NL))
    ]
    rows_NL, first = texts_NL.repeat(len(contexts), 1), {}
    if averaged:
        first = _claims(mini, rows_NL, 2, context=context_N, indices=noise, draws=FEW_DRAWS)
    results = []
    for which, estimate in _claims(mini, rows_NL, 1, context=context_N, indices=noise, draws=FEW_DRAWS).items():
        chosen_N = first[which].nats_B if which in first else None
        each = [
            summed(
                "continuation_mass",
                which,
                part_of(estimate, slice(start, start + group)),
                chosen_N=None if chosen_N is None else chosen_N[start : start + group],
                one_of=sum(len(texts_NL) // group for group in groups),
            )
            for c, group in enumerate(groups)
            for start in range(c * len(texts_NL), (c + 1) * len(texts_NL), group)
        ]
        results.append(max(each, key=beyond))
    return results


def prequential_mass(mini: LanguageModel) -> list[CheckResult]:
    """Do the same as `total_mass` for a latent model that reads a text in two chunks, under one noise for all texts.

    Given the noise each chunk has a distribution, so that the sum is 1 to the last digit: a z that has seen a token of
    its own chunk raises it. Other models get no results.
    """
    if not isinstance(mini, LatentModel):
        return []
    reader, texts_NL = Prequential(mini, -(-mini.block_length // 2)), _every_text(mini.block_length)
    results: dict[str, list[CheckResult]] = {}
    for noise in range(PREQUENTIAL_NOISES):
        rng = SequenceRng(noise, [0] * len(texts_NL))
        for which, estimate in reader.log_likelihoods(texts_NL, rng=rng, draws=FEW_DRAWS).items():
            given = dataclasses.replace(estimate, mc_var_B=None, averaged=False)
            after = "given one noise"
            results.setdefault(which, []).append(summed("prequential_mass", which, given, after=after))
    return [max(each, key=beyond) for each in results.values()]


def blank_mass(mini: LanguageModel) -> list[CheckResult]:
    """Compute `total_mass` of the network with all weights zero: its predictions are uniform and its bounds tight.

    A loose bound can hide an error. This one has no slack, so a missing piece of an integral or a missing weight shows
    however small it is. Errors in what latents carry do not show, as they carry nothing here.
    """
    blank = copy.deepcopy(mini)
    for parameter in blank.parameters():
        if parameter.is_floating_point():
            parameter.zero_()
    return total_mass(blank, name="blank_mass")


def _every_text(length: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(TOKENS), repeat=length)))


def _claims(
    mini: LanguageModel, rows_NL: Tensor, seed: int, *, indices: Sequence[int] | None = None, **options: Any
) -> dict[str, LikelihoodEstimate]:
    return mini.log_likelihoods(rows_NL, rng=SequenceRng(seed, indices or range(len(rows_NL))), **options)
