"""A text that remembers where its documents end, so that EOS can be put between them when it is tokenised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ltm.errors import UserError
from ltm.tokenizer import Tokenizer


class SeparatedText(str):
    """The documents one after the other; a plain string to code that does not look further.

    Attributes:
        documents: the documents, in order.
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

    A plain text is encoded as a whole. The documents of a `SeparatedText` are encoded one by one, with EOS between
    any two of them, none before the first or after the last, as in training; an empty one keeps its EOS.
    """
    documents_by_text = [text.documents if isinstance(text, SeparatedText) else (text,) for text in texts]
    encoded = iter(tokenizer.encode_batch([document for documents in documents_by_text for document in documents]))
    eos = np.array([tokenizer.eos_id], np.int32)
    joined = []
    for documents in documents_by_text:
        ids = [piece for _ in documents for piece in (eos, next(encoded))][1:]
        joined.append(np.concatenate(ids) if ids else np.empty(0, np.int32))
    return joined


def check_round_trip(tokenizer: Tokenizer, text: str, ids: np.ndarray) -> None:
    """Refuse to score a text that its tokens do not give back, since less would be scored than its bytes and words.

    Raises:
        UserError: says where the tokens first give something else.
    """
    if isinstance(text, SeparatedText):
        ids = ids[ids != tokenizer.eos_id]
    decoded = tokenizer.decode(ids.tolist())
    # SentencePiece puts a space before a text, which loses nothing.
    if decoded in (str(text), f" {text}"):
        return
    at = next((n for n, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b), min(len(text), len(decoded)))
    raise UserError(
        f"the tokenizer {tokenizer.name} does not give the text back: at character {at} expected "
        f"{text[at : at + 20]!r}, found {decoded[at : at + 20]!r}; a perplexity would leave out what it drops"
    )
