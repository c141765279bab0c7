"""A split of a corpus: documents with exact byte and word counts and a fingerprint."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ltm.data.detokenize import detokenizer as detokenizer_named
from ltm.data.documents import Documents
from ltm.data.tally import Tally, counted
from ltm.errors import UserError
from ltm.progress import count

PASSAGE = 4096
"""Characters of a passage of an excerpt."""
_SPACE = re.compile(r"\s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One split of a corpus. Make one with `Split.of`, which counts and fingerprints.

    Attributes:
        documents: raw text, in order: in memory, or `ltm.data.documents.Documents`, which are read for each pass.
        unit: what a document is; lines keep their line end, and sequences are texts of one length with nothing
            between them.
        bytes, words: of the raw text: UTF-8 bytes, and runs of anything but white space within a document.
        detokenizer: name of the detokeniser that `texts` applies; None for none.
        fingerprint: sha256 of content, document boundaries and detokeniser; the same wherever the text came from.
        source: where the text came from, ready for JSON, without absolute paths.
    """

    corpus: str
    split: str
    documents: Sequence[str]
    unit: Unit
    bytes: int
    words: int
    detokenizer: str | None
    fingerprint: str
    source: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        corpus: str,
        split: str,
        documents: Sequence[str],
        *,
        unit: Unit,
        source: Mapping[str, Any],
        detokenizer: str | None = None,
        edition: str = "",
    ) -> Split:
        """Make a split from its documents; `edition` is what else identifies the text, such as a version.

        Raises:
            UserError: there is no text.
        """
        return cls.tallied(
            corpus,
            split,
            documents,
            counted(documents, detokenizer=detokenizer, edition=edition),
            unit=unit,
            detokenizer=detokenizer,
            source=source,
        )

    @classmethod
    def tallied(
        cls,
        corpus: str,
        split: str,
        documents: Sequence[str],
        tally: Tally,
        *,
        unit: Unit,
        source: Mapping[str, Any],
        detokenizer: str | None,
    ) -> Split:
        """Make a split from documents that were counted before.

        Raises:
            UserError: there is no text.
        """
        if not tally.words:
            raise UserError(f"{corpus}/{split}: no text in {count(tally.documents, 'documents')} ({_place(source)})")
        return cls(
            corpus=corpus,
            split=split,
            documents=documents,
            unit=unit,
            bytes=tally.bytes,
            words=tally.words,
            detokenizer=detokenizer,
            fingerprint=tally.fingerprint,
            source=source,
        )

    def iter_texts(self) -> Iterator[str]:
        """The documents as models see them, detokenised, one at a time."""
        if self.detokenizer is None:
            return iter(self.documents)
        return map(detokenizer_named(self.detokenizer), self.documents)

    def texts(self) -> Sequence[str]:
        """The documents as models see them, detokenised; like `documents`, in memory or read anew for each pass."""
        if isinstance(self.documents, Documents):
            known = self.detokenizer
            return self.documents if known is None else self.documents.map(detokenizer_named(known))
        return [*self.iter_texts()]

    def excerpt(self, characters: int) -> Split:
        """Return a smaller text: passages of `PASSAGE` characters, spread evenly, that come to about so many in all.

        It is a text of its own, with its own bytes, words and fingerprint; the same split and number always give the
        same one. Documents of up to `PASSAGE` characters are taken whole or not at all; longer ones are cut after white
        space. A split of no more than `characters` is returned as it is.
        """
        total = sum(map(len, self.documents))
        if total <= characters:
            return self
        count = max(1, min(round(characters / PASSAGE), total // PASSAGE))
        starts = [i * total // count for i in range(count)]
        return Split.of(
            self.corpus,
            self.split,
            [part for part in _passages(self.documents, starts) if part],
            unit=self.unit,
            detokenizer=self.detokenizer,
            source={**self.source, "excerpt": characters},
        )


def _passages(documents: Iterable[str], starts: Sequence[int]) -> Iterator[str]:
    """Yield what begins in the `PASSAGE` characters after each place; places rise, at least that far apart."""
    offset = 0
    for document in documents:
        reached = starts[bisect_right(starts, offset - PASSAGE) : bisect_left(starts, offset + len(document))]
        for start in reached:
            if len(document) > PASSAGE:
                yield document[_cut(document, start - offset) : _cut(document, start - offset + PASSAGE)]
            elif start <= offset:
                yield document
        offset += len(document)


def _cut(document: str, place: int) -> int:
    """The first place after white space at or after `place`; the ends of the document too."""
    if place <= 0:
        return 0
    space = _SPACE.search(document, place - 1)
    return space.end() if space else len(document)


def _place(source: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in source.items() if key != "kind")


Unit = Literal["line", "document", "sequence"]
