"""Frozen dataclasses as configurations: to and from JSON, `--set field=value`, and a canonical hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union

from ltm.errors import UserError, did_you_mean

C = TypeVar("C")


def canonical_json(data: Any) -> str:
    """The one spelling of `data`: sorted keys, no spaces, shortest floats. Raises ValueError on NaN or Inf."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(data: Any) -> str:
    """sha256 of the canonical JSON of a config dataclass or of plain data, in hex."""
    if dataclasses.is_dataclass(data):
        data = to_dict(data)
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain nested data, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[C], data: Mapping[str, Any], *, where: str = "config") -> C:
    """Build a config of class `cls`; every key must exist and every value have its field's type.

    Raises:
        UserError: naming the field, what was expected and what was found.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: expected a table of settings, found {data!r}")
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise did_you_mean(f"setting in {where}", key, fields)
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def with_settings(config: C, settings: Iterable[str]) -> C:
    """`config` with each `field.path=value` of `settings` applied, left to right, then validated.

    A field that is itself a config also takes the name of one of its class's `NAMED` values:
    `posterior=published_code`.
    """
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise UserError(f"--set {setting!r}: expected field=value, such as posterior.steps=32")
        config = _replace(config, path.split("."), text, path)
    return config


def _replace(config: Any, path: list[str], text: str, full: str) -> Any:
    fields = {f.name for f in dataclasses.fields(config)}
    if path[0] not in fields:
        raise did_you_mean("setting", full, _all_paths(config))
    if len(path) > 1:
        inner = getattr(config, path[0])
        if not dataclasses.is_dataclass(inner):
            raise did_you_mean("setting", full, _all_paths(config))
        value = _replace(inner, path[1:], text, full)
    else:
        hint = typing.get_type_hints(type(config))[path[0]]
        named = getattr(hint, "NAMED", None)
        if dataclasses.is_dataclass(hint):
            if not named or text not in named:
                raise did_you_mean(f"value for {full}", text, named or ())
            value = named[text]
        else:
            value = _convert(hint, _parse(text), f"setting {full}")
    try:
        return dataclasses.replace(config, **{path[0]: value})
    except ValueError as error:
        raise UserError(f"setting {full}={text}: {error}") from error


def _all_paths(config: Any, prefix: str = "") -> list[str]:
    paths = []
    for field in dataclasses.fields(config):
        paths.append(prefix + field.name)
        if dataclasses.is_dataclass(getattr(config, field.name)):
            paths += _all_paths(getattr(config, field.name), f"{prefix}{field.name}.")
    return paths


def _parse(text: str) -> Any:
    try:
        return json.loads({"True": "true", "False": "false", "None": "null", "none": "null"}.get(text, text))
    except ValueError:
        return text


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = [a for a in args if a is not type(None)]
        return _convert(hint, value, where)
    if origin is Literal:
        if value in args:
            return value
        raise did_you_mean(f"value for {where}", str(value), map(str, args))
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where=where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, hint) and not (hint is not bool and isinstance(value, bool)):
        return value
    raise UserError(f"{where}: expected {hint.__name__}, found {value!r}")
