"""Result files of strangers: whatever is in one, it is read, or what is wrong is said, soon and in a few words."""

from __future__ import annotations

import io
import json
import random
import time
from collections import Counter
from contextlib import suppress
from itertools import groupby, islice
from pathlib import Path

import pytest
from rich.console import Console

from leaderboard.board import board
from leaderboard.build import files
from leaderboard.compare import compare
from leaderboard.content import page
from leaderboard.entries import load
from leaderboard.ranking import claim
from leaderboard.render.terminal import print_parts
from leaderboard.verify import verify
from ltm.errors import UserError
from ltm.result import find_results, read_records, read_result, result_path, write_result
from tests.support.mutated_results import HUGE, mutated
from tests.support.result_factory import make_result

GOLDEN = Path(__file__).parents[1] / "golden" / "results"
SECONDS = 2.0
"""Of computing that one file may take; wall time would depend on what else the machine does."""
MUTANTS = 2_000


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
    for path in find_results(GOLDEN):
        result = read_result(path)
        if result.metric("token_perplexity") is None:
            parts = groupby(read_records(path, result) or [], key=lambda record: record.get("part"))
            few = [record for _, part in parts for record in islice(part, 6)]  # enough, and quick
            paths.append(write_result(result, folder / path.parent.name, records=few))
    for name, family in (("ltm-tiny", "ltm"), ("ar-tiny", "ar")):
        likelihoods = ("elbo", "importance_bound", "reused_noise_estimate") if family == "ltm" else ("exact",)
        records = [{"block": i, "tokens": 255, **{n: -255 * 3.2 for n in likelihoods}} for i in range(20)]
        other = make_result(name="ar-small", family="ar", nats=3.1)
        write_result(
            other, folder / name, records=[{"block": i, "tokens": 255, "exact": -255 * 3.1} for i in range(20)]
        )
        paths.append(write_result(make_result(name=name, family=family), folder / name, records=records))
    return paths


def tried(path: Path, content: bytes) -> str:
    """Put a file in the place of a result and do everything; return `read` or why it was refused."""
    began, before, results = time.process_time(), path.read_bytes(), path.parents[2]
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
        assert time.process_time() - began < SECONDS, content[:300]


def test_whatever_a_result_file_holds_is_read_or_refused(tmp_path: Path) -> None:
    rng, paths, outcomes = random.Random(15), originals(tmp_path), Counter[bool]()
    for path in paths:
        everything(path.parents[2])
    sound = {path: json.loads(path.read_bytes()) for path in paths}
    for data in sound.values():
        del data["digest"]
    for _ in range(MUTANTS):
        path = rng.choice(paths)
        outcomes[tried(path, mutated(sound[path], rng)) == "read"] += 1
    # Both happen: mutants come as far as the board, and are not all sound.
    assert outcomes[True] > MUTANTS / 20 and outcomes[False] > MUTANTS / 2


@pytest.mark.parametrize("literal", HUGE, ids=("long", "deep list", "deep object"))
def test_what_is_huge_is_refused_at_once(tmp_path: Path, literal: str) -> None:
    rng, path = random.Random(1), originals(tmp_path)[-1]
    data = json.loads(path.read_bytes())
    del data["digest"]
    for _ in range(5):
        assert "expected" in tried(path, mutated(data, rng, literal=literal))
