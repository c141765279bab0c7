"""The schema of result files: the type, range and length of every field, with errors that name the one at fault."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ltm.config import canonical_json
from ltm.errors import UserError
from ltm.untrusted.display import bare, shown
from ltm.untrusted.json_text import LARGEST

SCHEMA = 2
"""The version that results are written in. The second one has the kind `upper_bound`."""
READABLE = (1, SCHEMA)
LONGEST = 20_000
"""Most characters of a command, or of a text in a field that the schema does not know."""
MOST_METRICS = 1_000
MOST_OF_A_SECTION = 200_000
"""Most characters of a section as JSON, which bounds tables such as `config` and `versions`."""
VACUOUS = 1e30
"""Nats at which an upper bound is cut off, and its variance at the square: none above 0 says anything, and numbers in
results are of limited size (`ltm.untrusted.json_text.LARGEST`)."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a field may be: its types, the range of its number, the most characters of its text."""

    types: tuple[type, ...]
    least: float = -LARGEST
    most: float = LARGEST
    longest: int = 400

    @property
    def type_names(self) -> str:
        names = {"NoneType": "null", "dict": "a table", "list": "a list", "tuple": "a list"}
        return " or ".join(dict.fromkeys(names.get(t.__name__, t.__name__) for t in self.types))

    def is_a(self, value: Any) -> bool:
        """Whether the value has one of the types; true and false are no numbers."""
        return isinstance(value, self.types) and (not isinstance(value, bool) or bool in self.types)


def _or_null(kind: _Kind) -> _Kind:
    return replace(kind, types=(*kind.types, type(None)))


_NAME, _TEXT = _Kind((str,)), _Kind((str,), longest=LONGEST)
_COUNT, _SOME = _Kind((int,), 0, 2**53), _Kind((int,), 1, 2**53)
_SEED = _Kind((int,), -(2**63), 2**64 - 1)
_REAL, _AMOUNT = _Kind((int, float)), _Kind((int, float), 0)
_FLAG, _TABLE, _LIST = _Kind((bool,)), _Kind((dict,), longest=LONGEST), _Kind((list, tuple), longest=LONGEST)
_VERSION = _Kind((str, int, float), 0, 2**53)

_FIELDS: dict[str, dict[str, _Kind]] = {
    "model": {"name": _NAME, "family": _NAME, "config": _TABLE, "config_digest": _NAME, "weights_digest": _NAME},
    # What is unknown about a model trained elsewhere is null, never a guess.
    "training": {
        "corpus": _or_null(_NAME),
        "data_fingerprint": _or_null(_NAME),
        "tokens": _or_null(_COUNT),
        "steps": _or_null(_COUNT),
        "seconds": _or_null(_AMOUNT),
        "flops": _or_null(_AMOUNT),
        "paper_flops": _or_null(_AMOUNT),
        "seed": _or_null(_SEED),
        "device": _or_null(_NAME),
        "dtype": _or_null(_NAME),
        "complete": _or_null(_FLAG),
    },
    "task": {"name": _NAME, "version": _VERSION, "split": _NAME},
    "data": {
        "corpus": _NAME,
        "fingerprint": _NAME,
        "bytes": _COUNT,
        "words": _COUNT,
        "documents": _COUNT,
        "source": _TABLE,
    },
    "tokenizer": {"name": _NAME, "fingerprint": _NAME},
    "scoring": {
        "block_length": _SOME,
        "blocks": _COUNT,
        "tokens": _COUNT,
        "eos_between_documents": _FLAG,
        "seed": _SEED,
        "draws": _COUNT,
        "dtype": _NAME,
    },
    "cost": {
        "parameters": _COUNT,
        "paper_train_flops_per_token": _AMOUNT,
        "train_flops_per_token": _AMOUNT,
        "score_flops_per_token": _AMOUNT,
        "generate_flops_per_token": _AMOUNT,
    },
    "provenance": {
        "commit": _or_null(_NAME),
        "dirty": _or_null(_FLAG),
        "command": _TEXT,
        "versions": _TABLE,
        "device": _NAME,
        "wall_seconds": _AMOUNT,
        "tokens_per_second": _or_null(_AMOUNT),
        "date": _NAME,
    },
    "records": {"file": _NAME, "sha256": _NAME},
    "metric": {
        "name": _NAME,
        "likelihood": _or_null(_NAME),
        "headline": _FLAG,
        "unit": _NAME,
        "value": _REAL,
        "kind": _NAME,
        "direction": _NAME,
        "stderr_mc": _or_null(_AMOUNT),
        "stderr_data": _or_null(_AMOUNT),
        "ci95": _or_null(_TABLE),
        "n": _COUNT,
    },
    "ci95": {"low": _REAL, "high": _REAL, "method": _NAME},
}
# Absent in results of earlier versions, or recorded by some tasks only.
_OPTIONAL: dict[str, dict[str, _Kind]] = {
    "model": {"class": _NAME, "code": _NAME},
    "training": {"recipe": _or_null(_TABLE)},
    "scoring": {"likelihoods": _LIST, "rule": _NAME},
}
_SECTIONS = ("model", "training", "task", "data", "tokenizer", "scoring", "cost", "provenance")
_TOP = {"schema", "status", "metrics", "records", *_SECTIONS}
_OPEN = {"training", "scoring", "provenance"}  # these may have further fields
_CHOICES = {
    "status": ("complete", "partial", "invalidated"),
    "kind": ("exact", "lower_bound", "upper_bound", "estimate"),
    "direction": ("lower", "higher"),
}
# What the value and the interval of a metric of that name may be; of others, any number.
_POSITIVE = (1 / LARGEST, LARGEST)
_RANGES = {
    r"(token|word|last_word)_perplexity(_mean_of_exp|_at_least)?": _POSITIVE,
    r"((human|shuffled)_)?gen_ppl(_mean_of_exp)?\[.*\]": _POSITIVE,
    r"(chance_[^_]+_)?pass@\d+(_(legacy_)?[a-z]+)?|accuracy|audit_passed": (0.0, 1.0),
}


