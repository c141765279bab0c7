"""The embedded corpus `pydocs`: the documentation of Python's topics, which every installation carries."""

from __future__ import annotations

import platform
import re

from ltm.data.split import Split
from ltm.errors import UserError, did_you_mean


def pydocs(split: str) -> Split:
    """The embedded corpus: the prose of Python's own language reference, as the standard library carries it.

    A document is a topic. Every tenth topic in alphabetical order, from the seventh, is for validation: about a
    tenth of the text, and hardly any of it recurs in other topics, unlike with the other nine choices (`class`, for
    one, is all in `compound`). What does recur is removed from train, paragraph by paragraph, so that no validation
    paragraph is trained on. The text differs between versions of Python, and so does the fingerprint.

    Raises:
        UserError: a split other than train and validation, or a Python without the topics.
    """
    if split not in ("train", "validation"):
        raise did_you_mean("split of pydocs", split, ("train", "validation"))
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UserError(
            "this Python lacks pydoc_data.topics, the text of pydocs; install its full standard library"
        ) from error
    ranked = [topics[name] for name in sorted(topics)]
    documents = [text for rank, text in enumerate(ranked) if rank % 10 == 6]
    if split == "train":
        held_out = {" ".join(paragraph.split()) for text in documents for paragraph in _PARAGRAPH.findall(text)}
        kept = [text for rank, text in enumerate(ranked) if rank % 10 != 6]
        documents = [
            _PARAGRAPH.sub(lambda match: "" if " ".join(match[0].split()) in held_out else match[0], text)
            for text in kept
        ]
    version = ".".join(platform.python_version_tuple()[:2])
    return Split.of(
        "pydocs",
        split,
        documents,
        unit="document",
        edition=f"Python {version}",
        source={"kind": "embedded", "package": "pydoc_data.topics", "python": platform.python_version()},
    )


# Lines that are not blank, and the blank lines after them.
_PARAGRAPH = re.compile(r"(?:[^\n]*\S[^\n]*\n?)+(?:[^\S\n]*\n)*")
