"""A split of a corpus: documents with exact byte and word counts and a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ltm.data.detokenize import detokenizer as detokenizer_named
from ltm.errors import UserError
from ltm.progress import count


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One split of a corpus. Make one with `Split.of`, which counts and fingerprints.

    Attributes:
        documents: raw text, in order.
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
        rules = f"{detokenizer} {detokenizer_named(detokenizer).version}" if detokenizer else ""
        content = hashlib.sha256(repr(("split 1", rules, edition)).encode())
        total = words = 0
        for document in documents:
            encoded = document.encode()
            content.update(len(encoded).to_bytes(8, "little") + encoded)
            total += len(encoded)
            words += len(document.split())
        if not words:
            raise UserError(f"{corpus}/{split}: no text in {count(len(documents), 'documents')} ({_place(source)})")
        return cls(
            corpus=corpus,
            split=split,
            documents=documents,
            unit=unit,
            bytes=total,
            words=words,
            detokenizer=detokenizer,
            fingerprint=content.hexdigest(),
            source=source,
        )

    def iter_texts(self) -> Iterator[str]:
        """The documents as models see them, detokenised, one at a time."""
        if self.detokenizer is None:
            return iter(self.documents)
        return map(detokenizer_named(self.detokenizer), self.documents)

    def texts(self) -> list[str]:
        """The documents as models see them, detokenised."""
        return list(self.iter_texts())


def _place(source: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in source.items() if key != "kind")


Unit = Literal["line", "document", "sequence"]
