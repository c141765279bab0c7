"""Imported models of every family from files to a board: two texts, both protocols, samples, the audit, a page."""

from __future__ import annotations

import json

import pytest

from leaderboard import cli as board
from ltm.published import convert
from ltm.tokenizer import build
from tasks import cli
from tests.support.published import CONFIGS, official_checkpoint, write


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A folder with results of six imported models and a board of them."""
    place = tmp_path_factory.mktemp("imported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTM_HOME", str(place / "home"))
        patch.chdir(place)
        for corpus, text in (("ptb", "a heron waits and waits\n"), ("wikitext", "= Bread =\nIt rises overnight .\n")):
            (place / "data" / corpus).mkdir(parents=True)
            (place / "data" / corpus / "validation.txt").write_text(text * 12)
        for family in CONFIGS:
            write(place / f"{family}-weights", family)
        build("bytes").save(place)
        official_checkpoint(place / "latest.pt")
        convert.convert(place / "latest.pt", place / "ltm-weights", family="ltm", settings=["posterior.steps=2"])
        models = [f"{family}:{family}-weights" for family in CONFIGS]
        common = ["--data-dir", "data", "--output", "results"]
        written = ["--tasks", "ptb,wikitext", "--protocol", "published"]
        drawn = ["--tasks", "generation", "--samples", "2", "--new-tokens", "8"]
        every = ["--model", ",".join([*models, "ltm:ltm-weights"])]
        assert cli.main([*every, *written, *common]) == 0
        assert cli.main([*every, *drawn, *common]) == 0
        assert cli.main(["--model", ",".join(models), "--tasks", "audit", *common]) == 0
        patch.setattr("sys.argv", ["ltm-leaderboard", "build", "--results", "results", "--out", "BOARD.md"])
        assert board.main() == 0
    return place


def test_every_model_has_every_result(evaluated):
    found = {path.parent.name for path in (evaluated / "results").glob("*/*/*.json")}
    assert found == {
        *("ltm_ptb", "ltm_wikitext", "ltm_published_ptb", "ltm_published_wikitext", "ltm_generation", "ltm_audit"),
    }
    for path in (evaluated / "results").glob("*/ltm_ptb/*.json"):
        training = json.loads(path.read_text())["training"]
        assert training["tokens"] is None and training["origin"]["files"]


def test_audits_pass_without_a_twin(evaluated):
    verdicts = [json.loads(path.read_text()) for path in (evaluated / "results").glob("*/ltm_audit/*.json")]
    assert len(verdicts) == len(CONFIGS)
    for result in verdicts:
        assert result["scoring"]["twin"] == "none"
        assert all(m["value"] == 1 for m in result["metrics"] if m["name"] == "audit_passed")


def test_the_board_says_that_they_were_trained_elsewhere(evaluated):
    page = (evaluated / "BOARD.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "| elsewhere |" in line]
    assert len(rows) >= len(CONFIGS) + 1
    assert "made elsewhere, so without a twin" in page and "passed (no twin)" in page
