"""The audit as a task: one result with a verdict on each likelihood of the model; see audit.py."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltm.data import corpora
from ltm.result import Metric
from tasks import results
from tasks.kinds import Column, Measurement

if TYPE_CHECKING:
    from ltm.harness import HarnessModel
    from ltm.known_sources.base import KnownSource
    from ltm.result import Result
    from tasks.audit.run import Audit
    from tasks.catalog import TaskEntry
    from tasks.judge import Judge

ITEMS = "texts"
COLUMNS = (
    Column(metric="audit_passed", header="Verdict", form=".0f", words=("failed", "passed")),
    Column(metric="audit_claimed_nats_per_token", header="Nats/token", form=".4f"),
    Column(metric="audit_log_e_value", header="Log e-value", form=",.1f"),
    Column(metric="audit_blind_below_nats_per_token", header="Blind below", form=".4f"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A source, real text, and the proposal where one is named."""

    source: KnownSource
    text: str
    text_fingerprint: str
    proposal: Judge | None


def beside(result: Result) -> list[tuple[str, dict[str, Metric]]]:
    """Rows of the likelihoods beside the headline, and of the source, below which no claim may lie."""
    names = dict.fromkeys(m.likelihood for m in result.metrics if m.likelihood and not m.headline)
    rows = [
        (f"{result.model['name']}: {name}", {m.name: m for m in result.metrics if m.likelihood == name})
        for name in names
    ]
    own = {m.name: m for m in result.metrics if m.likelihood is None}
    source = f"the source: {result.data['corpus']}"
    return [*rows, (source, {"audit_claimed_nats_per_token": own["audit_source_nats_per_token"]})]


def prepare(entry: TaskEntry, options: argparse.Namespace) -> Prepared:
    """The source, the text, and a proposal that can be found."""
    from ltm.known_sources.base import from_settings
    from tasks import judge

    split = corpora.load(entry.settings["metadata"]["text"], "validation", data_dir=options.data_dir)
    return Prepared(
        source=from_settings(entry.corpus),
        text="".join(split.iter_texts()),
        text_fingerprint=split.fingerprint,
        proposal=None if options.proposal is None else judge.find("--proposal", options.proposal),
    )


def identity(entry: TaskEntry, prepared: Prepared, model: HarnessModel, options: argparse.Namespace) -> dict[str, Any]:
    """The texts of the source that this model's claims will be held against, how the twin is trained, the proposal.

    Raises:
        UserError: the model can have no twin.
    """
    from tasks.audit import twins

    source = twins.source_for(model.loaded, prepared.source)
    texts = min(entry.settings["metadata"]["texts"], model.limit_blocks or 10**9)
    proposal = {}
    if prepared.proposal is not None:
        proposal["proposal"] = prepared.proposal.model(options).loaded.info["weights_digest"]
    return results.identity(
        entry,
        corpora.split_of(source, entry.split),
        model,
        block_length=source.length,
        blocks=texts,
        tokens=texts * source.length,
        draws=next(iter(model.offered.values()))[1],
        twin={} if twins.trained_on(model.loaded) else dict(twins.RECIPE),
        text=prepared.text_fingerprint,
        **proposal,
    )


def measure(entry: TaskEntry, prepared: Prepared, model: HarnessModel, options: argparse.Namespace) -> Measurement:
    """Make the audit, its figure, and what is said of it."""
    from tasks.audit import figure as audit_figure
    from tasks.audit import report
    from tasks.audit.run import audit

    started, key = time.perf_counter(), identity(entry, prepared, model, options)
    proposal = None if prepared.proposal is None else prepared.proposal.model(options)
    found = audit(model, prepared.source, prepared.text, proposal=proposal, texts=key["scoring"]["blocks"])
    title = f"{model.loaded.name} on {entry.name}"
    figure = audit_figure.draw(found, title=title, key=key, output=options.output)
    return Measurement(
        metrics=tuple(_metrics(found, model.loaded.model.headline())),
        records=[*_texts(found), *_checks(found)],
        data=results.data(corpora.split_of(found.source, entry.split)),
        seconds=time.perf_counter() - started,
        tokens=found.claims.tokens,
        complete=key["scoring"]["blocks"] == entry.settings["metadata"]["texts"],
        notes=(report.write(found), figure),
    )


def _metrics(found: Audit, headline: str) -> Iterator[Metric]:
    """Of each likelihood a verdict, what it claims and the evidence, and one metric a further check."""
    a_token, n = found.claims.tokens / len(found.claims.reference_N), len(found.claims.reference_N)
    for name in found.likelihoods:
        common: dict[str, Any] = {"likelihood": name, "headline": name == headline, "n": n}
        passed: dict[str, Any] = {"value": float(found.passed(name)), "kind": "exact", "direction": "higher"}
        yield Metric(name="audit_passed", unit="verdict", **passed, **common)
        if name not in found.claims.claims_N:  # of continuations
            continue
        evidence, claimed = found.claims.evidence(name), -math.fsum(found.claims.claims_N[name])
        yield Metric(
            name="audit_claimed_nats_per_token",
            unit="token",
            value=claimed / found.claims.tokens,
            stderr_mc=_error(found, name),
            kind=found.claims.kinds[name],
            **common,
        )
        yield Metric(name="audit_log_e_value", unit="nats", value=evidence.log_e_value, kind="exact", **common)
        blind = evidence.blind_below / a_token
        yield Metric(name="audit_blind_below_nats_per_token", unit="token", value=blind, kind="exact", **common)
    for check in found.checks:
        if check.name != "known_source" and check.likelihood is not None and math.isfinite(check.value):
            common = {"likelihood": check.likelihood, "headline": check.likelihood == headline, "n": n}
            yield Metric(name=f"audit_{check.name}", unit="check", value=check.value, kind="exact", **common)
    own: dict[str, Any] = {"likelihood": None, "headline": False, "unit": "token", "kind": "exact", "n": n}
    reference = -math.fsum(found.claims.reference_N) / found.claims.tokens
    yield Metric(name="audit_source_nats_per_token", value=reference, **own)
    entropy, length = found.entropy, found.source.length
    yield Metric(
        name="audit_source_entropy_per_token",
        value=entropy.nats_per_text / length,
        stderr_mc=entropy.stderr / length if entropy.stderr else None,
        **own,
    )


def _error(found: Audit, name: str) -> float | None:
    variance_N = found.claims.mc_var_N[name]
    return None if variance_N is None else math.sqrt(math.fsum(variance_N)) / found.claims.tokens


def _texts(found: Audit) -> Iterator[dict[str, Any]]:
    """One record a text, with all that the e-value is made of."""
    parts = [("", found.claims)]
    if found.more_steps is not None:
        parts.append((f"_{found.more_steps[1]}_steps", found.more_steps[0]))
    for i, reference in enumerate(found.claims.reference_N.tolist()):
        record = {"part": "text", "text": i, "tokens": found.source.length, "reference": reference}
        for suffix, claims in parts:
            for name, claims_N in claims.claims_N.items():
                variance_N = claims.mc_var_N[name]
                if i < len(claims_N):
                    record[name + suffix] = float(claims_N[i])
                    record[f"{name}{suffix}_mc_var"] = None if variance_N is None else float(variance_N[i])
        yield record


def _checks(found: Audit) -> Iterator[dict[str, Any]]:
    for check in found.checks:
        yield {
            "part": "check",
            "check": check.name,
            "likelihood": check.likelihood,
            "passed": check.passed,
            "value": check.value if math.isfinite(check.value) else None,
            "limit": check.limit if math.isfinite(check.limit) else None,
            "detail": check.detail,
        }
