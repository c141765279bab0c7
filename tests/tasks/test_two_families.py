"""Two families with one config and equal weights in one package: answers, verdicts and rows of their own."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from leaderboard import cli as leaderboard_cli
from ltm import registry
from ltm.result import find_results, read_result
from ltm.training.run import train_preset
from tasks import cli

EXAMPLE = Path(__file__).parents[2] / "docs" / "example_package" / "letters_and_dice"
BOASTFUL = '''"""The family `boastful`: `letters`, but it claims twice as much as it knows."""

from letters_and_dice.letters import Letters


class Boastful(Letters):
    """Half of the nats, which are then no likelihood."""

    family = "boastful"
    presets = {"boastful-tiny": Letters.presets["letters-tiny"]}

    def token_nats(self, tokens_BL):
        """Too few."""
        return super().token_nats(tokens_BL) / 2
'''


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """The example package with a second family, in the working directory, as if it were installed."""
    shutil.copytree(EXAMPLE, tmp_path / EXAMPLE.name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / EXAMPLE.name / "boastful.py").write_text(BOASTFUL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    added = {
        registry.MODELS: {"letters": "letters:Letters", "boastful": "boastful:Boastful"},
        registry.CORPORA: {"proverbs": "proverbs:proverbs"},
    }

    def found(*, group):
        ours = [EntryPoint(name, f"{EXAMPLE.name}.{value}", group) for name, value in added.get(group, {}).items()]
        return [*entry_points(group=group), *ours]

    monkeypatch.setattr(registry, "entry_points", found)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == EXAMPLE.name]:
        del sys.modules[name]


def test_two_families_with_one_config_are_told_apart(offered, monkeypatch):
    Path("saying.txt").write_text("a stitch in time saves nine\n" * 20)
    models, tasks = "letters-tiny,boastful-tiny", "text:saying.txt,audit"
    for model in models.split(","):
        train_preset(model, corpus="proverbs")
    assert cli.main(["--model", models, "--tasks", tasks, "--limit-blocks", "64"]) == 0
    results = [read_result(path) for path in find_results(Path("results"))]
    assert sorted((r.model["family"], r.task["name"]) for r in results) == [
        (family, task) for family in ("boastful", "letters") for task in ("ltm_audit", "text_saying")
    ]
    for identical in ("config_digest", "weights_digest"):
        assert len({r.model[identical] for r in results}) == 1
    value = {(r.model["family"], m.name): m.value for r in results for m in r.metrics}
    assert value["boastful", "token_perplexity"] == pytest.approx(value["letters", "token_perplexity"] ** 0.5)
    assert (value["letters", "audit_passed"], value["boastful", "audit_passed"]) == (1, 0)
    monkeypatch.setattr(sys, "argv", ["ltm-leaderboard", "build", "--results", "results", "--out", "BOARD.md"])
    assert leaderboard_cli.main() == 0
    board = Path("BOARD.md").read_text()
    letters, boastful = (board[board.index(f"| {name}-tiny |") :].splitlines()[0] for name in ("letters", "boastful"))
    assert f"| {value['letters', 'token_perplexity']:.2f} [" in letters and "passed" in letters
    assert f"| ~ {value['boastful', 'token_perplexity']:.3f} [" in boastful and "failed" in boastful
