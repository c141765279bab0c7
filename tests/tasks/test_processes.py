"""Evaluation over processes: the results of one, to the last digit, whoever starts them; and commands side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ltm.result import find_results, read_records, read_result
from ltm.train_cli import main as train
from tests.ltm.test_train_cli import command
from tests.support.miniature_runs import text
from tests.support.several_processes import ROOT, torchrun

TASKS = ("arithmetic", "generation")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of a few updates and a text of their blocks."""
    place = tmp_path_factory.mktemp("place")
    (place / "data" / "toy").mkdir(parents=True)
    (place / "data" / "toy" / "train.txt").write_text("".join(text(40)))
    (place / "some.txt").write_text("".join(text(12, seed=3)))
    for name in ("ltm-tiny", "ar-tiny"):
        assert train(command(name, place / "data", place / name, "--set", "training.ema=0", updates=2)) == 0
    return place


def evaluation(place: Path, output: Path, *more: str) -> list[str]:
    """The command; a number of batches of each task that three processes do not share evenly."""
    tasks = ",".join((f"text:{place / 'some.txt'}", *TASKS))
    return [
        *("tasks.cli", "--model", f"{place / 'ltm-tiny'},{place / 'ar-tiny'}", "--tasks", tasks),
        *(
            "--limit-problems",
            "4",
            "--samples",
            "5",
            "--batch-size",
            "4",
            "--headline-only",
            "--output",
            str(output),
            *more,
        ),
    ]


def results(output: Path) -> dict[str, Any]:
    """Every result but its provenance, with its records."""
    found = {}
    for path in find_results(output):
        result = read_result(path)
        whole = json.loads(path.read_text())
        found[str(path.relative_to(output))] = whole["metrics"], whole["scoring"], read_records(path, result)
    return found


def assert_each_computed_once(home: Path) -> None:
    """Every answer is in the cache, which the next command uses, and none twice."""
    files = list((home / "cache").glob("*.jsonl"))
    assert len(files) == 6
    for path in files:
        names = [json.loads(line)[0] for line in path.read_text().splitlines()]
        assert len(names) == len(set(names)) > 5


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, Any]:
    """The results of one process."""
    environment = os.environ | {"LTM_HOME": str(place / "home"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", *evaluation(place, place / "one")], cwd=ROOT, env=environment, check=True)
    return results(place / "one")


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_get_the_results_of_one(
    processes: int, place: Path, alone: dict[str, Any], tmp_path: Path
) -> None:
    run = torchrun(processes, *evaluation(place, tmp_path / "out"), environment={"LTM_HOME": str(tmp_path / "home")})
    assert run.returncode == 0, run.stderr[-3000:]
    assert len(alone) == 6 and results(tmp_path / "out") == alone
    assert run.stdout.count("next: ltm-leaderboard build") == 1
    assert_each_computed_once(tmp_path / "home")


def test_two_commands_on_one_output_do_not_refuse_one_another(
    place: Path, alone: dict[str, Any], tmp_path: Path
) -> None:
    environment = os.environ | {"LTM_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", *evaluation(place, tmp_path / "out")]
    running = [
        subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    assert results(tmp_path / "out") == alone
    assert not any("error" in err for _, err in printed)
    assert_each_computed_once(tmp_path / "home")


@pytest.mark.slow
def test_accelerate_starts_lm_eval_with_the_numbers_of_one_process(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    launch = ("accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no")
    found = []
    for processes in (1, 2):
        start = (*launch, "--dynamo_backend", "no", "--num_processes", str(processes), "-m") if processes > 1 else ()
        words = (
            *("lm_eval", "--model", "ltm", "--model_args", f"pretrained={place / 'ltm-tiny'},limit_blocks=9"),
            *("--tasks", "ltm_pydocs,ltm_arithmetic", "--limit", "2", "--log_samples"),
            *("--output_path", str(tmp_path / f"{processes}")),
        )
        subprocess.run(
            [sys.executable, "-m", *start, *words],
            cwd=ROOT,
            env=os.environ | {"LTM_HOME": str(tmp_path / f"home{processes}"), "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=280,
        )
        (path,) = (tmp_path / f"{processes}").rglob("results_*.json")
        samples = [line for file in sorted(path.parent.glob("samples_*")) for line in file.read_text().splitlines()]
        found.append((json.loads(path.read_text())["results"], samples))
    assert found[0] == found[1] and "ltm_pydocs" in found[0][0] and len(found[0][1]) > 2