def check(data: Mapping[str, Any], where: str) -> None:
    """Raise UserError at the first field of a result's plain data that is missing, unknown, or not as in the schema."""
    for name in sorted(_TOP ^ set(data)):
        known = name in _TOP
        raise _wrong(where, name, "a value" if known else "no such field", "nothing" if known else shown(data[name]))
    _check_choice(data, "status", where, "")
    for section in _SECTIONS:
        _check_table(data[section], section, section, where)
    version = data["task"]["version"]
    if isinstance(version, str) and not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", version):
        raise _wrong(where, "task.version", "a number, such as 1.0", shown(version))
    _check_date(data["provenance"]["date"], where)
    if data["records"] is not None:
        _check_table(data["records"], "records", "records", where)
        if re.search(r"[/\\]|^\.", data["records"]["file"]):
            raise _wrong(where, "records.file", "the name of a file next to the result", shown(data["records"]["file"]))
    _check_metrics(data["metrics"], where, schema=data["schema"])


def _check_metrics(metrics: Any, where: str, *, schema: int) -> None:
    if not isinstance(metrics, list | tuple) or not metrics:
        raise _wrong(where, "metrics", "a list of at least one metric", shown(metrics))
    if len(metrics) > MOST_METRICS:
        raise _wrong(where, "metrics", f"at most {MOST_METRICS:,}", f"{len(metrics):,}")
    for i, metric in enumerate(metrics):
        name = f"metrics[{i}]"
        _check_table(metric, "metric", name, where)
        _check_choice(metric, "kind", where, f"{name}.")
        _check_choice(metric, "direction", where, f"{name}.")
        if metric["kind"] == "upper_bound" and (metric["headline"] or schema < 2):
            expected = "an exact value, a lower bound or an estimate"
            whose = "of a headline" if metric["headline"] else f"in a result of schema {schema}"
            raise _wrong(where, f"{name}.kind", expected, f"upper_bound {whose}")
        numbers = {"value": metric["value"]}
        if (interval := metric["ci95"]) is not None:
            _check_table(interval, "ci95", f"{name}.ci95", where)
            low, high = interval["low"], interval["high"]
            if low > high:
                raise _wrong(where, f"{name}.ci95", "low at most high", f"{low!r} and {high!r}")
            numbers |= {"ci95.low": low, "ci95.high": high}
        least, most = next(
            (ends for p, ends in _RANGES.items() if re.fullmatch(p, metric["name"])), (-LARGEST, LARGEST)
        )
        for field, value in numbers.items():
            if not least <= value <= most:
                raise _wrong(
                    where, f"{name}.{field}", f"{shown(metric['name'])} from {least:g} to {most:g}", repr(value)
                )
    identities = Counter((metric["name"], metric["likelihood"]) for metric in metrics)
    headlines = Counter(metric["name"] for metric in metrics if metric["headline"])
    for i, metric in enumerate(metrics):
        identity = metric["name"], metric["likelihood"]
        if identities[identity] > 1 or headlines[metric["name"]] > 1:
            found = " by ".join(shown(part) for part in identity)
            raise _wrong(where, f"metrics[{i}]", "one of each name and likelihood, one headline", found)


