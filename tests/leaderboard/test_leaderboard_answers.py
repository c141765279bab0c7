"""Questions that are asked of a board, and the sentences that answer them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from leaderboard import questions
from leaderboard.board import Board, board
from leaderboard.build import BEGIN, END, markdown_block
from leaderboard.content import answers, cost_views
from leaderboard.content.answers import parts
from leaderboard.content.page import whole
from leaderboard.entries import load
from leaderboard.render.markdown import markdown
from ltm.config import digest
from ltm.errors import UserError
from ltm.result import write_result
from tests.support.result_factory import make_result, scored, two_sided

Run = Callable[..., int]


def ask(root: Path, *asked: Mapping[str, Any]) -> None:
    (root / "results" / questions.NAME).write_text(json.dumps(asked))


def question(first: str, second: str, text: str = "Which is better?") -> dict[str, Any]:
    return {"question": text, "first": {"model": first}, "second": {"model": second}}


def three_models(root: Path, *, seeds: Sequence[float] = (0.0,)) -> Board:
    """An exact model, one 0.06 nats per token behind it, and a bound, and what it is at least, 0.1 and 0.05 behind."""
    for seed, luck in enumerate(seeds):
        made = (scored("ar-a", luck), scored("ar-b", 0.06 + luck), two_sided("ltm-far", 0.1 + luck, 0.05 + luck))
        for result, records in made:
            training = {**result.training, "seed": seed, "recipe": {"budget": "tokens=2M"}}
            model = {**result.model, "weights_digest": digest([result.model["name"], seed])}
            write_result(dataclasses.replace(result, training=training, model=model), root / "results", records=records)
    return board(load(root / "results"))


def test_an_answer_says_how_far_apart_two_rows_are_and_how_surely(run: Run, tmp_path: Path) -> None:
    three_models(tmp_path)
    ask(tmp_path, question("ar-b", "ar-a"), question("ar-a", "ltm-far"), question("ltm-far", "ar-b"))
    assert run("build") == 0
    first, second, third = re.findall(r"^- .*\*\*.*$", (tmp_path / "LEADERBOARD.md").read_text(), re.M)
    value, low, high = (float(x) for x in re.findall(r"[+-]\d\.\d+", first))
    assert low < value < high and value == pytest.approx(0.06, abs=0.005)
    assert (
        "**Worse beyond doubt.** On pydocs" in first
        and "nats per token (1 seed)" in first
        and "<code>ltm-leaderboard compare ar-a ar-b</code>" in first
    )
    assert "Better beyond doubt" in second
    # The bound loses, and what is behind it may not.
    assert "Behind by the bounds alone" in third
    page = (tmp_path / "leaderboard.html").read_text()
    assert page.count("Which is better? <strong>") == 3 and page.index("In short") < page.index("<table>")
    assert run("check") == 0
    ask(tmp_path, question("ar-a", "ar-b"))
    assert run("check") == 1


def test_a_readme_gets_the_answers_the_plot_and_the_overview(run: Run, tmp_path: Path) -> None:
    three_models(tmp_path, seeds=(0.0, 0.02))
    ask(tmp_path, question("ar-b", "ar-a"))
    (tmp_path / "README.md").write_text(f"# Title\n\n{BEGIN}\n{END}\n")
    assert run("build", "--out", "docs/BOARD.md", "--readme", "README.md") == 0
    readme = (tmp_path / "README.md").read_text()
    (plot,) = re.findall(r"\]\((.*-seeds\.svg)\)", readme)
    assert (tmp_path / plot).is_file() and plot.startswith("docs/")
    assert readme.index("Which is better?") < readme.index(plot) < readme.index("| ar-a |")


def test_seeds_widen_the_interval_and_a_figure_shows_them(tmp_path: Path) -> None:
    built = three_models(tmp_path, seeds=(0.0, 0.02, -0.02))
    (section,) = built.sections
    assert cost_views.seeds(section, "tiny") is not None
    ask(tmp_path, question("ar-b", "ar-a"))
    (part,) = answers.parts(built.sections, questions.read(tmp_path / "results"))
    (answer,) = part.answers
    _, low, high = (float(x) for x in re.findall(r"[+-]\d\.\d+", answer.evidence))
    assert high - low > 0.05 and answer.verdict != "Not told apart" and "(3 seeds)" in answer.evidence


def test_two_ways_to_score_the_same_weights_are_compared_on_those_alone(run: Run, tmp_path: Path) -> None:
    """Of three trainings, which lie far apart, one is scored in a second way."""
    for name, seed, luck in (("ar-a", 0, 0.0), ("ar-a", 1, 0.5), ("ar-a", 2, -0.5), ("ar-b", 1, 0.52)):
        result, records = scored(name, luck, seed=seed)
        model = {**result.model, "weights_digest": digest(seed)}
        write_result(dataclasses.replace(result, model=model), tmp_path / "results", records=records)
    built = board(load(tmp_path / "results"))
    ask(tmp_path, question("ar-b", "ar-a"))
    (part,) = answers.parts(built.sections, questions.read(tmp_path / "results"))
    (answer,) = part.answers
    value, low, high = (float(x) for x in re.findall(r"[+-]\d\.\d+", answer.evidence))
    assert value == pytest.approx(0.02, abs=0.005) and 0 < low < high and answer.verdict == "Worse beyond doubt"
    assert run("compare", "ar-a", "ar-b") == 0


def test_a_model_worse_than_a_uniform_guess_is_in_no_figure(tmp_path: Path) -> None:
    """Perplexities near 25, of models that choose among 5,000 tokens, and of one that chooses among ten."""
    for name, tokens in (("ar-a", 5_000), ("ar-b", 10)):
        for seed in (0, 1):
            result, records = scored(name, 0.01 * seed, seed=seed)
            model = {**result.model, "config": {**result.model["config"], "vocab_size": tokens}}
            write_result(dataclasses.replace(result, model=model), tmp_path / "results", records=records)
    (section,) = board(load(tmp_path / "results")).sections
    figure = cost_views.seeds(section, "tiny")
    assert figure is not None and "not shown: 1" in figure.words
    assert {point.label for series in figure.series for point in series.points if point.label} == {"ar-a"}


def test_one_seed_needs_no_figure_of_its_own(tmp_path: Path) -> None:
    (section,) = three_models(tmp_path).sections
    assert cost_views.seeds(section, "tiny") is None


def test_what_is_not_measured_yet_is_said(tmp_path: Path) -> None:
    built = three_models(tmp_path)
    ask(tmp_path, question("ar-a", "mdlm-tiny", "And diffusion?"), question("ar-a", "ar-b"))
    (part,) = answers.parts(built.sections, questions.read(tmp_path / "results"))
    answered, open_ = part.answers
    assert answered.question == "Which is better?" and answered.command
    assert (open_.verdict, open_.evidence, open_.command) == ("Not measured yet", "And diffusion?", "")


def test_rows_are_chosen_by_settings_and_by_budget(tmp_path: Path) -> None:
    built = three_models(tmp_path)
    ask(
        tmp_path,
        {"question": "?", "first": {"model": "ar-a", "width": 128}, "second": {"model": "ar-b", "budget": "tokens=2M"}},
        {"question": "??", "first": {"model": "ar-a", "width": 64}, "second": {"model": "ar-b"}},
    )
    (part,) = answers.parts(built.sections, questions.read(tmp_path / "results"))
    assert [each.question for each in part.answers if each.command] == ["?"]


def test_a_choice_that_fits_two_rows_is_refused(tmp_path: Path) -> None:
    built = three_models(tmp_path)
    ask(tmp_path, {"question": "?", "first": {"model": "ar-a"}, "second": {"model": "ar-b"}})
    (asked,) = questions.read(tmp_path / "results")
    with pytest.raises(UserError, match=r"fits several rows, such as ar-a and ar-b; add a field"):
        questions.rows(dataclasses.replace(asked, first={"family": "ar"}), built.sections)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "expected a list of questions"),
        ('[{"question": "?"}]', "first"),
        ('[{"question": 1, "first": {"model": "a"}, "second": {"model": "b"}}]', "should be a text"),
        ('[{"question": "?", "first": {"posterior.steps": 3}, "second": {"model": "b"}}]', "should choose a row"),
        ("[", "JSON"),
    ],
)
def test_a_damaged_list_is_a_clear_error(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    three_models(tmp_path)
    (tmp_path / "results" / questions.NAME).write_text(content)
    assert run("build") == 2
    said = capsys.readouterr().err
    assert questions.NAME in said and message in said


def test_a_readme_gets_the_first_answers_and_only_the_texts_that_were_trained_on(tmp_path: Path) -> None:
    texts = ("pydocs", "ptb", "wikitext", "lm1b")
    for n, name in enumerate(("ar-a", "ar-b")):
        for text in texts:
            fingerprint = text.ljust(64)
            result = make_result(name=name, family="ar", nats=3 + n, task_name=f"ltm_{text}", fingerprint=fingerprint)
            write_result(result, tmp_path / "results")
    measured = [question("ar-a", "ar-b", f"No. {n}?") for n in range(7)]
    ask(tmp_path, question("ar-a", "mdlm-tiny", "And diffusion?"), *measured)
    built = board(load(tmp_path / "results"))
    block = markdown_block(built, questions.read(tmp_path / "results"), plots="plots")
    assert re.findall(r"- (No. \d\?|And diffusion\?) ", block) == [f"No. {n}?" for n in range(5)]
    (header,) = re.findall(r"^\| Model .*$", block, re.M)
    assert header.startswith("| Model | Mean rank | pydocs | ") and not {"ptb", "lm1b"} & set(header.split())
    assert all(f" {text} |" in markdown(whole(built), plots="plots") for text in texts)


def test_an_answer_counts_the_verdicts_on_all_texts(tmp_path: Path) -> None:
    # ar-b is behind ar-a by 0.06 on both texts, and behind ar-c on the first only.
    shifts = {"ar-a": (0.0, 0.0), "ar-b": (0.06, 0.06), "ar-c": (0.0, 0.12)}
    for name, behind in shifts.items():
        for text, shift in zip(("pydocs", "ptb"), behind, strict=True):
            result, records = scored(name, shift, task_name=f"ltm_{text}", fingerprint=text.ljust(64))
            write_result(result, tmp_path / "results", records=records)
    ask(tmp_path, question("ar-b", "ar-a"), question("ar-b", "ar-c"))
    (part,) = parts(board(load(tmp_path / "results")).sections, questions.read(tmp_path / "results"))
    same, mixed = (answer.evidence for answer in part.answers)
    assert same.endswith("(1 seed). The same on both texts.")
    assert mixed.endswith("(1 seed). Of 2 texts: better beyond doubt on 1; worse beyond doubt on 1.")
