"""Differences between models, and between commits."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaderboard.board import board
from leaderboard.content import sections
from leaderboard.csv_export import csv_table
from leaderboard.entries import load
from leaderboard.ranking import ranked
from leaderboard.verdicts import BETTER, HIGHER, LEVEL, LOWER, WORSE
from ltm.config import digest
from ltm.result import Interval, Metric, write_result
from tests.support.result_factory import audit, make_result, scored, two_sided

Run = Callable[..., int]


def said_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    lines = [line for line in capsys.readouterr().out.splitlines() if all(word in line for word in words)]
    assert len(lines) == 1, lines
    return lines[0]


def test_compare_is_paired_and_antisymmetric(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, shift in (("ar-a", 0.0), ("ar-b", 0.02), ("ar-c", 0.0001)):
        result, records = scored(name, shift)
        write_result(result, tmp_path / "results", records=records)
    numbers = {}
    for a, b, said in (("ar-a", "ar-b", WORSE), ("ar-b", "ar-a", BETTER), ("ar-a", "ar-c", LEVEL)):
        assert run("compare", a, b) == 0
        line = said_of(capsys, "pydocs")
        assert line.rstrip().endswith(said)
        numbers[a, b] = [float(x) for x in re.findall(r"[+-]\d+\.\d+", line)]
    there, back = numbers["ar-a", "ar-b"], numbers["ar-b", "ar-a"]
    assert there == pytest.approx([-back[0], -back[2], -back[1]], abs=1e-9)
    assert there[1] < there[0] < there[2] and there[0] == pytest.approx(0.02, abs=0.005)


def test_a_bound_that_is_beaten_on_both_sides_is_worse_beyond_doubt(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for result, records in (
        scored("ar-a", 0.0),
        scored("ar-b", 0.06),
        two_sided("ltm-far", 0.1, 0.05),
        two_sided("ltm-near", 0.1, -0.05),
    ):
        write_result(result, tmp_path / "results", records=records)
    for a, b, said in (
        ("ar-a", "ltm-far", WORSE),
        ("ltm-far", "ar-a", BETTER),
        ("ltm-near", "ar-a", LOWER),  # the other's bound loses, the truth may win
        ("ar-a", "ltm-near", HIGHER),
        ("ltm-near", "ltm-far", LEVEL),
        ("ar-b", "ltm-far", HIGHER),
        ("ar-a", "ar-b", WORSE),
    ):
        assert run("compare", a, b) == 0
        line = said_of(capsys, "pydocs")
        assert said.startswith(line.split("]")[1].strip()) and ("≥" in line) == ("ltm" in a + b), line
    # Ranks go by what is at most: the other side changes none.
    built = board(load(tmp_path / "results"))
    (section,) = built.sections
    assert [rank for rank, _ in ranked(section.rows, section.columns[0]).values()] == [1, 2, 3, 3]
    table = sections.overview(section)
    cells = {str(row[0]): str(row[1]) for row in table.rows}
    assert re.fullmatch(r"≥ \d+\.\d+, ≤ \d+\.\d+ \[\S+, \S+\]", cells["ltm-far"]), cells
    assert "≥" not in cells["ar-a"]
    rows = [row for row in csv.DictReader(io.StringIO(csv_table(built))) if row["kind"] == "upper_bound"]
    assert {(row["model"], row["rank"], row["headline"]) for row in rows} == {
        ("ltm-far", "", "False"),
        ("ltm-near", "", "False"),
    }


def test_models_with_several_seeds_are_compared_over_all_of_them(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    luck = {"ar-a": (0.0, 0.002, 0.001), "ar-b": (0.05, 0.054, 0.049, 0.051), "ltm-far": (0.1, 0.102, 0.099)}
    for name, shifts in luck.items():
        for seed, shift in enumerate(shifts):
            result, records = two_sided(name, shift, shift - 0.02) if name == "ltm-far" else scored(name, shift)
            model = {**result.model, "weights_digest": digest([name, seed])}
            result = dataclasses.replace(result, training={**result.training, "seed": seed}, model=model)
            write_result(result, tmp_path / "results", records=records)
    for other, seeds, mean in (("ar-b", "3 and 4 seeds", 0.05), ("ltm-far", "3 seeds", 0.0993)):
        assert run("compare", "ar-a", other) == 0
        line = said_of(capsys, "pydocs", seeds)
        assert WORSE in line
        value, low, high = (float(n) for n in re.findall(r"([+-][0-9.]+) +\[([+-][0-9.]+), ([+-][0-9.]+)\]", line)[0])
        assert value == pytest.approx(mean, abs=0.003) and low < value < high < low + 0.04


def test_commits_are_compared_model_by_model(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for commit, shift in (("a" * 40, 0.0), ("b" * 40, 0.02)):
        for name in ("ar-a", "ar-b"):
            changes: Any = {"provenance": {"commit": commit}, "model": {"weights_digest": commit[:1] * 64}}
            result, records = scored(name, shift, **changes)
            write_result(result, tmp_path / "results", records=records)
    assert run("compare", "aaaa", "bbbbbbb") == 0
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines() if WORSE in line] == ["ar-a", "ar-b"]
    assert run("compare", "aaaa", "cccc") == 2
    assert "unknown model or commit 'cccc'" in capsys.readouterr().err


def test_scores_are_compared_seed_by_seed_and_what_is_alone_is_counted(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seeds in (("ar-a", (0, 1, 2)), ("ar-b", (0, 1))):
        for seed in seeds:
            result = make_result(name=name, family="ar", task_name="ltm_sums", training_seed=seed)
            (first, *_) = result.metrics
            assert first.ci95 is not None
            ci95 = dataclasses.replace(first.ci95, low=0.4, high=0.6)
            accuracy = dataclasses.replace(first, name="accuracy", likelihood=None, value=0.5, ci95=ci95)
            write_result(dataclasses.replace(result, metrics=(accuracy,)), tmp_path / "results")
    write_result(make_result(name="ar-a", family="ar"), tmp_path / "results")
    assert run("compare", "ar-a", "ar-b") == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^ sums, accuracy", out, re.M)) == 2 and "sums, accuracy, seed 1" in out
    assert "Tasks of one side alone: 1." in out


def test_what_cannot_be_paired_or_told_apart_is_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(make_result(name="ar-a", family="ar", nats=3.0), tmp_path / "results")
    write_result(make_result(name="ar-b", family="ar", nats=3.5), tmp_path / "results")
    write_result(make_result(name="ar-c", family="ar", tokenizer={"fingerprint": "c" * 64}), tmp_path / "results")
    for width in (1, 2):
        model = {"config": {"width": width}, "config_digest": str(width) * 64}
        write_result(make_result(name="ltm-x", model=model), tmp_path / "results")
    assert run("compare", "ar-a", "ar-b") == 0
    assert "(not paired)" in capsys.readouterr().out
    assert run("compare", "ar-a", "ar-c") == 2
    assert "ar-a and ar-c have no task, text and tokenizer in common" in capsys.readouterr().err
    assert run("compare", "ar-a", "ltm-x") == 2
    assert "ltm-x stands for several results" in capsys.readouterr().err
    assert run("compare", "ar-a", "ltm-x (width 2)") == 0
    assert run("compare", "ar-a", "ar-bb") == 2
    assert "did you mean ar-b" in capsys.readouterr().err


def test_what_is_in_no_row_is_compared_with_the_row_of_the_same_model(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"ar-a": make_result(name="ar-a", family="ar")}
    for n, (label, config) in enumerate(
        {
            "ltm-x": {"width": 2, "depth": 1},
            "ltm-x (width 1)": {"width": 1, "depth": 1},
            "ltm-x (depth 2)": {"width": 2, "depth": 2},
        }.items()
    ):
        model = {"config": config, "config_digest": str(n) * 64, "weights_digest": str(n) * 64}
        made[label] = make_result(name="ltm-x", model=model)
    for label, result in made.items():
        write_result(result, tmp_path / "results")
        write_result(audit(result, {"elbo": label != "ltm-x (width 1)"}), tmp_path / "results")
    for label, verdict in (("ltm-x", "passed"), ("ltm-x (width 1)", "failed"), ("ltm-x (depth 2)", "passed")):
        assert run("compare", "ar-a", label) == 0
        assert re.search(rf"^ audit +passed +{verdict} ", capsys.readouterr().out, re.M), label


def test_results_of_a_task_under_several_settings_are_compared_setting_by_setting(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, solved in (("ar-a", 0.2), ("ar-b", 0.4)):
        for shots in (0, 5):
            result = make_result(name=name, family="ar", task_name="ltm_sums", scoring={"shots": shots, "draws": 5})
            score = Metric(
                name="pass@5", likelihood=None, headline=True, unit="problem", value=solved + shots / 100, kind="exact",
                n=100, direction="higher", ci95=Interval(low=0, high=1, method="exact"),
            )  # fmt: skip
            write_result(dataclasses.replace(result, metrics=(score,)), tmp_path / "results")
    assert run("compare", "ar-a", "ar-b") == 0
    out = capsys.readouterr().out
    assert re.findall(r"^ sums, pass@5, shots (\d) +([\d.]+) +([\d.]+) +([+\d.]+) ", out, re.M) == [
        ("0", "0.2000", "0.4000", "+0.2000"),
        ("5", "0.2500", "0.4500", "+0.2000"),
    ]
