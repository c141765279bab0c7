"""The audit: run every check on a model. A likelihood passes if no check refutes it.

A model that can have no twin gets the checks that need none; the others are recorded as not made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ltm.data import corpora
from ltm.latent.base import LatentModel
from tasks.audit import proposals, twins
from tasks.audit.checks import blank, bookkeeping, both_sides, causality, enumeration, estimator, next_token
from tasks.audit.checks import source as source_checks
from tasks.audit.checks.check import CheckResult
from tasks.audit.checks.source import Claims

if TYPE_CHECKING:
    from ltm.harness import HarnessModel
    from ltm.known_sources.base import Entropy, KnownSource

TEXTS = 256
"""Fresh texts drawn from the source."""
MORE_STEPS_TEXTS = 16
"""The number of those texts that are scored again with many fast steps."""
NEED_A_TWIN = ("known_source", "total_mass", "continuation_mass", "prequential_mass", "blank_mass")
"""The checks that train something like the model: a twin, or one for so few tokens that every text can be scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The results of all checks of one model.

    Attributes:
        subject: what was compared with the source: the model itself, or its twin by name; without a twin, the model.
        twin: where the twin comes from: `trained now` or `found in the model store`; None if there is none.
        source: the known source, with the text length that was used; None without a twin.
        entropy: entropy of the source per text; None without a twin.
        claims: claims about the source's texts under the settings that the model is scored with; None without a twin.
        more_steps: the same claims with many fast steps, and the number of steps; None if nothing is fitted.
        whole_texts: names of the likelihoods that whole texts get, headline first.
        checks: results, in the order in which the checks were made; `passed` is None for those that were not made.
        seconds: time by check; `training` is the time that it took to train the twin, or to find it.
    """

    subject: str
    twin: str | None
    source: KnownSource | None
    entropy: Entropy | None
    claims: Claims | None
    more_steps: tuple[Claims, int] | None
    whole_texts: tuple[str, ...]
    checks: tuple[CheckResult, ...]
    seconds: Mapping[str, float]

    @property
    def likelihoods(self) -> list[str]:
        """The names of all likelihoods that were checked: headline first, those of continuations last."""
        return list(dict.fromkeys([*self.whole_texts, *(c.likelihood for c in self.checks if c.likelihood)]))

    def checks_of(self, likelihood: str) -> list[CheckResult]:
        """Return the checks of one likelihood, and those of all of a model's likelihoods, made or not."""
        return [c for c in self.checks if c.likelihood in (likelihood, None)]

    def refutations(self, likelihood: str) -> list[CheckResult]:
        """Return the checks that refute a likelihood."""
        return [c for c in self.checks_of(likelihood) if c.passed is False]

    def passed(self, likelihood: str) -> bool:
        """True if no check refutes the likelihood."""
        return not self.refutations(likelihood)


