"""Result files as strangers may write them: one mutation, or a field of one's choice, with a digest that holds."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ltm.config import digest

HERE = "put it here"
"""Stands for a literal, which may be no JSON that Python would write."""
NUMBERS = (
    *("0", "1", "-1", "0.5", "1e308", "-1e308", "1e99", "-1e99", "5e-324", "1e-99", "1e999", "9007199254740992"),
    *("18446744073709551615", "-9223372036854775808", "1" * 5_001, "NaN", "Infinity", "-Infinity"),
)
TEXTS = (
    *('""', '"abc"', '"1.0"', '"x/../y"', '"=1+1"', '"[/bold]"', '"elbo"', '"a\\nb"', '"' + "é" * 399 + '"'),
    *(r'"\ud800"', r'"\u001b[31mred"', r'"\u202egnp"', r'"\u0000"', '"' + "x" * 19_999 + '"'),
)
OTHERS = (
    *("null", "true", "false", "[]", "[1]", '["a", "b"]', "[[]]", "{}", '{"a": 1}', '{"seed": {}}'),
    *('{"low": 0, "high": 1, "method": "m"}', '{"low": -1e99, "high": 1e99, "method": ""}'),
)
HUGE = ('"' + "x" * 5_000_000 + '"', "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000)


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in plain data, as (container, key)."""
    for key in list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield data, key
        yield from places(data[key])


def mutated(data: dict[str, Any], rng: random.Random, *, literal: str | None = None) -> bytes:
    """A result's plain data as a file after one mutation, half of the time with a digest that holds."""
    data = copy.deepcopy(data)
    old = digest(data)
    container, key = rng.choice(list(places(data)))
    kind = (
        "replace"
        if literal
        else rng.choice(("replace", "replace", "replace", "remove", "rename", "twice", "bytes", "cut"))
    )
    value = container[key]
    alike = NUMBERS if isinstance(value, int | float) else TEXTS if isinstance(value, str) else OTHERS
    literal = literal or rng.choice(rng.choice((alike, alike, NUMBERS, TEXTS, OTHERS)))
    if kind == "replace":
        container[key] = HERE
    elif kind == "remove":
        del container[key]
    elif kind == "rename" and isinstance(container, dict):
        container[f"{key}\x1b"] = container.pop(key)
    text = json.dumps(data, indent=2, sort_keys=True).replace(json.dumps(HERE), literal)
    if kind == "twice" and isinstance(container, dict):
        text = text.replace(f"{json.dumps(key)}: ", f"{json.dumps(key)}: {literal}, {json.dumps(key)}: ", 1)
    if rng.random() < 0.8:
        with suppress(ValueError, RecursionError):
            old = digest(json.loads(text))
    raw = bytearray(f'{{"digest": "{old}", {text[1:]}'.encode())
    if kind == "bytes":
        for _ in range(rng.choice((1, 3))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw[: rng.randrange(len(raw))] if kind == "cut" else raw)


def edited(path: Path, literal: str, *fields: Any) -> None:
    """Replace a field of a result's file by a literal, and bring the digest up to date."""
    data = container = json.loads(path.read_bytes())
    del data["digest"]
    for field in fields[:-1]:
        container = container[field]
    container[fields[-1]] = json.loads(literal)
    path.write_text(json.dumps({**data, "digest": digest(data)}, indent=2))
