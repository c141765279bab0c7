"""The generation tasks under lm-eval itself: prompts of words, statistics of words."""

from __future__ import annotations

import pytest
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from ltm.errors import UserError
from ltm.harness import HarnessModel
from tasks import catalog
from tasks.generation import passages
from tasks.generation import text_statistics as counted
from tests.support.harness_models import Bigram, BigramConfig, loaded


def test_prompts_are_disjoint_runs_of_whole_words_and_always_the_same():
    (split,) = passages.load("pydocs", "validation", 7, 20).values()
    prompts = [row["prompt"] for row in split]
    assert len(prompts) == 20 and all(len(prompt.split()) == 7 for prompt in prompts)
    assert prompts == [row["prompt"] for row in passages.load("pydocs", "validation", 7, 20)["validation"]]
    assert all(prompt == prompt.strip() for prompt in prompts)
    assert [row["prompt"] for row in passages.load("none", "x", 0, 3)["x"]] == ["", "", ""]
    with pytest.raises(UserError, match="prompts are wanted"):
        passages.load("pydocs", "validation", 50, 10**6)


@pytest.mark.parametrize("task", ["ltm_continuation", "ltm_generation"])
def test_lm_eval_runs_the_task_and_its_metrics_are_those_of_the_words_that_came_back(task):
    manager = TaskManager(include_path=str(catalog.DIRECTORY), include_defaults=False)
    model = HarnessModel(pretrained=loaded(Bigram(BigramConfig(block=400))))
    found = evaluate(model, manager.load([task]), bootstrap_iters=0, log_samples=True, limit=12)
    words = [sample["filtered_resps"][0].split() for sample in found["samples"][task]]
    assert len(words) == 12
    metrics = {name.removesuffix(",none"): value for name, value in found["results"][task].items()}
    assert set(passages.NAMES) <= set(metrics)
    some = [text for text in words if text]
    assert metrics["word_empty"] == pytest.approx(1 - len(some) / 12)
    assert metrics["word_distinct_2"] == counted.distinct(words, 2).value
    assert metrics["word_self_bleu"] == counted.self_bleu(some).value
    assert metrics["word_count"] == pytest.approx(sum(map(len, words)) / 12)


def test_a_backend_that_says_nothing_gives_numbers_all_the_same():
    silent = [[], []]
    assert [getattr(counted, f"lm_{name.removeprefix('word_')}")(silent) for name in passages.NAMES] == [
        0.0,
        1.0,
        *[0.0] * 8,
    ]
