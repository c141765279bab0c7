"""Numbers that papers report, from reported.json: shown in italics below the measured ones, never ranked.

Digits are kept as printed, as text. Each row has its source and a list of how its protocol differs from ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from leaderboard.board import CORPORA, Section
from leaderboard.content.document import NOTHING, Part, Table

FILE = Path(__file__).with_name("reported.json")
SHOTS = {"ltm_gsm8k": "0", "ltm_gsm8k_5shot": "5", "ltm_gsm8k_10shot": "10", "": "not stated"}
"""Shots by task; the empty name is for lines of the figure that state no number of shots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """A row of a paper's table: `values` by task, as printed, None where the paper has no value."""

    model: str
    size: str
    flops_per_token: str
    tokens: str | None
    source: str
    differences: tuple[str, ...]
    values: Mapping[str, str | None]

    @property
    def label(self) -> str:
        """The model's name, marked as reported."""
        return f"{self.model}, reported"


@cache
def perplexities() -> tuple[Reported, ...]:
    """Return zero-shot perplexities, with `≤` where the paper prints it; all are per token of GPT-2's tokenizer."""
    return tuple(_row(row, CORPORA) for row in _data()["perplexity"])


@cache
def gsm8k() -> tuple[Reported, ...]:
    """Return pass@5 in per cent, by task."""
    shots = [{task: row.get(count) for task, count in SHOTS.items()} for row in _data()["gsm8k"]]
    return tuple(_row({**row, **values}, SHOTS) for row, values in zip(_data()["gsm8k"], shots, strict=True))


def comparable(section: Section) -> bool:
    """Return True if the section has the tokenizer of the reported perplexities."""
    return section.tokenizer == "gpt2"


def parts(tasks: Sequence[str]) -> list[Part]:
    """Return all that papers report, with sources and differences; GSM8K only if one of its tasks is in `tasks`."""
    header = ("Model", "Size", "trFLOPs/token", "Tokens", *CORPORA.values())
    listed = [
        Part(
            title="Reported elsewhere: zero-shot perplexity",
            text=(
                "Not measured here, not ranked. Tokens are GPT-2's, so nothing here can be set beside a section of "
                "another tokenizer; and every row differs from our protocol as said below the table.",
            ),
            table=Table(
                header=header,
                rows=(),
                reported=tuple(
                    (row.model, row.size, row.flops_per_token, row.tokens or NOTHING, *_values(row))
                    for row in perplexities()
                ),
            ),
        ),
        _sources("Where the reported perplexities come from", perplexities()),
    ]
    if set(tasks) & set(SHOTS):
        listed += [
            Part(
                title="Reported elsewhere: GSM8K, pass@5 in per cent",
                text=("Not measured here, not ranked. Read off a figure, to ± 0.3.",),
                table=Table(
                    header=("Model", *(f"Shots: {shots}" for shots in SHOTS.values())),
                    rows=(),
                    reported=tuple((row.model, *_values(row)) for row in gsm8k()),
                ),
            ),
            _sources("Where the reported GSM8K numbers come from", gsm8k()),
        ]
    return listed


def _values(row: Reported) -> tuple[str, ...]:
    return tuple(value or NOTHING for value in row.values.values())


def _sources(title: str, rows: Sequence[Reported]) -> Part:
    cited = tuple((row.model, row.source, " ".join(row.differences)) for row in rows)
    header = ("Model", "Source", "What its protocol does otherwise")
    return Part(title=title, level=3, folded=True, table=Table(header=header, rows=cited, words=(1, 2)))


def _row(row: Mapping[str, Any], tasks: Mapping[str, str]) -> Reported:
    data = _data()
    return Reported(
        model=row["model"],
        size=row.get("size", NOTHING),
        flops_per_token=row.get("flops_per_token", NOTHING),
        tokens=row.get("tokens"),
        source=data["sources"][row["source"]],
        differences=tuple(data["differences"][name] for name in row["differences"]),
        values={task: row[task] for task in tasks},
    )


@cache
def _data() -> dict[str, Any]:
    return json.loads(FILE.read_bytes())
