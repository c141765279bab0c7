"""Passages of human text for prompts and comparisons, and the functions of the generation tasks that lm-eval calls.

lm-eval passes text, not tokens. So its prompts are whole words, statistics are over the words that come back, and the
metrics' names say so. It loads this file by its path, so it imports only `ltm` and third-party packages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ltm.data import corpora
from ltm.data.reading import Reading
from ltm.data.tokens.stream import TokenStream
from ltm.errors import UserError
from ltm.progress import count
from ltm.rng import seed_of

NAMES = (
    *("word_count", "word_empty", "word_unigram_entropy", "word_repetition", "word_seq_rep_4", "word_self_bleu"),
    *("word_distinct_1", "word_distinct_2", "word_distinct_3", "word_distinct_4"),
)
"""Metrics under lm-eval."""


def passages(stream: TokenStream | np.ndarray, length: int, most: int | None = None) -> np.ndarray:
    """Cut the stream of a split into disjoint passages, (N, length), in a fixed random order; only the first `most`.

    The order depends only on the number of passages, so the first n are the same in every run. A passage may begin and
    end anywhere, as a block does.
    """
    count = len(stream) // length
    order = np.random.default_rng(seed_of("passages", count)).permutation(count)[:most]
    rows = [stream[i * length : (i + 1) * length] for i in order.tolist()]
    return np.stack(rows).astype(np.int64) if rows else np.empty((0, length), np.int64)


def load(
    corpus: str, split: str, words: int, documents: int, data_dir: str | None = None, **others: Any
) -> dict[str, Any]:
    """Load prompts of `words` words as a data set; they are empty if `words` is 0.

    They are disjoint passages of the split, in a fixed order. lm-eval passes further arguments, hence `**others`; the
    options of `ltm.data.reading` may be among them.

    Raises:
        UserError: the split has too few words for so many prompts.
    """
    import datasets

    if not words:
        return {split: datasets.Dataset.from_list([{"prompt": ""}] * documents)}
    directory = Path(data_dir) if data_dir else None
    text = "".join(corpora.load(corpus, split, data_dir=directory, reading=Reading.among(others)).iter_texts())
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    rows = passages(np.arange(len(spans)), words)
    if len(rows) < documents:
        raise UserError(
            f"{corpus}/{split} has {count(len(rows), 'passages')} of {count(words, 'words')}, "
            f"{documents} prompts are wanted"
        )
    prompts = [text[spans[row[0]][0] : spans[row[-1]][1]] for row in rows[:documents]]
    return {split: datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts])}


def prompt(document: dict[str, Any]) -> str:
    """Return the text to continue. A function, since a template could change white space."""
    return document["prompt"]


def results(document: dict[str, Any], results: list[Any]) -> dict[str, Any]:
    """Return the words of the answer, which text_statistics.py aggregates for each metric."""
    (answer,) = results
    return dict.fromkeys(NAMES, answer.split())
