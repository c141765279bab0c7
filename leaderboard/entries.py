"""Results as entries: read, verified, and downgraded where an audit failed."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ltm.config import MACHINE_SETTINGS
from ltm.errors import UserError
from ltm.result import Result, find_results, read_result, reservations, result_path

PERPLEXITY = "token_perplexity"
"""The headline metric that sections compare; results without it belong to other tasks."""

AUDIT = "audit_passed"
"""The metric that holds the verdict on a likelihood: 1 passed, 0 failed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """A result, the file that it was read from, and the audits' verdicts on its likelihoods.

    The metrics of a likelihood that failed its audit are estimates here, whatever kind the file states.

    Attributes:
        audit: by likelihood, True if it passed and False if it failed; a likelihood that was not audited is missing.
        reservations: by likelihood that passed, what follows the word `passed`: ` (no twin)`, ` (short)`, or nothing.
    """

    path: Path
    result: Result
    audit: Mapping[str, bool] = field(default_factory=dict)
    reservations: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file's path inside the results directory: MODEL/TASK/KEY.json."""
        return "/".join(self.path.parts[-3:])


def load(results_dir: Path) -> list[Entry]:
    """Read and verify every result in a results directory.

    Raises:
        UserError: there are none (the message says how to make some), or one is damaged or in the wrong place.
    """
    entries = [read(path, results_dir) for path in find_results(results_dir)]
    if not entries:
        raise UserError(
            f"no results in {results_dir}; make some with: "
            f"ltm-eval --model ltm-tiny,ar-tiny --tasks pydocs --output {results_dir}"
        )
    return entries


def read(path: Path, results_dir: Path) -> Entry:
    """Read and verify one result in a results directory.

    Raises:
        UserError: it is damaged, or in the wrong place.
    """
    result = read_result(path)
    expected = result_path(results_dir, model=result.model["name"], task=result.task["name"], key=result.key)
    if path != expected:
        if os.path.exists(expected):  # False for names that are too long, where Path.exists raises
            raise UserError(
                f"{path}: a stray copy: its content belongs at {expected}, where there is a result already; "
                "delete this one"
            )
        raise UserError(f"{path}: its content belongs at {expected}; was it copied or renamed? Move it there")
    return Entry(path=path, result=result)


def is_audit(result: Result) -> bool:
    """Return True if the result is that of an audit."""
    return any(metric.name == AUDIT for metric in result.metrics)


def audited(entries: Sequence[Entry]) -> list[Entry]:
    """Attach to each entry the verdicts of the audits that hold for it.

    One failure outweighs all passes, and among passes the one with the fewest reservations counts.
    """
    audits = [entry.result for entry in entries if is_audit(entry.result)]
    # A quick look under a newer version does not outdate the whole audits of all other models.
    newest: dict[str, float] = {}
    for audit in audits:
        if audit.status == "complete":
            newest[audit.task["name"]] = max(newest.get(audit.task["name"], 0.0), float(audit.task["version"]))
    by_config: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for audit in audits:
        if float(audit.task["version"]) >= newest.get(audit.task["name"], 0.0):
            by_config[audit.model["family"], audit.model["config_digest"]].append(audit)
    return [_with_audit(entry, by_config) for entry in entries]


def _holds_for(audit: Result, result: Result) -> bool:
    """True if an audit is of the same class and code, and of the same weights or of another seed of their training."""
    for part in ("class", "code"):
        # Older results do not record these.
        if len({model[part] for model in (audit.model, result.model) if part in model}) > 1:
            return False
    if audit.model["weights_digest"] == result.model["weights_digest"]:
        return True
    one, other = (_training_identity(each) for each in (audit, result))
    return one == other and one["data_fingerprint"] is not None


def _training_identity(result: Result) -> dict[str, Any]:
    """What a training run is apart from its seed and its machine."""
    training = result.training
    recipe = {k: v for k, v in (training.get("recipe") or {}).items() if k != "seed" and k not in MACHINE_SETTINGS}
    return {
        **{field: training[field] for field in ("corpus", "data_fingerprint", "tokens", "complete")},
        "recipe": recipe,
        "tokenizer": result.tokenizer["fingerprint"],
    }


def _with_audit(entry: Entry, by_config: Mapping[tuple[str, str], Sequence[Result]]) -> Entry:
    result, verdicts, reserved = entry.result, dict[str, bool](), dict[str, str]()
    for audit in by_config.get((result.model["family"], result.model["config_digest"]), ()):
        if not _holds_for(audit, result):
            continue
        words = reservations(audit.scoring, audit.status)
        for metric in audit.metrics:
            if metric.name == AUDIT and (name := metric.likelihood) is not None:
                verdicts[name] = verdicts.get(name, True) and metric.value == 1
                reserved[name] = min(reserved.get(name, words), words, key=len)
    failed = {name for name, passed in verdicts.items() if not passed}
    entry = replace(entry, audit=verdicts, reservations=reserved)
    if is_audit(result) or not failed & {metric.likelihood for metric in result.metrics}:
        return entry
    metrics = [replace(m, kind="estimate") if m.likelihood in failed else m for m in result.metrics]
    return replace(entry, result=replace(result, metrics=tuple(metrics)))
