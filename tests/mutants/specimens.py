"""Sound models in miniature and sound pipelines, and every check that they, and their mutants, are shown to."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from baselines.source import Source, SourceConfig
from ltm import registry, tokenizer
from ltm.api import LanguageModel, LoadedModel, Sampling
from ltm.config import config_digest, to_dict, with_settings
from ltm.errors import UserError
from ltm.harness import HarnessModel
from ltm.known_sources import base
from ltm.known_sources.base import KnownSource
from ltm.rng import SequenceRng
from ltm.training.weights import weights_digest
from tasks.audit.checks import blank, bookkeeping, both_sides, causality, enumeration, estimator, next_token
from tasks.audit.checks import source as source_checks
from tasks.audit.checks.check import CheckResult
from tests.mutants import Mutant, task_checks
from tests.mutants.task_checks import by_chance

SIZES = {"UPDATES": 120, "FAST_STEPS": 40, "FEW_DRAWS": 16, "DRAWS": 256}
"""Sizes of `enumeration`, in place of its own: a matrix of checks and mutants asks for many sums."""
SIZES_OF = {"vae": {"DRAWS": 512}, "ltm": {"DRAWS": 64}}
"""More where errors are small and draws are quick; fewer where they are not."""
SETTINGS = {
    # Importance weights of a q that Algorithm 1 fitted differ, so that errors in their use show.
    "ltm": ("posterior=algorithm_1", "posterior.steps=3", "posterior.matmul=float32", "latents=3"),
    "vae": ("latents=2",),
    "vae-vq": ("latents=2",),
}
"""What is changed of the tiny presets, mostly for speed."""
FAMILIES = ("ar", "ngram", "ltm", "vae", "vae-vq", "mdlm", "md4", "sedd", "sedd-uniform", "bd3lm", "known-source")
SOURCE = "topics:length=16,words=8,topics=8,classes=2"
LONGER = 128
"""Tokens per text of a model without weights, whose errors show at length."""
UPDATES, BATCH, LEARNING_RATE = 120, 16, 0.01
TEXT = "Latent: a café in the old town, where <unk> is read; it's 5 o'clock."
WHOLE_TEXT = f"{TEXT}\n    if n > 1000000:\n        return n\n"
TEXTS = 24


class Specimen:
    """A model as the audit sees it: a miniature that all texts are enumerated of, and a model of a known source.

    Each is trained when it is first asked for, within seconds.

    Args:
        config: of the model; its network is made small.
        seed: of weights, training and scoring.
    """

    def __init__(self, name: str, cls: type[LanguageModel], config: Any, *, seed: int = 0):
        self.name, self.cls, self.seed = name, cls, seed
        self.tokens, source = tokenizer.build("bytes"), base.from_settings(SOURCE)
        shape = {"vocab_size": self.tokens.vocab_size, "block_length": source.length, "width": 32, "layers": 1}
        self.config = cls.twin_config(config, **shape)

    @functools.cached_property
    def untrained(self) -> LanguageModel:
        """The model of the known source before it is trained."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.cls(enumeration.informative(self.config))

    @functools.cached_property
    def source(self) -> KnownSource:
        """The source, with texts that fill the model's blocks."""
        length = self.untrained.block_length
        return dataclasses.replace(base.from_settings(SOURCE), length=length)  # type: ignore[type-var]

    @functools.cached_property
    def mini(self) -> LanguageModel:
        """The miniature."""
        return enumeration.enumerable_model(self.untrained, seed=self.seed)

    @functools.cached_property
    def model(self) -> HarnessModel:
        """The model of the source."""
        model = copy.deepcopy(self.untrained)
        _train(model, self.texts_NL, self.seed)
        return self._loaded(model)

    @property
    def texts_NL(self) -> torch.Tensor:
        """What it is trained on, as tokens."""
        ids = torch.tensor([int(self.tokens.encode(symbol)[0]) for symbol in self.source.alphabet])
        return ids[self.source.sample(UPDATES * BATCH, seed=1 + self.seed)]

    @functools.cached_property
    def longer(self) -> HarnessModel:
        """A model of longer texts, without training."""
        shape = {"vocab_size": self.tokens.vocab_size, "block_length": LONGER, "width": 32, "layers": 1}
        return self._loaded(self.cls(self.cls.twin_config(self.config, **shape)))

    def _loaded(self, model: LanguageModel) -> HarnessModel:
        info = {
            "name": self.name,
            "family": self.cls.family,
            "config": to_dict(model.config),
            "config_digest": config_digest(model.config),
            "weights_digest": weights_digest(model.state_dict()),
            "training": {},
        }
        loaded = LoadedModel(
            model=model.eval().requires_grad_(False),
            tokenizer=self.tokens,
            name=self.name,
            directory=Path("nowhere"),
            info=info,
        )
        return HarnessModel(pretrained=loaded, device="cpu", draws=4, seed=self.seed)


def settings(family: str) -> Any:
    """The config of a family's tiny preset, with `SETTINGS`."""
    return with_settings(registry.preset(f"{family}-tiny")[1].config, list(SETTINGS.get(family, ())))


