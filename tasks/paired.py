"""Differences between models on the same blocks, far more certain than two intervals laid side by side."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltm.result import Result
    from tasks.stats import Measured

PERPLEXITY = "token_perplexity"


def show(results: Sequence[Result], output: Path) -> None:
    """Print, for each text, how every further model differs from the first one that was named.

    Models with other tokens or other blocks cannot be paired, and are named below the table.
    """
    from tasks import report

    groups: dict[tuple[Any, ...], list[Result]] = defaultdict(list)
    for result in results:
        if result.metric(PERPLEXITY):
            groups[report.typed(result), result.data["fingerprint"]].append(result)
    rows, apart = [], []
    for (task, _), (first, *others) in groups.items():
        for result in others:
            names = f"{result.model['name']} − {first.model['name']}"
            if (found := difference(result, first, output)) is None:
                apart.append(f"{task}: {names}")
            else:
                rows.append((task, names, *_words(found, result, first)))
    if rows:
        _print(rows)
    if apart:
        print(textwrap.fill(f"Not paired, since tokens or blocks differ: {'; '.join(apart)}.", report.WIDTH))


def difference(result: Result, first: Result, output: Path) -> Measured | None:
    """Nats a token that the headline likelihood of `result` costs more than that of `first`; None on other blocks."""
    from tasks import stats

    if result.tokenizer["fingerprint"] != first.tokenizer["fingerprint"]:
        return None
    (nats_A, tokens_A), (nats_B, tokens_B) = (_blocks(one, output) for one in (result, first))
    try:
        return stats.paired_difference(nats_A, tokens_A, nats_B, tokens_B)
    except ValueError:
        return None


def _blocks(result: Result, output: Path) -> tuple[list[float], list[int]]:
    from ltm.result import read_records, read_result, result_path

    path = result_path(output, model=result.model["name"], task=result.task["name"], key=result.key)
    metric = result.metric(PERPLEXITY)
    assert metric is not None and metric.likelihood is not None
    # As written: a result that was just made does not know its records' file.
    records = read_records(path, read_result(path)) or []
    return [record[metric.likelihood] for record in records], [record["tokens"] for record in records]


def _words(found: Measured, result: Result, first: Result) -> tuple[str, str, str]:
    if found.ci95 is None:
        return f"{found.value:+.4f}", f"×{math.exp(found.value):.4f}", "one block: no saying"
    low, high = found.ci95
    kinds = {metric.kind for one in (result, first) if (metric := one.metric(PERPLEXITY))}
    verdict = "no difference seen" if low <= 0 <= high else "better" if high < 0 else "worse"
    if "estimate" in kinds:
        verdict = "~ an estimate: no saying"
    ratios = (math.exp(value) for value in (found.value, low, high))
    return (
        f"{found.value:+.4f} [{low:+.4f}, {high:+.4f}]",
        "×{:.3f} [{:.3f}, {:.3f}]".format(*ratios),
        verdict,
    )


def _print(rows: Sequence[tuple[str, ...]]) -> None:
    from tasks import report

    table = report.plain_table("On the same blocks, 95% intervals")
    for header in ("Task", "Models", "Nats/token", "Perplexity", "Verdict"):
        table.add_column(header, justify="left" if header in ("Task", "Models") else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    report.console().print(table)
    print("Compared are the numbers above: where one is a bound, the truth behind it may be lower still.")
