"""Sound models in miniature and sound pipelines, and every check that they, and their mutants, are shown to."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltm import registry, tokenizer
from ltm.api import LanguageModel, LoadedModel, Sampling
from ltm.config import config_digest, to_dict, with_settings
from ltm.known_sources import base
from ltm.known_sources.base import KnownSource
from ltm.rng import SequenceRng
from ltm.training.checkpoint import weights_digest
from tasks.audit import twins
from tasks.audit.checks import bookkeeping, enumeration, estimator, next_token
from tasks.audit.checks import source as source_checks
from tasks.audit.checks.check import CheckResult
from tests.mutants.task_checks import by_chance

SIZES = {"UPDATES": 120, "FAST_STEPS": 40, "FEW_DRAWS": 16, "DRAWS": 256}
"""Sizes of `enumeration`, in place of its own: a matrix of checks and mutants asks for many sums."""
SIZES_OF = {"vae": {"DRAWS": 512}, "ltm": {"DRAWS": 64}}
"""More where errors are small and draws are quick; fewer where they are not."""
SETTINGS = {
    "ltm": ("posterior.steps=3", "posterior.matmul=float32", "latents=3"),
    "vae": ("latents=2",),
    "vae-vq": ("latents=2",),
}
"""What is changed of the tiny presets, for speed."""
FAMILIES = ("ar", "ngram", "ltm", "vae", "vae-vq", "mdlm", "md4", "sedd", "sedd-uniform", "bd3lm")
SOURCE = "topics:length=16,words=8,topics=8,classes=2"
UPDATES, BATCH, LEARNING_RATE = 120, 16, 0.01
TEXT = "Latent: a café in the old town, where <unk> is read; it's 5 o'clock."
TEXTS, MORE_STEPS_TEXTS = 24, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """A family as the audit sees it: a miniature that all texts are enumerated of, and a model of a known source."""

    mini: LanguageModel
    model: Any  # HarnessModel
    source: KnownSource


def specimen(name: str) -> Specimen:
    """Train both, a few seconds; `sound` keeps them."""
    cls, preset = registry.preset(f"{name}-tiny")
    tokens, source = tokenizer.build("bytes"), base.from_settings(SOURCE)
    config = with_settings(preset.config, list(SETTINGS.get(name, ())))
    config = cls.twin_config(config, vocab_size=tokens.vocab_size, block_length=source.length, width=32, layers=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(enumeration.informative(config))
    source = dataclasses.replace(source, length=model.block_length)  # type: ignore[type-var]
    ids = torch.tensor([int(tokens.encode(symbol)[0]) for symbol in source.alphabet])
    _train(model, ids[source.sample(UPDATES * BATCH, seed=1)])
    loaded = LoadedModel(
        model=model.eval().requires_grad_(False),
        tokenizer=tokens,
        name=name,
        directory=Path("nowhere"),
        info={
            "name": name,
            "family": cls.family,
            "config": to_dict(model.config),
            "config_digest": config_digest(model.config),
            "weights_digest": weights_digest(model.state_dict()),
            "training": {},
        },
    )
    return Specimen(mini=enumeration.enumerable_model(model), model=_reading(loaded), source=source)


def _train(model: LanguageModel, texts_NL: torch.Tensor) -> None:
    if model.learns_by_counting:
        model.count(texts_NL)
        return model.finish()
    adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for update, batch_BL in enumerate(texts_NL.split(BATCH)):
        adam.zero_grad()
        rng = SequenceRng(0, range(update * BATCH, (update + 1) * BATCH))
        model.training_loss(batch_BL, rng=rng, progress=0.0).value.backward()
        adam.step()


def _reading(loaded: LoadedModel, **options: Any) -> Any:
    from ltm.harness import HarnessModel

    return HarnessModel(pretrained=loaded, device="cpu", **{"draws": 4} | options)


sound = functools.cache(specimen)


def more_steps(s: Specimen) -> list[CheckResult]:
    """`known_source` of a model that fits q, by 64 steps."""
    if (found := twins.with_more_steps(s.model.loaded, least=64)) is None:
        return []
    claims = source_checks.claims_on(_reading(found[0], draws=2), s.source, texts=MORE_STEPS_TEXTS)
    return source_checks.known_source(claims, name="known_source_64_steps")


def proposal_mass(s: Specimen) -> list[CheckResult]:
    """With n-grams, counted from the same source, to propose."""
    return source_checks.proposal_mass(s.model, sound("ngram").model, texts=TEXTS)


def samples_follow_the_law(s: Specimen) -> list[CheckResult]:
    """Texts of two tokens that a model with an exact likelihood generates, against it: chi-square."""
    if s.mini.headline() != "exact":
        return []
    V, count, rng = enumeration.TOKENS, 4000, SequenceRng(3, range(4000))
    texts_NL = torch.cartesian_prod(*[torch.arange(V)] * 2)
    drawn = s.mini.generate([[]] * count, max_new_tokens=2, sampling=Sampling(), rng=rng).tokens
    found = torch.bincount(torch.tensor(drawn) @ torch.tensor([V, 1]), minlength=V * V)
    law = s.mini.log_likelihood(texts_NL, rng=SequenceRng(0, range(len(texts_NL)))).nats_B.exp()
    return [by_chance("samples_follow_the_law", found, law)]


CHECKS: dict[str, Callable[[Specimen], Sequence[CheckResult]]] = {
    "total_mass": lambda s: enumeration.total_mass(s.mini),
    "blank_mass": lambda s: enumeration.blank_mass(s.mini),
    "continuation_mass": lambda s: enumeration.continuation_mass(s.mini),
    "next_token_mass": lambda s: next_token.next_token_mass(s.model, list(TEXT.encode()[:16])),
    "decoder_mass": lambda s: next_token.decoder_mass(s.model, list(TEXT.encode()[:16])),
    "recomputed_bounds": lambda s: estimator.recomputed_bounds(s.model, list(TEXT.encode()[:64])),
    "prequential_mass": lambda s: enumeration.prequential_mass(s.mini),
    "known_source": lambda s: source_checks.known_source(source_checks.claims_on(s.model, s.source, texts=TEXTS)),
    "known_source_64_steps": more_steps,
    "proposal_mass": proposal_mass,
    "stated_error": lambda s: estimator.stated_error(s.model, list(TEXT.encode()[:16])),
    "accounting": lambda s: bookkeeping.accounting(s.model, TEXT[:56]),
    "depends_on_weights": lambda s: bookkeeping.depends_on_weights(s.model, TEXT[:24]),
    "samples_follow_the_law": samples_follow_the_law,
}
