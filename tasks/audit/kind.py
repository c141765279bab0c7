"""The audit as a task: one result with a verdict on each of a model's likelihoods (see run.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ltm.data import corpora
from ltm.result import NO_TWIN, Metric, reservations
from ltm.result_schema import VACUOUS
from tasks import results
from tasks.audit import figure, report
from tasks.kinds import Column, Measurement, ReferenceRow, Task
from tasks.models import find_helper

if TYPE_CHECKING:
    from ltm.data.split import Split
    from ltm.harness import HarnessModel
    from ltm.known_sources.base import KnownSource
    from ltm.result import Identity, Result
    from tasks.audit.checks.source import Claims
    from tasks.audit.run import Audit
    from tasks.catalog import TaskEntry
    from tasks.options import EvalOptions


class AuditTask(Task):
    """The audit of a model on one known source.

    Attributes:
        source: the known source.
        split: real text, for the checks of the model as it is.
        proposal: an exact model to estimate total probability with, if one was named.
    """

    items = "texts"
    columns = (
        Column(metric="audit_passed", header="Verdict", form=".0f", words=("failed", "passed")),
        Column(metric="audit_claimed_nats_per_token", header="Nats/token", form=".4f"),
        Column(metric="audit_log_e_value", header="Log e-value", form=",.1f"),
        Column(metric="audit_blind_below_nats_per_token", header="Blind below", form=".4f"),
    )

    def __init__(self, entry: TaskEntry, options: EvalOptions):
        """Find the source, the text, and the proposal."""
        from ltm.known_sources.base import from_settings

        super().__init__(entry, options)
        self.source = from_settings(entry.corpus)
        self.split = corpora.load(
            entry.settings["metadata"]["text"], "validation", data_dir=options.data_dir, reading=options.reading
        )
        self.proposal = None if options.proposal is None else find_helper("--proposal", options.proposal)

    def identity(self, model: HarnessModel) -> Identity:
        """Identify the result by the source's texts, the twin's training, the real text and the proposal.

        Raises:
            UserError: the model was trained here and can have no twin.
        """
        from ltm.evaluation.code import model_code
        from tasks.audit import twins

        source = twins.source_for(model.loaded, self.source)
        texts = 0 if source is None else min(self.entry.settings["metadata"]["texts"], model.limit_blocks or 10**9)
        length = model.block_length if source is None else source.length
        twin: Any = NO_TWIN if source is None else {} if twins.trained_on(model.loaded) else dict(twins.RECIPE)
        proposal = {}
        if self.proposal is not None:
            proposal["proposal"] = self.proposal.model(self.options).loaded.info["weights_digest"]
        return results.identity(
            self.entry,
            self._compared(source),
            model,
            block_length=length,
            blocks=texts,
            tokens=texts * length,
            draws=next(iter(model.offered.values()))[1],
            twin=twin,
            text=self.split.fingerprint,
            code=model_code(type(model.loaded.model)),
            **proposal,
        )

    def measure(self, model: HarnessModel, identity: Identity) -> Measurement:
        """Run the audit; draw its figure and write its report."""
        from tasks.audit.run import audit

        started, texts = time.perf_counter(), identity.scoring["blocks"]
        proposal = None if self.proposal is None else self.proposal.model(self.options)
        made = audit(model, self.source, "".join(self.split.iter_texts()), proposal=proposal, texts=texts)
        complete = made.claims is None or texts == self.entry.settings["metadata"]["texts"]
        passed = "passed" + reservations(identity.scoring, "complete" if complete else "partial")
        title = f"{model.loaded.name} on {self.entry.name}"
        drawn = figure.draw(made, title=title, key=identity.key, output=self.options.output)
        return Measurement(
            metrics=tuple(metrics(made, model.loaded.model.headline())),
            records=[*_texts(made), *checks(made)],
            data=results.data(self._compared(made.source)),
            seconds=time.perf_counter() - started,
            tokens=made.claims.tokens if made.claims else 0,
            complete=complete,
            notes=(report.write(made, passed=passed), drawn),
        )

    def _compared(self, source: KnownSource | None) -> Split:
        """Return the texts that a result is about: the source's, or the real text if there is no source."""
        return self.split if source is None else corpora.split_of(source, self.entry.split)

    @classmethod
    def reference_rows(cls, result: Result) -> Sequence[ReferenceRow]:
        """Return rows for likelihoods besides the headline, and for the source, which no claim may beat."""
        names = dict.fromkeys(m.likelihood for m in result.metrics if m.likelihood and not m.headline)
        rows = [
            ReferenceRow(f"{result.model['name']}: {name}", {m.name: m for m in result.metrics if m.likelihood == name})
            for name in names
        ]
        for metric in result.metrics:
            if metric.name == "audit_source_nats_per_token":
                claimed = {"audit_claimed_nats_per_token": metric}
                rows.append(ReferenceRow(f"the source: {result.data['corpus']}", claimed))
        return rows


