"""Samples of finished results on the terminal: `ltm-eval ... --show-samples 3`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm.result import cell_path, read_cell, read_records

if TYPE_CHECKING:
    from ltm.result import Cell


def show(cells: Iterable[Cell], results: Path, count: int) -> None:
    """Print the first `count` texts of each cell that has texts, what was asked before them in brackets.

    The first are as good as any: samples are independent, and were not chosen. Of a problem the first one is shown,
    with the right answer.
    """
    for cell in cells:
        title = f"{cell.model['name']} on {cell.task['name']}"
        path = cell_path(results, model=cell.model["name"], task=cell.task["name"], key=cell.key)
        # As it was written: a cell just built does not know its records' file.
        found = [texts for record in read_records(path, read_cell(path)) or () if (texts := _texts(record))]
        if not found:
            print(f"\n{title}: this task keeps no texts")
        for number, (before, text, after) in enumerate(found[:count], start=1):
            print(f"\n{title}, sample {number} of {len(found)}:")
            print(f"{f'[{before}]' if before else ''}{_printable(text) or '(empty)'}{after}")


def _texts(record: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """What came before a text, the text, and what is to be said of it."""
    if isinstance(record.get("text"), str):
        return record.get("prompt", ""), record["text"], ""
    if record.get("texts"):
        return record["question"], record["texts"][0], f"\n(right: {record['gold']})"
    return None


def _printable(text: str) -> str:
    """Without what a terminal would obey: a model of bytes may say anything."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