def _check_table(table: Any, section: str, name: str, where: str) -> None:
    if not isinstance(table, Mapping):
        raise _wrong(where, name, "a table", shown(table))
    fields = {**_FIELDS[section], **{n: kind for n, kind in _OPTIONAL.get(section, {}).items() if n in table}}
    for field in sorted(set(table) - set(fields), key=str) if section not in _OPEN else ():
        raise _wrong(where, f"{name}.{field}", f"only {', '.join(fields)}", shown(table[field]))
    for field, kind in fields.items():
        if field not in table:
            raise _wrong(where, f"{name}.{field}", kind.type_names, "nothing")
        if not kind.is_a(table[field]):
            raise _wrong(where, f"{name}.{field}", kind.type_names, shown(table[field]))
    try:
        length = len(canonical_json(dict(table)))
    except (TypeError, ValueError, RecursionError) as error:
        bad = [f for f, v in table.items() if isinstance(v, float) and not math.isfinite(v)]
        raise _wrong(where, f"{name}.{bad[0]}" if bad else name, "finite plain data", shown(str(error))) from error
    if length > MOST_OF_A_SECTION:
        raise _wrong(where, name, f"at most {MOST_OF_A_SECTION:,} characters of JSON", f"{length:,}")
    for field, value in table.items():
        _check_text(field, name, where, _NAME)
        _check_values(value, f"{name}.{field}", where, fields.get(field, _TEXT))


def _check_values(value: Any, place: str, where: str, kind: _Kind) -> None:
    """Check text and numbers, those in lists and tables too, which have no fields of their own."""
    values = [value]
    while values:
        value = values.pop()
        if isinstance(value, str):
            _check_text(value, place, where, kind)
        elif isinstance(value, int | float):
            if not kind.least <= value <= kind.most or (isinstance(value, int) and abs(value) > 2**64):
                raise _wrong(where, place, f"a number from {kind.least:.17g} to {kind.most:.17g}", shown(value))
        elif isinstance(value, Mapping):
            for key in value:
                _check_text(key, place, where, _NAME)
            values += value.values()
        elif isinstance(value, list | tuple):
            values += value


def _check_text(text: Any, place: str, where: str, kind: _Kind) -> None:
    if not isinstance(text, str):
        raise _wrong(where, place, "names that are text", shown(text))
    if len(text) > kind.longest:
        raise _wrong(where, place, f"at most {kind.longest:,} characters", f"{len(text):,}")
    # Line feeds and tabs may be in the `stop` of a task; whatever shows a text puts it on one line.
    if not (text.isprintable() or text.replace("\n", "").replace("\t", "").isprintable()):
        raise _wrong(where, place, "printable characters", shown(text))


def _check_date(date: str, where: str) -> None:
    try:
        datetime.fromisoformat(re.sub(r"Z$", "+00:00", date))
    except ValueError:
        raise _wrong(where, "provenance.date", "a date such as 2026-01-31T12:00:00+00:00", shown(date)) from None


def _check_choice(table: Mapping[str, Any], field: str, where: str, prefix: str) -> None:
    if table[field] not in _CHOICES[field]:
        raise _wrong(where, prefix + field, " or ".join(_CHOICES[field]), shown(table[field]))


def _wrong(where: str, field: str, expected: str, found: str) -> UserError:
    return UserError(f"{where}: field {bare(field)}: expected {expected}, found {found}")
