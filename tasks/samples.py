"""Samples of finished results on the terminal: `ltm-eval ... --show-samples 3`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm.result import read_records, read_result, result_path

if TYPE_CHECKING:
    from ltm.result import Result


def show(results: Iterable[Result], output: Path, count: int) -> None:
    """Print the first `count` texts of each result that has texts, what was asked before them in brackets.

    The first are as good as any: samples are independent, and were not chosen. Of a problem the first one is shown,
    with the right answer.
    """
    for result in results:
        title = f"{result.model['name']} on {result.task['name']}"
        path = result_path(output, model=result.model["name"], task=result.task["name"], key=result.key)
        # As it was written: a result just built does not know its records' file.
        found = [texts for record in read_records(path, read_result(path)) or () if (texts := _texts(record))]
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
