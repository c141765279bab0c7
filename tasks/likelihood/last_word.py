"""Texts cut before their last word, as in LAMBADA (arXiv 1606.06031); lm-eval loads this file by its path.

The word is found by white space, and the space before it is scored with it. Imports `ltm` and third parties alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def cut(text: str) -> tuple[str, str]:
    """Everything before the last word, and that word with a space before it; nothing and the word where it is alone."""
    *before, word = text.rstrip().rsplit(maxsplit=1) or [""]
    return ("", word) if not before else (before[0], f" {word}")


def load(corpus: str, split: str, data_dir: str | None = None, **_: Any) -> dict[str, Any]:
    """One row a document of the split, detokenised, with `context` and `word`; other arguments are the model's."""
    import datasets

    from ltm.data import corpora

    texts = corpora.load(corpus, split, data_dir=Path(data_dir) if data_dir else None).iter_texts()
    rows = [dict(zip(("context", "word"), cut(text), strict=True)) for text in texts]
    return {split: datasets.Dataset.from_list(rows)}


def context(document: dict[str, Any]) -> str:
    """What is given."""
    return document["context"]


def word(document: dict[str, Any]) -> str:
    """What is scored."""
    return document["word"]
