"""The audit: every check of a model, and a verdict on each of its likelihoods: passed, if nothing refutes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.audit import twins
from tasks.audit.checks import bookkeeping, enumeration, estimator, next_token
from tasks.audit.checks import source as source_checks
from tasks.audit.checks.check import CheckResult
from tasks.audit.checks.source import Claims

if TYPE_CHECKING:
    from ltm.harness import HarnessModel
    from ltm.known_sources.base import Entropy, KnownSource

TEXTS, MORE_STEPS_TEXTS = 256, 16
"""Fresh texts of the source, and of those the ones that are scored again with many fast steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What the checks found.

    Attributes:
        subject: what was held against the source: the model itself, or its twin's name.
        source: with the length of text that it had.
        entropy: of the source, a text.
        claims: of its texts, by the settings that the model is scored with.
        more_steps: the same with many fast steps, and how many those were; None where nothing is fitted.
        checks: in the order in which they were made.
        seconds: by check, and of `training` the twin where it was not there.
    """

    subject: str
    source: KnownSource
    entropy: Entropy
    claims: Claims
    more_steps: tuple[Claims, int] | None
    checks: tuple[CheckResult, ...]
    seconds: Mapping[str, float]

    @property
    def likelihoods(self) -> list[str]:
        """All that were checked, headline first; those of continuations come last."""
        return list(dict.fromkeys([*self.claims.claims_N, *(c.likelihood for c in self.checks if c.likelihood)]))

    def of(self, likelihood: str) -> list[CheckResult]:
        """The checks of a likelihood, and those of all that a model has."""
        return [c for c in self.checks if c.likelihood in (likelihood, None)]

    def refutations(self, likelihood: str) -> list[CheckResult]:
        """The checks that refute a likelihood; it has passed when there are none."""
        return [c for c in self.of(likelihood) if c.passed is False]

    def passed(self, likelihood: str) -> bool:
        """The verdict."""
        return not self.refutations(likelihood)


def audit(
    model: HarnessModel,
    source: KnownSource,
    text: str,
    *,
    proposal: HarnessModel | None = None,
    texts: int = TEXTS,
) -> Audit:
    """Make every check of a model.

    Args:
        model: as it is scored; its seed is that of all noise here, its draws those of the known source.
        source: what its twin is trained on. A model that was trained on a known source is held against that one.
        text: real text, for the checks of the model as it is.
        proposal: an exact model with the same tokenizer; without one `proposal_mass` is left out.
        texts: of the source, at most 1,000.

    Raises:
        UserError: the family has no twin, a number is not finite, or the proposal does not fit.
    """
    # All likelihoods and blocks, whatever was asked for.
    model = model.like(headline_only=False, limit_blocks=None)
    seconds: dict[str, float] = {}
    checks: list[CheckResult] = []
    reader, started = model.loaded, time.perf_counter()

    def made(name: str, check: Callable[[], Sequence[CheckResult]]) -> None:
        nonlocal started
        checks.extend(check())
        seconds[name] = time.perf_counter() - started
        started = time.perf_counter()

    itself, source = twins.trained_on(reader) is not None, twins.source_for(reader, source)
    subject = reader if itself else twins.twin(reader, source)
    seconds["training"], started = time.perf_counter() - started, time.perf_counter()

    claims = source_checks.claims_on(model.like(subject), source, texts=texts)
    made("known_source", lambda: source_checks.known_source(claims))
    more_steps = None
    if found := twins.with_more_steps(subject):
        more, steps = found
        few = min(texts, MORE_STEPS_TEXTS)
        more_steps = source_checks.claims_on(model.like(more, draws=2), source, texts=few), steps
        name = f"known_source_{steps}_steps"
        made(name, lambda: source_checks.known_source(more_steps[0], name=name))

    mini = enumeration.enumerable_model(reader.model, twins.trained_config(reader))
    made("total_mass", lambda: enumeration.total_mass(mini))
    made("continuation_mass", lambda: enumeration.continuation_mass(mini))
    made("prequential_mass", lambda: enumeration.prequential_mass(mini))
    made("blank_mass", lambda: enumeration.blank_mass(mini))

    piece = _blocks_of(model, text, 3.5)
    tokens = reader.tokenizer.encode(piece).tolist()
    made("next_token_mass", lambda: next_token.next_token_mass(model, tokens))
    made("decoder_mass", lambda: next_token.decoder_mass(model, tokens))
    made("recomputed_elbo", lambda: estimator.recomputed_elbo(model, tokens))
    made("stated_error", lambda: estimator.stated_error(model, tokens))
    made("accounting", lambda: bookkeeping.accounting(model, piece))
    made("depends_on_weights", lambda: bookkeeping.depends_on_weights(model, _blocks_of(model, text, 1.5)))
    if proposal is not None:
        made("proposal_mass", lambda: source_checks.proposal_mass(model, proposal))
    return Audit(
        subject="the model itself" if itself else f"its twin {subject.name}",
        source=source,
        entropy=source.entropy(),
        claims=claims,
        more_steps=more_steps,
        checks=tuple(checks),
        seconds=seconds,
    )


def _blocks_of(model: HarnessModel, text: str, blocks: float) -> str:
    """The beginning of a text, so many blocks of it."""
    wanted, tokenizer = max(2, round(blocks * model.block_length)), model.loaded.tokenizer
    ids = tokenizer.encode(text[: 32 * wanted])[:wanted]
    # A character cut in two is left out.
    return tokenizer.decode(ids.tolist()).rstrip("\N{REPLACEMENT CHARACTER}")
