"""Results as data: old files load for ever, and whatever was edited, removed or made stale is named."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from leaderboard import build, cli, manifest
from leaderboard.entries import Entry, load
from leaderboard.verify import edited_digit, recomputed, verify
from ltm.result import Metric, find_results, read_records, read_result, to_bytes, write_result
from tests.support.result_factory import make_result

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "results"
# The files of schema 1 as they were written. They are never made anew: what reads them has to go on reading them.
SCHEMA_1 = {
    "ar-tiny/ltm_continuation/2d0882f4e62c.json": "02004ae9551dec31",
    "ar-tiny/ltm_prequential_pydocs/3f5ed381eed1.json": "5a86cd963e3fea42",
    "ltm-tiny/ltm_arithmetic/54245aa61e8d.json": "190dc5e0ecb05724",
    "ltm-tiny/ltm_diagnostics/7f4729d1b8fa.json": "419d9bbe3023e0a1",
    "ltm-tiny/ltm_pydocs/17e0e8a8ccc9.json": "59ab7fb20c33831c",
    "mdlm-tiny/ltm_audit/425752b2ab24.json": "aeaae05f2251096e",
    "mdlm-tiny/ltm_pydocs/d1b85108abbd.json": "0283894596599676",
}
Run = Callable[..., int]


@pytest.fixture
def run(run: Run, tmp_path: Path) -> Run:
    """Call the command line in a directory with a copy of the golden results."""
    shutil.copytree(GOLDEN, tmp_path / "results")
    return run


def ltm_cell(root: Path) -> Path:
    (path,) = (root / "results" / "ltm-tiny" / "ltm_pydocs").glob("*.json")
    return path


# Old files.


@pytest.mark.parametrize("name", sorted(SCHEMA_1))
def test_files_of_schema_1_load_for_ever(name: str) -> None:
    path = GOLDEN / name
    result = read_result(path)
    assert json.loads(path.read_bytes())["digest"].startswith(SCHEMA_1[name])
    assert to_bytes(result) == path.read_bytes()
    assert read_records(path, result)


def test_all_golden_files_are_known_and_sound() -> None:
    assert [str(path.relative_to(GOLDEN)) for path in find_results(GOLDEN)] == sorted(SCHEMA_1)
    entries, problems = verify(GOLDEN)
    assert len(entries) == len(SCHEMA_1) and problems == []


@pytest.mark.parametrize(("board", "options", "results"), [("board", (), 26), ("mini", ("--readme", "README.md"), 718)])
def test_the_boards_of_the_repository_are_what_their_results_give(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    board: str,
    options: tuple[str, ...],
    results: int,
) -> None:
    monkeypatch.chdir(ROOT)
    files = ("--results", f"docs/{board}/results", "--out", f"docs/{board}/LEADERBOARD.md", *options)
    monkeypatch.setattr(sys, "argv", ["ltm-leaderboard", "check", *files])
    assert cli.main() == 0, capsys.readouterr()
    # A model's numbers stand beside what its audit found.
    assert capsys.readouterr().out.startswith(f"{results} results")


@pytest.mark.parametrize("board", ["board", "mini"])
def test_the_commands_behind_the_boards_name_no_place_of_one_machine(board: str) -> None:
    commands = {read_result(path).provenance["command"] for path in find_results(ROOT / "docs" / board / "results")}
    assert commands and not [command for command in commands if re.search(r"(^|[\s'=])[/~]", command)]


def test_an_unknown_schema_is_a_problem(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ltm_cell(tmp_path)
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    assert run("check") == 1
    assert f"{path.relative_to(tmp_path)}: field schema: expected 1, found 2" in capsys.readouterr().err


# Numbers from records.


def test_what_records_give_is_what_the_results_say() -> None:
    """By name of task: how many of the metrics can be had again. All of them agree, as verify() says above."""
    recomputable: dict[str, set[str]] = {}
    for path in find_results(GOLDEN):
        result = read_result(path)
        records = read_records(path, result) or []
        again = [metric.name for metric in result.metrics if recomputed(metric, result, records) is not None]
        recomputable.setdefault(result.task["name"], set()).update(again)
    assert {"token_perplexity", "word_perplexity", "bits_per_byte", "token_perplexity_mean_of_exp"} <= recomputable[
        "ltm_pydocs"
    ]
    assert {"pass@5", "pass@1", "pass@5_legacy_substring", "chance_prior_pass@5"} <= recomputable["ltm_arithmetic"]
    assert {"kl_per_token", "mutual_information"} <= recomputable["ltm_diagnostics"]
    assert {"gen_ppl[ar-tiny]"} <= recomputable["ltm_continuation"]
    assert {"audit_passed", "audit_log_e_value", "audit_claimed_nats_per_token"} <= recomputable["ltm_audit"]


@pytest.mark.parametrize("name", ["token_perplexity", "word_perplexity", "bits_per_byte"])
def test_a_wrong_number_with_a_right_digest_is_named(tmp_path: Path, name: str) -> None:
    path = GOLDEN / "mdlm-tiny" / "ltm_pydocs" / "d1b85108abbd.json"
    result = read_result(path)
    wrong = [dataclasses.replace(m, value=m.value * 0.999) if m.name == name else m for m in result.metrics]
    at = [metric.name for metric in result.metrics].index(name)
    write_result(dataclasses.replace(result, metrics=tuple(wrong)), tmp_path, records=read_records(path, result))
    entries, (problem,) = verify(tmp_path)
    assert entries == []
    right, bad = result.metrics[at].value, wrong[at].value
    match = re.search(
        rf"field metrics\[{at}\]\.value \({name}, elbo\): expected (\S+), which the records give, found (\S+)", problem
    )
    assert match and float(match[1]) == pytest.approx(right, rel=1e-12) and float(match[2]) == bad


def test_counts_and_the_digest_of_the_config_are_checked(tmp_path: Path) -> None:
    records = [{"block": i, "tokens": 255, "exact": -816.0} for i in range(20)]
    result = make_result(
        family="ar", name="ar-tiny", nats=3.2, scoring={"tokens": 5101}, model={"config_digest": "0" * 64}
    )
    write_result(result, tmp_path, records=records)
    _, problems = verify(tmp_path)
    assert any("field scoring.tokens: expected 5100, which the records give, found 5101" in text for text in problems)
    assert any("field model.config_digest: expected" in text for text in problems)


def test_audits_are_weighed_again(tmp_path: Path) -> None:
    """The e-value, what is claimed, the source's own, and the verdict, which one check is enough to turn."""
    values = {"audit_claimed_nats_per_token": 2.0, "audit_source_nats_per_token": 3.0, "audit_log_e_value": 20.0}
    metrics = [
        Metric(name=name, likelihood=None if "source" in name else "elbo", headline=False, unit="x", value=value,
               kind="exact", n=4)
        for name, value in {**values, "audit_passed": 0.0}.items()
    ]  # fmt: skip
    texts = [{"part": "text", "tokens": 5, "reference": -15.0, "elbo": -10.0, "elbo_mc_var": 0.25} for _ in range(4)]
    checks = [
        {"part": "check", "check": name, "likelihood": likelihood, "passed": passed}
        for name, likelihood, passed in (("a", "elbo", True), ("b", "other", False), ("c", None, False))
    ]
    result = dataclasses.replace(make_result(task_name="ltm_audit"), metrics=tuple(metrics))
    assert [recomputed(m, result, [*texts, *checks]) for m in metrics] == [2.0, 3.0, 20.0, 0.0]
    assert recomputed(metrics[-1], result, [*texts, *checks[:2]]) == 1.0
    # Claims that are averages enter three standard errors of the total lower.
    spread = [{**text, "elbo": -10.0 + shift} for text, shift in zip(texts, (2, -2, 1, -1), strict=True)]
    lower = dataclasses.replace(metrics[2], value=17.0)
    assert recomputed(lower, result, spread) == pytest.approx(20 - 3 * 1.0)


