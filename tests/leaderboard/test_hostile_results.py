"""Result files of strangers: whatever is in them, the commands say what is wrong, soon and in printable characters."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from leaderboard import cli
from leaderboard.board import board
from leaderboard.build import files
from leaderboard.compare import compare
from leaderboard.content import page
from leaderboard.entries import load
from leaderboard.ranking import claim
from leaderboard.render.terminal import print_parts
from leaderboard.verify import verify
from ltm.config import digest
from ltm.errors import UserError
from ltm.result import Result, find_results, read_records, read_result, result_path, to_dict, write_result
from tests.support.result_factory import make_result

GOLDEN = Path(__file__).parents[1] / "golden" / "results"
SECONDS = 2.0
"""What one file may take."""
MUTANTS = 2_000
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
    kind = "replace" if literal else rng.choice(("replace", "replace", "replace", "remove", "rename", "twice", "bytes", "cut"))
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
        try:
            old = digest(json.loads(text))
        except (ValueError, RecursionError):
            pass
    raw = bytearray(f'{{"digest": "{old}", {text[1:]}'.encode())
    if kind == "bytes":
        for _ in range(rng.choice((1, 3))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw[: rng.randrange(len(raw))] if kind == "cut" else raw)


def everything(results: Path) -> None:
    """What the commands do with a results directory, without the command line."""
    verify(results)
    built = board(load(results))
    files(built, results / "LEADERBOARD.md")
    console = Console(file=io.StringIO(), width=100, markup=False)
    print_parts(page.brief(built), console)
    names = list(dict.fromkeys(entry.result.model["name"] for entry in built.entries))
    for name in names[1:]:
        with suppress(UserError):  # nothing in common
            compare(built, names[0], name, console)
    assert not set(console.file.getvalue()) & set("\x1b\u202e\x00")  # type: ignore[attr-defined]


def originals(folder: Path) -> list[Path]:
    """Results of all kinds, each in a results directory with its records, and if it is a perplexity with another."""
    paths = []
    for i, path in enumerate(find_results(GOLDEN)):
        result = read_result(path)
        records = read_records(path, result) or []
        paths.append(write_result(result, folder / str(i), records=records[:8] if "ids" in records[0] else records))
    for name, family in (("ltm-tiny", "ltm"), ("ar-tiny", "ar")):
        likelihoods = ("elbo", "importance_bound", "reused_noise_estimate") if family == "ltm" else ("exact",)
        records = [{"block": i, "tokens": 255, **{n: -255 * 3.2 for n in likelihoods}} for i in range(20)]
        other = make_result(name="ar-small", family="ar", nats=3.1)
        write_result(other, folder / name, records=[{"block": i, "tokens": 255, "exact": -255 * 3.1} for i in range(20)])
        paths.append(write_result(make_result(name=name, family=family), folder / name, records=records))
    return paths


def tried(path: Path, content: bytes) -> str:
    """Put a file in the place of a result and do everything; return `read` or why it was refused."""
    began, before, results = time.perf_counter(), path.read_bytes(), path.parents[2]
    path.write_bytes(content)
    try:
        result = read_result(path)
        place = result_path(results, model=result.model["name"], task=result.task["name"], key=result.key)
        if place != path:
            path.unlink()
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        try:
            everything(results)
            return "read"
        finally:
            if place != path:
                place.unlink()
    except UserError as error:
        said = str(error)
        assert len(said) < 2_000 and said.replace("\n", "").isprintable(), said[:300]
        return said
    finally:
        path.write_bytes(before)
        claim.cache_clear()
        assert time.perf_counter() - began < SECONDS, content[:300]
