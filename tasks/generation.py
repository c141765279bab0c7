"""What the generation tasks do under lm-eval: prompts of whole words, and statistics of the words that come back.

lm-eval hands over text and knows no tokens, so lengths are in words here, and the metrics say so by their names.
lm-eval loads this file by its path, so it imports `ltm` and third-party packages alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ltm.errors import UserError

NAMES = (
    *("word_count", "word_empty", "word_unigram_entropy", "word_repetition", "word_seq_rep_4", "word_self_bleu"),
    *("word_distinct_1", "word_distinct_2", "word_distinct_3", "word_distinct_4"),
)


def load(corpus: str, split: str, words: int, documents: int, data_dir: str | None = None, **_: Any) -> dict[str, Any]:
    """Prompts of so many `words` as a data set; empty prompts for 0. lm-eval passes more along, hence `**_`.

    They are disjoint passages of the split, in an order that is always the same.

    Raises:
        UserError: the split has too few words for so many prompts.
    """
    import datasets
    import numpy as np

    from ltm import corpus as corpora
    from ltm.rng import seed_of

    if not words:
        return {split: datasets.Dataset.from_list([{"prompt": ""}] * documents)}
    text = "".join(corpora.load(corpus, split, data_dir=Path(data_dir) if data_dir else None).iter_texts())
    spans = [found.span() for found in re.finditer(r"\S+", text)]
    count = len(spans) // words
    if count < documents:
        raise UserError(f"{corpus}/{split} has {count} passages of {words} words, {documents} prompts are wanted")
    order = np.random.default_rng(seed_of("prompts", count)).permutation(count)[:documents]
    passages = [text[spans[n * words][0] : spans[n * words + words - 1][1]] for n in order.tolist()]
    return {split: datasets.Dataset.from_list([{"prompt": passage} for passage in passages])}


def prompt(document: dict[str, Any]) -> str:
    """What is continued. A function, since a template could touch white space."""
    return document["prompt"]


def results(document: dict[str, Any], results: list[Any]) -> dict[str, Any]:
    """The words of the answer, for each metric's aggregation in text_statistics.py."""
    (answer,) = results
    return dict.fromkeys(NAMES, answer.split())
