"""Checks that add up probability: what calls itself a likelihood may share out no more than 1 among all that there is.

They are of a miniature, a network so small that every text can be scored; its settings are the model's.
Shapes: N texts, L tokens of a text.
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
from ltm.rng import SequenceRng
from tasks.audit.checks.check import CheckResult, beyond
from tasks.audit.checks.mass import averages, part_of, summed

TOKENS, LENGTH = 3, 4
"""Vocabulary and length of the enumerable model; some families need a slightly greater length."""
UPDATES, BATCH, LEARNING_RATE = 150, 32, 0.02
FAST_STEPS = 200
"""Fast steps to score with, at least: where a fit goes wrong, many steps show it."""
TRAINED_STEPS = 16
"""Fast steps to train with, at most, to save time."""
DRAWS, FEW_DRAWS, ROOM = 512, 32, 0.05
"""Draws per text. The headline is scored again with `DRAWS` if the Monte Carlo error of `FEW_DRAWS` could hide an
excess of more than `ROOM`."""
MINIATURE_KL = 0.5
"""KL weight throughout training: low enough that z carries information, high enough that a Gaussian still fits the
posterior."""
ENCODER_UPDATES = 60
"""Further updates of the inference network alone at KL weight 1: tight bounds can hide little."""


def enumerable_model(model: LanguageModel, trained: Any = None, *, seed: int = 0) -> LanguageModel:
    """Make a network for `TOKENS` tokens under the model's settings, briefly trained in float64; many steps to score.

    Its texts mostly repeat one token, so that a latent carries information and a window of two does not see it all: a
    KL left out, a leaked token or a forgotten weight then shows as probability.

    Args:
        trained: the config that the model was trained under, where it is scored with another.
    """
    cls, shape = type(model), {"vocab_size": TOKENS + 1, "block_length": LENGTH, "width": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = cls(_trainable(cls.twin_config(trained or model.config, **shape))).double()
    generator = torch.Generator().manual_seed(seed)
    batches = ((_repetitive(generator, found.block_length), update) for update in itertools.count())
    if cls.learns_by_counting:
        for tokens_BL, _ in itertools.islice(batches, UPDATES):
            found.count(tokens_BL)
        found.finish()
        return _scored(found, cls.twin_config(model.config, **shape))

    def train(updates: int, parameters: Sequence[Tensor], progress: float) -> None:
        adam = torch.optim.Adam(parameters, lr=LEARNING_RATE)
        for tokens_BL, update in itertools.islice(batches, updates):
            adam.zero_grad()
            rng = SequenceRng(seed, range(update * BATCH, (update + 1) * BATCH))
            found.training_loss(tokens_BL, rng=rng, progress=progress).value.backward()
            adam.step()

    train(UPDATES, list(found.parameters()), 0.0)
    inferring = [value for name, value in found.named_parameters() if not name.startswith("decoder.")]
    if isinstance(found, LatentModel) and inferring:
        train(ENCODER_UPDATES, inferring, 1.0)
    return _scored(found, cls.twin_config(model.config, **shape))


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
    found = type(trained)(config)
    found.allocate({name: tuple(value.shape) for name, value in weights.items()})
    found.double().load_state_dict(weights)
    return found.eval().requires_grad_(False)


def total_mass(mini: LanguageModel, *, name: str = "total_mass") -> list[CheckResult]:
    """The sum of exp(claim) over every text of a block, or of half of one: at most 1, and 1 if the claim is exact.

    It shows every error that raises the sum, whatever it is: it proves the claim of this miniature, up to the error
    stated. It cannot show an error that longer texts, a larger vocabulary or other weights would have to bring out.
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
    if results[headline].limit > 1 + ROOM:
        many = _claims(mini, rows_NL, 1, lengths=lengths_N, draws=DRAWS, only=headline)[headline]
        results[headline] = both(headline, many, few[headline].nats_B)
    for which, estimate in few.items():
        if which != headline and estimate.averaged and not results[which].passed:
            fresh = _claims(mini, rows_NL, 1, lengths=lengths_N, draws=FEW_DRAWS, only=which)[which]
            results[which] = both(which, fresh, estimate.nats_B)
    return list(results.values())


def continuation_mass(mini: LanguageModel) -> list[CheckResult]:
    """The same of all continuations of a context, given it: at most 1 for each; the largest of all contexts is shown.

    Contexts of one token and of half a block are scored in one batch, as those of a task are.

    Continuations of a context share their noise, since a proper predictive distribution has all of it for each noise;
    not those of averages, whose errors would then add up.
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
    """As `total_mass`, of a latent model that reads a text in two chunks; nothing of others."""
    from ltm.latent.prequential import Prequential

    if not isinstance(mini, LatentModel):
        return []
    reader, texts_NL = Prequential(mini, -(-mini.block_length // 2)), _every_text(mini.block_length)
    found = reader.log_likelihoods(texts_NL, rng=SequenceRng(1, range(len(texts_NL))), draws=FEW_DRAWS)
    return [summed("prequential_mass", which, estimate) for which, estimate in found.items()]


def blank_mass(mini: LanguageModel) -> list[CheckResult]:
    """As `total_mass`, of the network with all weights zero, whose predictions are uniform and whose bounds are tight.

    A bound can hide an error within its own looseness. Here there is none of it, so that a piece of an integral or a
    weight that is missing shows however small. Of what a latent says of a text it shows nothing: there is none.
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
