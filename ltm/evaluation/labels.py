"""What tells models of one name apart: the same words in progress lines, in the tables of ltm-eval and on the board."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ltm.config import LATER_SETTINGS, MACHINE_SETTINGS, leaves

SEEDS = ("training seed", "seed")
"""Fields of which no value is the usual one: they are said wherever there is one."""


def training_identity(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a model's training in which the results of a row agree; the seed is not among them."""
    extended = (training.get("recipe") or {}).get("extended")
    return {
        "corpus": training.get("corpus"),
        "training text": (training.get("data_fingerprint") or "")[:8],
        "training tokens": training.get("tokens"),
        "training finished": training.get("complete"),
        **({} if extended is None else {"training extended from": extended}),
    }


def readable_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a config, such as `posterior.steps`, without those that a machine chooses for itself."""
    return {name: value for name, value in leaves(config).items() if name.rpartition(".")[2] not in MACHINE_SETTINGS}


def tell_apart(names: Sequence[str], identities: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return each name, followed by what tells it apart from others of the same name, if there are any.

    Of fields that draw the same distinctions the first one is enough: a rule of unmasking has its own likelihood. A
    value that more than half of the namesakes share goes without saying: one model and its variants are `x`, `x (steps
    8)` and `x (window none)`.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for name, identity in zip(names, identities, strict=True):
        by_name[name].append(identity)
    telling = {name: _telling_fields(namesakes) for name, namesakes in by_name.items()}
    usual = {name: _usual(telling[name], namesakes) for name, namesakes in by_name.items()}
    labels = []
    for name, identity in zip(names, identities, strict=True):
        said = [
            key
            for key in telling[name]
            if (key in identity if key in SEEDS else repr(_value(identity, key)) != usual[name].get(key))
        ]
        difference = ", ".join(f"{key} {_words(key, identity, by_name[name])}" for key in said)
        labels.append(f"{name} ({difference})" if difference else name)
    return labels


def _telling_fields(identities: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the fields, in order, each of which tells identities apart that those before it do not."""
    fields, told_apart = list[str](), 1
    for key in dict.fromkeys(key for identity in identities for key in identity):
        distinct = len({tuple(repr(_value(identity, each)) for each in (*fields, key)) for identity in identities})
        if distinct > told_apart:
            fields, told_apart = [*fields, key], distinct
    return fields


def _usual(fields: Sequence[str], namesakes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the value, as `repr`, of each field of which more than half of the namesakes have the same."""
    common = {key: Counter(repr(_value(each, key)) for each in namesakes).most_common(1)[0] for key in fields}
    return {key: value for key, (value, times) in common.items() if 2 * times > len(namesakes)}


def _words(key: str, identity: Mapping[str, Any], namesakes: Sequence[Mapping[str, Any]]) -> str:
    """A value as it is typed, a large number to three digits unless that makes different ones alike."""
    values = [_value(one, key) for one in namesakes]
    distinct = len({repr(value) for value in values}) == len({_rounded(value) for value in values})
    return (_rounded if distinct else _typed)(_value(identity, key))


def _typed(value: Any) -> str:
    return "none" if value is None else str(value)


def _rounded(value: Any) -> str:
    if type(value) is not int or abs(value) < 100_000:
        return _typed(value)
    return f"{value / 1e6:.3g}M" if abs(value) < 1e9 else f"{value / 1e9:.3g}B"


def _value(identity: Mapping[str, Any], key: str) -> Any:
    """Return what an identity says; of a setting that it was written before, what was done then."""
    return identity.get(key, LATER_SETTINGS.get(key.rpartition(".")[2]))


def model_labels(names: Sequence[str], infos: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the label of each model of a run: its name and, among namesakes, its training, settings and seed.

    Where these agree too, the label has the weights' digest, as on the board, or else the place.

    Args:
        infos: `family`, `config`, `training`, `weights_digest` of each model as far as they are known, and its `place`.
    """
    identities = [
        {
            **readable_settings(info.get("config") or {}),
            "family": info.get("family"),
            **training_identity(info.get("training") or {}),
            "training seed": (info.get("training") or {}).get("seed"),
        }
        for info in infos
    ]
    weights = [(info.get("weights_digest") or "")[:8] or None for info in infos]
    for word, values in (("weights", weights), ("in", [info.get("place") for info in infos])):
        labels = tell_apart(names, identities)
        alike = {name for name, label in zip(names, labels, strict=True) if labels.count(label) > 1}
        identities = [
            {**identity, word: value} if name in alike else identity
            for name, identity, value in zip(names, identities, values, strict=True)
        ]
    return tell_apart(names, identities)
