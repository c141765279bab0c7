"""What rows and tables are called, and what tells those of one name apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from leaderboard.entries import PERPLEXITY, Entry
from ltm.config import MACHINE_SETTINGS, leaves
from ltm.result import Result

# What a section or a column already says, what a repetition varies, or what stands beside the headline and does not
# move it: the rest of `scoring` tells rows apart.
_NOT_OF_THE_ROW = {"block_length", "blocks", "tokens", "eos_between_documents", "seed", "likelihoods"}


def row_identity(result: Result) -> dict[str, Any]:
    """What makes two results results of one row, but for the training seed."""
    training, headline = result.training, result.metric(PERPLEXITY)
    return {
        "model": result.model["name"],
        "config": result.model["config_digest"],
        "corpus": training["corpus"],
        "training text": (training["data_fingerprint"] or "")[:8],
        "training tokens": training["tokens"],
        "training finished": training["complete"],
        "likelihood": headline and headline.likelihood,
        **{name: value for name, value in result.scoring.items() if name not in _NOT_OF_THE_ROW},
    }


def readable_identity(result: Result) -> dict[str, Any]:
    """The identity with the settings of the config, `posterior.steps`, in place of its digest."""
    identity = row_identity(result)
    del identity["config"]
    settings = leaves(result.model["config"])
    ours = {name: value for name, value in settings.items() if name.rpartition(".")[2] not in MACHINE_SETTINGS}
    return {**ours, **identity}


def tell_apart(names: Sequence[str], identities: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each name, followed by what tells it apart from others of the same name, if there are any."""
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
    """The tasks, with what tells two of one name apart."""
    results = [entries[0].result for entries in groups]
    identities = [{**result.task, "text": result.data["fingerprint"][:8]} for result in results]
    return tell_apart([result.task["name"].removeprefix("ltm_") for result in results], identities)


def labels(entries: Sequence[Entry]) -> list[str]:
    """The models' names, with what tells results of the same name apart."""
    identities = [
        {**readable_identity(e.result), "training seed": e.result.training["seed"], "seed": e.result.scoring["seed"]}
        for e in entries
    ]
    return tell_apart([entry.result.model["name"] for entry in entries], identities)
