"""What is known about corpora by name: fields, detokeniser, and where on the hub they are. To add one, add a row.

A row says nothing about revisions: the commit is resolved when a corpus is loaded and recorded with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Unit = Literal["line", "document"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """Parquet files of a hub data set.

    Attributes:
        repository: its id.
        files: for each split, the pattern of its files.
        revision: the branch to resolve; hub data sets made of a script have parquet on their own branch.
    """

    repository: str
    files: Mapping[str, str]
    revision: str = "main"


def _as_is(row: str) -> str:
    return row


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCorpus:
    """How rows become documents.

    Attributes:
        fields: of a JSON or parquet row; joined by a newline when there are several. JSON rows may have `text` instead.
        as_in_file: gives a row back what the hub stripped from the original file's line, so that a corpus has
            one fingerprint wherever it comes from; leaves whole lines as they are.
        unit: what a row is; a line of a .txt file is always a line.
        detokenizer: name in `ltm.detokenize`, or None for text that is scored as it stands.
        hub: None when only local files can give it.
    """

    fields: tuple[str, ...] = ("text",)
    as_in_file: Callable[[str], str] = field(default=_as_is)
    unit: Unit = "document"
    detokenizer: str | None = None
    hub: HubSource | None = None


def _ptb_line(row: str) -> str:
    return row if row.endswith("\n") else f" {row.strip()} \n"


def _wikitext_line(row: str) -> str:
    return row or " \n"


KNOWN: Mapping[str, KnownCorpus] = {
    "ptb": KnownCorpus(
        fields=("sentence",),
        as_in_file=_ptb_line,
        unit="line",
        detokenizer="ptb",
        hub=HubSource(
            repository="ptb-text-only/ptb_text_only",
            files={split: f"penn_treebank/{split}/*.parquet" for split in ("train", "validation", "test")},
            revision="refs/convert/parquet",
        ),
    ),
    "wikitext": KnownCorpus(
        as_in_file=_wikitext_line,
        unit="line",
        detokenizer="wikitext",
        hub=HubSource(
            repository="Salesforce/wikitext",
            files={split: f"wikitext-2-raw-v1/{split}-*.parquet" for split in ("train", "validation", "test")},
        ),
    ),
    "gsm8k": KnownCorpus(
        fields=("question", "answer"),
        hub=HubSource(
            repository="openai/gsm8k", files={split: f"main/{split}-*.parquet" for split in ("train", "test")}
        ),
    ),
    "arxiv": KnownCorpus(fields=("article",)),
    "pubmed": KnownCorpus(fields=("article",)),
}
