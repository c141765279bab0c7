"""Samples of finished results on the terminal: `ltm-eval ... --show-samples 3`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ltm.result import cell_path, read_cell, read_records

if TYPE_CHECKING:
    from ltm.result import Cell


def show(cells: Iterable[Cell], results: Path, count: int) -> None:
    """Print the first `count` texts of each cell that has texts, the prompt before them in brackets.

    The first are as good as any: samples are independent, and were not chosen.
    """
    for cell in cells:
        title = f"{cell.model['name']} on {cell.task['name']}"
        path = cell_path(results, model=cell.model["name"], task=cell.task["name"], key=cell.key)
        # As it was written: a cell just built does not know its records' file.
        records = [
            record for record in read_records(path, read_cell(path)) or () if isinstance(record.get("text"), str)
        ]
        if not records:
            print(f"\n{title}: this task keeps no texts")
            continue
        for number, record in enumerate(records[:count], start=1):
            print(f"\n{title}, sample {number} of {len(records)}:")
            prompt = f"[{record['prompt']}]" if record.get("prompt") else ""
            print(prompt + _printable(record["text"]) if record["text"] else f"{prompt}(empty)")


def _printable(text: str) -> str:
    """Without what a terminal would obey: a model of bytes may say anything."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
