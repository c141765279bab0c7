"""Frozen dataclasses as configurations: to and from JSON, `--set field=value`, and a canonical hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar, Union

from ltm.errors import UserError, did_you_mean
from ltm.untrusted.display import bare

C = TypeVar("C")


MACHINE_SETTINGS = {"matmul": "bfloat16"}
"""Settings that each machine may choose, at any depth of a config, and the value that digests use in their place.

They change how a number is computed, and hence how tight a bound is, but not which model it belongs to: results of one
model from two machines share a key and a row. The value was the default before `auto` existed, so that older digests
still hold.
"""

LATER_SETTINGS = {
    "optimizer": "adam",
    "precision_lr": 0.1,
    "tolerance": 0.0,
    "cross_start": "random",
    "cross_rate": 1.0,
    "importance_proposals": "single",
    "bos_output": False,
    "unmasking": "any_order",
    "unmasking_block": 16,
    "orders": 0,
}
"""Settings that came after results were published, and the value that stands for what was done before.

Digests leave them out at that value, at any depth, so that older digests still hold.
"""

AUTO = "auto"


def canonical_json(data: Any) -> str:
    """Serialise `data` canonically: sorted keys, no spaces, shortest floats. Raises ValueError on NaN or Inf."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(data: Any) -> str:
    """sha256 of the canonical JSON of plain data, in hex; that of a config is `config_digest`."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def config_digest(config: Any) -> str:
    """The identity of a config, a dataclass or plain data: its digest, without what machines choose."""
    data = to_dict(config) if dataclasses.is_dataclass(config) else config
    return digest(
        without_later_settings(_each_machine_setting(data, lambda name, value, recorded: MACHINE_SETTINGS[name]))
    )


def without_later_settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same without later settings that say what was done before they existed."""
    return {
        name: without_later_settings(value) if isinstance(value, Mapping) else value
        for name, value in data.items()
        if name not in LATER_SETTINGS or value != LATER_SETTINGS[name]
    }


def settled(config: C, choice: str, recorded: Mapping[str, Any] | None = None) -> C:
    """Replace `auto` in machine settings by the `recorded` value (plain data of such a config), else by `choice`."""

    def settle(name: str, value: Any, before: Any) -> Any:
        return (choice if before is None else before) if value == AUTO else value

    return from_dict(type(config), _each_machine_setting(to_dict(config), settle, recorded or {}))


def unsettled(config: C) -> C:
    """Reset every machine setting of `config` to `auto`."""
    return from_dict(type(config), _each_machine_setting(to_dict(config), lambda name, value, recorded: AUTO))


def _each_machine_setting(
    data: Mapping[str, Any], change: Callable[[str, Any, Any], Any], recorded: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    recorded = recorded if isinstance(recorded, Mapping) else {}
    changed: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            changed[name] = _each_machine_setting(value, change, recorded.get(name))
        else:
            changed[name] = change(name, value, recorded.get(name)) if name in MACHINE_SETTINGS else value
    return changed


def leaves(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested plain data: every value by its dotted path, such as `posterior.steps`."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain nested data, ready for JSON, each value in its field's type: 1 in a float field is 1.0.

    Raises:
        UserError: a value that `from_dict` would not take back.
    """
    return _plain(from_dict(type(config), _plain(config)))


def _plain(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[C], data: Mapping[str, Any], *, where: str = "config") -> C:
    """Build a config of class `cls`; every key must exist and every value have its field's type.

    Raises:
        UserError: naming the field, what was expected and what was found.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: expected a table of settings, found {bare(repr(data))}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise did_you_mean(f"setting in {where}", str(key), fields)
    for name, field in fields.items():
        if name not in data and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: the setting {name} is missing")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def with_settings(config: C, settings: Iterable[str], *, prefix: str = "", others: Iterable[str] = ()) -> C:
    """Apply every `field.path=value` of `settings` to `config`; the later of two for one field wins.

    The result is validated once, at the end, so that settings which only fit together can be given in any order.
    A field that is itself a config also takes the name of one of its class's `NAMED` values:
    `posterior=published_code`.

    Args:
        prefix: precedes every path, such as `training.`.
        others: paths of other configs, which the error for an unknown setting may also suggest.

    Raises:
        UserError: an unknown setting, a value of the wrong type, or values that the config refuses.
    """
    tree, known = to_dict(config), setting_names(config, prefix)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise UserError(f"--set {setting!r}: expected field=value, such as {known[-1]}=...")
        if path not in known:
            raise did_you_mean("setting", path, [*known, *others])
        _assign(tree, type(config), path.removeprefix(prefix).split("."), text, path)
    return from_dict(type(config), tree, where="settings")


def setting_names(config: Any, prefix: str = "") -> list[str]:
    """The paths that `with_settings` accepts, each group before its members."""
    paths = []
    for field in dataclasses.fields(config):
        paths.append(prefix + field.name)
        if dataclasses.is_dataclass(getattr(config, field.name)):
            paths += setting_names(getattr(config, field.name), f"{prefix}{field.name}.")
    return paths


def _assign(tree: dict[str, Any], cls: type, path: list[str], text: str, full: str) -> None:
    hint = _fitting(typing.get_type_hints(cls)[path[0]], tree[path[0]])
    if len(path) > 1:
        _assign(tree[path[0]], hint, path[1:], text, full)
    elif dataclasses.is_dataclass(hint):
        named: Mapping[str, Any] = getattr(hint, "NAMED", {})
        if not named:
            inside = ", ".join(f"{full}.{field.name}" for field in dataclasses.fields(hint))
            raise UserError(f"setting {full} is a group; set what is in it: {inside}")
        if text not in named:
            raise did_you_mean(f"value for {full}", text, named)
        tree[path[0]] = to_dict(named[text])
    else:
        tree[path[0]] = _convert(hint, text if hint is str else _parse(text), f"setting {full}")


def _fitting(hint: Any, value: Any) -> Any:
    """Of a union of configs the first that has all of the value's settings; any other hint as it is."""
    kinds = [kind for kind in typing.get_args(hint) if dataclasses.is_dataclass(kind)]
    if len(kinds) < 2:
        return hint
    names = set(value) if isinstance(value, Mapping) else set()
    return next((kind for kind in kinds if names <= {field.name for field in dataclasses.fields(kind)}), kinds[0])


def _parse(text: str) -> Any:
    try:
        return json.loads({"True": "true", "False": "false", "None": "null", "none": "null"}.get(text, text))
    except ValueError:
        return text


def _convert(hint: Any, value: Any, where: str, else_what: str = "") -> Any:
    hint = _fitting(hint, value)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = [a for a in args if a is not type(None)]
        return _convert(hint, value, where, " or none" if type(None) in args else "")
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
        if hint is float and not math.isfinite(value):
            raise UserError(f"{where}: expected a finite number, found {value}")
        return value
    raise UserError(f"{where}: expected {hint.__name__}{else_what}, found {bare(repr(value))}")


def whole_number(name: str, value: Any, *, least: int) -> int:
    """Parse `value` as a whole number.

    Raises:
        UserError: it is not one, or is below `least`.
    """
    # lm-eval's parser gives some numbers as text and negative ones as floats.
    try:
        number = int(value) if float(value) == int(float(value)) else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number < least:
        raise UserError(f"{name}={value}: expected a whole number of at least {least}")
    return number