def metrics(made: Audit, headline: str) -> Iterator[Metric]:
    """Yield for each likelihood its verdict, its claim and the evidence, and one metric per further check."""
    n = len(made.claims.reference_N) if made.claims else 0
    for name in made.likelihoods:
        common: dict[str, Any] = {"likelihood": name, "headline": name == headline, "n": n}
        passed: dict[str, Any] = {"value": float(made.passed(name)), "kind": "exact", "direction": "higher"}
        yield Metric(name="audit_passed", unit="verdict", **passed, **common)
        if made.claims is None or name not in made.claims.claims_N:  # a likelihood of continuations
            continue
        evidence, claimed = made.claims.evidence(name), -math.fsum(made.claims.claims_N[name])
        yield Metric(
            name="audit_claimed_nats_per_token",
            unit="token",
            value=claimed / made.claims.tokens,
            stderr_mc=_error(made.claims, name),
            kind=made.claims.kinds[name],
            **common,
        )
        yield Metric(name="audit_log_e_value", unit="nats", value=evidence.log_e_value, kind="exact", **common)
        blind = evidence.blind_below / (made.claims.tokens / n)
        yield Metric(name="audit_blind_below_nats_per_token", unit="token", value=blind, kind="exact", **common)
    for check in made.checks:
        found = _stored(check.value)
        if check.name != "known_source" and check.likelihood is not None and found is not None:
            common = {"likelihood": check.likelihood, "headline": check.likelihood == headline, "n": n}
            yield Metric(name=f"audit_{check.name}", unit="check", value=found, kind="exact", **common)
    if made.claims is None or made.entropy is None or made.source is None:
        return
    of_source: dict[str, Any] = {"likelihood": None, "headline": False, "unit": "token", "kind": "exact", "n": n}
    reference = -math.fsum(made.claims.reference_N) / made.claims.tokens
    yield Metric(name="audit_source_nats_per_token", value=reference, **of_source)
    entropy, length = made.entropy, made.source.length
    yield Metric(
        name="audit_source_entropy_per_token",
        value=entropy.nats_per_text / length,
        stderr_mc=entropy.stderr / length if entropy.stderr else None,
        **of_source,
    )


def _stored(value: float) -> float | None:
    """Return a number that a result can hold, of what may be a sum over bounds that say nothing; None if it is none."""
    return max(-VACUOUS, min(VACUOUS, value)) if math.isfinite(value) else None


def _error(claims: Claims, name: str) -> float | None:
    variance_N = claims.mc_var_N[name]
    return None if variance_N is None else math.sqrt(math.fsum(variance_N)) / claims.tokens


def _texts(made: Audit) -> Iterator[dict[str, Any]]:
    """Yield one record per text of the source, with everything that the e-value is computed from."""
    if made.claims is None or made.source is None:
        return
    parts = [("", made.claims)]
    if made.more_steps is not None:
        parts.append((f"_{made.more_steps[1]}_steps", made.more_steps[0]))
    for i, reference in enumerate(made.claims.reference_N.tolist()):
        record = {"part": "text", "text": i, "tokens": made.source.length, "reference": reference}
        for suffix, claims in parts:
            for name, claims_N in claims.claims_N.items():
                variance_N = claims.mc_var_N[name]
                if i < len(claims_N):
                    record[name + suffix] = float(claims_N[i])
                    record[f"{name}{suffix}_mc_var"] = None if variance_N is None else float(variance_N[i])
        yield record


def checks(made: Audit) -> Iterator[dict[str, Any]]:
    """Yield one record per check."""
    for check in made.checks:
        yield {
            "part": "check",
            "check": check.name,
            "likelihood": check.likelihood,
            "passed": check.passed,
            "value": _stored(check.value),
            "limit": _stored(check.limit),
            "detail": check.detail,
        }
