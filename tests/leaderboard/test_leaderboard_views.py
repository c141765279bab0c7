"""Equal budgets, Pareto fronts, curves, plots, the CSV, the time taken, and the size of a board."""

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

import pytest

from leaderboard import labels
from leaderboard.board import board
from leaderboard.build import files
from leaderboard.content import cost_views, generation_views, page, sections, task_results, time_taken
from leaderboard.content.document import Axis, Figure, Point, Series
from leaderboard.csv_export import csv_table
from leaderboard.entries import load
from leaderboard.render import svg
from ltm.result import Metric, Result, write_result
from tests.support.result_factory import build, make_result, rows_of

GOLDEN = Path(__file__).parents[1] / "golden" / "results"
Run = Callable[..., int]


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


def test_results_are_sorted_by_what_most_are_judged_by_and_seeds_are_named_where_there_are_several(
    tmp_path: Path,
) -> None:
    def result(name: str, judged: str, value: float, seed: int = 0) -> Result:
        metric = Metric(name=judged, likelihood=None, headline=True, unit="x", value=value, kind="exact", n=5)
        made = make_result(name=name, task_name="ltm_sums", training_seed=seed)
        return dataclasses.replace(made, metrics=(metric,))

    of_most = [result("a", "zeal", 3.0), result("b", "zeal", 1.0), result("b", "zeal", 2.0, seed=1)]
    (entries,) = build(tmp_path, result("c", "ardour", 0.5), *of_most).others
    shown = [row[0] for row in task_results.table(entries).rows]
    assert shown == ["b (training seed 0)", "b (training seed 1)", "a", "c"]
    assert [row[0] for row in task_results.brief_table(entries).rows] == shown


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


def test_the_time_taken_is_per_training_seed_and_device_and_in_all(tmp_path: Path) -> None:
    """Each training counts once, however many texts and ways to score it there are."""
    trained = make_result().training
    results = [
        make_result(
            name=name,
            training_seed=seed,
            task_name=task,
            training={**trained, "seconds": 60.0 * minutes, "tokens": 240_000, "seed": seed, "device": device},
        )
        for name, seed, device, minutes in (
            ("ltm-a", 0, "one core", 30),
            ("ltm-a", 1, "a GPU", 6),
            ("ltm-b", 0, "a GPU", 12),
        )
        for task in ("ltm_pydocs", "ltm_ptb")
    ]
    again = dataclasses.replace(results[0], model={**results[0].model, "config_digest": "f" * 64, "config": {"w": 2}})
    (took,) = time_taken.parts(build(tmp_path, *results, again).sections[0])
    assert took.table is not None
    seconds = results[0].provenance["wall_seconds"]
    rows = [row[1:] for row in took.table.rows]
    assert ("1; 1", "30.0; 6.0", "133; 667", f"{2 * seconds / 60:.1f}", "one core; a GPU") in rows
    assert ("1", "12.0", "333", f"{2 * seconds / 60:.1f}", "a GPU") in rows and len(rows) == 3
    scoring = f"{7 * seconds / 3600:.1f} hours of scoring"
    assert took.text[0].startswith(f"0.5 hours of training on one core, 0.3 hours of training on a GPU, and {scoring}")


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