def audit(
    model: HarnessModel,
    source: KnownSource,
    text: str,
    *,
    proposal: HarnessModel | None = None,
    texts: int = TEXTS,
) -> Audit:
    """Run every check on a model.

    Args:
        model: the model as it is scored. Its seed seeds all noise here; its draws are used on the known source.
        source: what the twin is trained on. A model that was trained on a known source is compared with that one.
        text: real text, for the checks of the model as it is.
        proposal: an exact model with the same tokenizer; n-grams of the text when None.
        texts: number of texts of the source, at most 1,000.

    Raises:
        UserError: the model was trained here and its family has no twin, a number is not finite, or the proposal does
            not fit.
    """
    # Check all likelihoods and blocks, whatever the command line asked for.
    model = model.like(headline_only=False, limit_blocks=None)
    seconds: dict[str, float] = {}
    checks: list[CheckResult] = []
    reader, started = model.loaded, time.perf_counter()

    def run(name: str, check: Callable[[], Sequence[CheckResult]]) -> None:
        nonlocal started
        checks.extend(check())
        seconds[name] = time.perf_counter() - started
        started = time.perf_counter()

    known, subject = twins.source_for(reader, source), "the model itself"
    twin = claims = more_steps = None
    if known is None:
        why = f"no twin: {twins.obstacle(reader)}"
        latent = isinstance(reader.model, LatentModel)
        checks += [_not_made(name, why) for name in NEED_A_TWIN if latent or name != "prequential_mass"]
    else:
        compared = reader
        if twins.trained_on(reader) is None:
            found = twins.is_trained(twins.place(reader, known))
            compared, twin = twins.twin(reader, known), "found in the model store" if found else "trained now"
            subject = f"its twin {compared.name}"
        seconds["training"], started = time.perf_counter() - started, time.perf_counter()

        claims = source_checks.claims_on(model.like(compared), known, texts=texts)
        run("known_source", lambda: source_checks.known_source(claims))
        if refitted := twins.with_more_steps(compared):
            more, steps = refitted
            few = min(texts, MORE_STEPS_TEXTS)
            more_steps = source_checks.claims_on(model.like(more, draws=2), known, texts=few), steps
            name = f"known_source_{steps}_steps"
            run(name, lambda: source_checks.known_source(more_steps[0], name=name))

        mini = enumeration.enumerable_model(reader.model, twins.trained_config(reader))
        run("total_mass", lambda: enumeration.total_mass(mini))
        run("continuation_mass", lambda: enumeration.continuation_mass(mini))
        run("prequential_mass", lambda: enumeration.prequential_mass(mini))
        run("blank_mass", lambda: enumeration.blank_mass(mini))

    piece = _blocks_of(model, text, 3.5)
    tokens = reader.tokenizer.encode(piece).tolist()
    run("blank_text", lambda: blank.blank_text(model))
    run("against_exact", lambda: both_sides.against_exact(model, _whole_texts(model, known, tokens)))
    run("next_token_mass", lambda: next_token.next_token_mass(model, tokens))
    run("decoder_mass", lambda: next_token.decoder_mass(model, tokens))
    run("recomputed_bounds", lambda: estimator.recomputed_bounds(model, tokens))
    run("stated_error", lambda: estimator.stated_error(model, tokens))
    run("future_leak", lambda: causality.future_leak(model, tokens))
    run("accounting", lambda: bookkeeping.accounting(model, piece))
    run("depends_on_weights", lambda: bookkeeping.depends_on_weights(model, _blocks_of(model, text, 1.5)))
    exact = proposal or proposals.counted(model, text)
    if exact is None:
        checks.append(_not_made("proposal_mass", "no exact model: name one with --proposal"))
    else:
        run("proposal_mass", lambda: source_checks.proposal_mass(model, exact))
    return Audit(
        subject=subject,
        twin=twin,
        source=known,
        entropy=None if known is None else known.entropy(),
        claims=claims,
        more_steps=more_steps,
        whole_texts=tuple(model.offered),
        checks=tuple(checks),
        seconds=seconds,
    )


def _not_made(name: str, why: str) -> CheckResult:
    """Record a check that could not be made; `why` starts with the reason in two or three words and a colon."""
    return CheckResult(name=name, likelihood=None, passed=None, value=math.nan, limit=math.nan, detail=why)


def _whole_texts(model: HarnessModel, known: KnownSource | None, tokens: Sequence[int]) -> Tensor:
    """Return whole texts for the model as it is, int64 (N, L): of the source that it was trained on, or real ones."""
    most = both_sides.TEXTS
    if known is not None and twins.trained_on(model.loaded) is not None:
        texts = corpora.split_of(known, "test").texts()[:most]
        return torch.from_numpy(np.stack(model.loaded.tokenizer.encode_batch(texts))).long()
    length = min(len(tokens), model.block_length)
    return torch.tensor([tokens[first : first + length] for first in range(0, len(tokens) - length + 1, length)][:most])


def _blocks_of(model: HarnessModel, text: str, blocks: float) -> str:
    """Return the first `blocks` blocks of a text."""
    wanted, tokenizer = max(2, round(blocks * model.block_length)), model.loaded.tokenizer
    ids = tokenizer.encode(text[: 32 * wanted])[:wanted]
    # Drop a character that was cut in two.
    return tokenizer.decode(ids.tolist()).rstrip("\N{REPLACEMENT CHARACTER}")