# One digit.


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"parameters": 1062272', '"parameters": 1062273', "field cost.parameters: expected 1062272, found 1062273"),
        ('"blocks": 131', '"blocks": 121', "field scoring.blocks: expected 131, found 121"),
        ('"wall_seconds": 40.333', '"wall_seconds": 40.334', "field provenance.wall_seconds: expected 40.333, found"),
        ("2.286306320343171", "2.186306320343171", "field metrics[2].value: expected 2.286306320343171, found 2.1863"),
        ('"python": "3.11.7"', '"python": "3.12.7"', "expected '3.11.7', found '3.12.7'"),
    ],
)
def test_one_touched_digit_is_found(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, field: str
) -> None:
    assert run("build") == 0 and run("check") == 0
    path = ltm_cell(tmp_path)
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new, 1))
    capsys.readouterr()
    assert run("check") == 1
    err = capsys.readouterr().err
    assert f"{path.relative_to(tmp_path)}: field digest: expected" in err
    assert field in err and str(path.relative_to(tmp_path)) in err
    assert run("build") == 2


def test_more_than_one_digit_is_not_guessed(tmp_path: Path) -> None:
    path = write_result(make_result(), tmp_path)
    path.write_text(path.read_text().replace('"parameters": 1234567', '"parameters": 7654321'))
    assert edited_digit(path) is None
    assert edited_digit(tmp_path / "absent.json") is None


def test_another_spelling_of_the_same_is_a_problem(tmp_path: Path) -> None:
    path = write_result(make_result(), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text())))
    _, (problem,) = verify(tmp_path)
    assert "expected the canonical formatting of results" in problem


