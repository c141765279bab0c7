"""`ltm-eval` and the results that it finds: lost records are made again, and nothing is waited for or believed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from leaderboard.verify import recomputed
from ltm.result import find_results, read_records, read_result
from tasks import cli
from tests.support.harness_models import save_small

TEXT = " the company said it expects N % growth in sales \n <unk> inc. 's profit rose $ N million \n" * 4
ARGUMENTS = ("--model", "ar-tiny", "--tasks", "ptb")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a small model and a corpus, the current directory."""
    save_small(tmp_path / "home", "ar-tiny")
    (tmp_path / "data" / "ptb").mkdir(parents=True)
    (tmp_path / "data" / "ptb" / "validation.txt").write_text(TEXT)
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LTM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = (
    Path.unlink,
    cut,
    pytest.param(replace_by_pipe, marks=pytest.mark.skipif(os.name == "nt", reason="needs pipes")),
    pytest.param(replace_by_device, marks=pytest.mark.skipif(os.name == "nt", reason="needs devices")),
)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_result_without_its_records_is_scored_again(
    place: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    assert cli.main(ARGUMENTS) == 0
    (path,) = find_results(place / "results")
    before, records = read_result(path), read_records(path, read_result(path))
    damage(path.with_name(json.loads(path.read_bytes())["records"]["file"]))
    assert cli.main(ARGUMENTS) == 0
    assert f"{path.relative_to(place)}: its records are lost or damaged: scoring again" in capsys.readouterr().err
    after = read_result(path)
    assert after.metrics == before.metrics and read_records(path, after) == records
    assert cli.main(ARGUMENTS) == 0
    assert "complete, nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [cut, replace_by_directory, *DAMAGE[2:]])
def test_what_is_no_result_is_neither_believed_nor_replaced(
    place: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    assert cli.main(ARGUMENTS) == 0
    (path,) = find_results(place / "results")
    damage(path)
    before = path.lstat().st_ino, path.lstat().st_mtime_ns
    assert cli.main(ARGUMENTS) == 2
    err = capsys.readouterr().err
    assert str(path.relative_to(place)) in err and "delete it and run ltm-eval again" in err
    assert (path.lstat().st_ino, path.lstat().st_mtime_ns) == before


@pytest.mark.skipif(os.name == "nt", reason="needs names that Windows does not allow")
def test_a_file_may_have_any_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31m\u202eb\n\udcff.txt"
    Path(name).write_text(TEXT)
    assert cli.main(["--model", "ar-tiny", "--tasks", f"text:{name}"]) == 0
    assert "".join(capsys.readouterr()).replace("\n", "").isprintable()
    (path,) = find_results(place / "results")
    result = read_result(path)
    assert (
        result.data["source"]["file"] == "a\ufffd[31m\ufffdb\ufffd\ufffd.txt"
        and "\x1b" not in result.provenance["command"]
    )


def test_steps_that_were_saved_are_in_the_result(place: Path) -> None:
    save_small(place / "home", "ltm-tiny")
    command = ["--model", "ltm-tiny", "--tasks", "ptb", "--set", "posterior.optimizer=natural"]
    command += ["--set", "posterior.steps=6"]
    assert cli.main(command) == cli.main([*command, "--set", "posterior.tolerance=0.001"]) == 0
    steps = {}
    for path in find_results(place / "results"):
        result = read_result(path)
        tolerance = result.model["config"]["posterior"]["tolerance"]
        steps[tolerance] = [metric for metric in result.metrics if metric.name == "fast_steps"]
        for metric in steps[tolerance]:
            records = read_records(path, result) or []
            assert metric.value == sum(record["fast_steps"] for record in records) / len(records) < 6
            assert recomputed(metric, result, records) == metric.value
    assert not steps[0.0] and len(steps[0.001]) == 1
