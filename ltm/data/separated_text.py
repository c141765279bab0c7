"""A text that remembers where its documents end, so that EOS can be put between them once it is tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ltm.tokenizer import Tokenizer


class SeparatedText(str):
    """The documents one after the other, a plain string to whoever does not look further.

    Attributes:
        documents: what it is made of.
    """

    __slots__ = ("documents",)

    documents: tuple[str, ...]

    def __new__(cls, documents: Iterable[str]) -> SeparatedText:
        documents = tuple(documents)
        self = super().__new__(cls, "".join(documents))
        self.documents = documents
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.documents,)


def streams(texts: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """The token ids of each text, int32.

    A plain text is encoded as a whole. The documents of a `SeparatedText` are encoded each by itself, with EOS between
    any two of them, none before the first or after the last, as in training; an empty one keeps its EOS.
    """
    parts = [text.documents if isinstance(text, SeparatedText) else (text,) for text in texts]
    encoded = iter(tokenizer.encode_batch([part for own in parts for part in own]))
    eos = np.array([tokenizer.eos_id], np.int32)
    found = []
    for own in parts:
        ids = [piece for _ in own for piece in (eos, next(encoded))][1:]
        found.append(np.concatenate(ids) if ids else np.empty(0, np.int32))
    return found
