"""Passages of human text to go on from and to compare with, and what the generation tasks do under lm-eval.

lm-eval hands over text and knows no tokens, so there prompts are of whole words and statistics are of the words that
come back, and the metrics say so by their names. It loads this file by its path, so it imports `ltm` and third-party
packages alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ltm.errors import UserError
from ltm.rng import seed_of

NAMES = (
    *("word_count", "word_empty", "word_unigram_entropy", "word_repetition", "word_seq_rep_4", "word_self_bleu"),
    *("word_distinct_1", "word_distinct_2", "word_distinct_3", "word_distinct_4"),
)


def passages(stream: np.ndarray, length: int) -> np.ndarray:
    """The stream of a split cut into disjoint passages, (N, length), in a random order that is always the same.

    The order depends on nothing but the number of passages, so the first n of them are the same n in every run. A
    passage may begin and end anywhere, as a block does.
    """
    count = len(stream) // length
    order = np.random.default_rng(seed_of("passages", count)).permutation(count)
    return stream[: count * length].reshape(count, length)[order]


def load(corpus: str, split: str, words: int, documents: int, data_dir: str | None = None, **_: Any) -> dict[str, Any]:
    """Prompts of so many `words` as a data set; empty prompts for 0. lm-eval passes more along, hence `**_`.

    They are disjoint passages of the split, in an order that is always the same.

    Raises:
        UserError: the split has too few words for so many prompts.
    """
    import datasets

    from ltm.data import corpora

    if not words:
        return {split: datasets.Dataset.from_list([{"prompt": ""}] * documents)}
    text = "".join(corpora.load(corpus, split, data_dir=Path(data_dir) if data_dir else None).iter_texts())
    spans = [found.span() for found in re.finditer(r"\S+", text)]
    found = passages(np.arange(len(spans)), words)
    if len(found) < documents:
        raise UserError(f"{corpus}/{split} has {len(found)} passages of {words} words, {documents} prompts are wanted")
    prompts = [text[spans[own[0]][0] : spans[own[-1]][1]] for own in found[:documents]]
    return {split: datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts])}


def prompt(document: dict[str, Any]) -> str:
    """What is continued. A function, since a template could touch white space."""
    return document["prompt"]


def results(document: dict[str, Any], results: list[Any]) -> dict[str, Any]:
    """The words of the answer, for each metric's aggregation in text_statistics.py."""
    (answer,) = results
    return dict.fromkeys(NAMES, answer.split())
