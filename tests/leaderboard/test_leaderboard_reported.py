"""Numbers from papers: digit for digit, with citations, in italics, below, and never ranked."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from pathlib import Path

import pytest
import torch

from leaderboard.board import board
from leaderboard.content import notation, page, reported
from leaderboard.content import sections as table
from leaderboard.content.document import NOTHING, Table
from leaderboard.csv_export import csv_table
from leaderboard.entries import load
from leaderboard.ranking import ranked
from leaderboard.render.markdown import markdown_table
from ltm.registry import preset
from ltm.result import write_result
from tests.support.result_factory import make_result

# ruff: noqa: E501  The table as it was published.
SEED_TABLE = """
| Model | Size | trFLOPs/tok | Tokens | PTB | WikiText | LM1B | LAMBADA | AG News | PubMed | Arxiv |
|---|---|---|---|---|---|---|---|---|---|---|
| GPT-2-Medium | 345M | 2.42G | - | 130.04 | 32.14 | 44.03 | 36.09 | 44.53 | 23.33 | 23.82 |
| GPT-2-Large | 762M | 5.32G | - | 161.33 | 30.09 | 45.61 | 34.26 | 39.93 | 68.15 | 21.01 |
| AR (Sahoo et al., 2024) | 110M | 0.85G | 524B | 82.05 | 25.75 | 51.25 | 51.28 | 52.09 | 49.01 | 41.73 |
| AR-Retrained | 76M | 0.46G | 105B | 258.95 | 52.49 | 107.37 | 61.55 | 110.31 | 60.61 | 55.35 |
| SEDD (Sahoo et al., 2024) | 110M | 0.85G | 524B | ≤ 100.09 | ≤ 34.28 | ≤ 68.20 | ≤ 49.86 | ≤ 62.09 | ≤ 44.53 | ≤ 38.48 |
| SEDD (Lou et al., 2024) | 345M | 2.42G | - | ≤ 87.12 | ≤ 29.98 | ≤ 61.19 | ≤ 42.66 | - | - | - |
| MDLM (Sahoo et al., 2024) | 110M | 0.85G | 524B | ≤ 95.26 | ≤ 32.83 | ≤ 67.01 | ≤ 47.52 | ≤ 61.15 | ≤ 41.89 | ≤ 37.37 |
| MD4 (Shi et al., 2024) | 345M | 2.42G | - | ≤ 66.07 | ≤ 25.84 | ≤ 51.45 | ≤ 44.12 | - | - | - |
| LTM-Small (T_fast = 16) | 38M | 4.07G | 7B | ≤ 34.71 | ≤ 18.87 | ≤ 23.59 | ≤ 19.31 | ≤ 34.76 | ≤ 22.73 | ≤ 21.67 |
| LTM-Medium (T_fast = 16) | 51M | 5.52G | 5.2B | ≤ 32.06 | ≤ 17.39 | ≤ 25.16 | ≤ 17.32 | ≤ 27.89 | ≤ 20.45 | ≤ 19.22 |
| LTM-Large (T_fast = 64) | 76M | 32.2G | 0.9B | ≤ 4.43 | ≤ 3.66 | ≤ 3.92 | ≤ 3.48 | ≤ 4.56 | ≤ 3.87 | ≤ 3.54 |
"""
GSM8K = (
    "GPT-2-Medium 8.2 / 8.6 / 8.8; GPT-2-Large 9.1 / 10.2 / 10.9; LTM-S 15.5 / 22.1 / 22.0; "
    "LTM-M 16.1 / 22.6 / 23.2; LTM-L 19.0 / 24.6 / 25.2; LTM-L with 192 latents 20.8 / 26.1 / 26.8; "
    "fine-tuned GPT-2-Medium 18.3; GPT-2-Medium with test-time search 20.8"
)


def shown(parts: list, title: str) -> Table:
    (table,) = [part.table for part in parts if part.title.startswith(title)]
    return table


def test_the_seed_table_is_shown_digit_for_digit() -> None:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in SEED_TABLE.strip().splitlines()]
    expected = [[cell.replace("-", NOTHING) if cell == "-" else cell for cell in line] for line in lines[2:]]
    perplexities = shown(reported.parts([]), "Reported elsewhere: zero-shot perplexity")
    assert [list(row) for row in perplexities.reported] == expected
    assert perplexities.header[4:] == tuple(lines[0][4:]) and perplexities.rows == ()


def test_the_bars_of_gsm8k_are_shown() -> None:
    table = shown(reported.parts(["ltm_gsm8k_5shot"]), "Reported elsewhere: GSM8K")
    bars = []
    for model, *values in table.reported:
        bars.append(f"{model} {' / '.join(str(value) for value in values if value != NOTHING)}")
    assert "; ".join(bars) == GSM8K
    assert not [part for part in reported.parts(["ltm_pydocs"]) if "GSM8K" in part.title]


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_our_count_by_the_papers_convention_reproduces_its_entries(size: str) -> None:
    cls, chosen = preset(f"ltm-{size}")
    with torch.device("meta"):
        model = cls(dataclasses.replace(chosen.config, vocab_size=50258))
    (row,) = [row for row in reported.perplexities() if row.model.startswith(f"LTM-{size.capitalize()}")]
    cost = model.cost(1023)
    assert notation.short(cost.paper_train_flops_per_token) == row.flops_per_token
    assert f"{cost.parameters / 1e6:.0f}M" == row.size
    assert row.model.endswith(f"(T_fast = {chosen.config.posterior.steps})")


def test_every_row_has_a_citation_and_says_what_it_does_otherwise() -> None:
    for row in (*reported.perplexities(), *reported.gsm8k()):
        assert re.search(r"\b(19|20)\d\d\b", row.source) and row.differences
        assert all(text.endswith(".") for text in row.differences)


def test_they_stand_in_italics_below_what_is_measured_and_take_no_rank(tmp_path: Path) -> None:
    gpt2 = {"name": "gpt2", "fingerprint": "9" * 64}
    for name, nats in (("ltm-small", 3.0), ("ar-small", 6.0)):
        family = name.partition("-")[0]
        write_result(make_result(name=name, family=family, nats=nats, task_name="ltm_ptb", tokenizer=gpt2), tmp_path)
    write_result(make_result(task_name="ltm_ptb"), tmp_path)
    other, section = sorted(board(load(tmp_path)).sections, key=lambda section: section.tokenizer)
    (column,) = section.columns
    for built in (table.overview(section), table.task_table(section, column)):
        assert [row[0] for row in built.rows] == ["ltm-small", "ar-small"]
        assert len(built.reported) == 11 and all(len(row) == len(built.header) for row in built.reported)
        lines = markdown_table(built)
        # The worst measured model stands above the best reported one.
        assert [line.startswith("| *") for line in lines] == [False] * 4 + [True] * 11
        assert "*LTM-Large (T_fast = 64), reported*" in lines[-1] and "*≤ 4.43*" in lines[-1]
    assert set(ranked(section.rows, column)) == {"ltm-small", "ar-small"}
    # Tokens of another tokenizer are not compared.
    assert table.overview(other).reported == ()
    rows = [row for row in csv.DictReader(io.StringIO(csv_table(board(load(tmp_path))))) if row["source"] == "reported"]
    # Seven corpora for nine models and four for two; three bars for six models and one for two.
    assert len(rows) == 9 * 7 + 2 * 4 + 6 * 3 + 2
    assert not any(row["rank"] for row in rows)


def test_they_are_on_every_board(tmp_path: Path) -> None:
    write_result(make_result(), tmp_path)
    titles = [part.title for part in page.parts(board(load(tmp_path)))]
    assert "Reported elsewhere: zero-shot perplexity" in titles
