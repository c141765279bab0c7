"""The names of rows and tables, and what tells those of the same name apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from leaderboard.entries import PERPLEXITY, Entry
from ltm.evaluation.labels import readable_settings, tell_apart, training_identity
from ltm.result import Result

# Fields of `scoring` that do not tell rows apart: a section or column states them already, repetitions vary them, or
# they add likelihoods without changing the headline.
_NOT_OF_THE_ROW = {"block_length", "blocks", "tokens", "eos_between_documents", "seed", "likelihoods"}


def row_identity(result: Result) -> dict[str, Any]:
    """Return the fields in which the results of a row agree; only the training seed may differ."""
    headline = result.metric(PERPLEXITY)
    return {
        "model": result.model["name"],
        "family": result.model["family"],
        "config": result.model["config_digest"],
        **training_identity(result.training),
        "likelihood": headline and headline.likelihood,
        **{name: value for name, value in result.scoring.items() if name not in _NOT_OF_THE_ROW},
    }


def readable_identity(result: Result) -> dict[str, Any]:
    """Return the row identity with the config's settings, such as `posterior.steps`, in place of its digest.

    Settings that a machine chooses for itself are left out.
    """
    identity = row_identity(result)
    del identity["config"]
    return {**readable_settings(result.model["config"]), **identity}


def titles(groups: Sequence[Sequence[Entry]]) -> list[str]:
    """Return the task of each group, with what tells groups of the same name apart."""
    results = [entries[0].result for entries in groups]
    identities = [{**result.task, "text": result.data["fingerprint"][:8]} for result in results]
    return tell_apart([result.task["name"].removeprefix("ltm_") for result in results], identities)


def labels(entries: Sequence[Entry]) -> list[str]:
    """Return the model of each entry, with what tells entries of the same name apart: seeds, if nothing else does."""
    names, identities = [e.result.model["name"] for e in entries], [readable_identity(e.result) for e in entries]
    without = tell_apart(names, identities)
    seeds = [{"training seed": e.result.training["seed"], "seed": e.result.scoring["seed"]} for e in entries]
    shared = {label for label, times in Counter(without).items() if times > 1}
    each = zip(identities, without, seeds, strict=True)
    return tell_apart(names, [{**identity, **both} if label in shared else identity for identity, label, both in each])
