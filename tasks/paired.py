"""Differences between models on the same blocks, far more certain than two intervals laid side by side."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltm.result import Cell
    from tasks.stats import Measured

PERPLEXITY = "token_perplexity"


def show(cells: Sequence[Cell], output: Path) -> None:
    """Print, for each text, how every further model differs from the first one that was named.

    Models with other tokens or other blocks cannot be paired, and are named below the table.
    """
    from tasks import report

    groups: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.metric(PERPLEXITY):
            groups[report.typed(cell), cell.data["fingerprint"]].append(cell)
    rows, apart = [], []
    for (task, _), (first, *others) in groups.items():
        for cell in others:
            names = f"{cell.model['name']} − {first.model['name']}"
            if (found := difference(cell, first, output)) is None:
                apart.append(f"{task}: {names}")
            else:
                rows.append((task, names, *_words(found, cell, first)))
    if rows:
        _print(rows)
    if apart:
        print(textwrap.fill(f"Not paired, since tokens or blocks differ: {'; '.join(apart)}.", report.WIDTH))


def difference(cell: Cell, first: Cell, output: Path) -> Measured | None:
    """Nats a token that the headline likelihood of `cell` costs more than that of `first`; None on other blocks."""
    from tasks import stats

    if cell.tokenizer["fingerprint"] != first.tokenizer["fingerprint"]:
        return None
    (nats_A, tokens_A), (nats_B, tokens_B) = (_blocks(one, output) for one in (cell, first))
    try:
        return stats.paired_difference(nats_A, tokens_A, nats_B, tokens_B)
    except ValueError:
        return None


def _blocks(cell: Cell, output: Path) -> tuple[list[float], list[int]]:
    from ltm.result import cell_path, read_cell, read_records

    path = cell_path(output, model=cell.model["name"], task=cell.task["name"], key=cell.key)
    metric = cell.metric(PERPLEXITY)
    assert metric is not None and metric.likelihood is not None
    # As written: a cell that was just made does not know its records' file.
    records = read_records(path, read_cell(path)) or []
    return [record[metric.likelihood] for record in records], [record["tokens"] for record in records]


def _words(found: Measured, cell: Cell, first: Cell) -> tuple[str, str, str]:
    if found.ci95 is None:
        return f"{found.value:+.4f}", f"×{math.exp(found.value):.4f}", "one block: no saying"
    low, high = found.ci95
    kinds = {metric.kind for one in (cell, first) if (metric := one.metric(PERPLEXITY))}
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
