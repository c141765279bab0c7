"""Trainings repeated elsewhere lie where a further seed would, or `check --again` fails."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from leaderboard import repeats
from ltm.result import write_result
from tests.support.result_factory import make_result

Run = Callable[..., int]


def trained(root: Path, folder: str, *nats: float, first: int = 0, name: str = "ar-a") -> None:
    for seed, value in enumerate(nats, first):
        write_result(make_result(name=name, family="ar", nats=value, training_seed=seed), root / folder)


@pytest.mark.parametrize(("nats", "code"), [(3.21, 0), (3.3, 1), (3.1, 1)])
def test_a_repeated_training_fits_or_fails(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], nats: float, code: int
) -> None:
    trained(tmp_path, "results", 3.2, 3.202, 3.205)
    assert run("build") == 0
    trained(tmp_path, "again", nats)
    capsys.readouterr()
    assert run("check", "--again", "again") == code
    said = capsys.readouterr().out
    assert "of 3 training seeds" in said and ("within ±" in said) == (code == 0)


def test_one_seed_has_a_fixed_tolerance(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, "results", 3.2)
    assert run("build") == 0
    trained(tmp_path, "again", 3.24, first=1)
    assert run("check", "--again", "again") == 0
    assert f"of one training seed, +0.0400 nats per token, within ±{repeats.ALONE:.4f}" in capsys.readouterr().out


def test_other_trainings_are_not_repeats(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path, "results", 3.2)
    assert run("build") == 0
    trained(tmp_path, "again", 3.2, name="ar-b")
    assert run("check", "--again", "again") == 2
    assert "no perplexity of a training and a text that the board has" in capsys.readouterr().err


def test_the_tolerance_takes_in_as_many_further_seeds_as_it_says() -> None:
    draw, inside = random.Random(0), 0
    for _ in range(2000):
        *seeds, further = (draw.gauss(4.0, 0.1) for _ in range(4))
        inside += abs(further - statistics.fmean(seeds)) <= repeats.tolerance(seeds)
    # Three standard errors of a share of 2000.
    assert abs(inside / 2000 - repeats.LEVEL) < 3 * math.sqrt(repeats.LEVEL * (1 - repeats.LEVEL) / 2000)


def test_seeds_that_happen_to_agree_leave_room() -> None:
    assert repeats.tolerance([3.2, 3.2, 3.2]) == repeats.LEAST
