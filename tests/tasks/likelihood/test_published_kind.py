"""`--protocol published`: an estimate beside our number, never ranked, recomputed from its records."""

from __future__ import annotations

import json
import math
import os

import pytest

from leaderboard import cli as board
from ltm.errors import UserError
from tasks import catalog, cli
from tests.support.published import write


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A little PTB, and public weights beside it."""
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data" / "ptb"
    folder.mkdir(parents=True)
    (folder / "validation.txt").write_text("one two three four five six\nseven eight nine\n" * 20)
    for family in ("mdlm", "ar"):
        write(tmp_path / family, family)
    return tmp_path


def results(folder):
    found = {}
    for path in folder.glob("*/*/*.json"):
        content = json.loads(path.read_text())
        found[content["model"]["family"], content["task"]["name"]] = content
    return found


def test_both_numbers_stand_side_by_side(data, capsys, monkeypatch):
    options = ["--data-dir", str(data / "data"), "--output", str(data / "results"), "--protocol", "published"]
    assert cli.main(["--model", f"mdlm:{data / 'mdlm'},ar:{data / 'ar'},ngram-tiny", "--tasks", "ptb", *options]) == 0
    shown = capsys.readouterr()
    assert "published_ptb" in shown.out and "~ " in shown.out and "Perplexity [95%]" in shown.out
    assert "published_ptb: left out: how public code scores the family ngram is not known here" in shown.err
    found = results(data / "results")
    assert len(found) == 5
    (metric,) = found["ar", "ltm_published_ptb"]["metrics"]
    scoring = found["ar", "ltm_published_ptb"]["scoring"]
    assert metric["kind"] == "estimate" and scoring["average"] == "exp of mean" and scoring["tokens"] % 31 == 0
    # The same model on nearly the same tokens.
    ours = next(m for m in found["ar", "ltm_ptb"]["metrics"] if m["name"] == "token_perplexity")
    assert math.log(metric["value"]) == pytest.approx(math.log(ours["value"]), abs=0.2)
    for command in ("build", "check"):
        place = ["--results", str(data / "results"), "--out", str(data / "BOARD.md")]
        monkeypatch.setattr("sys.argv", ["ltm-leaderboard", command, *place])
        assert board.main() == 0
    assert (
        "published_perplexity" in (data / "BOARD.md").read_text()
        or "published perplexity" in (data / "BOARD.md").read_text()
    )


def test_a_text_without_a_whole_block_is_refused(data, capsys):
    (data / "data" / "ptb" / "validation.txt").write_text("one two\n")
    options = ["--data-dir", str(data / "data"), "--output", str(data / "results"), "--protocol", "published"]
    assert cli.main(["--model", f"mdlm:{data / 'mdlm'}", "--tasks", "ptb", *options]) == 2
    assert "fills no block of 32 positions" in capsys.readouterr().err


def test_it_is_for_perplexity_on_a_corpus(data, capsys):
    for tasks, protocol, said in (
        ("generation", "published", "--protocol published is for perplexity on a corpus"),
        ("ptb", "publshed", "did you mean published"),
    ):
        options = ["--tasks", tasks, "--protocol", protocol, "--data-dir", str(data / "data")]
        assert cli.main(["--model", f"mdlm:{data / 'mdlm'}", *options, "--output", str(data / "r")]) == 2
        assert said in capsys.readouterr().err


def test_its_tasks_have_names_of_their_own():
    entry = catalog.read("ltm_published_ptb")
    assert (entry.name, entry.kind, entry.corpus) == ("ltm_published_ptb", "published", "ptb")
    assert catalog.resolve(["published_wikitext"]) == ["ltm_published_wikitext"]
    assert "ltm_published_ptb" not in catalog.names()


@pytest.mark.parametrize("before", [None, "elsewhere"])
def test_the_data_directory_also_has_the_tokenizer(before, tmp_path, monkeypatch):
    """Public weights come without one, and look where the corpora are."""
    if before is None:
        monkeypatch.delenv("LTM_DATA_DIR", raising=False)
    else:
        monkeypatch.setenv("LTM_DATA_DIR", before)
    seen = []

    def stop(*_, **__):
        seen.append(os.environ["LTM_DATA_DIR"])
        raise UserError("seen")

    monkeypatch.setattr("tasks.evaluation.Evaluation", stop)
    options = ["--model", "mdlm:somewhere", "--tasks", "ptb", "--output", str(tmp_path / "results")]
    assert cli.main([*options, "--data-dir", str(tmp_path)]) == 2
    assert seen == [str(tmp_path)] and os.environ.get("LTM_DATA_DIR") == before
