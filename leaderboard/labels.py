"""The names of rows and tables, and what tells those of the same name apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from leaderboard.entries import PERPLEXITY, Entry
from ltm.config import MACHINE_SETTINGS, leaves
from ltm.result import Result

# Fields of `scoring` that do not tell rows apart: a section or column states them already, repetitions vary them, or
# they add likelihoods without changing the headline.
_NOT_OF_THE_ROW = {"block_length", "blocks", "tokens", "eos_between_documents", "seed", "likelihoods"}


def row_identity(result: Result) -> dict[str, Any]:
    """Return the fields in which the results of a row agree; only the training seed may differ."""
    training, headline = result.training, result.metric(PERPLEXITY)
    return {
        "model": result.model["name"],
        "family": result.model["family"],
        "config": result.model["config_digest"],
        "corpus": training["corpus"],
        "training text": (training["data_fingerprint"] or "")[:8],
        "training tokens": training["tokens"],
        "training finished": training["complete"],
        "likelihood": headline and headline.likelihood,
        **{name: value for name, value in result.scoring.items() if name not in _NOT_OF_THE_ROW},
    }


def readable_identity(result: Result) -> dict[str, Any]:
    """Return the row identity with the config's settings, such as `posterior.steps`, in place of its digest.

    Settings that a machine chooses for itself are left out.
    """
    identity = row_identity(result)
    del identity["config"]
    settings = leaves(result.model["config"])
    ours = {name: value for name, value in settings.items() if name.rpartition(".")[2] not in MACHINE_SETTINGS}
    return {**ours, **identity}


def tell_apart(names: Sequence[str], identities: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each name, followed by what tells it apart from others of the same name, if there are any."""
    by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for name, identity in zip(names, identities, strict=True):
        by_name[name].append(identity)
    different: dict[str, list[str]] = {}
    for name, namesakes in by_name.items():
        keys = dict.fromkeys(key for identity in namesakes for key in identity) if len(namesakes) > 1 else ()
        different[name] = [key for key in keys if len({repr(identity.get(key)) for identity in namesakes}) > 1]
    labels = []
    for name, identity in zip(names, identities, strict=True):
        difference = ", ".join(f"{key} {identity.get(key)}" for key in different[name])
        labels.append(f"{name} ({difference})" if difference else name)
    return labels


def titles(groups: Sequence[Sequence[Entry]]) -> list[str]:
    """Return the task of each group, with what tells groups of the same name apart."""
    results = [entries[0].result for entries in groups]
    identities = [{**result.task, "text": result.data["fingerprint"][:8]} for result in results]
    return tell_apart([result.task["name"].removeprefix("ltm_") for result in results], identities)


def labels(entries: Sequence[Entry]) -> list[str]:
    """Return the model of each entry, with what tells entries of the same name apart."""
    identities = [
        {**readable_identity(e.result), "training seed": e.result.training["seed"], "seed": e.result.scoring["seed"]}
        for e in entries
    ]
    return tell_apart([entry.result.model["name"] for entry in entries], identities)
