"""Audits, equal budgets, Pareto fronts, curves, plots, the CSV, and differences between models and commits."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import random
import re
import shutil
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from leaderboard import compare, labels
from leaderboard.board import Board, board
from leaderboard.build import files
from leaderboard.content import audits, cost_views, generation_views, page, sections, task_results, time_taken
from leaderboard.content.document import Axis, Figure, Part, Point, Series, Value
from leaderboard.csv_export import csv_table
from leaderboard.entries import Entry, audited, load
from leaderboard.ranking import ranked
from leaderboard.render import svg, terminal
from leaderboard.verdicts import BETTER, HIGHER, LEVEL, LOWER, WORSE
from leaderboard.verify import verify
from ltm.result import NO_TWIN, Metric, Result, write_result
from tests.support.result_factory import make_result, scored, two_sided

GOLDEN = Path(__file__).parents[1] / "golden" / "results"
Run = Callable[..., int]


def build(directory: Path, *results: Result) -> Board:
    for result in results:
        write_result(result, directory)
    return board(load(directory))


def rows_of(part: Part) -> tuple[tuple[str | Value, ...], ...]:
    assert part.table is not None
    return part.table.rows


# Audits.


def audit(of: Result, verdicts: dict[str, bool], *, claimed: float = 2.4, source: float = 2.3, n: int = 256) -> Result:
    """An audit result of the model of another result."""

    def metric(name: str, likelihood: str | None, value: float, headline: bool = False) -> Metric:
        return Metric(
            name=name, likelihood=likelihood, headline=headline, unit="nats", value=value, kind="exact", n=n,
            direction="higher",
        )  # fmt: skip

    metrics = []
    for i, (likelihood, passed) in enumerate(verdicts.items()):
        metrics.append(metric("audit_passed", likelihood, float(passed), headline=i == 0))
        metrics.append(metric("audit_log_e_value", likelihood, -10.0 if passed else 500.0))
        metrics.append(metric("audit_claimed_nats_per_token", likelihood, claimed if passed else source - 0.1))
        metrics.append(metric("audit_total_mass", likelihood, 0.9))
    metrics.append(metric("audit_source_nats_per_token", None, source))
    metrics.append(metric("audit_source_entropy_per_token", None, source - 0.01))
    return dataclasses.replace(
        of,
        task={"name": "ltm_audit", "version": 1.0, "split": "test"},
        data={**of.data, "corpus": "topics", "fingerprint": "7" * 64},
        metrics=tuple(metrics),
    )


def test_a_failed_likelihood_loses_its_kind_and_its_rank_on_every_corpus(tmp_path: Path) -> None:
    good, bad = make_result(name="ar-tiny", family="ar", nats=3.3), make_result(nats=3.0)
    elsewhere = make_result(nats=3.0, task_name="ltm_ptb", fingerprint="e" * 64)
    verdicts = {"elbo": False, "importance_bound": True}
    built = build(tmp_path, good, bad, elsewhere, audit(bad, verdicts), audit(good, {"exact": True}))
    (section,) = built.sections
    for column in section.columns:
        assert "ltm-tiny" not in ranked(section.rows, column)
    pydocs = next(column for column in section.columns if column.title == "pydocs")
    assert ranked(section.rows, pydocs) == {"ar-tiny": (1, False)}
    shown = sections.task_table(section, pydocs)
    rows = {row[0]: dict(zip(shown.header, map(str, row), strict=True)) for row in shown.rows}
    assert rows["ltm-tiny"]["Perplexity"].startswith("~ ") and rows["ltm-tiny"]["Audit"] == "failed"
    assert rows["ltm-tiny"]["Bits/byte"].startswith("~ ") and rows["ltm-tiny"]["Word perplexity"].startswith("~ ")
    # Its other likelihood passed, and is the bound that it was.
    assert rows["ltm-tiny"]["Importance bound"].startswith("≤ ")
    assert rows["ar-tiny"]["Audit"] == "passed"
    # No view of what costs what takes it for a number.
    against = [part for part in cost_views.parts(section, "x") if "against" in part.title]
    assert "ltm-tiny" not in {str(row[0]) for part in against for row in rows_of(part)}
    # The files are as they were.
    assert load(tmp_path)[0].result.metrics != () and any(
        "lower_bound" in str(e.result.metrics) for e in load(tmp_path)
    )


def test_verdicts_go_by_configuration_and_one_failure_outweighs_passes(tmp_path: Path) -> None:
    one, other = make_result(), make_result(model={"config": {"width": 64}, "config_digest": "4" * 64}, nats=3.5)
    again = make_result(training_seed=1)
    results = [one, other, again, audit(one, {"elbo": True}), audit(again, {"elbo": False})]
    (section,) = build(tmp_path, *results).sections
    kinds = {str(row.label): str(row.first.metric("token_perplexity").kind) for row in section.rows}  # type: ignore[union-attr]
    assert kinds == {"ltm-tiny (width 64)": "lower_bound", "ltm-tiny (width 128)": "estimate"}
    verdicts = {row.label: sections._audit(row) for row in section.rows}
    assert verdicts == {"ltm-tiny (width 64)": "not audited", "ltm-tiny (width 128)": "failed"}


def test_a_verdict_holds_for_its_family_its_code_and_its_training_alone(tmp_path: Path) -> None:
    shape = {"config": {"width": 64}, "config_digest": "4" * 64}
    seen = make_result(model={**shape, "class": "a.A", "code": "1" * 64})
    verdict = audit(seen, {"elbo": True})

    def verdicts(**changes: Any) -> dict[str, bool]:
        sections = {"model": {**seen.model, **changes.get("model", {})}, "training": changes.get("training", {})}
        other = dataclasses.replace(
            seen,
            model={k: v for k, v in sections["model"].items() if v is not None},
            training={**seen.training, **sections["training"]},
        )
        places = [Path("x"), Path("y")]
        entries = [Entry(path=path, result=result) for path, result in zip(places, (other, verdict), strict=True)]
        return dict(audited(entries)[0].audit)

    passed, other_weights = {"elbo": True}, {"weights_digest": "5" * 64}
    assert verdicts() == passed
    # Another seed of the same training; older results, which do not say what code they are of.
    assert verdicts(model=other_weights, training={"seed": 3, "recipe": {"seed": 3}}) == passed
    assert verdicts(model={"class": None, "code": None}) == passed
    assert verdicts(model={"name": "renamed"}) == passed
    for changes in (
        {"model": {"family": "other"}},
        {"model": {"class": "b.A"}},
        {"model": {"code": "2" * 64}},
        {"model": {"config_digest": "6" * 64}},
        {"model": other_weights, "training": {"tokens": 7}},
        {"model": other_weights, "training": {"recipe": {"lr": 1.0}}},
        {"model": other_weights, "training": {"data_fingerprint": None}},
    ):
        assert verdicts(**changes) == {}, changes


def test_an_older_version_of_the_audit_says_nothing_where_there_is_a_newer_one(tmp_path: Path) -> None:
    seen, other = make_result(), make_result(name="ar-tiny", family="ar")
    newer = dataclasses.replace(
        audit(other, {"exact": True}), task={"name": "ltm_audit", "version": 2.0, "split": "test"}
    )
    results = [seen, audit(seen, {"elbo": True}), newer]
    entries = audited([Entry(path=Path(str(i)), result=result) for i, result in enumerate(results)])
    assert dict(entries[0].audit) == {}


def test_a_pass_with_reservations_says_which(tmp_path: Path) -> None:
    """Short audits are placed, since a refutation counts however short; a whole audit outweighs them if all pass."""
    short, both, elsewhere = (make_result(name=name, family=name) for name in ("ar-tiny", "md4-tiny", "pretrained:r"))
    audits_of = {
        result.model["name"]: dataclasses.replace(
            audit(result, {"exact": True}), scoring={**result.scoring, "twin": {}}
        )
        for result in (short, both, elsewhere)
    }
    quick = {
        name: dataclasses.replace(result, status="partial", scoring={**result.scoring, "blocks": 12})
        for name, result in audits_of.items()
    }
    lone = dataclasses.replace(
        audits_of["pretrained:r"],
        scoring={**elsewhere.scoring, "twin": NO_TWIN, "blocks": 0},
        metrics=tuple(m for m in audits_of["pretrained:r"].metrics if m.name in ("audit_passed", "audit_total_mass")),
    )
    for result in (short, both, elsewhere, quick["ar-tiny"], quick["md4-tiny"], audits_of["md4-tiny"]):
        write_result(result, tmp_path)
    records: list[dict[str, object]] = [
        {"part": "check", "check": "accounting", "likelihood": "exact", "passed": True},
        {"part": "check", "check": "total_mass", "likelihood": None, "passed": None, "detail": "no twin: why"},
    ]
    write_result(lone, tmp_path, records=records)
    assert verify(tmp_path)[1] == []
    built = board(load(tmp_path))
    (section,) = built.sections
    assert {row.label: sections._audit(row) for row in section.rows} == {
        "ar-tiny": "passed (short)",
        "md4-tiny": "passed",
        "pretrained:r": "passed (no twin)",
    }
    (entries,) = built.audits
    part, every = audits.parts(entries, "Audit")
    rows = [dict(zip(every.table.header, row, strict=True)) for row in every.table.rows]  # type: ignore[union-attr]
    verdicts = sorted((str(row["Model"]), str(row["Verdict"])) for row in rows if row["Model"] != audits.LINE)
    assert verdicts == [
        ("ar-tiny", "passed (short)"),
        ("md4-tiny", "passed"),
        ("md4-tiny", "passed (short)"),
        ("pretrained:r", "passed (no twin)"),
    ]
    (alone,) = (row for row in rows if row["Model"] == "pretrained:r")
    assert {str(alone[name]) for name in ("Source", "Claimed, nats/token", "Log e-value", "Threshold")} == {"–"}
    assert "checks not made: total mass" in alone["Verdict"].tip
    assert "ar-tiny: audited on 12 texts only" in part.text
    assert "pretrained:r: made elsewhere, so without a twin; checks not made: total mass" in part.text
    assert built.not_shown == {} and "passed (short)" in csv_table(built)
    # A failure in a short audit is a failure.
    refuted = [dataclasses.replace(m, value=0.0) if m.name == "audit_passed" else m for m in quick["md4-tiny"].metrics]
    write_result(dataclasses.replace(quick["md4-tiny"], metrics=tuple(refuted)), tmp_path)
    (section,) = board(load(tmp_path)).sections
    assert {row.label: sections._audit(row) for row in section.rows}["md4-tiny"] == "failed"
    # A short audit is no second result of a model to compare.
    compare.compare(built, "md4-tiny", "ar-tiny", Console(file=io.StringIO()))


def test_the_audit_table_has_the_line_that_no_model_can_be_below(tmp_path: Path) -> None:
    results = [make_result(), make_result(name="ar-tiny", family="ar")]
    verdicts = [audit(results[0], {"elbo": False}), audit(results[1], {"exact": True})]
    built = build(tmp_path, *results, *verdicts)
    (entries,) = built.audits
    verdict, every = audits.parts(entries, "Audit")
    assert verdict.table is not None and every.table is not None and every.folded and not verdict.folded
    assert [str(row[1]) for row in verdict.table.rows] == ["failed", "passed"]
    rows = [dict(zip(every.table.header, map(str, row), strict=True)) for row in every.table.rows]
    assert [row["Model"] for row in rows] == [
        "ltm-tiny",
        "the source itself: no model can need less",
        "ar-tiny",
    ]
    assert rows[0]["Verdict"] == "failed" and float(rows[0]["Log e-value"]) > float(rows[0]["Threshold"]) > 4.6
    assert float(rows[0]["Claimed, nats/token"]) < float(rows[1]["Claimed, nats/token"]) == 2.29
    assert rows[2]["Total mass"] == "0.9000"
    assert [part.title for part in page.parts(built)].count("Audit") == 1
    # An audit is no task that models are compared by.
    assert built.others == ()
    # A terminal gets the verdicts too.
    stream = io.StringIO()
    terminal.print_parts(page.brief(built), Console(file=stream, width=terminal.TERMINAL_WIDTH))
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert ["ltm-tiny", "failed", "elbo", "–", "500.0"] in lines and [
        "ar-tiny",
        "passed",
        "exact",
        "–",
        "-10.00",
    ] in lines


# At equal cost.


def test_groups_are_of_what_is_equal(tmp_path: Path) -> None:
    results = [make_result(name=f"ar-{t}", family="ar", training={"tokens": t}) for t in (100, 104, 106, 200, 300, 310)]
    (section,) = build(tmp_path, *results).sections
    groups = cost_views.groups(section.rows, 1.05, lambda row: row.first.training["tokens"])
    assert [[row.label for row in group] for group in groups] == [["ar-100", "ar-104"], ["ar-300", "ar-310"]]
    assert cost_views.groups(section.rows, 1.05, lambda row: None) == []
    titles = {part.title for part in cost_views.parts(section, "x")}
    assert {"At equal training tokens", "At equal training compute"} <= titles
    (alone,) = build(tmp_path / "alone", results[0]).sections
    assert cost_views.parts(alone, "x") == []


def test_ranks_of_a_group_are_within_the_group(tmp_path: Path) -> None:
    results = [
        make_result(name=name, family="ar", nats=nats, training={"tokens": tokens})
        for name, nats, tokens in (("best", 3.0, 900), ("a", 3.2, 100), ("b", 3.4, 100))
    ]
    (section,) = build(tmp_path, *results).sections
    part = next(part for part in cost_views.parts(section, "x") if part.title == "At equal training tokens")
    assert part.table is not None
    assert [re.sub(r".*\((\d+=?)\)$", r"\1", str(row[1])) for row in part.table.rows] == ["1", "2"]
    assert [row[0] for row in part.table.rows] == ["a", "b"]


def test_the_front_is_what_nothing_dominates() -> None:
    rng = random.Random(0)
    points = [(rng.randrange(1, 12), rng.randrange(1, 12)) for _ in range(60)]
    dominators = cost_views.dominated([cost for cost, _ in points], [worth for _, worth in points])
    for point, by in zip(points, dominators, strict=True):
        better = [p for p in points if p != point and p[0] <= point[0] and p[1] <= point[1]]
        assert (by is None) == (not better)
        if by is not None:
            assert points[by] in better and points[by][1] == min(worth for _, worth in better)
    assert cost_views.dominated([], []) == [] and cost_views.dominated([1, 1], [2, 2]) == [None, None]


def test_the_pareto_view_marks_who_is_dominated_and_counts_who_is_left_out(tmp_path: Path) -> None:
    results = [
        make_result(name=name, family="ar", nats=nats, training={"flops": flops})
        for name, nats, flops in (("cheap", 4.0, 1e13), ("good", 3.0, 1e14), ("worse", 3.5, 2e14))
    ]
    (section,) = build(tmp_path, *results).sections
    (part,) = [part for part in cost_views.parts(section, "x") if part.title == "pydocs against compute"]
    assert part.table is not None and len(part.figures) == 2
    assert {row[0]: row[3] for row in part.table.rows} == {"cheap": "front", "good": "front", "worse": "good"}
    # All score at the same cost, so there only the best is on the front.
    assert {row[0]: row[5] for row in part.table.rows} == {"cheap": "good", "good": "front", "worse": "good"}
    assert [p.faint for p in part.figures[0].series[0].points] == [row[3] != "front" for row in part.table.rows]
    free = [make_result(name=f"count-{i}", family="ar", nats=4.0 + i, training={"flops": 0.0}) for i in range(2)]
    (section,) = build(tmp_path / "free", *free).sections
    (part,) = [part for part in cost_views.parts(section, "x") if "against" in part.title]
    assert "Of unknown cost, and in no plot: 2." in part.text[0]


# Other tasks.


def test_diagnostics_give_curves_and_generation_gives_entropy() -> None:
    built = board(load(GOLDEN))
    names = labels.titles(built.others)
    groups = [task_results.parts(entries, name) for entries, name in zip(built.others, names, strict=True)]
    parts = {part.title: part for group in groups for part in group}
    (curve,) = parts["Bounds by fast steps"].figures
    elbo, importance = curve.series
    assert [text for _, text in curve.x.ticks] == ["0", "1", "2", "4", "8", "16", "32", "64"]
    assert all(a.y >= b.y for a, b in zip(elbo.points, importance.points, strict=True)) and importance.dashed
    written = [float(str(row[2]).removeprefix("≤ ")) for row in rows_of(parts["Bounds by fast steps"])]
    assert written == [round(p.y, 4) for p in elbo.points]
    table = parts["Bounds by fast steps"].table  # of a result from before there was an upper bound
    assert table is not None and len(table.header) == 5 and "From above" not in str(table.header)
    (scatter,) = parts["continuation"].figures
    assert [series.name for series in scatter.series] == ["samples", "human text"]
    (point,) = scatter.series[0].points
    (entry,) = [entry for entry in built.entries if entry.result.task["name"] == "ltm_continuation"]
    values = {metric.name: metric.value for metric in entry.result.metrics}
    assert (point.x, point.y) == (values["unigram_entropy"], values["gen_ppl[ar-tiny]"])
    assert [row[0] for row in rows_of(parts["continuation"])] == ["ar-tiny", "human text"]


def test_two_texts_of_one_task_have_two_names(tmp_path: Path) -> None:
    metric = Metric(name="pass@5", likelihood=None, headline=True, unit="problem", value=0.2, kind="exact", n=5)
    chance = dataclasses.replace(metric, name="chance_prior_pass@5", headline=False, value=0.3)
    results = [
        dataclasses.replace(make_result(task_name="ltm_sums", fingerprint=f * 64), metrics=(metric, chance))
        for f in "ab"
    ]
    built = build(tmp_path, *results)
    assert labels.titles(built.others) == ["sums (text aaaaaaaa)", "sums (text bbbbbbbb)"]
    shown = task_results.table(built.others[0])
    assert shown.header[:2] == ("Model", "pass@5 ↓") and [str(row[0]) for row in shown.rows] == [
        "ltm-tiny",
        "chance: prior",
    ]
    assert [str(row[1]) for row in shown.rows] == ["0.2000", "0.3000"]


def test_columns_of_a_task_are_in_the_order_in_which_results_bring_them(tmp_path: Path) -> None:
    def metric(name: str, headline: bool = False) -> Metric:
        return Metric(name=name, likelihood=None, headline=headline, unit="x", value=0.5, kind="exact", n=5)

    by_model = {"a": (metric("old"), metric("main", True)), "b": (metric("new"), metric("main", True))}
    results = [
        dataclasses.replace(make_result(name=model, task_name="ltm_sums"), metrics=metrics)
        for model, metrics in by_model.items()
    ]
    shown = task_results.table(build(tmp_path, *results).others[0])
    assert shown.header[1:4] == ("main ↓", "old ↓", "new ↓")
    assert [tuple(map(str, row[1:4])) for row in shown.rows] == [("0.5000", "0.5000", "–"), ("0.5000", "–", "0.5000")]


# Plots and the CSV.


def figure(points: list[tuple[float, float]], **axes: Axis) -> Figure:
    marks = tuple(Point(x=x, y=y, label=f"<b>{i}</b>", tip='"&\x00\u202e') for i, (x, y) in enumerate(points))
    axes = {"x": Axis(label="x < y", log=True), "y": Axis(label="y"), **axes}
    return Figure(
        name="f", title="<script>", words="w", series=(Series(name="s & t", points=marks, joined=True),), **axes
    )


@pytest.mark.parametrize("points", [[(1.0, 2.0)], [(1e-3, 0.0), (1e12, 1e-9)], [(5.0, 7.0), (5.0, 7.0)], []])
def test_plots_are_sound_xml_with_every_point_inside(points: list[tuple[float, float]]) -> None:
    text = svg.svg(figure(points))
    root = ElementTree.fromstring(text)
    assert text == svg.svg(figure(points))
    space = "{http://www.w3.org/2000/svg}"
    circles = root.findall(f"{space}circle")
    assert len(circles) == len(points)
    for circle in circles:
        assert svg.LEFT <= float(circle.attrib["cx"]) <= svg.WIDTH - svg.RIGHT
        assert svg.TOP <= float(circle.attrib["cy"]) <= svg.HEIGHT - svg.BOTTOM
    assert "<b>" not in text and "<script>" not in text and root.attrib["role"] == "img"


def test_larger_values_are_further_along_and_logarithms_keep_ratios() -> None:
    circles = ElementTree.fromstring(svg.svg(figure([(1, 1), (10, 2), (100, 3)]))).findall(
        "{http://www.w3.org/2000/svg}circle"
    )
    (x0, x1, x2), (y0, y1, y2) = ([float(c.attrib[k]) for c in circles] for k in ("cx", "cy"))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and x1 > x0
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and y1 < y0


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0.3, 0.9, False), (-5, 5, False), (2, 2.2, True), (0, 1.5, True), (5, 13, True)]
)
def test_ticks_are_few_and_inside(low: float, high: float, log: bool) -> None:
    ticks = svg._round_numbers(low, high, log=log)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= (math.log10(t) if log else t) <= high + 1e-9 for t in ticks)


def test_the_csv_has_every_metric_in_full_and_no_formulas(tmp_path: Path) -> None:
    built = build(tmp_path, make_result(name="=cmd|' /C calc'!A0"), make_result(name="ar-tiny", family="ar", nats=3.4))
    rows = [row for row in csv.DictReader(io.StringIO(csv_table(built))) if row["source"] == "measured"]
    assert len(rows) == sum(len(entry.result.metrics) for entry in built.entries)
    assert {row["model"] for row in rows} == {"'=cmd|' /C calc'!A0", "ar-tiny"}
    by = {(row["model"], row["metric"], row["likelihood"]): row for row in rows}
    row = by["ar-tiny", "token_perplexity", "exact"]
    assert float(row["value"]) == math.exp(3.4) and row["rank"] == "2" and row["audit"] == "not audited"
    assert by["ar-tiny", "bits_per_byte", "exact"]["rank"] == ""


# Differences.


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
            training, model = {**result.training, "seed": seed}, {**result.model, "weights_digest": f"{seed}" * 64}
            result = dataclasses.replace(result, training=training, model=model)
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


# Size.


def test_two_thousand_results_build_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    rng = random.Random(0)
    for model in range(250):
        for task in range(8):
            nats = 3 + model / 200 + task / 10 + rng.gauss(0, 0.003)
            result = make_result(
                name=f"ar-{model}",
                family="ar",
                nats=nats,
                task_name=f"ltm_t{task}",
                fingerprint=str(task) * 64,
                training={"tokens": 1000 * (model // 10 + 1), "flops": 1e11 * (model % 37 + 1)},
            )
            write_result(
                result, tmp_path, records=[{"block": i, "tokens": 255, "exact": -255 * nats} for i in range(20)]
            )
    # Processor time, so that other programs on the machine do not count.
    started = time.process_time()
    made = files(board(load(tmp_path)), tmp_path / "LEADERBOARD.md")
    assert time.process_time() - started < 10
    assert len(made) == 3 + 16
    shutil.rmtree(tmp_path)


def test_the_time_taken_is_per_training_seed_and_in_all(tmp_path: Path) -> None:
    trained = make_result().training
    of = {"seconds": 120.0, "tokens": 240_000}
    results = [
        make_result(name=name, training_seed=seed, task_name=task, training={**trained, **of, "seed": seed})
        for name, seed in (("ltm-a", 0), ("ltm-a", 1), ("ltm-b", 0))
        for task in ("ltm_pydocs", "ltm_ptb")
    ]
    (took,) = time_taken.parts(build(tmp_path, *results).sections[0])
    assert took.table is not None
    seconds = results[0].provenance["wall_seconds"]
    assert [row[1:5] for row in took.table.rows] == [
        ("2", "2.0", "2.00k", f"{2 * seconds / 60:.1f}"),
        ("1", "2.0", "2.00k", f"{2 * seconds / 60:.1f}"),
    ]
    assert took.text[0].startswith(f"0.1 hours of training and {6 * seconds / 3600:.1f} hours of scoring")


def test_samples_in_more_network_evaluations_are_joined_in_their_order(tmp_path: Path) -> None:
    def sampled(name: str, steps: int, ppl: float) -> Result:
        values = {"gen_ppl[ar-x]": ppl, "network_evaluations": float(steps), "unigram_entropy": 4.5}
        metrics = tuple(
            Metric(name=each, likelihood=None, headline=each[0] == "g", unit="x", value=value, kind="exact", n=8)
            for each, value in values.items()
        )
        made = make_result(name=name, task_name="ltm_generation")
        model = {**make_result(name=name).model, "config": {"steps": steps}, "config_digest": f"{steps}" * 32}
        return dataclasses.replace(made, metrics=metrics, model=model)

    results = [sampled("mdlm-x", 64, 60.0), sampled("mdlm-x", 16, 90.0), sampled("ar-x", 99, 50.0)]
    (entries,) = build(tmp_path, *results).others
    by_entropy, by_evaluations = generation_views.figures(entries, "g")
    assert len(by_entropy.series[0].points) == 3
    lines = sorted([(p.x, p.y) for p in series.points] for series in by_evaluations.series)
    assert lines == [[(16, 90.0), (64, 60.0)], [(99, 50.0)]]
    # With one number of evaluations for each model there is nothing to trade.
    (entries,) = build(tmp_path / "one", results[0], results[2]).others
    assert len(generation_views.figures(entries, "g")) == 1


def test_prequential_bounds_have_a_section_of_their_own(tmp_path: Path) -> None:
    prequential = make_result(nats=3.1, task_name="ltm_prequential_pydocs", scoring={"chunk": 16})
    built = build(tmp_path, make_result(), make_result(name="ar-x", family="ar"), prequential)
    whole, in_chunks = built.sections
    assert [section.in_chunks for section in built.sections] == [False, True]
    assert sections.title(in_chunks) == f"{sections.title(whole)} · in chunks"
    assert [[column.title for column in section.columns] for section in built.sections] == [
        ["pydocs"],
        ["prequential_pydocs"],
    ]
    assert [row.label for row in whole.rows] == ["ar-x", "ltm-tiny"]
    assert len(page.overviews(built)) == 2 and len(page.overviews(built, narrow=True)) == 1


def test_commands_on_a_page_do_not_say_where_a_machine_keeps_its_files(tmp_path: Path) -> None:
    typed = (
        "ltm-eval --model x --checkpoint /home/me/runs/x --tasks text:/srv/a.txt,ptb --output=~/o --set a=1/2 --o 'b/c'"
    )
    shown = "ltm-eval --model x --checkpoint …/x --tasks text:…/a.txt,ptb --output=…/o --set a=1/2 --o 'b/c'"
    assert page.without_directories(typed) == shown
    made = make_result()
    built = build(tmp_path, dataclasses.replace(made, provenance={**made.provenance, "command": typed}))
    assert shown in str(page.provenance(built).table) and "/home/" not in str(page.provenance(built).table)
