"""A split of a corpus: documents with exact byte and word counts and a fingerprint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ltm.data.detokenize import detokenizer as detokenizer_named
from ltm.data.documents import Documents
from ltm.data.tally import Tally, counted
from ltm.errors import UserError
from ltm.progress import count


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


def _place(source: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in source.items() if key != "kind")


Unit = Literal["line", "document", "sequence"]
