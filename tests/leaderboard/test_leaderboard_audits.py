"""What an audit does to a board: verdicts, who they hold for, and the tables of checks."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from leaderboard import compare
from leaderboard.board import board
from leaderboard.content import audits, cost_views, page, sections
from leaderboard.csv_export import csv_table
from leaderboard.entries import Entry, audited, load
from leaderboard.ranking import ranked
from leaderboard.render import terminal
from leaderboard.verify import verify
from ltm.result import NO_TWIN, write_result
from tests.support.result_factory import audit, build, make_result, rows_of

Run = Callable[..., int]


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
