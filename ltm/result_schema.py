"""The schema of result files, with errors that name the field at fault."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ltm.config import canonical_json
from ltm.errors import UserError

SCHEMA = 1

_TEXT, _WHOLE, _REAL, _FLAG, _TABLE = (str,), (int,), (int, float), (bool,), (dict,)
_NONE = (type(None),)
_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "model": {"name": _TEXT, "family": _TEXT, "config": _TABLE, "config_digest": _TEXT, "weights_digest": _TEXT},
    # What is unknown about a model trained elsewhere is null, never a guess.
    "training": {
        "corpus": _TEXT + _NONE,
        "data_fingerprint": _TEXT + _NONE,
        "tokens": _WHOLE + _NONE,
        "steps": _WHOLE + _NONE,
        "seconds": _REAL + _NONE,
        "flops": _REAL + _NONE,
        "paper_flops": _REAL + _NONE,
        "seed": _WHOLE + _NONE,
        "device": _TEXT + _NONE,
        "dtype": _TEXT + _NONE,
        "complete": _FLAG + _NONE,
    },
    "task": {"name": _TEXT, "version": _TEXT + _REAL, "split": _TEXT},
    "data": {
        "corpus": _TEXT,
        "fingerprint": _TEXT,
        "bytes": _WHOLE,
        "words": _WHOLE,
        "documents": _WHOLE,
        "source": _TABLE,
    },
    "tokenizer": {"name": _TEXT, "fingerprint": _TEXT},
    "scoring": {
        "block_length": _WHOLE,
        "blocks": _WHOLE,
        "tokens": _WHOLE,
        "eos_between_documents": _FLAG,
        "seed": _WHOLE,
        "draws": _WHOLE,
        "dtype": _TEXT,
    },
    "cost": {
        "parameters": _WHOLE,
        "paper_train_flops_per_token": _REAL,
        "train_flops_per_token": _REAL,
        "score_flops_per_token": _REAL,
        "generate_flops_per_token": _REAL,
    },
    "provenance": {
        "commit": _TEXT + _NONE,
        "dirty": _FLAG + _NONE,
        "command": _TEXT,
        "versions": _TABLE,
        "device": _TEXT,
        "wall_seconds": _REAL,
        "tokens_per_second": _REAL + _NONE,
        "date": _TEXT,
    },
    "records": {"file": _TEXT, "sha256": _TEXT},
    "metric": {
        "name": _TEXT,
        "likelihood": _TEXT + _NONE,
        "headline": _FLAG,
        "unit": _TEXT,
        "value": _REAL,
        "kind": _TEXT,
        "direction": _TEXT,
        "stderr_mc": _REAL + _NONE,
        "stderr_data": _REAL + _NONE,
        "ci95": _TABLE + _NONE,
        "n": _WHOLE,
    },
    "ci95": {"low": _REAL, "high": _REAL, "method": _TEXT},
}
# Absent in results of earlier versions.
_OPTIONAL: dict[str, dict[str, tuple[type, ...]]] = {"model": {"class": _TEXT, "code": _TEXT}}
_SECTIONS = ("model", "training", "task", "data", "tokenizer", "scoring", "cost", "provenance")
_TOP = {"schema", "status", "metrics", "records", *_SECTIONS}
_OPEN = {"training", "scoring", "provenance"}  # these may have further fields
_CHOICES = {
    "status": ("complete", "partial", "invalidated"),
    "kind": ("exact", "lower_bound", "estimate"),
    "direction": ("lower", "higher"),
}


def check(data: Mapping[str, Any], where: str) -> None:
    """Raise UserError at the first field of a result's plain data that is missing, unknown, or of another type."""
    for name in sorted(_TOP ^ set(data)):
        known = name in _TOP
        raise _wrong(where, name, "a value" if known else "no such field", "nothing" if known else repr(data[name]))
    _check_choice(data, "status", where, "")
    for section in _SECTIONS:
        _check_table(data[section], section, section, where)
    if data["records"] is not None:
        _check_table(data["records"], "records", "records", where)
        if re.search(r"[/\\]|^\.", data["records"]["file"]):
            raise _wrong(where, "records.file", "the name of a file next to the result", repr(data["records"]["file"]))
    if not isinstance(data["metrics"], list | tuple) or not data["metrics"]:
        raise _wrong(where, "metrics", "a list of at least one metric", repr(data["metrics"]))
    for i, metric in enumerate(data["metrics"]):
        name = f"metrics[{i}]"
        _check_table(metric, "metric", name, where)
        _check_choice(metric, "kind", where, f"{name}.")
        _check_choice(metric, "direction", where, f"{name}.")
        if metric["ci95"] is not None:
            _check_table(metric["ci95"], "ci95", f"{name}.ci95", where)
            if metric["ci95"]["low"] > metric["ci95"]["high"]:
                raise _wrong(where, f"{name}.ci95", "low at most high", repr(metric["ci95"]))
    identities = [(metric["name"], metric["likelihood"]) for metric in data["metrics"]]
    headlines = [metric["name"] for metric in data["metrics"] if metric["headline"]]
    for i, metric in enumerate(data["metrics"]):
        if identities.count(identities[i]) > 1 or headlines.count(metric["name"]) > 1:
            raise _wrong(where, f"metrics[{i}]", "one of each name and likelihood, one headline", repr(identities[i]))


def _check_table(table: Any, section: str, name: str, where: str) -> None:
    if not isinstance(table, Mapping):
        raise _wrong(where, name, "a table", repr(table))
    fields = {**_FIELDS[section], **{n: t for n, t in _OPTIONAL.get(section, {}).items() if n in table}}
    for field in sorted(set(table) - set(fields)) if section not in _OPEN else ():
        raise _wrong(where, f"{name}.{field}", f"only {', '.join(fields)}", repr(table[field]))
    for field, types in fields.items():
        expected = " or ".join({"NoneType": "null", "dict": "a table"}.get(t.__name__, t.__name__) for t in types)
        if field not in table:
            raise _wrong(where, f"{name}.{field}", expected, "nothing")
        value = table[field]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise _wrong(where, f"{name}.{field}", expected, repr(value))
    try:
        canonical_json(dict(table))
    except (TypeError, ValueError) as error:
        bad = [f for f, v in table.items() if isinstance(v, float) and not math.isfinite(v)]
        raise _wrong(where, f"{name}.{bad[0]}" if bad else name, "finite plain data", str(error)) from error


def _check_choice(table: Mapping[str, Any], field: str, where: str, prefix: str) -> None:
    if table[field] not in _CHOICES[field]:
        raise _wrong(where, prefix + field, " or ".join(_CHOICES[field]), repr(table[field]))


def _wrong(where: str, field: str, expected: str, found: str) -> UserError:
    return UserError(f"{where}: field {field}: expected {expected}, found {found}")