def test_edited_records_are_found(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (records,) = ltm_cell(tmp_path).parent.glob("*.jsonl.gz")
    records.write_bytes(gzip.compress(gzip.decompress(records.read_bytes()).replace(b"-5", b"-4", 1)))
    assert run("check") == 1
    assert f"{records.relative_to(tmp_path)}: expected sha256" in capsys.readouterr().err


# Pages.


@pytest.mark.parametrize("file", ["LEADERBOARD.md", "leaderboard.html", "leaderboard.csv", "README.md", "*.svg"])
def test_every_edited_page_fails_with_a_diff(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    (tmp_path / "README.md").write_text(f"# Title\n\n{build.BEGIN}\n{build.END}\n\nThe end.\n")
    assert run("build", "--readme", "README.md") == 0 and run("check", "--readme", "README.md") == 0
    path = next(tmp_path.rglob(file))
    text = path.read_text()
    at = text.index("160.0") if "160.0" in text else text.index("15", len(text) // 2)
    path.write_text(f"{text[:at]}99{text[at + 2 :]}")
    capsys.readouterr()
    assert run("check", "--readme", "README.md") == 1
    out, err = capsys.readouterr()
    assert f"{path.relative_to(tmp_path)} is stale" in err
    assert re.search(r"^-.*99", out, re.M) and re.search(r"^\+", out, re.M)
    # A word outside the block of README.md is nobody's business.
    assert run("build", "--readme", "README.md") == 0
    readme = tmp_path / "README.md"
    readme.write_text(readme.read_text().replace("The end", "An end"))
    assert run("check", "--readme", "README.md") == 0


def test_a_page_that_is_not_there_and_plots_of_another_board(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build") == 0
    plot = next((tmp_path / "leaderboard_plots").glob("*.svg"))
    mine = plot.with_name("drawn-by-hand.svg")
    mine.write_text("<svg/>")
    shutil.copy(plot, plot.with_name("of-a-model-that-went.svg"))
    (tmp_path / "leaderboard.html").unlink()
    capsys.readouterr()
    assert run("check") == 1
    err = capsys.readouterr().err
    assert "leaderboard.html is missing" in err
    assert "of-a-model-that-went.svg does not belong to this board" in err and "drawn-by-hand" not in err
    assert run("build") == 0 and run("check") == 0
    assert mine.exists() and not plot.with_name("of-a-model-that-went.svg").exists()


# What went away.


def removed(root: Path) -> str:
    path = ltm_cell(root)
    shutil.rmtree(path.parent)
    return f"ltm-tiny/ltm_pydocs/{path.stem}"


def test_a_removed_result_needs_a_line_in_the_changelog(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build") == 0
    name = removed(tmp_path)
    assert run("build") == 0
    assert f"{name} was removed" in capsys.readouterr().err
    assert run("check") == 1
    assert f"{name} was removed, and no line of the changelog names it" in capsys.readouterr().err
    (tmp_path / "CHANGELOG.md").write_text(f"- Removed {name}: trained on its own test.\n")
    assert run("check") == 0 and run("build") == 0 and run("check") == 0
    assert name not in (tmp_path / "results" / manifest.NAME).read_text()


def test_other_numbers_under_the_same_key_need_one_too(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build") == 0
    path = tmp_path / "results" / "mdlm-tiny" / "ltm_pydocs" / "d1b85108abbd.json"
    result = read_result(path)
    records = [{**r, "elbo": r["elbo"] + 1} for r in read_records(path, result) or []]
    entry = Entry(path=path, result=result)
    values = {m.name: recomputed(m, result, records) or m.value for m in result.metrics}
    better = tuple(dataclasses.replace(m, value=values[m.name]) for m in result.metrics)
    write_result(dataclasses.replace(result, metrics=better), tmp_path / "results", records=records)
    assert run("build") == 0
    capsys.readouterr()
    assert run("check") == 1
    assert f"{entry.name.removesuffix('.json')} has other numbers than before" in capsys.readouterr().err
    # The same numbers from another day are no change.
    later = dataclasses.replace(result, provenance={**result.provenance, "date": "2027-01-01T00:00:00+00:00"})
    again = Entry(path=path, result=later)
    assert manifest.unexplained(manifest.digests_of([entry]), manifest.digests_of([again]), "") == {}


def test_an_edited_list_is_noticed(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("build") == 0
    path = tmp_path / "results" / manifest.NAME
    lines = path.read_text().splitlines()
    assert len(lines) == len(load(tmp_path / "results")) == len(SCHEMA_1)
    path.write_text("\n".join(lines[1:]) + "\n")
    assert run("check") == 1
    assert f"does not list {lines[0].split()[1]}" in capsys.readouterr().err
    path.write_text("nonsense\n")
    assert run("check") == 2
    assert "line 1: expected a digest and MODEL/TASK/KEY, found 'nonsense'" in capsys.readouterr().err


def test_a_second_build_writes_the_same_bytes(run: Run, tmp_path: Path) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert run("build") == 0
    first = content()
    assert run("build") == 0
    assert content() == first
    assert {"LEADERBOARD.md", "leaderboard.html", "leaderboard.csv", "MANIFEST"} <= {path.name for path in first}
