"""The front door in Python: scores agree with the command line, parts add up, and mistakes say what to do."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

import ltm
from tests.support.harness_models import save_small

README = Path(__file__).parents[2] / "README.md"
TEXT = "The cat sat on the mat. " * 40


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model store with small models in place of two presets."""
    place = tmp_path_factory.mktemp("home")
    for name in ("ltm-tiny", "ar-tiny"):
        save_small(place, name)
    return place


@pytest.fixture(autouse=True)
def _at_home(home, monkeypatch, tmp_path):
    monkeypatch.setenv("LTM_HOME", str(home))
    monkeypatch.chdir(tmp_path)


def test_an_exact_score_is_the_sum_of_its_tokens():
    model = ltm.load("ar-tiny")
    score = model.score(TEXT)
    assert (score.kind, score.likelihood, score.interval) == ("exact", "exact", None)
    assert math.fsum(nats for _, nats in score.parts) == pytest.approx(score.nats, rel=1e-5)
    assert "".join(token for token, _ in score.parts) == TEXT and len(score.parts) == score.tokens
    assert score.bits_per_byte == pytest.approx(score.nats / math.log(2) / len(TEXT.encode()))
    assert score.perplexity == pytest.approx(math.exp(score.nats / score.tokens))
    assert str(score).startswith(f"ar-tiny: {score.nats:.2f} nats (exact), ")


def test_a_bound_says_so_and_has_the_interval_of_its_draws():
    model = ltm.load("ltm-tiny")
    score = model.score(TEXT, draws=4)
    assert (score.kind, score.likelihood, score.parts) == ("lower_bound", "elbo", None)
    assert score.interval[0] < score.nats < score.interval[1] and f"at most {score.nats:.2f} [" in str(score)
    assert model.score(TEXT, draws=4) == score != model.score(TEXT, draws=4, seed=1)


def test_settings_reach_the_model():
    assert ltm.load("ltm-tiny", settings=["posterior.steps=1"]).loaded.model.config.posterior.steps == 1
    with pytest.raises(ltm.UserError, match=r"posterior\.step"):
        ltm.load("ltm-tiny", settings=["posterior.step=1"])


@pytest.mark.parametrize("name", ["ltm-tiny", "ar-tiny"])
def test_text_is_generated_after_a_prompt_by_seed(name):
    model = ltm.load(name)
    first = model.generate("Once upon a time", max_new_tokens=8)
    assert isinstance(first, str) and first == model.generate("Once upon a time", max_new_tokens=8)
    assert len({model.generate("Once", max_new_tokens=8, seed=seed) for seed in range(3)}) > 1
    with pytest.raises(ltm.UserError, match=f"{name}: .*exceed"):
        model.generate("Once", max_new_tokens=10**6)
    with pytest.raises(ltm.UserError, match="temperature must be at least 0"):
        model.generate("Once", temperature=-1.0)


def test_empty_text_costs_nothing():
    score = ltm.load("ar-tiny").score("")
    assert (score.nats, score.tokens, score.parts) == (0.0, 0, ()) and math.isnan(score.bits_per_byte)


def test_evaluate_writes_what_the_command_writes(tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text(TEXT)
    (result,) = ltm.evaluate(["ar-tiny"], [f"text:{text}"], output=tmp_path / "results", seed=1)
    (path,) = (tmp_path / "results").rglob("*.json")
    assert json.loads(path.read_text())["metrics"][0]["value"] == result.metrics[0].value
    assert result.scoring["seed"] == 1 and result.provenance["command"].startswith("ltm.evaluate(['ar-tiny'], ['text:")
    assert result.metric("token_perplexity").value == pytest.approx(
        ltm.load("ar-tiny").score(TEXT).perplexity, rel=1e-5
    )
    (again,) = ltm.evaluate(["ar-tiny"], [f"text:{text}"], output=tmp_path / "results", seed=1)
    assert again.provenance["date"] == result.provenance["date"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"drows": 3}, "unknown option 'drows'; did you mean draws"),
        ({"draws": 0}, "--draws=0: expected a whole number"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ltm.UserError, match=words):
        ltm.evaluate(["ar-tiny"], ["pydocs"], **options)


def test_unknown_models_are_named():
    with pytest.raises(ltm.UserError, match="unknown model 'ar-tinny'"):
        ltm.load("ar-tinny")


def test_the_example_of_the_readme_runs(tmp_path, capsys):
    (code,) = re.findall(r"```python\n(import ltm\n.*?)```", README.read_text(), re.S)
    exec(compile(code, str(README), "exec"), {})
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("ar-tiny: ") and len(shown) >= 1 + len("The cat sat on the mat.")
    assert sorted(path.parent.name for path in tmp_path.glob("results/*/*/*.json")) == ["ltm_pydocs"] * 2
