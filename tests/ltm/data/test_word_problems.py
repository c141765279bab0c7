"""The embedded word problems: every answer worked out again from the question, by formulas of the test's own."""

from __future__ import annotations

import re

import pytest

from ltm import tokenizer
from ltm.data import corpora
from ltm.data.word_problem_templates import TEST, TRAIN
from ltm.data.word_problems import GREATEST, SIZES, arithmetic, solve, write
from ltm.errors import UserError

# The answer from the numbers of the question, in the order in which they are read there.
FORMULAS = {
    "gift": lambda a, b: a + b,
    "given away": lambda a, b: a - b,
    "boxes": lambda a, b: a * b,
    "fair shares": lambda a, b: a / b,
    "boxes less some": lambda a, b, c: a * b - c,
    "twice as many": lambda a: 3 * a,
    "half as many": lambda a: a * 1.5,
    "change": lambda a, b, c: c - a * b,
    "wages": lambda a, b, c: a * b * c,
    "saving": lambda a, b, c: (a - b) / c,
    "pages": lambda a, b, c: a - b * c,
    "two kinds": lambda a, b, c, d: a * b + c * d,
    "bus": lambda a, b, c: a - b + c,
    "rows of trees": lambda a, b, c, d: a * b - c + d,
    "three in all": lambda a, b, c: a + b + c,
    "more than": lambda a, b: 2 * a + b,
    "fewer than": lambda a, b: 2 * a - b,
    "packing": lambda a, b, c: (a - b) / c,
    "distance": lambda a, b, c: a * b + c,
    "split bill": lambda a, b, c: (a + b) / c,
    "classes": lambda a, b, c: a * b - c,
    "tickets": lambda a, b, c, d: a * b - c * d,
    "recipe": lambda a, b, c: b - a * c,
    "albums": lambda a, b, c: a * b / c,
    "garden": lambda a, b, c: a + b - c,
    "hens": lambda a, b, c: a * b * c,
    "shelves": lambda a, b, c: a / b - c,
    "train": lambda a, b, c: a * b - c,
    "three times": lambda a: 4 * a,
    "lemonade": lambda a, b, c: a * b - c,
    "team": lambda a, b, c: (a + b) / c,
    "water": lambda a, b, c, d: a - b * c - d,
}


@pytest.mark.parametrize("template", [*TRAIN, *TEST], ids=lambda template: template.name)
def test_answers_follow_from_the_questions(template):
    written = [found for draw in range(400) if (found := write(template, draw))]
    assert len(written) >= 10
    for question, solution in written:
        numbers = [int(number) for number in re.findall(r"\d+", question)]
        steps, _, answer = solution.partition("\n#### ")
        assert FORMULAS[template.name](*numbers) == int(answer) and 0 < int(answer) <= GREATEST
        assert not re.search(r"[{}]", question + solution)
        shown = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", steps)
        assert len(shown) == len(re.findall(r" = ", template.solution)) and shown[-1][-1] == answer
        for a, sign, b, result in shown:
            assert eval(f"{a} {sign} {b}") == int(result)


def test_templates_of_train_and_test_are_disjoint_and_many():
    assert len(TRAIN) >= 20 and {t.name for t in TRAIN} | {t.name for t in TEST} == set(FORMULAS)
    for part in ("question", "solution"):
        assert not {getattr(t, part) for t in TRAIN} & {getattr(t, part) for t in TEST}


def test_splits():
    splits = {name: arithmetic(name) for name in SIZES}
    questions = {name: [document.partition("\n")[0] for document in split.documents] for name, split in splits.items()}
    for name, split in splits.items():
        assert len(split.documents) == SIZES[name] and split.unit == "document"
        assert len(set(questions[name])) == SIZES[name]
    assert len(set().union(*questions.values())) == sum(SIZES.values())
    assert len({split.fingerprint for split in splits.values()}) == 3
    # The same everywhere, or results would not compare; a change of templates needs another EDITION.
    assert splits["test"].fingerprint.startswith("502a99fe45e32e33")
    assert re.fullmatch(r"Question: [^\n]+\?\nAnswer: [^\n]+(\n[^\n]+)*\n#### \d+\n\n", splits["test"].documents[0]), (
        splits["test"].documents[0]
    )
    assert corpora.load("arithmetic", "test").fingerprint == splits["test"].fingerprint


def test_the_tiny_models_own_tokenizer_can_be_trained_on_it():
    assert tokenizer.build("bpe-2048", documents=arithmetic("train").texts()).vocab_size == 2049


def test_answers_are_spread_out():
    answers = [document.rpartition("#### ")[2] for document in arithmetic("test").documents]
    commonest = max(answers.count(answer) for answer in set(answers))
    assert commonest / len(answers) < 0.06


def test_what_does_not_fit():
    assert solve("{x = a - b}", {"a": 3, "b": 3}) is None and solve("{x = a / b}", {"a": 7, "b": 2}) is None
    assert solve("{x = a * b}", {"a": 100, "b": 100}) is None
    assert solve("{x = a * 2} and {y = x + b}", {"a": 3, "b": 4}) == "3 * 2 = 6 and 6 + 4 = 10\n#### 10"
    with pytest.raises(UserError, match=r"unknown split of arithmetic 'tset'; did you mean test\?"):
        arithmetic("tset")
