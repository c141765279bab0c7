"""`ltm.push(directory, "org/name")`: a checkpoint of ours as a repository of the Hugging Face hub, with a model card.

`--model org/name` pulls it again, verified like any checkpoint: the repository has the files of a step folder under the
names that the hub expects, and the manifest with their sha256.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ltm import hub
from ltm.errors import UserError
from ltm.result import Result, find_results, read_result, reservations
from ltm.training import checkpoint
from ltm.training.checkpoint import HUB_NAMES, MANIFEST
from ltm.untrusted.display import bare

SIGNS = {"exact": "", "lower_bound": "≤ ", "upper_bound": "≥ ", "estimate": "~ "}
VERDICT = "audit_passed"
PERPLEXITY = "token_perplexity"


def push(
    directory: str | Path,
    repository: str,
    *,
    results: str | Path = "results",
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Upload a checkpoint to the hub in one commit; return the address of the commit.

    Args:
        directory: a run of ltm-train, or what ltm-convert wrote.
        repository: `org/name`; made if it does not exist.
        results: where ltm-eval wrote results; those of these weights go into the model card.
        private: whether a repository that is made now is private.
        revision: the branch to commit to; the main one if None.

    Raises:
        UserError: no checkpoint is there, or the hub refuses.
    """
    if not hub.is_repository(repository):
        raise UserError(f"expected a repository ORG/NAME to push to, found {bare(repository)}")
    folder, info = checkpoint.read_info(Path(directory))
    import huggingface_hub
    from huggingface_hub import CommitOperationAdd

    recorded = checkpoint.manifest(folder)
    there = {name: checkpoint.place(folder, name) for name in HUB_NAMES}
    manifest = {hub_name: recorded[there[name].name] for name, hub_name in HUB_NAMES.items()}
    content: dict[str, Path | bytes] = {hub_name: there[name] for name, hub_name in HUB_NAMES.items()}
    content[MANIFEST] = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    content["README.md"] = card(repository, info, measured(Path(results), info["weights_digest"])).encode()
    api = huggingface_hub.HfApi(endpoint=hub.endpoint())
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(
            repository,
            [CommitOperationAdd(name, str(what) if isinstance(what, Path) else what) for name, what in content.items()],
            commit_message=f"{info['name']}, step folder {folder.name}",
            revision=revision,
        )
    # The client raises its own, the HTTP library's and the operating system's errors alike.
    except Exception as error:
        raise UserError(
            f"cannot push to {repository} at {hub.endpoint()}: {type(error).__name__}: {bare(str(error), most=500)}; "
            "nothing was committed. Log in by huggingface-cli login, or set HF_TOKEN"
        ) from error
    return str(done.commit_url)


def measured(directory: Path, weights_digest: str) -> list[Result]:
    """Complete results of these weights below a directory of ltm-eval, sorted by task."""
    found = []
    for path in find_results(directory):
        result = read_result(path)
        if result.model["weights_digest"] == weights_digest and result.status == "complete":
            found.append(result)
    return sorted(found, key=lambda result: (result.task["name"], result.scoring["seed"]))


def card(repository: str, info: Mapping[str, Any], results: list[Result]) -> str:
    """The model card: how to score these weights, what was measured, and whether the audit passed."""
    training = info["training"]
    lines = [
        "---",
        "library_name: latent-thought-bench",
        f"tags: [language-model, likelihood, {info['family']}]",
        "---",
        "",
        f"# {bare(info['name'])}",
        "",
        f"A model of the family `{bare(info['family'])}`, for latent-thought-bench, which scores it by",
        "",
        "```",
        f"ltm-eval --model {repository} --tasks ptb,wikitext",
        "```",
        "",
        "## Measured",
        "",
    ]
    rows = list(_rows(results))
    if rows:
        lines += ["| Task | Perplexity | 95% interval | Seed |", "| --- | ---: | --- | ---: |", *rows, ""]
        lines.append("≤ is an upper bound on perplexity, ~ an estimate that bounds nothing; no sign: exact.")
    else:
        lines.append("No perplexity of these weights was at hand when they were pushed.")
    lines += ["", *_verdicts(results), "", "## Training", ""]
    if training.get("tokens") is None:
        origin = training.get("origin") or {}
        lines.append(f"Trained elsewhere; from {bare(str(origin.get('source', 'an unknown place')))}.")
    else:
        whole = "" if training.get("complete") else "; unfinished"
        lines.append(
            f"{training['tokens']:,} tokens of {bare(str(training['corpus']))}, {training['flops']:.3g} FLOPs as "
            f"executed, seed {training['seed']}{whole}."
        )
    lines += ["", f"Config {info['config_digest'][:12]}, weights {info['weights_digest'][:12]}.", ""]
    return "\n".join(lines)


def _rows(results: list[Result]) -> Iterator[str]:
    for result in results:
        if metric := result.metric(PERPLEXITY):
            interval = "" if metric.ci95 is None else f"[{metric.ci95.low:.2f}, {metric.ci95.high:.2f}]"
            value = f"{SIGNS[metric.kind]}{metric.value:.2f}"
            yield f"| {bare(result.task['name'])} | {value} | {interval} | {result.scoring['seed']} |"


def _verdicts(results: list[Result]) -> list[str]:
    said = [
        f"Audit: `{bare(str(metric.likelihood))}` "
        f"{'passed' + reservations(result.scoring, result.status) if metric.value == 1 else 'failed'}."
        for result in results
        for metric in result.metrics
        if metric.name == VERDICT
    ]
    return said or ["Not audited."]
