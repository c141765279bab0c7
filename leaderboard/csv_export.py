"""All numbers of a board as one CSV: a row per metric, measured or reported, with all fields needed to filter them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from leaderboard.board import Board, tracks
from leaderboard.content import notation, reported
from leaderboard.entries import PERPLEXITY, Entry
from leaderboard.ranking import ranked
from ltm.untrusted.display import one_line

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What a formula begins with in spreadsheets; some take the wide forms too."""
HEADER = (
    *("source", "track", "tokenizer", "block_length", "eos_between_documents", "task", "version", "split", "text"),
    *("model", "row", "config", "training_seed", "training_tokens", "training_flops", "parameters"),
    *("metric", "likelihood", "headline", "kind", "audit", "rank", "value", "low", "high", "stderr_mc", "unit"),
    *("draws", "n", "commit", "result"),
)


def csv_table(board: Board) -> str:
    """Return the whole board as CSV: numbers in full, and texts that no spreadsheet takes for a formula.

    Raises:
        UserError: the records of a result do not give its perplexity.
    """
    labels_and_ranks: dict[Entry, tuple[str, str]] = {}
    for section in board.sections:
        for column in section.columns:
            ranks = ranked(section.rows, column)
            for row in section.rows:
                rank, shared = ranks.get(row.label, (None, False))
                text = "" if rank is None else f"{rank}{'=' if shared else ''}"
                labels_and_ranks |= {entry: (row.label, text) for entry in row.entries.get(column, ())}
    file = io.StringIO()
    writer = csv.DictWriter(file, HEADER, restval="", lineterminator="\n")
    writer.writeheader()
    track_of = tracks(board.entries)
    for entry in board.entries:
        for line in _rows(entry, track_of[entry], *labels_and_ranks.get(entry, (entry.result.model["name"], ""))):
            writer.writerow({name: _safe(value) for name, value in line.items()})
    writer.writerows(_reported())
    return file.getvalue()


def _rows(entry: Entry, track: str, label: str, rank: str) -> Iterable[dict[str, Any]]:
    result = entry.result
    common = {
        "source": "measured",
        "track": track,
        "tokenizer": result.tokenizer["name"],
        "block_length": result.scoring["block_length"],
        "eos_between_documents": result.scoring["eos_between_documents"],
        "task": result.task["name"],
        "version": result.task["version"],
        "split": result.task["split"],
        "text": result.data["fingerprint"][:8],
        "model": result.model["name"],
        "row": label,
        "config": result.model["config_digest"][:12],
        "training_seed": result.training["seed"],
        "training_tokens": result.training["tokens"],
        "training_flops": result.training["flops"],
        "parameters": result.cost["parameters"],
        "draws": result.scoring["draws"],
        "commit": result.provenance["commit"],
        "result": entry.name,
    }
    for metric in result.metrics:
        yield common | {
            "metric": metric.name,
            "likelihood": metric.likelihood,
            "headline": metric.headline,
            "kind": metric.kind,
            "audit": notation.audit(entry, metric.likelihood) if metric.likelihood else "",
            "rank": rank if metric.headline and metric.name == PERPLEXITY else "",
            "value": metric.value,
            "low": metric.ci95.low if metric.ci95 else None,
            "high": metric.ci95.high if metric.ci95 else None,
            "stderr_mc": metric.stderr_mc,
            "unit": metric.unit,
            "n": metric.n,
        }


def _reported() -> Iterable[dict[str, Any]]:
    for metric, papers in ((PERPLEXITY, reported.perplexities()), ("pass@5_legacy_substring, %", reported.gsm8k())):
        for paper in papers:
            for task, value in paper.values.items():
                if value is not None:
                    kind = "reported bound" if value.startswith("≤") else "reported"
                    yield {
                        "source": "reported",
                        "task": task,
                        "model": paper.model,
                        "row": paper.label,
                        "metric": metric,
                        "kind": kind,
                        "value": value.removeprefix("≤ "),
                    }


def _safe(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(FORMULA) else text
