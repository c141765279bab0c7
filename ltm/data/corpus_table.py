"""The table of known corpora: fields, detokeniser, and place on the hub. To add one, add a row.

A row says nothing about revisions: the commit is resolved when a corpus is loaded and recorded with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ltm.data.split import Unit

SCRIPT = "refs/convert/parquet"
"""The branch on which the hub keeps parquet files of data sets whose main branch is a script or in another format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """Parquet files of a hub data set.

    Attributes:
        repository: its id.
        files: for each split, the pattern of its files. A data set that was published without a validation split
            has the files of its test split under both names, since the published tables evaluate on those; a result
            names the files.
        revision: the branch to resolve; data sets that are a script have their parquet files on a separate branch.
        rows: for splits that are part of their files, the first row and the one after the last, as in a slice.
    """

    repository: str
    files: Mapping[str, str]
    revision: str = "main"
    rows: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)


def _as_is(row: str) -> str:
    return row


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCorpus:
    """The way rows become documents.

    Attributes:
        fields: of a JSON or parquet row; joined by a newline when there are several. JSON rows may have `text` instead.
        as_in_file: restores what the hub stripped from the original file's line, so that a corpus has one fingerprint
            wherever it comes from; leaves whole lines unchanged.
        unit: what a row is; a line of a .txt file is always a line.
        detokenizer: name in `ltm.data.detokenize`, or None for text that is scored as it stands.
        hub: None if the corpus is in local files only.
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


def _whole_line(row: str) -> str:
    return row if row.endswith("\n") else f"{row}\n"


def _scientific_papers(config: str) -> KnownCorpus:
    return KnownCorpus(
        fields=("article",),
        detokenizer="scientific_papers",
        hub=HubSource(
            repository="armanc/scientific_papers",
            files={split: f"{config}/{split}/*.parquet" for split in ("validation", "test")},
            revision=SCRIPT,
        ),
    )


KNOWN: Mapping[str, KnownCorpus] = {
    "ptb": KnownCorpus(
        fields=("sentence",),
        as_in_file=_ptb_line,
        unit="line",
        detokenizer="ptb",
        hub=HubSource(
            repository="ptb-text-only/ptb_text_only",
            files={split: f"penn_treebank/{split}/*.parquet" for split in ("train", "validation", "test")},
            revision=SCRIPT,
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
    "lm1b": KnownCorpus(
        as_in_file=_whole_line,
        unit="line",
        detokenizer="lm1b",
        hub=HubSource(
            repository="billion-word-benchmark/lm1b",
            files={"validation": "plain_text/test/*.parquet", "test": "plain_text/test/*.parquet"},
            revision=SCRIPT,
        ),
    ),
    "lambada": KnownCorpus(
        detokenizer="lambada",
        hub=HubSource(
            repository="EleutherAI/lambada_openai",
            files={"validation": "default/test/*.parquet", "test": "default/test/*.parquet"},
            revision=SCRIPT,
        ),
    ),
    "ag_news": KnownCorpus(
        hub=HubSource(
            repository="fancyzhx/ag_news",
            files={
                "train": "data/train-*.parquet",
                "validation": "data/test-*.parquet",
                "test": "data/test-*.parquet",
            },
        ),
    ),
    "pubmed": _scientific_papers("pubmed"),
    "arxiv": _scientific_papers("arxiv"),
    "openwebtext": KnownCorpus(
        hub=HubSource(
            repository="Skylion007/openwebtext",
            # One split was published. Its last 100,000 documents, all in the last file, are held out by convention.
            files={"train": "plain_text/train-*.parquet", "validation": "plain_text/train-00079-of-00080.parquet"},
            rows={"train": (None, -100_000), "validation": (-100_000, None)},
        ),
    ),
}