def name_of(subject: str) -> str:
    """What `--model` calls a subject at the sizes of the audit."""
    return f"{subject}:topics" if subject == "known-source" else f"{subject}-tiny"


def of_family(family: str) -> Specimen:
    """A specimen of a family, with the settings of its tiny preset; a source has none."""
    if family == "known-source":
        return Specimen(family, Source, SourceConfig())
    return Specimen(family, registry.preset(f"{family}-tiny")[0], settings(family))


def _train(model: LanguageModel, texts_NL: torch.Tensor, seed: int) -> None:
    if model.learns_by_counting:
        model.count(texts_NL)
        return model.finish()
    adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for update, batch_BL in enumerate(texts_NL.split(BATCH)):
        adam.zero_grad()
        rng = SequenceRng(seed, range(update * BATCH, (update + 1) * BATCH))
        model.training_loss(batch_BL, rng=rng, progress=0.0).value.backward()
        adam.step()


sound = functools.cache(of_family)
"""A specimen that all share, so none may change it."""


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


def whole_text(s: Specimen) -> list[CheckResult]:
    """A text that a tokenizer may shorten where other checks do not look: it is scored, unless it is refused."""
    nats = bookkeeping._nats(s.model, WHOLE_TEXT)
    return [
        CheckResult(name="whole_text", likelihood=name, passed=True, value=math.nan, limit=math.nan, detail="scored")
        for name in nats
    ]


CHECKS: dict[str, Callable[[Specimen], Sequence[CheckResult]]] = {
    "total_mass": lambda s: enumeration.total_mass(s.mini),
    "blank_mass": lambda s: enumeration.blank_mass(s.mini),
    "continuation_mass": lambda s: enumeration.continuation_mass(s.mini),
    "blank_text": lambda s: blank.blank_text(s.longer),
    "next_token_mass": lambda s: next_token.next_token_mass(s.model, list(TEXT.encode()[:16])),
    "decoder_mass": lambda s: next_token.decoder_mass(s.model, list(TEXT.encode()[:16])),
    "recomputed_bounds": lambda s: estimator.recomputed_bounds(s.model, list(TEXT.encode()[:64])),
    "against_exact": lambda s: both_sides.against_exact(s.model, s.texts_NL[: both_sides.TEXTS]),
    "prequential_mass": lambda s: enumeration.prequential_mass(s.mini),
    "known_source": lambda s: source_checks.known_source(source_checks.claims_on(s.model, s.source, texts=TEXTS)),
    "proposal_mass": proposal_mass,
    "stated_error": lambda s: estimator.stated_error(s.model, list(TEXT.encode()[:16])),
    "future_leak": lambda s: causality.future_leak(s.model, list(TEXT.encode()[:56])),
    "accounting": lambda s: bookkeeping.accounting(s.model, TEXT[:56]),
    "depends_on_weights": lambda s: bookkeeping.depends_on_weights(s.model, TEXT[:24]),
    "samples_follow_the_law": samples_follow_the_law,
    "whole_text": whole_text,
}
MADE_BY = {name: "recomputed_bounds" for name in ("recomputed_elbo", "recomputed_importance", "recomputed_tube_upper")}
"""Which check a result is of, where it has a name of its own."""
NEEDS_MINI = ("total_mass", "blank_mass", "continuation_mass", "prequential_mass", "samples_follow_the_law")
"""The checks of the miniature; the others are of the model."""


@contextlib.contextmanager
def apart(name: str) -> Iterator[None]:
    """Small sizes, and a home of its own: answers are kept by what the code says, and a patch does not change that."""
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(mock.patch.dict(os.environ, {"LTM_HOME": home}))
        for size, value in (SIZES | SIZES_OF.get(name, {})).items():
            stack.enter_context(mock.patch.object(enumeration, size, value))
        yield


def ask(name: str, s: Specimen) -> list[CheckResult]:
    """What one check says of a specimen; what the pipeline refuses to score is refuted."""
    try:
        # An estimate claims nothing, and has nothing to be refuted.
        return [found for found in CHECKS[name](s) if not (found.likelihood or "").endswith("_estimate")]
    except (UserError, ValueError) as error:
        said = str(error)
        return [CheckResult(name=name, likelihood=None, passed=False, value=math.nan, limit=math.nan, detail=said)]


def mutated(mutant: Mutant) -> list[CheckResult]:
    """What the check that must catch a mutant says of it."""
    subject, name = mutant.subject, MADE_BY.get(mutant.caught_by, mutant.caught_by)
    if subject == "tasks":
        with mutant.patch():
            return task_checks.CHECKS[name]()
    with apart(subject):
        s = of_family(subject) if mutant.while_trained else sound(subject)
        # What is sound is trained before the patch.
        _ = name == "proposal_mass" and sound("ngram").model
        _ = mutant.while_trained or (s.mini if name in NEEDS_MINI else s.model)
        with mutant.patch():
            return [found for found in ask(name, s) if found.name == mutant.caught_by]
