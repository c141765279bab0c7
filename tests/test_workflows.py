"""The workflow does what the Makefile does, with pinned actions and no rights but to read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [(name, job) for path in WORKFLOWS for name, job in yaml.safe_load(path.read_text())["jobs"].items()]


def steps(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_only_read(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert all("permissions" not in job and job["timeout-minutes"] <= 120 for job in workflow["jobs"].values())
    # A checkout keeps no token for later steps; nothing from outside is put into a shell.
    assert path.read_text().count("persist-credentials: false") == path.read_text().count("actions/checkout@")
    assert all("${{" not in step for job in workflow["jobs"].values() for step in steps(job))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_their_content(path: Path) -> None:
    used = re.findall(r"uses: (.*)", path.read_text())
    assert used and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action) for action in used)


def test_steps_are_those_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    for name, job in jobs():
        for step in steps(job):
            assert step == ".ci/run" or set(step.removeprefix("make ").split()) <= targets, f"{name}: {step}"
    assert {"make test", "make lint"} <= set(re.findall(r"^make \w+", (ROOT / ".ci" / "run").read_text(), re.M))


def test_the_board_is_trained_scored_audited_built_checked_and_published() -> None:
    job = dict(jobs())["leaderboard"]
    assert steps(job)[-2:] == ["make leaderboard", "make check"]
    recipes = dict(re.findall(r"^([a-z-]+|[$][(]SCORED[)]):[^\n=]*\n((?:\t.*\n)+)", MAKEFILE, re.M))
    assert "$(SCORED)" in recipes["leaderboard"] and "--tasks pydocs,audit" in recipes["$(SCORED)"]
    board = "--results $(DEMO)/results --out $(DEMO)/LEADERBOARD.md\n"
    for target, command in (("leaderboard", "build"), ("check", "check")):
        assert recipes[target].endswith(f"$(BIN)/ltm-leaderboard {command} {board}")
    (published,) = [step["with"]["path"].split() for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
    assert {"demo/LEADERBOARD.md", "demo/leaderboard.html", "demo/leaderboard.csv"} <= set(published)
